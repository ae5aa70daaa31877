"""Methods: which runs of a model a score of variants needs, and what is made of the log probabilities.

In: `Variants`, and the longest stretch that the model reads. Out of `passes()`: runs of a model, each a stretch of
residues, the positions in it that are masked, and those whose log probabilities are wanted. Into `take()`: the log
probabilities. Out of `scores()`: a number for each variant, in nats, higher is better, 0 is the wild type.

With x the wild type, y the variant, and p(a at i | s) what the model says of residue a at position i of s:

- wt-marginals: sum over changed i of ln p(y_i at i | x) - ln p(x_i at i | x). One run, whatever the number of variants.
- masked-marginals: the same with i masked in x. One run for each position that is changed anywhere.
- joint-masked-marginals: the same with all positions that the variant changes masked together. One run for each set of
  positions; equal to masked-marginals for single substitutions.
- pseudo-ppl: PLL(y) - PLL(x), where PLL(s) is the sum over all i of ln p(s_i at i | s with i masked), the first and the
  last residue included. exp(-PLL / L) is the pseudo-perplexity. As many runs as the protein has residues, per variant.
- likelihood: for models that read from left to right, ln P(y) - ln P(x). One run per variant.

Sources: Meier et al. 2021 for the marginals, Salazar et al. 2020 for PLL. In proteins longer than the model reads, a
masked position stands in the middle of its stretch, or as near to it as the ends of the protein allow (`centred`);
wt-marginals and likelihood take each residue from the overlapping windows of `inference`.

Shape letters: N variants, S substitutions, L residues, P places of a run.
"""

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import LETTERS
from proteinlm.variants.changes import Variants


@dataclass(frozen=True)
class Pass:
    """A run of a model.

    Args:
        residues: a protein or a stretch of it. masked: positions in it that the model does not see, from 0, ascending.
        places: positions in it whose log probabilities are wanted, ascending; None for all.
    """

    residues: str
    masked: tuple[int, ...] = ()
    places: tuple[int, ...] | None = None


class Scoring(abc.ABC):
    """A method at work on some variants. Subclasses are final.

    Args:
        variants: what is scored. window: residues that the model reads at most; None where there is no limit.
    """

    def __init__(self, variants: Variants, window: int | None = None) -> None:
        self.variants, self.length = variants, len(variants.wild_type)
        self.window = self.length if window is None else min(window, self.length)

    @abc.abstractmethod
    def passes(self) -> Iterator[Pass]:
        """The runs that are needed; the n-th has number n, counted from 0. To be gone through once."""

    @abc.abstractmethod
    def take(self, number: int, log_probabilities_PA: Float[np.ndarray, "P 26"]) -> None:
        """What the model said in run `number`: nats, columns as `LETTERS`; called once for each, in any order."""

    @abc.abstractmethod
    def scores(self) -> Float64[np.ndarray, " N"]:
        """A score for each variant, once every run was taken."""

    @abc.abstractmethod
    def count(self) -> int:
        """How many runs there are."""

    def start(self, middle: int) -> int:
        """Where the stretch around a position begins."""
        return centred(middle, self.length, self.window)


