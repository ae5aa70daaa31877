"""Proteins out of a model: drawn letter by letter from causal models and XLNet, by Gibbs sampling from masked models.

In: a model made ready (`inference.Runner`) and how to draw. Out: residue strings, each with its log-likelihood under
the model, and what they are made of, compared with Swiss-Prot. Which way a model generates is what it was trained for
(`models.ARCHITECTURES`). What is drawn for a protein depends on the seed and on its number, not on how many are drawn
beside it. Only the twenty standard residues are drawn, and the end where a model has a token for it.

Source: papers.md 7.4 (ProtXLNet: top-p .9, temperature 1); Holtzman et al. 2020 (nucleus sampling); Wang and Cho 2019
(Gibbs sampling from a masked model).
"""

import abc
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64, UInt64
from torch import Tensor

from proteinlm.checkpoints.contents import architecture_of
from proteinlm.corpora.sampling import follow, key_of, uniform
from proteinlm.errors import InputError
from proteinlm.inference import Runner
from proteinlm.models import ARCHITECTURES
from proteinlm.models.base import ProteinModel, Want
from proteinlm.models.transformer_xl import Memories, TransformerXl
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch

SWISS_PROT: dict[str, float] = {
    "A": 8.10, "C": 1.42, "D": 5.43, "E": 6.77, "F": 3.85, "G": 6.97, "H": 2.26, "I": 5.84, "K": 5.89, "L": 9.65,
    "M": 2.33, "N": 4.12, "P": 4.86, "Q": 3.96, "R": 5.50, "S": 6.96, "T": 5.36, "V": 6.76, "W": 1.07, "Y": 2.90,
}  # fmt: skip
"""Per cent of each residue, counted over the 115,686,226 standard residues of Swiss-Prot 2014_01 at 90 % identity."""

_LETTER, _ORDER, _START = (np.array(number, np.uint64) for number in range(3))
"""What a key is for."""


@dataclass(frozen=True)
class Sampling:
    """How letters are drawn.

    Args:
        temperature: logits are divided by it; 0 takes the most probable letter.
        top_p: only the most probable letters that together reach this probability are drawn (nucleus).
        seed: of all draws.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}; give 0 or a number above it")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}; give a number above 0 and up to 1")


@dataclass(frozen=True)
class Plan:
    """What is to be generated.

    Args:
        count: proteins. first: number of the first of them; the others follow.
        length: residues of each, the prompt included; for causal models with an end, at most.
        prompt: residues that every protein begins with; they are given, and not counted in its likelihood.
        sweeps: how often Gibbs sampling draws every residue anew.
        at_once: proteins that are drawn side by side; changes nothing but speed and memory.
    """

    count: int
    length: int
    first: int = 0
    prompt: str = ""
    sweeps: int = 10
    at_once: int = 32

    def __post_init__(self) -> None:
        for name in ("count", "length", "sweeps", "at_once"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give 1 or more")
        if len(self.prompt) >= self.length:
            raise InputError(f"the prompt has {len(self.prompt)} residues, and length is {self.length}; raise length")


@dataclass(frozen=True)
class Generated:
    """A protein that a model made.

    Args:
        number: as counted from `Plan.first`. residues: the prompt included.
        log_likelihood: natural logarithm, under the model as it is (temperature 1, every token of its alphabet), of
            what was drawn. Causal models and XLNet: given the prompt, the end included where it was drawn. Masked
            models: the pseudo-log-likelihood, each residue given all others.
        drawn: how many tokens that is the sum of. ended: whether the model chose where it ends.
    """

    number: int
    residues: str
    log_likelihood: float
    drawn: int
    ended: bool


def generate(runner: Runner, plan: Plan, sampling: Sampling) -> Iterator[Generated]:
    """Generate proteins.

    Args:
        runner: the model, made ready. plan, sampling: what, and how.

    Yields:
        `plan.count` proteins, in the order of their numbers.

    Raises:
        InputError: the model was trained for nothing that generates, a letter of the prompt is none of its residues,
            or the length exceeds what it takes.

    >>> from proteinlm.inference import RunOptions
    >>> from proteinlm.models.transformer_xl import TransformerXlConfig
    >>> model = TransformerXl(TransformerXlConfig(num_layers=1, width=8, num_heads=2, head_width=4, inner=16))
    >>> runner = Runner(model, RunOptions(precision="fp32", device="cpu"))
    >>> [len(protein.residues) <= 12 for protein in generate(runner, Plan(2, length=12), Sampling())]
    [True, True]
    """
    model = runner.model
    architecture, _ = architecture_of(model)
    ways = [name for name in ARCHITECTURES[architecture].objectives if name in WAYS]
    if not ways or not model.has_logits:
        trained = ", ".join(name for name, one in ARCHITECTURES.items() if set(one.objectives) & set(WAYS))
        raise InputError(f"this model ({architecture}) cannot generate; these can, with their heads: {trained}")
    if model.max_residues is not None and plan.length > model.max_residues:
        raise InputError(f"length is {plan.length}, and this model takes {model.max_residues} residues; lower it")
    model.alphabet.residue_ids(plan.prompt)
    last = plan.first + plan.count
    with torch.inference_mode():
        for first in range(plan.first, last, plan.at_once):
            numbers = range(first, min(first + plan.at_once, last))
            yield from WAYS[ways[0]](runner, plan, sampling, numbers)


def draw(
    logits_BV: Float64[np.ndarray, "B V"], sampling: Sampling, keys_B: UInt64[np.ndarray, "B"]
) -> Int64[np.ndarray, "B"]:
    """One of V choices for each row.

    Args:
        logits_BV: of the choices. sampling: how. keys_B: the random numbers' keys.

    >>> draw(np.log([[0.6, 0.3, 0.1]] * 2), Sampling(top_p=0.5), np.array([1, 2], np.uint64)).tolist()
    [0, 0]
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(1)
    scaled = (logits_BV - logits_BV.max(1, keepdims=True)) / sampling.temperature
    weights = np.exp(scaled)
    weights /= weights.sum(1, keepdims=True)
    order = np.argsort(-weights, axis=1, kind="stable")
    falling = np.take_along_axis(weights, order, axis=1)
    before = np.cumsum(falling, axis=1) - falling
    # The letter that crosses top_p is the last one in; rounding may put the sum of all a little below 1.
    falling = np.where(before < sampling.top_p - 1e-12, falling, 0.0)
    reach = np.cumsum(falling, axis=1)
    chosen = (reach <= uniform(keys_B)[:, None] * reach[:, -1:]).sum(1)
    return np.take_along_axis(order, chosen[:, None], axis=1)[:, 0]


