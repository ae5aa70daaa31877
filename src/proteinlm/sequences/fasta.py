"""FASTA files, streamed: every header gives exactly one item, a record that can be used or a refusal that says why.

In: a path, `-` (standard input) or a binary handle; plain, gzip, zstd, bzip2 or xz, told apart by content. Out:
`Record` and `Refused` in file order, with memory for one record. What is read as what (`tests/test_fasta.py` has each
case):

- A line whose first character after blanks is `>` is a header. Lines end in LF, CRLF or CR, also mixed.
- Lower case is read as upper case; one `*` at the end, gaps (`-`, `.`) and white space are removed. All but the white
  space is noted in `Record.normalised`. Byte order marks are removed wherever they stand: files get concatenated.
- Lines that start with `#` or `;` before the first header are comments. Inside a record they are not: the record is
  refused at that character, because to leave out the line could be to leave out residues.
- Other text before the first header is refused once, as a record without id.
- Where a compressed file ends early or is corrupt, the record that is open is refused and reading ends.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from dnaio import FastaReader

from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import Alphabet, LetterError
from proteinlm.sequences.source import DAMAGE, ESCAPE, STRAY, Source, Tap, opened, safe_stream, unescape

LOWER_CASE, FINAL_STOP, GAPS = "lower case", "final stop", "gaps"
"""What `Record.normalised` can name."""

_HINTS = {
    "*": "a stop codon inside the sequence",
    ">": "is a line break missing before a header?",
    "#": "comment lines are read before the first record only",
    ";": "comment lines are read before the first record only",
}


@dataclass(frozen=True)
class Record:
    """A record that can be used.

    Attributes:
        index: its number among all items of the file, from 0, refused ones included.
        id: the header up to the first white space.
        header: the whole header line without `>`.
        residues: upper-case letters of the alphabet, at least one.
        normalised: what was changed to get there, of `LOWER_CASE`, `FINAL_STOP`, `GAPS`; empty for most records.
    """

    index: int
    id: str
    header: str
    residues: str
    normalised: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A record that cannot be used, and why.

    Attributes:
        index: its number among all items of the file, from 0, refused ones included.
        id: the header up to the first white space; empty where there is none.
        header: the whole header line without `>`.
        reason: one line for the user.
        position: where the offending letter stands in the sequence as written, from 1: gap characters count, line
            breaks and other white space do not. None where no letter is to blame.
        letter: the offending letter, or None.
    """

    index: int
    id: str
    header: str
    reason: str
    position: int | None = None
    letter: str | None = None


@dataclass(frozen=True)
class FastaSummary:
    """What one pass over a FASTA file finds.

    Attributes:
        digest: SHA-256 of the file as stored (compressed, if it is), in hexadecimal.
        records: items in the file, refused ones included.
        refused: records that cannot be used.
        residues: residues of all records that can be used.
        longest: residues of the longest of them; 0 when there is none.
        normalised: how many of them had lower case, a final stop or gaps.
    """

    digest: str
    records: int
    refused: int
    residues: int
    longest: int
    normalised: Mapping[str, int]


def read_fasta(source: Source, alphabet: Alphabet) -> Iterator[Record | Refused]:
    """Read a FASTA file record by record.

    Args:
        source: a path, `-` for standard input, or a handle opened in binary mode (left open); compressed or not.
        alphabet: decides which letters are residues.

    Returns:
        One item per header, in file order, and one in front for text before the first header. Lazy: the file is
        opened when the first item is asked for.

    Raises:
        InputError: the file cannot be opened, is empty, or has no record at all.

    >>> import io
    >>> from proteinlm.sequences.alphabet import ESM1B
    >>> for item in read_fasta(io.BytesIO(b">a first\\nMKT\\nav*\\n>b\\nMK7\\n"), ESM1B):
    ...     print(item.index, item.id, item.residues if isinstance(item, Record) else item.reason)
    0 a MKTAV
    1 b letter '7' at position 3 is not a residue of alphabet ESM-1b; remove or replace it
    """
    with opened(source) as (handle, title):
        yield from _items(Tap(handle, title), alphabet)


def scan_fasta(
    source: Source, alphabet: Alphabet, visit: Callable[[Record | Refused], None] | None = None
) -> FastaSummary:
    """Read a FASTA file once, in constant memory, to count and to identify it.

    Args:
        source: as for `read_fasta`; standard input and handles are read to their end.
        alphabet: decides which letters are residues.
        visit: shown every item as it passes, for what else is to be gathered in the same pass.

    Raises:
        InputError: as `read_fasta`.

    >>> import io
    >>> from proteinlm.sequences.alphabet import ESM1B
    >>> summary = scan_fasta(io.BytesIO(b">a\\nMKT\\n>b\\nMK7\\n"), ESM1B)
    >>> summary.records, summary.refused, summary.residues, summary.digest[:8]
    (2, 1, 3, '158fc41d')
    """
    records = refused = residues = longest = 0
    normalised: Counter[str] = Counter()
    with opened(source) as (handle, title):
        tap = Tap(handle, title, hashlib.sha256())
        for item in _items(tap, alphabet):
            records += 1
            if visit is not None:
                visit(item)
            if isinstance(item, Refused):
                refused += 1
                continue
            residues += len(item.residues)
            longest = max(longest, len(item.residues))
            normalised.update(item.normalised)
        return FastaSummary(tap.digest(), records, refused, residues, longest, dict(normalised))


