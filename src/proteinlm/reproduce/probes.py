"""Q3 and Q10 by linear probes on frozen vectors, on parts of the labelled sets that a CPU embeds in minutes.

In: a model and the data folder. Out: right answers and answers of each test chain or protein, so that models can be
compared pair by pair. The strength of each probe's penalty is chosen on training proteins only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from proteinlm.datasets.localisation import LOCATIONS, LocalisedProtein, for_q10, localisation_splits
from proteinlm.datasets.secondary_structure import SS3, SecondaryStructureChain, secondary_structure_splits
from proteinlm.errors import InputError
from proteinlm.heads import linear
from proteinlm.heads.rows import Block
from proteinlm.heads.scores import right_by_group
from proteinlm.inference import Answer, Query, Runner, forward_all
from proteinlm.metrics import Totals
from proteinlm.models.base import Want
from proteinlm.tasks.secondary_structure import ChainBlocks

MEASURES = ("Q3", "Q10")

LabelledT = TypeVar("LabelledT", SecondaryStructureChain, LocalisedProtein)


@dataclass(frozen=True)
class Sizes:
    """How much of the labelled sets is taken, drawn at random; the whole where there is less.

    Args:
        chains: of NetSurfP-2.0 to train on. test_chains: of CB513. proteins: of DeepLoc to train on.
        test_proteins: of DeepLoc's validation part. longest: residues; longer proteins are left out, so that every
            model reads each protein in one piece.
    """

    chains: int
    test_chains: int
    proteins: int
    test_proteins: int
    longest: int = 1022


@dataclass(frozen=True)
class Labelled:
    """What the probes are trained and tested on."""

    chains: tuple[SecondaryStructureChain, ...]
    test_chains: tuple[SecondaryStructureChain, ...]
    proteins: tuple[LocalisedProtein, ...]
    test_proteins: tuple[LocalisedProtein, ...]

    def counts(self) -> dict[str, int]:
        """How many of each."""
        return {name: len(values) for name, values in vars(self).items()}


def read_labelled(data: Path | None, sizes: Sizes, seed: int) -> Labelled:
    """The parts of NetSurfP-2.0, CB513 and DeepLoc that are used.

    Args:
        data: the data folder; None for what PROTEINLM_DATA names. sizes: how much. seed: of the drawing.

    Raises:
        InputError: a file is missing or wrong, or nothing is left of a set.
    """
    structures, locations = secondary_structure_splits(data), localisation_splits(data)
    random = np.random.default_rng(seed)
    found = Labelled(
        _drawn(structures.train, sizes.chains, sizes.longest, random),
        _drawn(structures.test, sizes.test_chains, sizes.longest, random),
        _drawn(for_q10(locations.train), sizes.proteins, sizes.longest, random),
        _drawn(for_q10(locations.test), sizes.test_proteins, sizes.longest, random),
    )
    for name, count in found.counts().items():
        if count < linear.ProbeOptions(2).folds:
            what = name.replace("_", " ")
            raise InputError(f"{count} {what} of at most {sizes.longest} residues are too few for a probe; give more")
    return found


def _drawn(items: Sequence[LabelledT], most: int, longest: int, random: np.random.Generator) -> tuple[LabelledT, ...]:
    fitting = [item for item in items if len(item.residues) <= longest]
    return tuple(fitting[number] for number in np.sort(random.permutation(len(fitting))[:most]))


def probe(runner: Runner, labelled: Labelled, seed: int) -> dict[str, Totals]:
    """Right answers and answers of each test chain (Q3) and test protein (Q10), by the names in `MEASURES`.

    Args:
        runner: the model; its last hidden state is judged. labelled: what on. seed: of the folds.

    Raises:
        InputError: the model cannot read one of the proteins.
    """
    return {"Q3": _q3(runner, labelled, seed), "Q10": _q10(runner, labelled, seed)}


def _q3(runner: Runner, labelled: Labelled, seed: int) -> Totals:
    vectors = list(vectors_of(runner, [chain.residues for chain in labelled.chains]))
    classes = [chain.ss3_classes().astype(np.int64) for chain in labelled.chains]
    blocks = ChainBlocks(vectors, classes, range(len(vectors)))
    fitted = linear.fit(blocks, linear.ProbeOptions(len(SS3), seed=seed))
    test = [chain.residues for chain in labelled.test_chains]
    predicted = np.concatenate([fitted.logits(vectors_LD).argmax(1) for vectors_LD in vectors_of(runner, test)])
    known = np.concatenate([chain.ss3_classes().astype(np.int64) for chain in labelled.test_chains])
    return right_by_group(predicted, known, np.repeat(np.arange(len(test)), [len(residues) for residues in test]))


def _q10(runner: Runner, labelled: Labelled, seed: int) -> Totals:
    def means(proteins: Sequence[LocalisedProtein]) -> tuple[np.ndarray, np.ndarray]:
        found = [vectors_LD.mean(0) for vectors_LD in vectors_of(runner, [one.residues for one in proteins])]
        return np.stack(found), np.array([one.location_class for one in proteins], np.int64)

    features_ND, classes_N = means(labelled.proteins)
    block = Block(features_ND, classes_N, np.arange(len(classes_N)))
    fitted = linear.fit([block], linear.ProbeOptions(len(LOCATIONS), seed=seed))
    test_ND, known_N = means(labelled.test_proteins)
    return right_by_group(fitted.logits(test_ND).argmax(1), known_N, np.arange(len(known_N)))


def vectors_of(runner: Runner, proteins: Sequence[str], together: int = 256) -> Iterator[np.ndarray]:
    """The last hidden state at the residues of each protein, in order, fp32, shape (L, D); so many held at a time.

    Raises:
        InputError: the model cannot read one of them.
    """
    layer = runner.model.num_layers
    for start in range(0, len(proteins), together):
        queries = [Query(row, residues) for row, residues in enumerate(proteins[start : start + together])]
        answers: dict[int, np.ndarray] = {}
        for answer in forward_all(runner, queries, Want(layers=(layer,))):
            if not isinstance(answer, Answer):
                raise InputError(f"labelled protein {start + answer.row} cannot be read: {answer.reason}")
            answers[answer.row] = answer.hidden[layer].numpy()
        yield from (answers[row] for row in range(len(queries)))
