"""The bytes behind a FASTA file: opened, decompressed, hashed, and made safe for `dnaio`'s line reader.

In: a path, `-` or a binary handle. Out: a binary stream that starts at the first header and holds ASCII only. By
itself `dnaio` skips lines that start with `#`, and stops for good at text before the first `>`, at a byte that is not
ASCII and at an error of the decompressor. So each unsafe byte travels as SUB and two hexadecimal digits (`unescape`
restores it), and what else there is to say travels as one of two marks, SUB and a character that is no digit.
"""

import bz2
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from proteinlm.errors import InputError

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

if TYPE_CHECKING:
    import hashlib

    from _typeshed import WriteableBuffer

Source = str | Path | BinaryIO
"""A path, `-` for standard input, or a handle opened in binary mode."""

BLOCK_BYTES = 1 << 17
"""Bytes of text read at a time."""

STORED_BYTES = 1 << 12
"""Compressed bytes read at a time: few, because what they give is held at once, and lost if they are corrupt."""

ESCAPE = "\x1a"
"""Stands in front of everything that is not the user's own ASCII."""

DAMAGE = ESCAPE + "!"
"""Stands where the stream broke, before the decompressor's message."""

STRAY = ESCAPE + "?"
"""Begins the header of a made-up record, which says what text stands before the first header."""

DAMAGE_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, ZstdError)

# Printable ASCII without '#', tab and line ends go through as they are.
_SAFE = bytes({9, 10, 13, *range(32, 127)} - {ord("#")})
_UNSAFE_RUN = re.compile(b"[^" + re.escape(_SAFE) + b"]+")
_ESCAPED_RUN = re.compile("(?:\x1a[0-9a-f]{2})+")

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_HEADER = re.compile(rb"(?:\A|(?<=[\r\n]))[ \t]*>")
_COMMENT = (b"\x1a23", b";")
_SHOWN = 40