def clean(sequence: str, alphabet: Alphabet) -> tuple[str, tuple[str, ...]]:
    """Clean a sequence that comes from elsewhere, by the rules for the records of a file.

    Args:
        sequence: as written; line breaks count as white space.
        alphabet: decides which letters are residues.

    Returns:
        The residues, and what was changed to get there, as in `Record.normalised`.

    Raises:
        LetterError: at the first character that is no residue; positions count as in `Refused`.
        InputError: the sequence is empty.

    >>> from proteinlm.sequences.alphabet import ESM1B
    >>> clean("mkt-av*", ESM1B)
    ('MKTAV', ('lower case', 'final stop', 'gaps'))
    """
    written = sequence.encode("utf-8", "surrogatepass").translate(None, b"\r\n")
    return _clean(written, alphabet, alphabet.letters().encode("ascii"))


def _items(tap: Tap, alphabet: Alphabet) -> Iterator[Record | Refused]:
    """The items of an open file."""
    letters = alphabet.letters().encode("ascii")
    for index, entry in enumerate(FastaReader(safe_stream(tap))):
        header, sequence = entry.name, entry.sequence
        clean = sequence and not sequence.encode("ascii").translate(None, letters)
        if clean and ESCAPE not in header and (words := header.split(None, 1)):
            yield Record(index, words[0], header, sequence)
        else:
            yield _examine(index, header, sequence, alphabet, letters)


def _examine(index: int, header: str, sequence: str, alphabet: Alphabet, letters: bytes) -> Record | Refused:
    """The record, normalised, or why it is refused; both texts are still escaped."""
    sequence, sequence_damaged, why = sequence.partition(DAMAGE)
    if not sequence_damaged:
        header, header_damaged, why = header.partition(DAMAGE)
    stray = header.startswith(STRAY)
    header, header_is_utf8 = _decode(unescape(header.removeprefix(STRAY)))
    identifier = (header.split(None, 1) or [""])[0]
    try:
        if stray:
            shown, header, identifier = header, "", ""
            raise InputError(f"text before the first '>' ({shown!r}); remove it or give it a header line")
        if sequence_damaged or header_damaged:
            raise InputError(f"the file is damaged here ({why}); the records before were read, but get the file again")
        if not header_is_utf8:
            raise InputError("the header is not UTF-8 text; convert the file to UTF-8")
        if "\0" in header:
            raise InputError("the header holds a NUL byte; remove it")
        if not identifier:
            raise InputError("the header is empty; give the record an id")
        residues, normalised = _clean(unescape(sequence), alphabet, letters)
    except LetterError as error:
        hint = f" ({_HINTS[error.letter]})" if error.letter in _HINTS else ""
        return Refused(index, identifier, header, str(error) + hint, error.position, error.letter)
    except InputError as error:
        return Refused(index, identifier, header, str(error))
    return Record(index, identifier, header, residues, normalised)


def _clean(sequence: bytes, alphabet: Alphabet, letters: bytes) -> tuple[str, tuple[str, ...]]:
    """Upper-case residues, and what was changed to get there.

    Args:
        sequence: as written, without line breaks.
        alphabet: names the letters that are residues.
        letters: the same letters.

    Raises:
        LetterError: at the first character that is neither a residue, nor a gap, nor the one stop at the end.
        InputError: nothing is left.
    """
    written = sequence.translate(None, b" \t")
    before_gaps = written.rstrip(b"-.")
    stop = before_gaps.endswith(b"*")
    body = before_gaps[:-1] if stop else written
    if strange := body.translate(None, letters + letters.lower() + b"-."):
        at = body.index(strange[:1])
        raise LetterError(_first_character(body[at:]), at + 1, alphabet.name)
    ungapped = body.translate(None, b"-.")
    residues = ungapped.upper()
    if not residues:
        raise InputError("the sequence is empty; remove the record or add its residues")
    changes = {
        LOWER_CASE: residues != ungapped,
        FINAL_STOP: stop,
        GAPS: len(residues) + stop < len(written),
    }
    return residues.decode("ascii"), tuple(change for change, happened in changes.items() if happened)


def _first_character(data: bytes) -> str:
    """The first character of UTF-8 text; the first byte as Latin-1 where the text begins with no UTF-8 character."""
    for size in range(1, 5):
        text, is_utf8 = _decode(data[:size])
        if is_utf8:
            return text
    return chr(data[0])


def _decode(data: bytes) -> tuple[str, bool]:
    """Text of `data`, and whether it is UTF-8; read as Latin-1, one character per byte, where it is not."""
    try:
        return data.decode("utf-8"), True
    except UnicodeDecodeError:
        return data.decode("latin-1"), False