def _keys(sampling: Sampling, numbers: Iterable[int]) -> UInt64[np.ndarray, "B"]:
    return np.array([key_of(sampling.seed, number) for number in numbers])


def _log_softmax(logits_BV: Tensor) -> Float64[np.ndarray, "B V"]:
    found: np.ndarray = torch.log_softmax(logits_BV.double(), dim=-1).cpu().numpy()
    return found


class _Reader(abc.ABC):
    """Reads proteins token by token, all at the same place, and says what comes next. Subclasses are final."""

    @abc.abstractmethod
    def read(self, tokens_B: Tensor) -> Tensor:
        """Logits about the next token, shape (B, V), after one more token of each."""

    @abc.abstractmethod
    def keep(self, which: Tensor) -> None:
        """Go on with some of the proteins only; `which` are their rows."""


class _Remembering(_Reader):
    """Transformer-XL: what was read is remembered."""

    def __init__(self, model: TransformerXl) -> None:
        self.model, self.position = model, 0
        self.memories: Memories = [None] * model.num_layers

    def read(self, tokens_B: Tensor) -> Tensor:
        """See `_Reader.read`."""
        logits_BV, self.memories = self.model.step(tokens_B, self.memories, self.position)
        self.position += 1
        return logits_BV

    def keep(self, which: Tensor) -> None:
        """See `_Reader.keep`."""
        self.memories = [None if memory is None else memory[which] for memory in self.memories]


class _Rereading(_Reader):
    """Any other causal model: all is read again for every token."""

    def __init__(self, model: ProteinModel) -> None:
        self.model = model
        self.tokens_BL: Tensor | None = None

    def read(self, tokens_B: Tensor) -> Tensor:
        """See `_Reader.read`."""
        new = tokens_B[:, None]
        self.tokens_BL = new if self.tokens_BL is None else torch.cat([self.tokens_BL, new], dim=1)
        count, length = self.tokens_BL.shape
        starts = tuple(range(0, (count + 1) * length, length))
        batch = PackedBatch(self.tokens_BL.flatten(), starts, length, tuple(range(count)))
        places = torch.arange(length - 1, count * length, length, device=tokens_B.device)
        logits = self.model(batch, Want(logits=True, places_M=places)).logits_TV
        assert isinstance(logits, Tensor)
        return logits

    def keep(self, which: Tensor) -> None:
        """See `_Reader.keep`."""
        if self.tokens_BL is not None:
            self.tokens_BL = self.tokens_BL[which]


