"""What the tests of evaluation share: tasks answered without a model, small data folders, runs of the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets_tools import write_coordinates, write_table, write_text
from embedding_tools import RESIDUES

from proteinlm.datasets.sources import SOURCES
from proteinlm.tasks.base import Ability, ModelFacts, Question, Reply, Result, Task, TaskOptions, TwoRoundTask

ABILITIES: frozenset[Ability] = frozenset(("residues", "logits", "mask", "attentions", "contacts"))

SITES = 4
"""Places in space; residues at the same one touch, so that a quarter of all pairs are contacts."""


def facts(abilities: frozenset[Ability] = ABILITIES) -> ModelFacts:
    return ModelFacts("fake", "0" * 64, num_layers=2, width=8, abilities=abilities)


def answer(task: Task, reply: Callable[[int, Question], Reply], shuffled: bool = True) -> dict[str, Result]:
    """The results of a task whose questions are answered by a function, in any order; by measure."""
    rounds = (task.questions, task.second_questions) if isinstance(task, TwoRoundTask) else (task.questions,)
    before = 0
    for ask in rounds:
        questions = list(ask())
        order = np.random.default_rng(0).permutation(len(questions)) if shuffled else range(len(questions))
        for number in order:
            task.collect(before + int(number), reply(before + int(number), questions[number]))
        before += len(questions)
    results = task.finish()
    assert results and len({result.measure for result in results}) == len(results)
    return {result.measure: result for result in results}


def options(data: Path, quick: bool = False, seed: int = 0) -> TaskOptions:
    return TaskOptions(data, quick, seed)


def protein(length: int, seed: int) -> str:
    return "".join(np.random.default_rng([seed, length]).choice(list(RESIDUES), size=length))


def write_scop(folder: Path, folds: Mapping[str, int], longest: int = 30) -> list[str]:
    """A SCOP table: for each fold, `count` domains in superfamilies of two, families of one; the codes."""
    rows, codes = [], []
    for fold, count in folds.items():
        for number in range(count):
            code = f"{fold}.{number // 2 + 1}.{number + 1}"
            codes.append(code)
            residues = protein(20 + number % (longest - 19), len(rows))
            rows.append((f"d{len(rows):04d}", code, "made up", "", "1.0", residues))
    write_table(folder, "scop", "sid sccs source tape_split cov_of_domain sequence", rows)
    return codes


def write_held_out(folder: Path, count: int, longest: int = 60) -> dict[str, str]:
    """A FASTA file of held-out proteins; residues by id."""
    proteins = {f"P{number:05d}": protein(20 + number % (longest - 19), number) for number in range(count)}
    lines = [line for name, residues in proteins.items() for line in (f">{name}", residues)]
    write_text(folder / SOURCES["held_out"].path, lines)
    return proteins


@dataclass(frozen=True)
class Known:
    """Site of each residue, by the residues of the chain."""

    sites: dict[str, np.ndarray]

    def contacts(self, residues: str) -> np.ndarray:
        sites = self.sites[residues]
        return sites[:, None] == sites


def write_structures(folder: Path, count: int = 70, shortest: int = 44) -> Known:
    """Chains in 14 folds of two superfamilies whose residues stand at four sites, 40 Å apart."""
    rows, points, known = [], {}, {}
    for number in range(count):
        residues, name = protein(shortest + number % 9, number), f"{1000 + number}_A"
        random = np.random.default_rng([3, number])
        sites = random.integers(SITES, size=len(residues))
        points[name] = 40.0 * sites[:, None] * np.array([1.0, 0, 0]) + random.uniform(-1, 1, (len(residues), 3))
        known[residues] = sites
        sccs = f"a.{number % 14 + 1}.{number % 28 // 14 + 1}.{number + 1}"
        rows.append((name, "1", str(len(residues)), name, "", "", sccs, "", "", residues, "C" * len(residues)))
    columns = "chain start length cluster30 cath scop_sid scop_sccs ec_class384 ec_number sequence ss8"
    write_table(folder, "chains", columns, rows)
    write_coordinates(folder, points)
    return Known(known)
