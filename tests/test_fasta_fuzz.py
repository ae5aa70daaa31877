"""10,000 malformed FASTA files: no crash, no hang, one item for each header, and no good record lost.

Two judges that share nothing with the reader. `naive_items` reads a whole file letter by letter and says what each
header must give. And the generator itself remembers the records that no damage touched: they must come back exactly.
"""

import bz2
import gzip
import io
import lzma
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass
from unittest import mock

from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.errors import InputError
from proteinlm.sequences import source
from proteinlm.sequences.alphabet import STANDARD, Alphabet
from proteinlm.sequences.fasta import Record, read_fasta

TWENTY = Alphabet("twenty", ("<pad>", *STANDARD), pad=0, mask=None)

EXAMPLES = 10_000

COMPRESS = {"gzip": gzip.compress, "zstd": zstd.compress, "bzip2": bz2.compress, "xz": lzma.compress}
DECODER = {
    "gzip": lambda: zlib.decompressobj(31),
    "zstd": zstd.ZstdDecompressor,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}
SIGNATURES = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"\xff\xfe", b"\xfe\xff")

Good = tuple[str, str, str]
"""Id, header and residues."""


@dataclass
class Piece:
    """A record as written; `good` is what must be read, None once it is damaged or if it was never good."""

    data: bytes
    good: Good | None


ENDS = [b"\n", b"\r\n", b"\r", b"\n\n", b" \r\n"]
HEADERS = ["", " a protein", " x>y #2", "|sp/1:2.3", "\té ü", " \x01joined"]
LAYOUTS = ["plain", "wrapped", "lower", "stop", "gaps", "empty", "no header", "letter"]
WORDS = rb"> \n> \n>\x20\n \n>new\n # \n#x\n \n;x\n * - 7 \0 \x1a \x1a! \x1a? \x1a41 \xef \xef\xbb \xef\xbb\xbf \xff"
MORE_WORDS = rb"\r \n \r\n \x20 \t \xc3\xa9 acd MKV \x0b \x85 \x1c \xe2\x80\xa8 \n\n\n"
JUNK = st.binary(min_size=1, max_size=6) | st.sampled_from(
    [word.decode("unicode_escape").encode("latin-1") for word in (WORDS + b" " + MORE_WORDS).split()]
)


def pieces(count: int, choose: random.Random) -> list[Piece]:
    """`count` records, mostly good, with all kinds of layout."""
    made = []
    for number in range(count):
        header, end, layout = f"r{number}" + choose.choice(HEADERS), choose.choice(ENDS), choose.choice(LAYOUTS)
        sequence = "".join(choose.choices(STANDARD, k=choose.randint(1, 40)))
        width = 7 if layout == "wrapped" else len(sequence)
        lines = [sequence[at : at + width] for at in range(0, len(sequence), width)]
        good: Good | None = (f"r{number}" + ("|sp/1:2.3" if "|" in header else ""), header, sequence)
        if layout == "lower":
            lines = [line.lower() for line in lines]
        elif layout == "stop":
            lines.append("*")
        elif layout == "gaps":
            lines = ["-" + " .".join(line) + "." for line in lines]
        elif layout == "empty":
            lines, good = [""], None
        elif layout == "no header":
            header, good = "", None
        elif layout == "letter":
            lines, good = [*lines, "J1"], None
        text = [f">{header}", *lines]
        made.append(Piece(b"".join(line.encode() + end for line in text), good))
    return made


def damage(file: list[Piece], at: int, cut: int, junk: bytes) -> None:
    """Replace `cut` bytes at offset `at` (modulo the length) by `junk`; forget what can no longer be expected."""
    at %= sum(len(piece.data) for piece in file) + 1
    for number, piece in enumerate(file):
        if at < len(piece.data) or number == len(file) - 1:
            break
        at -= len(piece.data)
    piece.data = piece.data[:at] + junk + piece.data[at + cut :]
    piece.good = None
    if at == 0 and number:  # What stands before its '>' belongs to the record before.
        file[number - 1].good = None
    if not piece.data.endswith((b"\n", b"\r")) and number + 1 < len(file):  # The next '>' is not at a line's start.
        file[number + 1].good = None


def truncate(file: list[Piece], keep: int) -> None:
    """Cut the file off after `keep` bytes."""
    for piece in file:
        if keep < len(piece.data):
            piece.data, piece.good = piece.data[:keep], None
        keep = max(0, keep - len(piece.data))