def _causal(runner: Runner, plan: Plan, sampling: Sampling, numbers: range) -> Iterator[Generated]:
    """Letter after letter, until the model ends the protein or it is long enough."""
    model, alphabet = runner.model, runner.model.alphabet
    reader: _Reader = _Remembering(model) if isinstance(model, TransformerXl) else _Rereading(model)
    given = [*alphabet.prefix, *alphabet.residue_ids(plan.prompt).tolist()]
    if not given:
        raise InputError(f"alphabet {alphabet.name} has no token in front of a protein; give a prompt of residues")
    # The end may be drawn once there is a residue.
    choices = np.array([*alphabet.residue_ids(STANDARD).tolist(), *alphabet.suffix[:1]])
    keys_B = _keys(sampling, numbers)
    letters: list[list[str]] = [list(plan.prompt) for _ in numbers]
    total, drawn, ended = np.zeros(len(numbers)), np.zeros(len(numbers), int), np.zeros(len(numbers), bool)
    logits = torch.empty(0)
    for token in given:
        logits = reader.read(torch.full((len(numbers),), token, device=runner.device))
    alive: np.ndarray = np.arange(len(numbers))
    for place in range(len(plan.prompt), plan.length):
        said = _log_softmax(logits)
        open_choices = choices if place else choices[: len(STANDARD)]
        picked: np.ndarray = draw(said[:, open_choices], sampling, follow(keys_B[alive], np.array(place, np.uint64)))
        total[alive] += said[np.arange(len(alive)), open_choices[picked]]
        drawn[alive] += 1
        ended[alive] = picked == len(STANDARD)
        going_on = np.flatnonzero(picked < len(STANDARD))
        for row in going_on:
            letters[alive[row]].append(STANDARD[picked[row]])
        if not len(going_on) or place + 1 == plan.length:
            break
        which = torch.from_numpy(going_on).to(runner.device)
        reader.keep(which)
        alive = alive[going_on]
        logits = reader.read(torch.from_numpy(choices[picked[going_on]]).to(runner.device))
    for b, number in enumerate(numbers):
        yield Generated(number, "".join(letters[b]), float(total[b]), int(drawn[b]), bool(ended[b]))


@dataclass(frozen=True)
class _Canvas:
    """Proteins of one length, some residues of which may be hidden; what is asked of a model about them.

    Args:
        runner: the model. tokens_BL: with the alphabet's prefix and suffix.
    """

    runner: Runner
    tokens_BL: Tensor

    @classmethod
    def of(cls, runner: Runner, prompt: str, residues_BL: Int64[np.ndarray, "B L"]) -> "_Canvas":
        """The prompt, the residues' ids, and what the alphabet puts around them."""
        alphabet = runner.model.alphabet
        count = len(residues_BL)
        front = np.array([*alphabet.prefix, *alphabet.residue_ids(prompt).tolist()], np.int64)
        parts = [np.tile(front, (count, 1)), residues_BL, np.tile(np.array(alphabet.suffix, np.int64), (count, 1))]
        return cls(runner, torch.from_numpy(np.concatenate(parts, axis=1)))

    def place(self, position: int) -> int:
        """Column of a residue."""
        return len(self.runner.model.alphabet.prefix) + position

    def ask(self, columns_B: Int64[np.ndarray, "B"]) -> Float64[np.ndarray, "B V"]:
        """Log-probabilities at one column of each protein, which is hidden for the time being."""
        mask = self.runner.model.alphabet.mask
        assert mask is not None, "models that are trained on hidden residues have a mask token"
        tokens_BL = self.tokens_BL.clone()
        rows = torch.arange(len(tokens_BL))
        columns = torch.from_numpy(columns_B)
        tokens_BL[rows, columns] = mask
        length, alphabet = tokens_BL.shape[1], self.runner.model.alphabet
        starts = tuple(range(0, tokens_BL.numel() + 1, length))
        around = (len(alphabet.prefix), len(alphabet.suffix))
        batch = PackedBatch(tokens_BL.flatten(), starts, length, tuple(range(len(tokens_BL))), *around)
        places_M = (rows * length + columns).to(self.runner.device)
        logits = self.runner.forward(batch, Want(logits=True, places_M=places_M)).logits_TV
        assert logits is not None
        return _log_softmax(logits)

    def put(self, columns_B: Int64[np.ndarray, "B"], ids_B: Int64[np.ndarray, "B"]) -> None:
        """Write one residue of each protein."""
        self.tokens_BL[torch.arange(len(ids_B)), torch.from_numpy(columns_B)] = torch.from_numpy(ids_B)

    def residues(self, plan: Plan) -> list[str]:
        """The proteins as letters."""
        tokens = self.runner.model.alphabet.tokens
        made = self.tokens_BL[:, self.place(len(plan.prompt)) : self.place(plan.length)]
        return [plan.prompt + "".join(tokens[token] for token in row) for row in made.tolist()]


