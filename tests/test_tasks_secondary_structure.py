"""Secondary structure: what is planted is read off, shuffled labels are chance, nobody is tested on his relatives."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets_tools import write_table
from evaluation_tools import answer, facts, options, protein

from proteinlm.datasets.chains import PdbChain
from proteinlm.datasets.secondary_structure import SS8, class_numbers, three_states
from proteinlm.tasks.base import Question, Reply, Result, Task
from proteinlm.tasks.secondary_structure import (
    ChainBlocks,
    ConvolutionalSecondaryStructure,
    LinearSecondaryStructure,
    RecurrentSecondaryStructure,
    three_of_eight,
)

COMMON = np.array([1, 30, 1, 2, 20, 8, 12, 26]) / 100
"""Shares of the states in proteins, roughly; the commonest is what a guesser says."""


def states(length: int, seed: int) -> str:
    return "".join(np.random.default_rng([7, seed]).choice(list(SS8), size=length, p=COMMON))


def write_chains(folder: Path, count: int = 80) -> dict[str, str]:
    """Chains in 20 folds, each with two superfamilies; one in eight is not classified, one no representative."""
    rows, kept = [], {}
    for number in range(count):
        residues, name = protein(30 + number % 7, number), f"{1000 + number}_A"
        fold, unclassified, stands_for = number % 20, number % 8 == 7, number % 8 != 6
        sccs = "" if unclassified else f"a.{fold + 1}.{number % 40 // 20 + 1}.{number + 1}"
        cluster = name if stands_for else f"{1000 + number - 1}_A"
        ss8 = states(len(residues), number)
        rows.append((name, "1", str(len(residues)), cluster, "", "", sccs, "", "", residues, ss8))
        if stands_for and not unclassified:
            kept[residues] = ss8
    columns = "chain start length cluster30 cath scop_sid scop_sccs ec_class384 ec_number sequence ss8"
    write_table(folder, "chains", columns, rows)
    return kept


def write_deep(folder: Path) -> dict[str, str]:
    known = {}
    for key, splits in (("netsurfp", {"train": 300, "val": 40}), ("cb513", {"CB513": 30})):
        rows = []
        for split, count in splits.items():
            for number in range(count):
                seed = len(known)
                residues = protein(30 + number % 9, 10_000 + seed)
                ss8 = states(len(residues), seed)
                known[residues] = ss8
                rows.append((f"{split}{number}", split, residues, three_states(ss8), "1" * len(residues), ss8))
        write_table(folder, key, "chain split sequence ss3 mask ss8", rows)
    return known


def planted(known: dict[str, str], shuffled: bool = False) -> Callable[[int, Question], Reply]:
    """Vectors that tell the state of the residue, or that of another one."""

    def reply(number: int, question: Question) -> Reply:
        random = np.random.default_rng(number)
        classes = class_numbers(known[question.residues], SS8)
        if shuffled:
            classes = random.permutation(classes)
        vectors = np.eye(8)[classes] + random.normal(scale=0.1, size=(len(classes), 8))
        return Reply(kept=vectors.astype(np.float16))

    return reply


def check_planted(found: dict[str, Result], least: float) -> None:
    for measure, result in found.items():
        assert result.value > least and result.low <= result.value <= result.high, (measure, result.value)


def check_chance(found: dict[str, Result], known: dict[str, str]) -> None:
    """The commonest state is all that can be said; the commonest of eight need not be of the commonest of three."""
    text = "".join(known.values())
    for measure, result in found.items():
        letters = text if "Q8" in measure else three_states(text)
        commonest = max(letters.count(letter) for letter in set(letters)) / len(letters)
        least = 0 if measure.startswith("Q3, ") else commonest - 0.06
        assert least < result.value < commonest + 0.06, (measure, result.value, commonest)


def test_three_of_eight_is_that_of_the_reader() -> None:
    for number, state in enumerate(SS8):
        assert "HEC"[three_of_eight(np.array([number]))[0]] == three_states(state)


def test_blocks_hold_every_residue_once_in_order() -> None:
    random = np.random.default_rng(0)
    vectors = [random.normal(size=(length, 3)) for length in (15_000, 4_000, 9_000, 30_000, 1)]
    classes = [np.full(len(one), number) for number, one in enumerate(vectors)]
    blocks = list(ChainBlocks(vectors, classes, [4, 4, 9, 5, 6]))
    assert [len(block.targets_N) for block in blocks] == [28_000, 30_000, 1]
    np.testing.assert_array_equal(np.concatenate([block.features_ND for block in blocks]), np.concatenate(vectors))
    np.testing.assert_array_equal(np.concatenate([block.targets_N for block in blocks]), np.concatenate(classes))
    assert set(blocks[0].groups_N) == {4, 9} and set(blocks[2].groups_N) == {6}


def test_a_linear_probe_reads_what_is_planted(tmp_path: Path) -> None:
    known = write_chains(tmp_path)
    found = answer(LinearSecondaryStructure(options(tmp_path), facts()), planted(known))
    assert found.keys() == {f"{q}, {level}" for q in ("Q8", "Q3") for level in ("family", "superfamily", "fold")}
    check_planted(found, 0.99)
    residues = sum(map(len, known))
    assert all(result.n == residues for result in found.values())
    assert [found[f"Q8, {level}"].groups for level in ("family", "superfamily", "fold")] == sorted(
        (found[f"Q8, {level}"].groups for level in ("family", "superfamily", "fold")), reverse=True
    )
    assert found["Q8, fold"].groups < found["Q8, family"].groups == len(known)


def test_a_linear_probe_of_shuffled_states_is_chance(tmp_path: Path) -> None:
    known = write_chains(tmp_path)
    check_chance(answer(LinearSecondaryStructure(options(tmp_path), facts()), planted(known, shuffled=True)), known)


def test_nobody_is_tested_on_his_relatives(tmp_path: Path) -> None:
    """Vectors that tell the fold and nothing else: a probe that had seen a relative would know its state."""
    known = write_chains(tmp_path)
    task = LinearSecondaryStructure(options(tmp_path), facts())
    list(task.questions())
    fold_of = {chain.residues: int(chain.scop_sccs.split(".")[1]) - 1 for chain in task.chains}
    # All residues of a fold have one state here, which only its members could teach.
    task.chains = [with_states(chain, SS8[fold_of[chain.residues] % 8]) for chain in task.chains]
    for number, chain in enumerate(task.chains):
        vector = np.eye(20)[fold_of[chain.residues]]
        task.collect(number, Reply(kept=np.tile(vector, (len(chain.residues), 1)).astype(np.float16)))
    found = {result.measure: result.value for result in task.finish()}
    assert found["Q8, family"] > 0.9, "relatives of the fold are in the training part"
    assert found["Q8, fold"] < 0.5
    assert len(known) == len(task.chains)


def with_states(chain: PdbChain, state: str) -> PdbChain:
    return replace(chain, ss8=state * len(chain.residues))


@pytest.mark.parametrize(
    "kind", [ConvolutionalSecondaryStructure, pytest.param(RecurrentSecondaryStructure, marks=pytest.mark.slow)]
)
def test_networks_read_what_is_planted_and_nothing_else(tmp_path: Path, kind: type[Task]) -> None:
    known = write_deep(tmp_path)
    found = answer(kind(options(tmp_path), facts()), planted(known))
    assert found.keys() == {"CB513, Q8", "CB513, Q3"}
    check_planted(found, 0.8)
    assert all(result.groups == 30 for result in found.values())
    check_chance(answer(kind(options(tmp_path), facts()), planted(known, shuffled=True)), known)


def test_a_quick_run_is_smaller_and_says_so(tmp_path: Path) -> None:
    known = write_chains(tmp_path, count=400)
    found = answer(LinearSecondaryStructure(options(tmp_path, quick=True), facts()), planted(known))
    assert found.keys() == {"Q8, superfamily", "Q3, superfamily"}
    assert found["Q8, superfamily"].n < sum(map(len, known)) and any(
        "quick" in n for n in found["Q8, superfamily"].notes
    )
