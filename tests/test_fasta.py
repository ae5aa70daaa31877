"""Each thing that a FASTA file can hold, and what becomes of it."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from unittest import mock

import pytest
from backports import zstd
from conftest import shared_data

from proteinlm.errors import InputError
from proteinlm.sequences import source
from proteinlm.sequences.alphabet import ESM1B, STANDARD, Alphabet, LetterError
from proteinlm.sequences.fasta import FINAL_STOP, GAPS, LOWER_CASE, Record, Refused, clean, read_fasta, scan_fasta

TWENTY = Alphabet("twenty", ("<pad>", *STANDARD), pad=0, mask=None)

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "bzip2": lambda data: bz2.compress(data, 1),  # Small blocks: nothing can be read of a block that is cut.
    "xz": lzma.compress,
}

DECODER: dict[str, Callable[[], BinaryIO]] = {
    "gzip": lambda: zlib.decompressobj(31),
    "zstd": zstd.ZstdDecompressor,
    "bzip2": bz2.BZ2Decompressor,
    "xz": lzma.LZMADecompressor,
}


def read(data: bytes, alphabet: Alphabet = ESM1B) -> list[Record | Refused]:
    return list(read_fasta(io.BytesIO(data), alphabet))


def only(data: bytes, alphabet: Alphabet = ESM1B) -> Record | Refused:
    items = read(data, alphabet)
    assert len(items) == 1
    return items[0]


def residues(data: bytes) -> list[str | None]:
    """Residues of each record, None for a refused one."""
    return [item.residues if isinstance(item, Record) else None for item in read(data)]


def many(count: int, seed: int = 5) -> tuple[bytes, list[Record]]:
    """A wrapped file of `count` records of 1 to 300 residues, and what must be read."""
    letters = random.Random(seed)
    records = [
        Record(index, f"r{index}", f"r{index} protein", "".join(letters.choices(STANDARD, k=letters.randint(1, 300))))
        for index in range(count)
    ]
    lines = []
    for record in records:
        lines.append(">" + record.header)
        lines += [record.residues[at : at + 60] for at in range(0, len(record.residues), 60)]
    return "\n".join([*lines, ""]).encode(), records


# What makes a record


def test_records_come_in_order_with_index_id_and_header() -> None:
    assert read(b">a first one\nMKT\n>b\nGG7\n>a again\nMKT\n") == [
        Record(0, "a", "a first one", "MKT"),
        Refused(
            1, "b", "b", "letter '7' at position 3 is not a residue of alphabet ESM-1b; remove or replace it", 3, "7"
        ),
        Record(2, "a", "a again", "MKT"),
    ]


def test_wrapped_record_keeps_every_line() -> None:
    """biotrainer's reader keeps the last line alone."""
    data, expected = many(200)
    assert max(len(record.residues) for record in expected) > 240
    assert read(data) == expected


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends(end: str) -> None:
    data, expected = many(50)
    assert read(data.replace(b"\n", end.encode())) == expected


def test_mixed_line_ends_blank_lines_and_no_last_line_end() -> None:
    assert residues(b"\n\r\n>a\r\rMK\n\n TV \r\n\r>b\rAA\n  \nGG") == ["MKTV", "AAGG"]


@pytest.mark.parametrize(
    "header",
    ["sp|P12345|NAME_HUMAN Some protein OS=Homo sapiens", "a/b:c.d", "x=1;y", "a>b >c", "tab\tsplit", "é ü#1", "#"],
)
def test_headers_are_kept_whole(header: str) -> None:
    item = only(f">{header}\nMK\n".encode())
    assert item == Record(0, header.split()[0], header, "MK")


def test_blanks_around_the_header_are_not_part_of_the_id() -> None:
    item = only(b"  > a b  \nMK\n")
    assert isinstance(item, Record) and (item.id, item.header.strip()) == ("a", "a b")


def test_duplicate_ids_and_sequences_are_all_kept() -> None:
    items = read(b">a\nMK\n" * 3)
    assert [(item.index, item.id) for item in items] == [(0, "a"), (1, "a"), (2, "a")]


def test_titin_sized_record_on_one_line_and_wrapped() -> None:
    long = "".join(random.Random(1).choices(STANDARD, k=35_213))
    wrapped = "\n".join(long[at : at + 60] for at in range(0, len(long), 60))
    assert residues(f">titin\n{wrapped}\n>titin\n{long}\n".encode()) == [long, long]


