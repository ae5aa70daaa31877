"""Vocabularies beside weights: `vocab.txt`, and SentencePiece's `spiece.model`, read and written without its library.

In: a file. Out: its pieces in the order of their ids, and where each token of an alphabet stands among them, so that
the rows of an embedding can be put into the alphabet's order whatever the order of the file. `spiece.model` is a
protocol buffer of which three fields matter: text, score and kind of each piece. It is read by its bytes alone; nothing
in it is run, and lengths that lead outside the file are refused.

Source: SentencePiece, `sentencepiece_model.proto`; protocol buffers, "Encoding".
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from proteinlm.checkpoints.files import read_json
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import STANDARD, Alphabet

WORD_START = "▁"
"""What SentencePiece writes for a space (U+2581). The publishers put one before every residue."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
"""Kinds of pieces (`SentencePiece.Type`)."""

LARGEST_FILE = 16 * 2**20
"""Vocabularies of natural languages take 1 MB; those of proteins 240 kB, nearly all of it a table of characters."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
"""Fields of `ModelProto`."""


@dataclass(frozen=True)
class Piece:
    """An entry of a SentencePiece vocabulary: its text, its score, and what kind it is."""

    text: str
    score: float = 0.0
    kind: int = NORMAL


def read_sentencepiece(path: Path) -> tuple[Piece, ...]:
    """The pieces of a `spiece.model`, in the order of their ids.

    Raises:
        InputError: the file cannot be read, or is not a SentencePiece model.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > LARGEST_FILE:
        raise InputError(f"{path} has {len(data)} bytes; a vocabulary of proteins has fewer than {LARGEST_FILE}")
    try:
        pieces = tuple(_piece(value) for field, value in _fields(data) if field == _PIECES and isinstance(value, bytes))
    except (ValueError, struct.error) as error:
        raise InputError(f"{path} is not a SentencePiece model, or damaged ({error}); get it again") from error
    if not pieces:
        raise InputError(f"{path} is not a SentencePiece model: there is no piece in it; get it again")
    return pieces


