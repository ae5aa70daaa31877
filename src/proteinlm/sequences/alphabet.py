"""Alphabets: the token tables of published models, and what each does with the letters outside the twenty.

In: a residue string, already upper case. Out: token ids with BOS and EOS where the model was trained with them.
A letter that an alphabet has no place for is a `LetterError`, never a guess: the FASTA reader turns it into a refused
record. Tables: fair-esm `esm/data.py` and `esm/constants.py`; UniRep `data_utils.py`; vocabularies of ProtTrans
(papers.md 8.1, 8.4 and 6.4); TAPE `tokenizers.py`.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from proteinlm.errors import InputError

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
"""The twenty standard residues, in alphabetical order."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Columns of log probabilities, whatever the model: `LETTERS.index(residue)` is the column of a residue."""


class LetterError(InputError):
    """A sequence holds a letter that the alphabet has no place for.

    Attributes:
        letter: the offending character.
        position: where it stands, counted from 1.
    """

    def __init__(self, letter: str, position: int, alphabet: str) -> None:
        super().__init__(
            f"letter {letter!r} at position {position} is not a residue of alphabet {alphabet}; remove or replace it"
        )
        self.letter = letter
        self.position = position


@dataclass(frozen=True)
class Alphabet:
    """A table from residues to token ids.

    Args:
        name: how the alphabet is called in messages and configurations.
        tokens: every token, in the order of its id.
        pad, mask: ids of the padding and mask tokens; `mask` is None where the model was not trained with one.
        prefix, suffix: ids put before and after the residues of every sequence (BOS, EOS).
        substitutes: letters without a token of their own, and the token that is read in their place.

    >>> ESM1B.encode("MKTVRQG")
    array([ 0, 20, 15, 11,  7, 10, 16,  6,  2])
    """

    name: str
    tokens: tuple[str, ...]
    pad: int
    mask: int | None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    substitutes: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def _id_of_byte(self) -> np.ndarray:
        """Token id of each of 256 byte values; -1 where there is none."""
        table = np.full(256, -1, dtype=np.int64)
        for index, token in enumerate(self.tokens):
            if len(token) == 1 and token.isalpha():
                table[ord(token)] = index
        for letter, residue in self.substitutes:
            table[ord(letter)] = self.tokens.index(residue)
        return table

    def residue_ids(self, residues: str) -> np.ndarray:
        """Token ids of a residue string, without BOS and EOS.

        Args:
            residues: upper-case letters, L of them.

        Returns:
            int64 array of shape (L,).

        Raises:
            LetterError: at the first letter that has no place in the alphabet.

        >>> ESM1B.residue_ids("LAGVS").tolist()
        [4, 5, 6, 7, 8]
        """
        ids = self._id_of_byte[np.frombuffer(residues.encode("latin-1", "replace"), dtype=np.uint8)]
        if ids.size and ids.min() < 0:
            at = int(np.argmax(ids < 0))
            raise LetterError(residues[at], at + 1, self.name)
        return ids

    def encode(self, residues: str) -> np.ndarray:
        """Token ids of a residue string with BOS and EOS, int64, shape (prefix + L + suffix,).

        >>> UNIREP.encode("MR").tolist()
        [24, 1, 2]
        """
        ids = self.residue_ids(residues)
        return np.concatenate([np.array(self.prefix, np.int64), ids, np.array(self.suffix, np.int64)])

    def letters(self) -> str:
        """Every letter the alphabet takes, in alphabetical order."""
        return "".join(sorted(chr(byte) for byte in np.flatnonzero(self._id_of_byte >= 0)))

    def policy(self) -> str:
        """One line: what becomes of the letters X, B, U, Z, O and J.

        >>> ESM1B.policy()
        'X B U Z O: own token; J: read as X'
        """
        read_as = dict(self.substitutes)
        fates: dict[str, list[str]] = {}
        for letter in "XBUZOJ":
            if letter in read_as:
                fate = f"read as {read_as[letter]}"
            else:
                fate = "own token" if self._id_of_byte[ord(letter)] >= 0 else "refused"
            fates.setdefault(fate, []).append(letter)
        return "; ".join(f"{' '.join(letters)}: {fate}" for fate, letters in fates.items())


_ESM_RESIDUES = tuple("LAGVSERTIDPKQNFYMHWCXBUZO.-")

ESM1 = Alphabet(
    name="ESM-1",
    tokens=("<null_0>", "<pad>", "<eos>", "<unk>", *_ESM_RESIDUES, "<null_1>", "<cls>", "<mask>", "<sep>"),
    pad=1,
    mask=33,
    prefix=(32,),
    substitutes=(("J", "X"),),
)
"""35 tokens, `<cls>` in front, nothing behind (fair-esm `Alphabet.from_architecture("ESM-1")`)."""

ESM1B = Alphabet(
    name="ESM-1b",
    tokens=("<cls>", "<pad>", "<eos>", "<unk>", *_ESM_RESIDUES, "<null_1>", "<mask>"),
    pad=1,
    mask=32,
    prefix=(0,),
    suffix=(2,),
    substitutes=(("J", "X"),),
)
"""33 tokens of ESM-1b, ESM-1v and ESM-2, `<cls>` in front, `<eos>` behind."""