def test_byte_order_marks() -> None:
    mark = b"\xef\xbb\xbf"
    assert residues(mark + b">a\nMK\n" + mark + b">b\nAV\n" + mark) == ["MK", "AV"]


# What is changed in a sequence, and said


@pytest.mark.parametrize(
    ("sequence", "expected", "normalised"),
    [
        ("MKTAV", "MKTAV", ()),
        ("MKtaV", "MKTAV", (LOWER_CASE,)),
        ("MKTAV*", "MKTAV", (FINAL_STOP,)),
        ("MK-TA..V", "MKTAV", (GAPS,)),
        ("-mkt-av*--", "MKTAV", (LOWER_CASE, FINAL_STOP, GAPS)),
        ("  MKT AV\t", "MKTAV", ()),
        ("MK\nTAV\n*", "MKTAV", (FINAL_STOP,)),
        ("XBUZOJ", "XBUZOJ", ()),
    ],
)
def test_what_is_normalised_is_said(sequence: str, expected: str, normalised: tuple[str, ...]) -> None:
    assert only(f">a\n{sequence}\n".encode()) == Record(0, "a", "a", expected, normalised)


def test_clean_is_for_strings_what_reading_is_for_files() -> None:
    kept = 0
    for written in ("MKTAV", "MK\ntav*", "-M K.\r\n", "", "*", "MK7", "M*K", "MKé", "MKſ", "M\0K", "M#K", "Mk\tv"):
        item = only(f">a\n{written}".encode())
        if isinstance(item, Record):
            assert clean(written, ESM1B) == (item.residues, item.normalised)
            kept += 1
            continue
        with pytest.raises(InputError) as caught:
            clean(written, ESM1B)
        assert item.reason.startswith(str(caught.value))
        if isinstance(caught.value, LetterError):
            assert (caught.value.position, caught.value.letter) == (item.position, item.letter)
    assert kept == 4
    with pytest.raises(LetterError, match="position 3"):
        clean("MK\udc80", ESM1B)


# What is refused


@pytest.mark.parametrize(
    ("sequence", "position", "letter"),
    [
        (b"MK1V", 3, "1"),
        (b"MK*V", 3, "*"),
        (b"MKV**", 4, "*"),
        (b"*MKV", 1, "*"),
        (b"MK\nAV\nG\xc3\xa9", 6, "é"),
        (b"MK\xe9V", 3, "é"),
        (b"MK\xc3\xa9V\xff", 3, "é"),
        (b"M-K-?", 5, "?"),
        (b"M K\tV 1 GG", 4, "1"),
        (b"MK>V", 3, ">"),
        (b"MK\x00V", 3, "\0"),
        (b"MK\x1aV", 3, "\x1a"),
        (b"MK\x1a41V", 3, "\x1a"),
        (b"MK\x0bV", 3, "\x0b"),
        (b"MK\n#AV", 3, "#"),
        (b"MK\n;AV", 3, ";"),
        (b"MK\xc5\xbf", 3, "ſ"),
        (b"MK\xc3\x9f", 3, "ß"),
        ("MKＡ".encode(), 3, "Ａ"),
        ("MK🧬".encode(), 3, "🧬"),
    ],
)
def test_other_letters_are_refused_at_their_position(sequence: bytes, position: int, letter: str) -> None:
    """`ſ`, `ß` and full-width letters turn into residues when upper-cased: they must be caught before."""
    before, item, after = read(b">x\nGG\n>a b\n" + sequence + b"\n>y\nAA\n")
    assert isinstance(item, Refused)
    assert (item.index, item.id, item.header, item.position, item.letter) == (1, "a", "a b", position, letter)
    assert f"position {position}" in item.reason and repr(letter) in item.reason and "\n" not in item.reason
    assert isinstance(before, Record) and before.residues == "GG"
    assert isinstance(after, Record) and after.residues == "AA"


def test_the_alphabet_decides() -> None:
    for alphabet in (ESM1B, TWENTY):
        taken = set(alphabet.letters())
        for letter in map(chr, range(33, 127)):
            item = only(f">a\nM{letter}M\n".encode(), alphabet)
            if letter.upper() in taken or letter in "-.":
                assert isinstance(item, Record)
            else:
                assert isinstance(item, Refused) and (item.letter, item.position) == (letter, 2)
    assert isinstance(only(b">a\nMXM\n", TWENTY), Refused)