def _piece(data: bytes) -> Piece:
    text, score, kind = None, 0.0, NORMAL
    for field, value in _fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            kind = value
    if text is None:
        raise ValueError("a piece has no text")
    return Piece(text, score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a message, each with its number: an integer, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            number, at = _varint(data, at)
            yield field, number
            continue
        size = {_FIXED64: 8, _FIXED32: 4}.get(kind)
        if kind == _BYTES:
            size, at = _varint(data, at)
        if size is None or field == 0:
            raise ValueError(f"byte {at} starts no field")
        if at + size > len(data):
            raise ValueError(f"a field at byte {at} is longer than the file")
        yield field, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and where it ends."""
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ValueError("it ends within a number")
        number |= (data[at] & 0x7F) << shift
        at += 1
        if not data[at - 1] & 0x80:
            return number, at
    raise ValueError(f"a number at byte {at} has more than 64 bits")


def sentencepiece_bytes(alphabet: Alphabet, unknown: int) -> bytes:
    """A `spiece.model` in which an alphabet's tokens are the pieces, each residue a word of its own.

    Args:
        alphabet: tokens in the order of their ids. unknown: id of the token for what has no place.

    >>> from proteinlm.sequences.alphabet import PROTALBERT
    >>> sentencepiece_bytes(PROTALBERT, unknown=1)[:11]
    b'\\n\\x0e\\n\\x05<pad>\\x15\\x00'
    """
    pieces = []
    for index, token in enumerate(alphabet.tokens):
        special = index in (alphabet.pad, alphabet.mask, *alphabet.prefix, *alphabet.suffix)
        kind = UNKNOWN if index == unknown else CONTROL if special else NORMAL if token.isalpha() else USER_DEFINED
        text = (WORD_START + token if kind == NORMAL else token).encode("utf-8")
        # Scores only matter between ways to cut a word, and there is one way to cut a letter.
        score = struct.pack("<f", -float(index) if kind == NORMAL else 0.0)
        message = _field(1, text) + _tag(2, _FIXED32) + score + _tag(3, _VARINT) + _number(kind)
        pieces.append(_field(_PIECES, message))
    none = _number(2**64 - 1)  # -1 as protocol buffers write it
    trainer = b"".join(
        (
            *(_tag(3, _VARINT) + _number(1), _tag(4, _VARINT) + _number(len(alphabet))),  # unigram model, its size
            *(_tag(40, _VARINT) + _number(unknown), _tag(41, _VARINT) + none, _tag(42, _VARINT) + none),
            _tag(43, _VARINT) + _number(alphabet.pad),
        )
    )
    return b"".join((*pieces, _field(_TRAINER, trainer), _field(_NORMALIZER, _field(1, b"identity"))))


def _tag(field: int, kind: int) -> bytes:
    return _number(field << 3 | kind)


def _number(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _field(field: int, content: bytes) -> bytes:
    return _tag(field, _BYTES) + _number(len(content)) + content


def read_lines(path: Path) -> tuple[str, ...]:
    """The tokens of a `vocab.txt`, in the order of their ids.

    Raises:
        InputError: it cannot be read as text.
    """
    try:
        return tuple(path.read_text(encoding="utf-8").split())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a list of tokens ({type(error).__name__}); get it again") from error


def vocabulary_of(folder: Path) -> tuple[tuple[str, ...], Path] | None:
    """The pieces of a folder's vocabulary in the order of their ids, and the file they are from; None if it has none.

    Looked for are `spiece.model`, `vocab.txt`, and `tokenizer.json`, which is all that `transformers` 5 writes.

    Raises:
        InputError: the file is damaged or holds no vocabulary.
    """
    for name, read in _READERS.items():
        path = folder / name
        if path.is_file():
            return read(path), path
    return None


def _read_tokeniser(path: Path) -> tuple[str, ...]:
    """The vocabulary in a `tokenizer.json`: pairs of piece and score in order, or piece -> id."""
    model = read_json(path).get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(found, dict):
        by_id = {index: piece for piece, index in found.items()}
        if by_id.keys() == set(range(len(found))):
            return tuple(by_id[index] for index in range(len(found)))
    if isinstance(found, list) and all(isinstance(one, list) and one and isinstance(one[0], str) for one in found):
        return tuple(one[0] for one in found)
    raise InputError(f"{path} holds no vocabulary that is understood; put a vocab.txt or spiece.model beside it")


_READERS: dict[str, Callable[[Path], tuple[str, ...]]] = {
    "spiece.model": lambda path: tuple(piece.text for piece in read_sentencepiece(path)),
    "vocab.txt": read_lines,
    "tokenizer.json": _read_tokeniser,
}


def rows_of(alphabet: Alphabet, pieces: Sequence[str], source: str) -> Int[Tensor, "V"]:
    """For each token of an alphabet, the row that stands for it in a table made for another order of the same tokens.

    The special tokens of the alphabet, the twenty residues and X must be among the pieces, with or without the mark of
    a word's start. Whatever else the two hold is matched by name where it can be, and else in order: nothing that a
    protein is encoded with is among it.

    Args:
        alphabet: of the model, V tokens.
        pieces: texts by their id, at most V of them; a table may have rows that no piece names, at its end.
        source: the file, for messages.

    Returns:
        int64, shape (V,), a permutation; `table[rows]` is in the alphabet's order.

    Raises:
        InputError: there are more pieces than tokens, or one that is needed is not there.

    >>> from proteinlm.sequences.alphabet import PROTBERT
    >>> rows_of(PROTBERT, PROTBERT.tokens[::-1], "vocab.txt").tolist()[:3]
    [29, 28, 27]
    """
    if len(pieces) > len(alphabet):
        raise InputError(
            f"{source}: {len(pieces)} pieces, but alphabet {alphabet.name} has {len(alphabet)}; it is of another model"
        )
    found: dict[str, int] = {}
    for index, piece in enumerate(pieces):
        plain = piece.removeprefix(WORD_START)
        if plain and (piece != plain or plain not in found):
            found[plain] = index
    special = {
        index for index in (alphabet.pad, alphabet.mask, *alphabet.prefix, *alphabet.suffix) if index is not None
    }
    for token in (*(alphabet.tokens[index] for index in sorted(special)), *STANDARD, "X"):
        if token in alphabet.tokens and token not in found:
            raise InputError(
                f"{source}: token {token!r} of alphabet {alphabet.name} is not there; another model's file?"
            )
    rows = [found.get(token, -1) for token in alphabet.tokens]
    others = iter(sorted(set(range(len(alphabet))) - set(rows)))
    return torch.tensor([row if row >= 0 else next(others) for row in rows])