def naive_lines(data: bytes) -> list[bytes]:
    return [line.strip(b" \t") for line in re.split(rb"\r\n|\r|\n", data.replace(b"\xef\xbb\xbf", b""))]


def naive_items(data: bytes) -> list[Good | None]:
    """What each header must give, None for a refusal; one more in front for text before the first header."""
    lines = naive_lines(data)
    starts = [number for number, line in enumerate(lines) if line[:1] == b">"]
    if not starts:
        return []
    before = lines[: starts[0]]
    items: list[Good | None] = [None] if any(line and line[:1] not in (b"#", b";") for line in before) else []
    for start, stop in zip(starts, [*starts[1:], len(lines)], strict=True):
        items.append(naive_record(lines[start][1:], b"".join(lines[start + 1 : stop])))
    return items


def naive_record(header: bytes, sequence: bytes) -> Good | None:
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not text.split() or "\0" in text:
        return None
    residues, stopped = "", False
    for byte in sequence:
        letter = chr(byte)
        if letter in " \t-.":
            continue
        if stopped:
            return None
        if letter == "*":
            stopped = True
        elif byte < 128 and letter.upper() in STANDARD:
            residues += letter.upper()
        else:
            return None
    return (text.split()[0], text, residues) if residues else None


def is_subsequence(few: list[Good], many: list[Good | None]) -> bool:
    left = iter(many)
    return all(any(item == wanted for item in left) for wanted in few)


@dataclass(frozen=True)
class Case:
    """A file as stored, what can be read of it, and whether it breaks off there."""

    pieces: list[Piece]
    stored: bytes
    readable: bytes
    broken: bool
    block: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A damaged file, plain or compressed; compressed ones may break off."""
    file = pieces(draw(st.integers(1, 9)), random.Random(draw(st.integers(0, 1 << 32))))
    blows = st.tuples(st.integers(0, 2000), st.sampled_from([0, 0, 1, 2, 9]), JUNK)
    for at, cut, junk in draw(st.lists(blows, max_size=3)):
        damage(file, at, cut, junk)
    if (keep := draw(st.none() | st.integers(0, 800))) is not None:
        truncate(file, keep)
    written = b"".join(piece.data for piece in file)
    block = draw(st.sampled_from([1, 2, 3, 11, 1 << 17]))
    kind = draw(st.sampled_from(["plain", "plain", *COMPRESS]))
    if kind == "plain":
        return Case(file, written, written, False, block)
    whole = COMPRESS[kind](written)
    stored = whole[: round(len(whole) * draw(st.sampled_from([1.0, 1.0, 0.99, 0.9, 0.7, 0.4])))]
    return Case(file, stored, DECODER[kind]().decompress(stored), len(stored) < len(whole), block)


def judge(case: Case, seen: Counter[str]) -> None:
    """Read one file and compare; `seen` counts what was compared."""
    expected = naive_items(case.readable)
    if case.broken and expected:
        expected[-1] = None
    try:
        with mock.patch.multiple(source, BLOCK_BYTES=case.block, STORED_BYTES=case.block):
            items = list(read_fasta(io.BytesIO(case.stored), TWENTY))
    except InputError:
        assert not expected or case.readable.startswith(SIGNATURES)
        seen["files refused"] += 1
        return
    got = [(item.id, item.header, item.residues) if isinstance(item, Record) else None for item in items]
    assert [item.index for item in items] == list(range(len(items)))
    assert got == expected
    untouched, end = [], 0
    for piece in case.pieces:
        end += len(piece.data)
        # The last record of what can be read of a file that breaks off is refused: it may go on.
        if piece.good and end <= len(case.readable) and not (case.broken and not naive_items(case.readable[end:])):
            untouched.append(piece.good)
    assert is_subsequence(untouched, got)
    seen["files read"] += 1
    seen["files broken off"] += case.broken
    seen["records untouched"] += len(untouched)
    seen["records refused"] += got.count(None)


def test_malformed_files() -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
    @given(cases())
    def check(case: Case) -> None:
        judge(case, seen)

    check()
    print(seen)
    assert seen["files read"] + seen["files refused"] >= EXAMPLES
    assert seen["files read"] >= EXAMPLES * 0.6 and seen["files broken off"] >= EXAMPLES * 0.05
    assert seen["records untouched"] >= EXAMPLES * 0.7 and seen["records refused"] >= EXAMPLES