@pytest.mark.parametrize("sequence", ["", "\n\n", "*", "--..", "-*-", "   "])
def test_empty_sequences_are_refused(sequence: str) -> None:
    first, item, last = read(f">a\nMK\n>b\n{sequence}\n>c\nMK".encode())
    assert isinstance(item, Refused) and "empty" in item.reason and item.id == "b" and item.position is None
    assert isinstance(first, Record) and isinstance(last, Record)


@pytest.mark.parametrize(
    ("header", "reason"),
    [(b"", "empty"), (b"   ", "empty"), (b"a\xff b", "UTF-8"), (b"a\x00b", "NUL")],
)
def test_unusable_headers_are_refused(header: bytes, reason: str) -> None:
    first, item, last = read(b">a\nMK\n>" + header + b"\nMK\n>c\nMK")
    assert isinstance(item, Refused) and reason in item.reason and (item.index, item.position) == (1, None)
    assert isinstance(first, Record) and isinstance(last, Record)


def test_text_before_the_first_header_is_refused_once() -> None:
    stray, item = read(b"\n# comment\nMKTAV\nGGG\n>a\nMK\n")
    assert isinstance(stray, Refused)
    assert (stray.index, stray.id, stray.header) == (0, "", "") and "'MKTAV'" in stray.reason
    assert item == Record(1, "a", "a", "MK")


def test_comments_before_the_first_header_are_passed_over() -> None:
    assert read(b"#5\t1\n; written by x\n\n  # >b\n>a\nMK\n") == [Record(0, "a", "a", "MK")]


def test_no_line_of_a_record_is_passed_over() -> None:
    """dnaio by itself leaves out lines that start with '#': residues would go with them."""
    items = read(b">a\nMKT\n#AVG\nLLL\n>b\nMK\n")
    assert [type(item) for item in items] == [Refused, Record]
    assert isinstance(items[0], Refused) and items[0].position == 4 and "comment" in items[0].reason


def test_a_missing_line_break_does_not_swallow_a_record_in_silence() -> None:
    item, last = read(b">a\nMKT>b\nGGG\n>c\nMK\n")
    assert isinstance(item, Refused) and item.letter == ">" and "line break" in item.reason
    assert isinstance(last, Record) and last.id == "c"


# Where the bytes come from


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("name", ["x.fasta", "x.gz", "x.zst", "x.xz", "x.bz2", "no_suffix", "-x"])
def test_compression_is_told_by_content(tmp_path: Path, kind: str, name: str) -> None:
    data, expected = many(40)
    path = tmp_path / name
    path.write_bytes(COMPRESS[kind](data))
    assert list(read_fasta(path, ESM1B)) == list(read_fasta(str(path), ESM1B)) == expected


@pytest.mark.parametrize("kind", ["gzip", "zstd", "bzip2", "xz"])
def test_concatenated_compressed_files(kind: str) -> None:
    data, expected = many(40)
    half = len(data) // 2
    joined = COMPRESS[kind](data[:half]) + COMPRESS[kind](data[half:])
    assert read(joined) == expected