def centred(middle: int, length: int, window: int) -> int:
    """Where a window begins that has a position in its middle, or as near to it as the ends allow.

    >>> [centred(at, length=10, window=4) for at in (0, 2, 5, 9)]
    [0, 0, 3, 6]
    """
    return min(max(middle - window // 2, 0), length - window)


def _ratio(variants: Variants, table_LA: np.ndarray) -> np.ndarray:
    """Sum over the substitutions of each variant of the log probability after minus that before."""
    after_S = table_LA[variants.position_S, variants.mutant_S]
    before_S = table_LA[variants.position_S, variants.wild_S]
    with np.errstate(invalid="ignore"):  # minus infinity twice: neither letter can be read; refused by `checked`
        return variants.total(after_S - before_S)


def checked(scores_N: np.ndarray, variants: Variants) -> np.ndarray:
    """The scores, if each is a number.

    Raises:
        InputError: one is not; a residue has probability 0 under this model, or cannot be read by it.
    """
    wrong = np.flatnonzero(~np.isfinite(scores_N))
    if len(wrong):
        name = variants.mutants[wrong[0]]
        raise InputError(f"{name} has no score: this model cannot read one of its residues; leave it out")
    return scores_N


class WildTypeMarginals(Scoring):
    """`wt-marginals`: one run of the wild type.

    >>> scoring = WildTypeMarginals(Variants.of("MK", ["K2R"]))
    >>> [run] = scoring.passes()
    >>> said = np.zeros((2, 26))
    >>> said[1, LETTERS.index("R")] = -1.5
    >>> scoring.take(0, said)
    >>> scoring.scores().tolist()
    [-1.5]
    """

    def passes(self) -> Iterator[Pass]:
        """See `Scoring`."""
        yield Pass(self.variants.wild_type)

    def take(self, number: int, log_probabilities_PA: Float[np.ndarray, "P 26"]) -> None:
        """See `Scoring`."""
        self.table_LA = np.asarray(log_probabilities_PA, np.float64)

    def scores(self) -> Float64[np.ndarray, " N"]:
        """See `Scoring`."""
        return checked(_ratio(self.variants, self.table_LA), self.variants)

    def count(self) -> int:
        """See `Scoring`."""
        return 1


class MaskedMarginals(Scoring):
    """`masked-marginals`: the wild type with one position masked, for each position that is changed.

    >>> [run.masked for run in MaskedMarginals(Variants.of("MKTA", ["K2R", "K2R:A4G"])).passes()]
    [(1,), (3,)]
    """

    def __init__(self, variants: Variants, window: int | None = None) -> None:
        super().__init__(variants, window)
        self.places = np.unique(variants.position_S)
        self.table_LA = np.full((self.length, len(LETTERS)), np.nan)

    def passes(self) -> Iterator[Pass]:
        """See `Scoring`."""
        for place in self.places.tolist():
            start = self.start(place)
            inside = (place - start,)
            yield Pass(self.variants.wild_type[start : start + self.window], inside, inside)

    def take(self, number: int, log_probabilities_PA: Float[np.ndarray, "P 26"]) -> None:
        """See `Scoring`."""
        self.table_LA[self.places[number]] = log_probabilities_PA[0]

    def scores(self) -> Float64[np.ndarray, " N"]:
        """See `Scoring`."""
        return checked(_ratio(self.variants, self.table_LA), self.variants)

    def count(self) -> int:
        """See `Scoring`."""
        return len(self.places)


@dataclass(frozen=True)
class _JointRun:
    """A stretch, where it starts, and which positions of which set it answers for (all counted in the protein)."""

    group: tuple[int, ...]
    start: int
    answered: tuple[int, ...]


class JointMaskedMarginals(Scoring):
    """`joint-masked-marginals`: the wild type with all positions masked that a variant changes.

    Where they do not fit into one stretch, each position has a stretch around itself, in which those others are masked
    that it holds.

    >>> [run.masked for run in JointMaskedMarginals(Variants.of("MKTA", ["K2R", "K2R:A4G", "K2W:A4C"])).passes()]
    [(1,), (1, 3)]
    """

    def __init__(self, variants: Variants, window: int | None = None) -> None:
        super().__init__(variants, window)
        self.group_of = [variants.positions(number) for number in range(len(variants))]
        self.runs = [run for group in dict.fromkeys(self.group_of) for run in self._runs(group)]
        self.said: dict[tuple[tuple[int, ...], int], np.ndarray] = {}

    def _runs(self, group: tuple[int, ...]) -> Iterator[_JointRun]:
        if group[-1] - group[0] < self.window:
            yield _JointRun(group, self.start((group[0] + group[-1] + 1) // 2), group)
        else:
            yield from (_JointRun(group, self.start(place), (place,)) for place in group)

    def passes(self) -> Iterator[Pass]:
        """See `Scoring`."""
        for run in self.runs:
            masked = tuple(at - run.start for at in run.group if 0 <= at - run.start < self.window)
            residues = self.variants.wild_type[run.start : run.start + self.window]
            yield Pass(residues, masked, tuple(at - run.start for at in run.answered))

    def take(self, number: int, log_probabilities_PA: Float[np.ndarray, "P 26"]) -> None:
        """See `Scoring`."""
        run = self.runs[number]
        for place, said_A in zip(run.answered, log_probabilities_PA, strict=True):
            self.said[run.group, place] = np.asarray(said_A, np.float64)

    def scores(self) -> Float64[np.ndarray, " N"]:
        """See `Scoring`."""
        variants = self.variants
        columns = (variants.variant_S, variants.position_S, variants.wild_S, variants.mutant_S)
        ratio_S = np.empty(len(variants.variant_S))
        for number, (variant, place, wild, mutant) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
            said_A = self.said[self.group_of[variant], place]
            ratio_S[number] = said_A[mutant] - said_A[wild]
        return checked(variants.total(ratio_S), variants)

    def count(self) -> int:
        """See `Scoring`."""
        return len(self.runs)


class PseudoPerplexity(Scoring):
    """`pseudo-ppl`: the pseudo-log-likelihood of each variant minus that of the wild type.

    Runs that are the same for both, because no change lies in their stretch, are left out: they cancel.

    >>> scoring = PseudoPerplexity(Variants.of("MKT", ["K2R"]))
    >>> [(run.residues, run.masked) for run in scoring.passes()][2:4]
    [('MKT', (2,)), ('MRT', (0,))]
    """

    def __init__(self, variants: Variants, window: int | None = None) -> None:
        super().__init__(variants, window)
        self.near = [self._near(variants.positions(number)) for number in range(len(variants))]
        anywhere = np.zeros(self.length, bool)
        for places in self.near:
            anywhere[places] = True
        self.wild_places = np.flatnonzero(anywhere)
        self.ends = np.cumsum([len(self.wild_places), *(len(places) for places in self.near)])
        self.wild_L = np.zeros(self.length)
        self.total_N = np.zeros(len(variants))
        self.columns = np.array([LETTERS.index(letter) for letter in variants.wild_type])

    def _near(self, changed: tuple[int, ...]) -> np.ndarray:
        """Positions whose stretch holds a change, ascending."""
        starts_L = np.clip(np.arange(self.length) - self.window // 2, 0, self.length - self.window)
        return np.flatnonzero(np.any([(starts_L <= at) & (at < starts_L + self.window) for at in changed], axis=0))

    def passes(self) -> Iterator[Pass]:
        """See `Scoring`."""
        yield from self._masked_one_by_one(self.variants.wild_type, self.wild_places)
        for number, places in enumerate(self.near):
            yield from self._masked_one_by_one(self.variants.sequence(number), places)

    def _masked_one_by_one(self, residues: str, places: np.ndarray) -> Iterator[Pass]:
        for place in places.tolist():
            start = self.start(place)
            inside = (place - start,)
            yield Pass(residues[start : start + self.window], inside, inside)

    def take(self, number: int, log_probabilities_PA: Float[np.ndarray, "P 26"]) -> None:
        """See `Scoring`."""
        variant = int(np.searchsorted(self.ends, number, side="right")) - 1
        if variant < 0:
            place = self.wild_places[number]
            self.wild_L[place] = log_probabilities_PA[0, self.columns[place]]
            return
        place = self.near[variant][number - self.ends[variant]]
        self.total_N[variant] += log_probabilities_PA[0, self._column(variant, place)]

    def _column(self, variant: int, place: int) -> int:
        """Column of the residue that a variant has at a position."""
        first, end = np.searchsorted(self.variants.variant_S, [variant, variant + 1])
        changed = np.flatnonzero(self.variants.position_S[first:end] == place)
        return int(self.variants.mutant_S[first + changed[0]] if len(changed) else self.columns[place])

    def scores(self) -> Float64[np.ndarray, " N"]:
        """See `Scoring`."""
        wild_N = np.array([self.wild_L[places].sum() for places in self.near])
        return checked(self.total_N - wild_N, self.variants)

    def count(self) -> int:
        """See `Scoring`."""
        return int(self.ends[-1])


class Likelihood(Scoring):
    """`likelihood`: what the model says of all residues of a variant, one after the other, minus that of the wild type.

    >>> [run.residues for run in Likelihood(Variants.of("MKT", ["K2R"])).passes()]
    ['MKT', 'MRT']
    """

    def __init__(self, variants: Variants, window: int | None = None) -> None:
        super().__init__(variants, window)
        self.total = np.zeros(len(variants) + 1)

    def passes(self) -> Iterator[Pass]:
        """See `Scoring`."""
        yield Pass(self.variants.wild_type)
        yield from (Pass(residues) for residues in self.variants.sequences())

    def take(self, number: int, log_probabilities_PA: Float[np.ndarray, "P 26"]) -> None:
        """See `Scoring`."""
        residues = self.variants.sequence(number - 1) if number else self.variants.wild_type
        columns = [LETTERS.index(letter) for letter in residues]
        said = np.asarray(log_probabilities_PA, np.float64)
        self.total[number] = said[np.arange(len(columns)), columns].sum()

    def scores(self) -> Float64[np.ndarray, " N"]:
        """See `Scoring`."""
        return checked(self.total[1:] - self.total[0], self.variants)

    def count(self) -> int:
        """See `Scoring`."""
        return len(self.variants) + 1


@dataclass(frozen=True)
class Method:
    """A line of the table of methods: the class, whether the model must have a mask token, and what it is in words."""

    scoring: Callable[[Variants, int | None], Scoring]
    masks: bool
    meaning: str


METHODS: dict[str, Method] = {
    "wt-marginals": Method(WildTypeMarginals, False, "one run; the residue itself is seen"),
    "masked-marginals": Method(MaskedMarginals, True, "a run per changed position, which is masked"),
    "joint-masked-marginals": Method(JointMaskedMarginals, True, "all positions of a variant masked together"),
    "pseudo-ppl": Method(PseudoPerplexity, True, "a run per residue and variant; slow"),
    "likelihood": Method(Likelihood, False, "a run per variant, for models without a mask"),
}
"""Methods by the names that users of fair-esm know, and two more."""


def choose_method(name: str, has_mask: bool) -> str:
    """The method that a name stands for; "auto" is the best that the model can do at a bearable cost.

    Raises:
        InputError: there is no such method, or it is not for this model.

    >>> choose_method("auto", has_mask=True), choose_method("auto", has_mask=False)
    ('masked-marginals', 'likelihood')
    """
    if name == "auto":
        return "masked-marginals" if has_mask else "likelihood"
    if name not in METHODS:
        raise InputError(f"method {name!r} is unknown; use one of auto, {', '.join(METHODS)}")
    if METHODS[name].masks and not has_mask:
        raise InputError(f"method {name} needs a mask token, which this model has not; use likelihood or wt-marginals")
    if name == "likelihood" and has_mask:
        raise InputError(
            "method likelihood is for models that read from left to right; this one sees every residue it speaks of; "
            "use masked-marginals or pseudo-ppl"
        )
    return name