class _Decoder(Protocol):
    """What the decompressors of Python's own libraries have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_LARGEST_WINDOW: dict[int, int] = {
    DecompressionParameter.window_log_max: DecompressionParameter.window_log_max.bounds()[1]
}
_DECODERS: dict[bytes, Callable[[], _Decoder]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lzma.LZMADecompressor,
    b"\x28\xb5\x2f\xfd": lambda: ZstdDecompressor(options=_LARGEST_WINDOW),
}


@contextmanager
def opened(source: Source) -> Iterator[tuple[BinaryIO, str]]:
    """A binary handle on `source` and what to call it in messages; closed at the end if it was opened here.

    Raises:
        InputError: the file cannot be opened, or the handle is a text handle.
    """
    if isinstance(source, io.TextIOBase):
        raise InputError("the FASTA handle is opened as text; open it in binary mode ('rb')")
    if not isinstance(source, str | os.PathLike):
        yield source, "the FASTA input"
    elif str(source) == "-":
        yield sys.stdin.buffer, "standard input"
    else:
        try:
            handle = open(source, "rb")  # noqa: SIM115 - only the failure to open is the user's, not what follows
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"cannot open {str(source)!r}: {why}; give the path of a readable FASTA file") from error
        with handle:
            yield handle, repr(str(source))


class Tap(io.RawIOBase):
    """A handle as a raw stream, hashed on the way if asked to.

    Args:
        handle: where the bytes come from.
        title: what to call it in messages.
        hasher: takes every byte.
    """

    def __init__(self, handle: BinaryIO, title: str, hasher: "hashlib._Hash | None" = None) -> None:
        self.title = title
        self._handle = handle
        self._hasher = hasher
        self._failure: OSError | None = None

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill the buffer, unless the file ends: the first bytes tell the compression, and a pipe may drip.

        Raises:
            OSError: reading failed; what was read up to there has been given out before.
        """
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (data := self._next(len(view) - filled)):
            view[filled : filled + len(data)] = data
            filled += len(data)
        if self._failure and not filled:
            raise self._failure
        return filled

    def digest(self) -> str:
        """Hexadecimal digest of the whole file; what has not been read is read now.

        Raises:
            InputError: the file cannot be read to its end.
        """
        assert self._hasher, "a digest needs a hasher"
        while self._next(BLOCK_BYTES):
            pass
        if self._failure:
            raise InputError(f"cannot read {self.title} to its end: {self._failure}; copy it to another disk")
        return self._hasher.hexdigest()

    def _next(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end and from a failure on."""
        try:
            data = b"" if self._failure else self._handle.read(size)
        except OSError as error:
            self._failure = error
            return b""
        if self._hasher:
            self._hasher.update(data)
        return data


def safe_stream(tap: Tap) -> io.BufferedReader:
    """The decompressed, escaped file from its first header on.

    Args:
        tap: the file as stored.

    Raises:
        InputError: the file is empty, or no kind of text; while reading: it has no header.

    >>> safe_stream(Tap(io.BytesIO(b"stray\\n>a #1\\nMK\\xe9"), "it")).read()
    b'>\\x1a?stray\\n>a \\x1a231\\nMK\\x1ae9'
    """
    blocks = _from_first_header(_escaped_blocks(decompressed(tap)), tap.title)
    return io.BufferedReader(_BlockStream(blocks), BLOCK_BYTES)


def unescape(text: str) -> bytes:
    """The bytes that the file holds where `text` was read.

    >>> unescape("a \\x1a231")
    b'a #1'
    """
    if ESCAPE not in text:
        return text.encode("ascii")
    restored = _ESCAPED_RUN.sub(lambda run: bytes.fromhex(run[0].replace(ESCAPE, "")).decode("latin-1"), text)
    return restored.encode("latin-1")


def decompressed(tap: Tap) -> Iterator[bytes]:
    """The bytes of the file, decompressed according to what it begins with."""
    stored = io.BufferedReader(tap)
    try:
        start = stored.peek(6)
    except OSError as error:
        raise InputError(f"cannot read {tap.title}: {error}; give a readable FASTA file") from error
    if not start:
        raise InputError(f"{tap.title} is empty; give a FASTA file with at least one record")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) and b"\0" in start[2:4]:
        raise InputError(f"{tap.title} is UTF-16 text; save it as UTF-8")
    if start.startswith(b"PK\x03\x04"):
        raise InputError(f"{tap.title} is a zip archive; unpack it, or compress the FASTA file with gzip or zstd")
    for signature, decoder in _DECODERS.items():
        if start.startswith(signature):
            return _decoded(stored, decoder)
    return iter(lambda: stored.read1(BLOCK_BYTES), b"")


def _decoded(stored: "io.BufferedReader[Tap]", new_decoder: Callable[[], _Decoder]) -> Iterator[bytes]:
    """Everything that can be decoded, member by member, up to the byte where the file ends.

    File objects around these decoders do less. Where a file ends early, `zstandard`'s and pipes to external programs
    end without an error; `isal`, `BZ2File` and `xopen`'s buffers drop what they have decoded and not yet given out.

    Raises:
        EOFError: the file ends within a member; other errors of the decoders: it is corrupt.
    """
    decoder = new_decoder()
    while data := stored.read1(STORED_BYTES):
        while data:
            if decoder.eof:
                data = data.lstrip(b"\0")  # gzip and xz allow padding.
                if not data:
                    break
                decoder = new_decoder()
            yield decoder.decompress(data)
            data = decoder.unused_data
    if not decoder.eof:
        raise EOFError("the compressed data end early")


def _escaped_blocks(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """The blocks without byte order marks and with unsafe bytes escaped; the damage mark and why where it breaks."""
    held = b""
    try:
        for block in blocks:
            block = (held + block).replace(_BYTE_ORDER_MARK, b"")
            # The start of a byte order mark may be the end of a block.
            keep = next((size for size in (2, 1) if block.endswith(_BYTE_ORDER_MARK[:size])), 0)
            held = block[len(block) - keep :]
            yield _escape(block[: len(block) - keep])
        yield _escape(held)
    except DAMAGE_ERRORS as error:
        yield _escape(held)
        yield DAMAGE.encode("ascii") + _escape(str(error).encode())


def _from_first_header(blocks: Iterator[bytes], title: str) -> Iterator[bytes]:
    """The blocks from the first header on; a made-up header in front if other text comes before it."""
    held, stray = b"", b""
    for block in blocks:
        if block.startswith(DAMAGE.encode("ascii")):
            why = unescape(block.decode("ascii").removeprefix(DAMAGE)).decode("utf-8")
            raise InputError(f"{title} is damaged before its first record ({why}); get the file again")
        held += block
        header = _HEADER.search(held)
        lines = held[: header.start() if header else None].splitlines(keepends=True)
        unfinished = b"" if header or not lines or lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        stray = stray or _first_text(lines)
        if header:
            if stray:
                yield b">" + STRAY.encode("ascii") + stray + b"\n"
            yield held[header.start() :]
            yield from blocks
            return
        # What a line is shows in its first characters; the rest of an endless one need not be kept.
        held = unfinished[:_SHOWN] if unfinished.strip(b" \t") else unfinished[:1]
    found = unescape((stray or _first_text([held])).decode("ascii")).decode("utf-8", "replace")
    begin = f", and the first is {found!r}" if found else ""
    raise InputError(f"{title} holds no records: no line starts with '>'{begin}; give a FASTA file")


def _first_text(lines: Iterable[bytes]) -> bytes:
    """The start of the first line that is neither blank nor a comment; empty if there is none."""
    texts = (line.strip() for line in lines)
    return next((text[:_SHOWN] for text in texts if text and not text.startswith(_COMMENT)), b"")


def _escape(block: bytes) -> bytes:
    """Replace every unsafe byte by SUB and its hexadecimal digits."""
    if not block.translate(None, _SAFE):
        return block
    return _UNSAFE_RUN.sub(lambda run: (ESCAPE + run[0].hex(ESCAPE)).encode("ascii"), block)


class _BlockStream(io.RawIOBase):
    """An iterator of byte blocks as a raw stream."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._rest = block
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count