@pytest.mark.parametrize("kind", COMPRESS)
def test_standard_input(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    data, expected = many(40)
    stdin = io.TextIOWrapper(io.BytesIO(COMPRESS[kind](data)), "ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    assert list(read_fasta("-", ESM1B)) == expected
    assert not stdin.closed


class Drip(io.RawIOBase):
    """A pipe that gives a few bytes at a time, and may break."""

    def __init__(self, data: bytes, breaks: bool = False) -> None:
        self._data = io.BytesIO(data)
        self._breaks = breaks

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._data.read(min(size, 3))
        if not data and self._breaks:
            raise OSError(5, "Input/output error")
        return data


@pytest.mark.parametrize("kind", COMPRESS)
def test_a_dripping_handle_is_read_whole_and_left_open(kind: str) -> None:
    data, expected = many(20)
    handle = Drip(COMPRESS[kind](data))
    assert list(read_fasta(handle, ESM1B)) == expected
    assert not handle.closed


@pytest.mark.parametrize("end", [b"\xef", b"\xef\xbb", b"\xef\xbb\xbf\xef"])
def test_half_a_byte_order_mark_at_the_end_is_a_letter(end: bytes) -> None:
    item = only(b">a\nMK" + end)
    assert isinstance(item, Refused) and (item.letter, item.position) == ("ï", 3)


def test_blocks_do_not_show() -> None:
    mark = b"\xef\xbb\xbf"
    data = (
        mark
        + b"; note\r\n"
        + b"stray text that is longer than what is shown of it in the reason"
        + b"\r\n \t>a #1 \xc3\xa9\r"
        b"MK\r\nTV*\r\n" + mark + b">b\n\xff\xef\xbb\n>c\xef\n#MK\n>d\n" + b"MKTAV\n" * 30 + b">e\nMK" + mark
    )
    expected = read(data)
    assert [type(item) for item in expected] == [Refused, Record, Refused, Refused, Record, Record]
    for size in (1, 2, 3, 5, 7, 64):
        with mock.patch.multiple(source, BLOCK_BYTES=size, STORED_BYTES=size):
            assert all(read(compress(data)) == expected for compress in COMPRESS.values())


def test_reading_is_lazy(tmp_path: Path) -> None:
    items = read_fasta(tmp_path / "missing", ESM1B)
    with pytest.raises(InputError):
        next(items)
    data, expected = many(10_000)
    handle = io.BytesIO(data)
    assert next(iter(read_fasta(handle, ESM1B))) == expected[0]
    assert handle.tell() < len(data) / 2


def test_the_locale_does_not_matter() -> None:
    """dnaio decodes with the locale's encoding."""
    program = (
        "import io; from proteinlm.sequences.alphabet import ESM1B; from proteinlm.sequences.fasta import read_fasta;"
        "print(ascii([(r.id, r.residues) for r in read_fasta(io.BytesIO(b'>\\xc3\\xa9\\nMK\\n'), ESM1B)]))"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    environment["PYTHONPATH"] = str(Path(source.__file__).parents[2])
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == r"[('\xe9', 'MK')]"


# Files that are damaged, or no FASTA files


@pytest.mark.parametrize("kind", DECODER)
def test_a_compressed_file_that_ends_early(kind: str) -> None:
    """Every record before the damage is kept, the open one is refused: at each of 60 places where the file may end."""
    data, expected = many(2_000)
    whole = COMPRESS[kind](data)
    cuts = [*random.Random(3).sample(range(8, len(whole)), 58), 8, len(whole) - 1]
    kept = nothing = 0
    for cut in cuts:
        readable = DECODER[kind]().decompress(whole[:cut])
        headers = readable.count(b">")
        if not headers:
            with pytest.raises(InputError, match="damaged before its first record"):
                read(whole[:cut])
            nothing += 1
            continue
        items = read(whole[:cut])
        assert len(items) == headers
        assert items[:-1] == expected[: headers - 1]
        assert isinstance(items[-1], Refused) and "damaged" in items[-1].reason
        assert items[-1].header in expected[headers - 1].header
        kept += headers - 1
    assert kept > 10_000 and 1 <= nothing <= 40


@pytest.mark.parametrize("kind", DECODER)
def test_a_corrupt_compressed_file_is_never_taken_for_a_whole_one(kind: str) -> None:
    data, expected = many(300)
    whole = COMPRESS[kind](data)
    if kind == "zstd":  # The command `zstd` writes a checksum, the library does not unless asked to.
        whole = zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    noise = random.Random(4)
    told = 0
    for _ in range(60):
        corrupt = bytearray(whole)
        corrupt[noise.randrange(12, len(whole))] ^= 1 << noise.randrange(8)
        try:
            items = read(bytes(corrupt))
        except InputError:
            told += 1
            continue
        told += items != expected and any(isinstance(item, Refused) for item in items)
    assert told == 60


def test_a_break_while_reading_is_told() -> None:
    data, expected = many(20)
    items = list(read_fasta(Drip(data, breaks=True), ESM1B))
    assert items[:-1] == expected[:-1]
    assert isinstance(items[-1], Refused) and "Input/output error" in items[-1].reason
    for handle in (Drip(data, breaks=True), Drip(b"", breaks=True)):
        with pytest.raises(InputError, match=r"cannot read the FASTA input.*Input/output error"):
            scan_fasta(handle, ESM1B)


def test_text_behind_the_compressed_part_is_told() -> None:
    data, expected = many(20)
    items = read(gzip.compress(data) + b">more\nMK\n")
    assert items[:-1] == expected[:-1] and isinstance(items[-1], Refused) and "damaged" in items[-1].reason


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "holds no records"),
        (b"# only\n; comments\n", "holds no records"),
        (b"MKTAV\nGGG\n", "'MKTAV'"),
        (b"\xef\xbb\xbf", "holds no records"),
        (b"@read1\nACGT\n+\nIIII\n", "'@read1'"),
        (gzip.compress(b""), "holds no records"),
        (b"\x1f\x8b", "damaged before its first record"),
        (gzip.compress(b"M" * 100)[:-1], "damaged before its first record"),
        (b"\x28\xb5\x2f\xfd\x00junk", "damaged before its first record"),
        (b"BZh9junk", "damaged before its first record"),
        (">a\nMK\n".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04junk", "zip archive"),
        (b"\0" * 300_000, "holds no records"),
        (b"M" * 300_000, "holds no records"),
        (b" " * 300_000, "holds no records"),
    ],
)
def test_files_without_records(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(data)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=message):
        scan_fasta(io.BytesIO(data), ESM1B)


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "missing.fasta", tmp_path, tmp_path / "loop", str(tmp_path / "nul\0byte")):
        for use in (lambda path: next(read_fasta(path, ESM1B)), lambda path: scan_fasta(path, ESM1B)):
            with pytest.raises(InputError, match="cannot open") as caught:
                use(path)
            assert repr(str(path)) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="this user may read every file")
