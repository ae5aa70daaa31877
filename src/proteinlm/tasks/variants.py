"""Effects of mutations without training: does a model find harmful what was measured to be harmful?

In: deep mutational scans. Out: Spearman's correlation between the model's scores of the variants and every measured
column, its mean over the assays, and the same for baselines that know neither the protein nor its relatives. Fitter is
higher on both sides, so no absolute values are taken. The scores are those of `variants.scoring`. Source: papers.md 5
(Rives et al., mutational effect; zero-shot scores as in Meier et al. 2021).
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from proteinlm.datasets.variants import Assay, assay_names, read_assay
from proteinlm.metrics import spearman_terms
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted
from proteinlm.variants.baselines import BASELINES
from proteinlm.variants.changes import Variants
from proteinlm.variants.scoring import METHODS, Scoring

QUICK_ASSAYS = ("BLAT_ECOLX_Ranganathan2015", "PABP_YEAST_Fields2013_singles", "gb1_Wu2016_4site", "metl_pab1")
QUICK_VARIANTS = 2000

JOINT_RESIDUES = 50_000
"""Joint masks take a run per set of positions; they are tried where those have at most so many residues (GB1)."""

PSEUDO_LONGEST, PSEUDO_VARIANTS = 60, 128
"""Pseudo-perplexity takes a run per residue and variant: a sample of the variants of short proteins (GB1)."""

LIKELIHOOD_VARIANTS = 200
"""A likelihood takes a run per variant: a sample of each assay."""

BUNDLES = 400
"""Variants are drawn again in at most so many bundles, which keeps results small."""


@dataclass
class Scored:
    """Some variants of an assay and a method at work on them.

    Args:
        assay: with the chosen variants only. what: method, and how many variants where it is a sample.
        is_sample: whether it is. variants, scoring: the same variants, and what scores them.
        first: number of the first question.
    """

    assay: Assay
    what: str
    is_sample: bool
    variants: Variants
    scoring: Scoring
    first: int = 0


class VariantEffects(Task):
    """Zero-shot effects of mutations."""

    name = "variants"
    version = 1
    title = "Effects of mutations, zero-shot (Spearman)"
    source = "Rives et al. 2021, section on mutational effects; Meier et al. 2021"
    needs = frozenset(("logits",))
    sources = ("dms",)

    def questions(self) -> Iterator[Question]:
        """The runs of every method on every assay."""
        quick = self.options.quick
        names = [name for name in assay_names(self.options.data) if not quick or name in QUICK_ASSAYS]
        self.left_out: dict[str, str] = {}
        self.assays = [self._usable(read_assay(self.options.data, name)) for name in names]
        self.all_variants = {assay.name: Variants.of(assay.wild_type, assay.mutants) for assay in self.assays}
        self.scored: list[Scored] = []
        number = 0
        for assay in self.assays:
            for scored in self._methods(assay):
                scored.first = number
                self.scored.append(scored)
                for run in scored.scoring.passes():
                    number += 1
                    yield Question(run.residues, Wanted(log_probabilities=True), run.masked, run.places)
        self.firsts = np.array([scored.first for scored in self.scored])

    def _usable(self, assay: Assay) -> Assay:
        """The variants that can be scored; in a quick run, a sample of them."""
        stops = assay.has_stop()
        measured = np.any([np.isfinite(values) for values in assay.scores.values()], axis=0)
        usable = ~stops & measured
        told = [f"{stops.sum():,} variants with a stop"] if stops.any() else []
        told += [f"{(~measured & ~stops).sum():,} without a measurement"] if (~measured & ~stops).any() else []
        if self.options.quick and usable.sum() > QUICK_VARIANTS:
            usable, count = self._sample(assay.name, usable, QUICK_VARIANTS), usable.sum()
            told.append(f"a quick run: {count - QUICK_VARIANTS:,} of {count:,}, drawn at random")
        if told:
            self.left_out[assay.name] = f"left out: {', '.join(told)}"
        return assay.select(usable)

    def _sample(self, name: str, usable_N: np.ndarray, count: int) -> np.ndarray:
        """Some of the usable variants, the same for every model."""
        random = np.random.default_rng([self.options.seed, *name.encode()])
        chosen_N = np.zeros(len(usable_N), bool)
        chosen_N[random.permutation(np.flatnonzero(usable_N))[:count]] = True
        return chosen_N

    def _methods(self, assay: Assay) -> Iterator[Scored]:
        """Every method that fits the model, the assay and the time."""
        has_mask = "mask" in self.model.abilities
        yield self._start(assay, "wt-marginals")
        if self.options.quick:
            return
        if not has_mask:
            yield self._start(assay, "likelihood", LIKELIHOOD_VARIANTS)
            return
        yield self._start(assay, "masked-marginals")
        sets = {tuple(item.position for item in substitutions) for substitutions in assay.substitutions()}
        if assay.num_substitutions().max() > 1 and len(sets) * len(assay.wild_type) <= JOINT_RESIDUES:
            yield self._start(assay, "joint-masked-marginals")
        if len(assay.wild_type) <= PSEUDO_LONGEST:
            yield self._start(assay, "pseudo-ppl", PSEUDO_VARIANTS)
            yield self._start(assay, "masked-marginals", PSEUDO_VARIANTS)

    def _start(self, assay: Assay, method: str, sample: int | None = None) -> Scored:
        """A method about to begin; on a sample of the variants where a number is given."""
        variants, what = self.all_variants[assay.name], method
        if sample is not None:
            assay = assay.select(self._sample(assay.name, np.ones(len(assay), bool), sample))
            variants = Variants.of(assay.wild_type, assay.mutants)
            what = f"{method} ({sample} variants)"
        scoring = METHODS[method].scoring(variants, self.model.max_residues)
        return Scored(assay, what, sample is not None, variants, scoring)

    def collect(self, number: int, reply: Reply) -> None:
        """Hand the log probabilities to the method that asked."""
        assert reply.log_probabilities is not None, "log probabilities were wanted"
        scored = self.scored[int(np.searchsorted(self.firsts, number, side="right")) - 1]
        scored.scoring.take(number - scored.first, reply.log_probabilities)

    def finish(self) -> list[Result]:
        """Correlations of every method and column, then those of the baselines, then means over the assays."""
        found: list[Result] = []
        means: dict[str, dict[str, float]] = {}
        for scored in self.scored:
            results = self._results(scored.assay, scored.what, scored.scoring.scores(), scored.is_sample)
            means.setdefault(scored.what, {})[scored.assay.name] = results[0].value
            found += results
        for what, baseline in BASELINES.items():
            for assay in self.assays:
                scores_N = baseline(self.all_variants[assay.name])
                if len(set(scores_N.tolist())) > 1:
                    results = self._results(assay, what, scores_N, whole_only=True)
                    means.setdefault(what, {})[assay.name] = results[0].value
                    found += results
        whole = {what: values for what, values in means.items() if len(values) == len(self.assays) > 1}
        return [*(self._mean(what, values) for what, values in whole.items()), *found]

    def _results(self, assay: Assay, what: str, scores_N: np.ndarray, whole_only: bool) -> list[Result]:
        """A figure for each measured column, the main one first; single and multiple mutants apart, by the main one."""
        changes_N = assay.num_substitutions()
        parts: dict[str, np.ndarray] = {"": np.ones(len(assay), bool)}
        if not whole_only and changes_N.min() == 1 < changes_N.max():
            parts |= {", single": changes_N == 1, ", multiple": changes_N > 1}
        found = []
        for column, measured_N in assay.scores.items():
            for part, chosen_N in parts.items():
                chosen_N = chosen_N & np.isfinite(measured_N)
                if chosen_N.sum() >= 3 and (not part or column == assay.main_score):
                    title = f"{assay.name} {column}{part}: {what}"
                    found.append(self._correlation(title, assay, scores_N[chosen_N], measured_N, chosen_N))
        return found

    def _correlation(
        self, title: str, assay: Assay, scores_N: np.ndarray, measured: np.ndarray, chosen: np.ndarray
    ) -> Result:
        """Spearman's correlation of chosen variants, drawn again in bundles."""
        terms_N = spearman_terms(scores_N, measured[chosen])
        notes = [*self._notes(assay), self._interval_note(len(terms_N))]
        if np.isnan(terms_N).any():
            terms_N = np.zeros(len(terms_N))
            notes.append("the score or the measurement is the same for all variants: it ranks nothing, told as 0")
        mutants = [mutant for mutant, keep in zip(assay.mutants, chosen, strict=True) if keep]
        digest = hashlib.sha256("\n".join((title.split(":")[0], *mutants)).encode()).hexdigest()[:8]
        order_N = np.random.default_rng([self.options.seed, len(terms_N)]).permutation(len(terms_N))
        bundles = min(BUNDLES, len(terms_N))
        sums_G = np.bincount(order_N % bundles, weights=terms_N)
        counts_G = np.bincount(order_N % bundles)
        return self.result(title, GroupScores([f"{digest}-{k}" for k in range(bundles)], sums_G, counts_G), notes=notes)

    def _notes(self, assay: Assay) -> list[str]:
        notes = [self.left_out[assay.name]] if assay.name in self.left_out else []
        if self.model.max_residues is not None and len(assay.wild_type) > self.model.max_residues:
            notes.append(
                f"{len(assay.wild_type)} residues exceed the {self.model.max_residues} of this model: a masked one is "
                "in the middle of a window; without masks each residue comes from one of several windows"
            )
        return notes

    def _interval_note(self, count: int) -> str:
        bundles = f", in {BUNDLES} bundles made at random" if count > BUNDLES else ""
        return (
            f"the interval draws variants again{bundles}, by first-order terms of the correlation; it holds for this "
            "assay, whose variants of one position are alike, and not for other assays"
        )

    def _mean(self, what: str, values: dict[str, float]) -> Result:
        """Mean over assays of the correlation with their main column."""
        scores = GroupScores(list(values), np.array(list(values.values())), np.ones(len(values)))
        notes: Sequence[str] = (
            "main column of each assay; the interval draws assays again, few as they are, two of them of Pab1 and two "
            "of TEM-1; the papers' figures are means over other assays, those of DeepSequence of absolute values",
        )
        table = {"assay": list(values), "spearman": list(values.values())}
        return self.result(f"mean over {len(values)} assays: {what}", scores, notes=notes, table=table)
