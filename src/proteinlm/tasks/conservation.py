"""Conservation: how much each residue may vary in evolution, read off frozen residue vectors by a linear probe.

In: chains of ConSurf-DB with nine grades, in FLIP's split. Out: the share of right grades, and Spearman's correlation
of the expected grade (grades weighted by their probabilities) with the true one, both over residues with intervals over
chains. Not in the papers: an extra probe, with the data of Marquet et al. 2021.
"""

from collections.abc import Iterator

import numpy as np

from proteinlm.datasets.conservation import CONSERVATION, ConservationChain, read_conservation
from proteinlm.heads import linear
from proteinlm.heads.linear import LinearProbe
from proteinlm.heads.scores import right_by_group
from proteinlm.metrics import spearman_terms, sum_by_group
from proteinlm.tasks.base import GroupScores, Question, Reply, Result, Task, Wanted
from proteinlm.tasks.secondary_structure import ChainBlocks

TRAINING_CHAINS, QUICK_TRAINING_CHAINS, QUICK_TEST_CHAINS = 3_000, 200, 100
"""Chains that the probe is fitted on, 0.8 M residues, and those of a quick run; with all of them the vectors alone
would take three times the time and disk."""


class Conservation(Task):
    """Nine grades from residue vectors by multinomial logistic regression."""

    name = "conservation"
    version = 1
    title = "Conservation, linear probe"
    source = "Marquet et al. 2021, conservation (ConSurf-DB), with another head"
    needs = frozenset(("residues",))
    sources = ("conservation",)

    def questions(self) -> Iterator[Question]:
        """The residue vectors of training chains, then of test chains."""
        chains, random = read_conservation(self.options.data), self.random()
        most = (QUICK_TRAINING_CHAINS, QUICK_TEST_CHAINS) if self.options.quick else (TRAINING_CHAINS, None)
        parts = ([c for c in chains if c.split == "train"], [c for c in chains if c.split != "train"])
        self.available = len(parts[0])
        self.train, self.test = (
            [part[number] for number in np.sort(random.permutation(len(part))[:at_most])]
            for part, at_most in zip(parts, most, strict=True)
        )
        self.vectors: dict[int, np.ndarray] = {}
        for chain in (*self.train, *self.test):
            yield Question(chain.residues, Wanted(kept=True, layer=self.options.layer))

    def collect(self, number: int, reply: Reply) -> None:
        """Keep the vectors, which lie in a file."""
        assert reply.kept is not None, "kept vectors were wanted"
        self.vectors[number] = reply.kept

    def finish(self) -> list[Result]:
        """Fit on the training chains and score the test chains; intervals draw these again."""
        fitted = range(len(self.train))
        blocks = ChainBlocks([self.vectors[number] for number in fitted], _classes(self.train), fitted)
        probe = linear.fit(blocks, linear.ProbeOptions(len(CONSERVATION), seed=self.options.seed))
        probabilities_RK = self._probabilities(probe)
        known_R = np.concatenate(_classes(self.test))
        chain_R = np.repeat(np.arange(len(self.test)), [len(chain.residues) for chain in self.test])
        names = [f"{number} {chain.id}" for number, chain in enumerate(self.test)]
        right = GroupScores(names, *right_by_group(probabilities_RK.argmax(1), known_R, chain_R))
        # Over the residues of all chains together: a chain in which nothing varies has no correlation of its own.
        terms_R = spearman_terms(probabilities_RK @ np.arange(len(CONSERVATION)), known_R)
        ranked = GroupScores(names, sum_by_group(terms_R, chain_R), sum_by_group(np.ones(len(terms_R)), chain_R))
        notes = self._notes(probe, known_R)
        return [
            self.result("accuracy, 9 grades", right, notes=notes),
            self.result("Spearman of the expected grade", ranked, notes=notes),
        ]

    def _probabilities(self, probe: LinearProbe) -> np.ndarray:
        """Of each grade, for the residues of all test chains, shape (R, 9)."""
        numbers = range(len(self.train), len(self.train) + len(self.test))
        return np.concatenate([probe.predict_proba(np.asarray(self.vectors[number])) for number in numbers])

    def _notes(self, probe: LinearProbe, known_R: np.ndarray) -> tuple[str, ...]:
        commonest = np.bincount(known_R).max() / len(known_R)
        return (
            f"fitted on {len(self.train):,} chains, drawn from the {self.available:,} training chains of FLIP's split, "
            f"and scored on {len(self.test)} of its validation chains, since its test chains are not here",
            f"the commonest grade alone would be right in {commonest:.3f}; penalty strength "
            f"{probe.record['strength']:g}, chosen on held-out training chains",
            *(("a quick run: fewer chains",) if self.options.quick else ()),
        )


def _classes(chains: list[ConservationChain]) -> list[np.ndarray]:
    return [chain.classes().astype(np.int64) for chain in chains]