def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "x.fasta"
    path.write_bytes(b">a\nMK\n")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        next(read_fasta(path, ESM1B))


def test_text_handles_are_told_apart() -> None:
    with pytest.raises(InputError, match="binary mode"):
        next(read_fasta(io.StringIO(">a\nMK\n"), ESM1B))


# One pass for the plan


@pytest.mark.parametrize("kind", COMPRESS)
def test_scan(tmp_path: Path, kind: str) -> None:
    data, expected = many(500)
    stored = COMPRESS[kind](data + b">bad\nMK7\n>soft\nmk-*\n")
    path = tmp_path / "x"
    path.write_bytes(stored)
    summary = scan_fasta(path, ESM1B)
    assert summary.digest == hashlib.sha256(stored).hexdigest()
    assert (summary.records, summary.refused) == (502, 1)
    assert summary.residues == sum(len(record.residues) for record in expected) + 2
    assert summary.longest == max(len(record.residues) for record in expected)
    assert summary.normalised == {LOWER_CASE: 1, FINAL_STOP: 1, GAPS: 1}
    visited: list[Record | Refused] = []
    assert scan_fasta(io.BytesIO(stored), ESM1B, visited.append) == summary
    assert visited == list(read_fasta(path, ESM1B)) and len(visited) == 502


def test_scan_hashes_what_lies_behind_the_damage() -> None:
    stored = gzip.compress(b">a\nMK\n") + b"junk" * 100_000
    summary = scan_fasta(io.BytesIO(stored), ESM1B)
    assert summary.digest == hashlib.sha256(stored).hexdigest()
    assert (summary.records, summary.refused, summary.longest) == (1, 1, 0)


def test_memory_is_constant() -> None:
    """20 times as many records take no more memory: 200 kB and 4 MB of FASTA both within 3 MB, buffers included."""

    class Endless(io.RawIOBase):
        def __init__(self, records: int) -> None:
            self._left = records

        def read(self, size: int = -1) -> bytes:
            now = min(self._left, 200)
            self._left -= now
            return b">id of a protein\nMKTAVLLGGSPRWYMKTAVLLGGSPRWY\n"[:size] * min(now, size // 50)

    peaks = []
    for records in (4_000, 80_000):
        tracemalloc.start()
        summary = scan_fasta(Endless(records), ESM1B)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert summary.refused == 0 and summary.records > records / 2
    assert max(peaks) < 3_000_000 and peaks[1] < peaks[0] * 1.2


def test_published_sequences_are_all_read() -> None:
    """All 670 Swiss-Prot proteins; the letters are counted in the bytes of the file, not by a FASTA reader."""
    path = shared_data("pretrain", "valid_public.fasta.gz")
    lines = gzip.decompress(path.read_bytes()).splitlines()
    summary = scan_fasta(path, ESM1B)
    assert (summary.records, summary.refused, summary.normalised) == (670, 0, {})
    assert summary.residues == sum(len(line) for line in lines if not line.startswith(b">"))
    records = [item for item in read_fasta(path, TWENTY) if isinstance(item, Record)]
    assert [">" + record.header for record in records] == [line.decode() for line in lines if line.startswith(b">")]