UNIREP = Alphabet(
    name="UniRep",
    tokens=("<pad>", *"MRHKDESTNQCUGPAVIFYWLOX", "<start>", "<stop>"),
    pad=0,
    mask=None,
    prefix=(24,),
    substitutes=(("B", "X"), ("Z", "X"), ("J", "X")),
)
"""26 tokens; the feature pass uses `<start>` and no `<stop>` (papers.md 8.4)."""

_UZOB = tuple((letter, "X") for letter in "UZOBJ")
"""ProtTrans reads U, Z, O and B as X, although some vocabularies have tokens for them (papers.md 6); so here J, too."""

PROTBERT = Alphabet(
    name="ProtBert",
    tokens=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"),
    pad=0,
    mask=4,
    prefix=(2,),
    suffix=(3,),
    substitutes=_UZOB,
)
"""30 tokens of ProtBert and ProtElectra, `[CLS]` in front, `[SEP]` behind (their vocab.txt; papers.md 6.4)."""

TAPE = Alphabet(
    name="TAPE",
    tokens=("<pad>", "<mask>", "<cls>", "<sep>", "<unk>", *"ABCDEFGHIKLMNOPQRSTUVWXYZ"),
    pad=0,
    mask=1,
    prefix=(2,),
    suffix=(3,),
    substitutes=(("J", "X"),),
)
"""30 tokens of TAPE's BERT, B, O, U and Z among them, `<cls>` in front, `<sep>` behind (papers.md 8.6)."""

SEQVEC = Alphabet(
    name="SeqVec",
    tokens=("<pad>", "<S>", "</S>", *LETTERS),
    pad=0,
    mask=None,
    prefix=(1,),
    suffix=(2,),
)
"""29 tokens, `<S>` in front, `</S>` behind. SeqVec reads characters, so that every letter is a token; one that its
training set did not have got no training (papers.md 8.5)."""

PROTALBERT = Alphabet(
    name="ProtAlbert",
    tokens=("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", *'()"-.\u2013\u00a3\u20ac', *"LAGVESIKRDTPNQFYMHCWX"),
    pad=0,
    mask=4,
    prefix=(2,),
    suffix=(3,),
    substitutes=_UZOB,
)
"""34 tokens, `[CLS]` in front, `[SEP]` behind: five special ones, the eight signs that ALBERT's recipe for vocabularies
reserves, the twenty residues and X. The published spiece.model says in which order; readers put its rows into this one.
"""

_SENTENCEPIECE_SIGNS = tuple('.()"-\u2013\u00a3\u20ac')

PROTXLNET = Alphabet(
    name="ProtXLNet",
    tokens=(
        *("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"),
        *_SENTENCEPIECE_SIGNS,
        *"LAGVSERTIDPKQFNYMHWC",
    ),
    pad=5,
    mask=6,
    suffix=(4, 3),
    substitutes=tuple((letter, "<unk>") for letter in "XUZOBJ"),
)
"""37 tokens, `<sep> <cls>` behind, nothing in front; X, too, is read as `<unk>` (papers.md 6.4). Nine special tokens,
the eight signs that XLNet's recipe for vocabularies reserves, the twenty residues. The published spiece.model says in
which order; readers put its rows into this one."""

_PROTTXL_TOKENS = ("<unk>", "<eos>", *"ALGVSREDTIPKFQNYMHWCX")

PROTTXL = Alphabet(
    name="ProtTXL",
    tokens=_PROTTXL_TOKENS,
    pad=0,
    mask=None,
    prefix=(1,),
    suffix=(1,),
    substitutes=_UZOB,
)
"""23 tokens, as the parameter counts of papers.md 6.1 ask for, `<eos>` in front and behind: in a training stream, every
protein follows the `<eos>` of the one before. ProtTXL was never released, so that nothing says what the 23 are."""

PROTTXL_BARE = Alphabet(
    name="ProtTXL-bare", tokens=_PROTTXL_TOKENS, pad=0, mask=None, prefix=(), suffix=(), substitutes=_UZOB
)
"""The same without `<eos>` around a protein: papers.md 6.4, from memory."""

PROTT5 = Alphabet(
    name="ProtT5",
    tokens=(
        *("<pad>", "</s>", "<unk>"),
        *"ALGVSREDTIPKFQNYMHWCXBOUZ",
        *(f"<extra_id_{number}>" for number in reversed(range(100))),
    ),
    pad=0,
    mask=127,
    suffix=(1,),
    substitutes=_UZOB,
)
"""128 tokens, `</s>` behind, nothing in front (papers.md 6.4); the mask is the first of 100 sentinels."""

ALPHABETS: dict[str, Alphabet] = {
    alphabet.name: alphabet
    for alphabet in (ESM1, ESM1B, UNIREP, SEQVEC, PROTBERT, TAPE, PROTALBERT, PROTT5, PROTXLNET, PROTTXL, PROTTXL_BARE)
}
"""Alphabets by name, as configurations name them."""


def letter_columns(alphabet: Alphabet) -> tuple[np.ndarray, np.ndarray]:
    """Columns of `LETTERS` that the alphabet can read, and the token id of each, both int64.

    >>> columns, tokens = letter_columns(ESM1B)
    >>> tokens.tolist()[columns.tolist().index(LETTERS.index("A"))]
    5
    """
    columns = [number for number, letter in enumerate(LETTERS) if letter in alphabet.letters()]
    return np.array(columns), alphabet.residue_ids("".join(LETTERS[column] for column in columns))