def _permutation(runner: Runner, plan: Plan, sampling: Sampling, numbers: range) -> Iterator[Generated]:
    """XLNet: from left to right, each letter from those before it, the known length and what stands behind the end."""
    alphabet = runner.model.alphabet
    assert alphabet.mask is not None, "XLNet hides places behind its mask token"
    choices, keys_B = alphabet.residue_ids(STANDARD), _keys(sampling, numbers)
    known = len(plan.prompt)
    canvas = _Canvas.of(runner, plan.prompt, np.full((len(numbers), plan.length - known), alphabet.mask))
    total = np.zeros(len(numbers))
    for position in range(known, plan.length):
        columns_B = np.full(len(numbers), canvas.place(position))
        said = canvas.ask(columns_B)
        picked = draw(said[:, choices], sampling, follow(keys_B, np.array(position, np.uint64)))
        total += said[np.arange(len(numbers)), choices[picked]]
        canvas.put(columns_B, choices[picked])
    for b, (number, residues) in enumerate(zip(numbers, canvas.residues(plan), strict=True)):
        yield Generated(number, residues, float(total[b]), plan.length - known, ended=False)


def _gibbs(runner: Runner, plan: Plan, sampling: Sampling, numbers: range) -> Iterator[Generated]:
    """Masked models: from residues drawn as Swiss-Prot has them, each is hidden and drawn anew, sweep after sweep."""
    alphabet, keys_B = runner.model.alphabet, _keys(sampling, numbers)
    choices, known = alphabet.residue_ids(STANDARD), len(plan.prompt)
    open_ = plan.length - known
    canvas = _Canvas.of(runner, plan.prompt, choices[_background_draws(keys_B, open_)])
    for sweep in range(plan.sweeps):
        sweep_keys_B = follow(keys_B, np.array(sweep, np.uint64))
        order_BL = np.argsort(follow(follow(sweep_keys_B, _ORDER)[:, None], np.arange(open_, dtype=np.uint64)), axis=1)
        letter_keys_B = follow(sweep_keys_B, _LETTER)
        for step in range(open_):
            columns_B = canvas.place(known) + order_BL[:, step]
            picked = draw(canvas.ask(columns_B)[:, choices], sampling, follow(letter_keys_B, np.array(step, np.uint64)))
            canvas.put(columns_B, choices[picked])
    total = np.zeros(len(numbers))
    for position in range(known, plan.length):
        columns_B = np.full(len(numbers), canvas.place(position))
        total += canvas.ask(columns_B)[np.arange(len(numbers)), canvas.tokens_BL[:, columns_B[0]].numpy()]
    for b, (number, residues) in enumerate(zip(numbers, canvas.residues(plan), strict=True)):
        yield Generated(number, residues, float(total[b]), open_, ended=False)


def _background_draws(keys_B: UInt64[np.ndarray, "B"], count: int) -> Int64[np.ndarray, "B L"]:
    """Numbers of residues in `STANDARD`, as often as Swiss-Prot has them."""
    keys_BL = follow(follow(keys_B, _START)[:, None], np.arange(count, dtype=np.uint64))
    reach = np.cumsum([SWISS_PROT[letter] for letter in STANDARD])
    return np.searchsorted(reach, uniform(keys_BL) * reach[-1], side="right")


WAYS = {"autoregressive": _causal, "permutation": _permutation, "masked": _gibbs}
"""What a model was trained for -> how it generates."""


@dataclass(frozen=True)
class Composition:
    """What proteins are made of.

    Args:
        residues: how many residues they have. share: of each of the twenty.
        divergence: from Swiss-Prot's shares, Kullback-Leibler, in bits per residue.
    """

    residues: int
    share: dict[str, float]
    divergence: float


def composition(proteins: Iterable[str]) -> Composition:
    """The composition of proteins, compared with Swiss-Prot (`SWISS_PROT`).

    Args:
        proteins: residue strings of the twenty letters; one residue at least.

    >>> round(composition(["AAAC"]).share["A"], 2), round(composition(["A"]).divergence, 2)
    (0.75, 3.63)
    """
    counts = Counter[str]()
    for residues in proteins:
        counts.update(residues)
    total, background = sum(counts[letter] for letter in STANDARD), sum(SWISS_PROT.values())
    if not total:
        raise InputError("there is no standard residue to count; generate at least one protein")
    share = {letter: counts[letter] / total for letter in STANDARD}
    terms = [
        share[letter] * math.log2(share[letter] * background / SWISS_PROT[letter])
        for letter in STANDARD
        if share[letter]
    ]
    return Composition(total, share, sum(terms))
