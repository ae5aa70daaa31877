"""Family alignment: pairs are what they are called, planted columns are found, shuffled vectors are chance."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from datasets_tools import write_archive
from embedding_tools import RESIDUES
from evaluation_tools import answer, facts, options
from sklearn.metrics import roc_auc_score

from proteinlm.datasets.sources import SOURCES
from proteinlm.tasks.alignment import CONDITIONS, EXAMPLE, FamilyAlignment, draw_pairs
from proteinlm.tasks.base import Question, Reply, Result

COLUMNS, FAMILIES = 24, 14


def aligned_family(seed: int, sequences: int = 8) -> list[str]:
    """Rows with gaps; each column has a residue that half of the sequences share."""
    random = np.random.default_rng(seed)
    typical = random.choice(list(RESIDUES), size=COLUMNS)
    rows = []
    for _ in range(sequences):
        others, fate = random.choice(list(RESIDUES), size=COLUMNS), random.random(COLUMNS)
        rows.append("".join(np.where(fate < 0.5, typical, np.where(fate < 0.9, others, "-"))))
    return rows


@pytest.fixture
def data(tmp_path: Path) -> dict[str, int]:
    """Families written where the readers look, and the column of each residue by sequence."""
    families = {f"PF{number:05d}": aligned_family(number) for number in range(1, FAMILIES - 1)}
    members = {}
    for name, rows in families.items():
        fasta = "".join(f">{number}\n{row}\n" for number, row in enumerate(rows))
        members[f"balifam100/ref/{name}.100"] = fasta
        members[f"balifam100/in/{name}.100"] = fasta.replace("-", "")
    write_archive(tmp_path / SOURCES["balifam"].path, members)
    pfam = {}
    for seed, name in ((98, EXAMPLE), (99, "PF13354")):
        families[name] = aligned_family(seed)
        fasta = "".join(f">{number}\n{row}\n" for number, row in enumerate(families[name]))
        pfam |= {f"pfam/{name}_x.fasta.gz": gzip.compress(fasta.encode()), f"pfam/{name}_struct.dat": "1 2 0.5 7\n"}
    write_archive(tmp_path / SOURCES["pfam"].path, pfam)
    columns = {}
    for rows in families.values():
        for row in rows:
            columns[row.replace("-", "")] = [at for at, letter in enumerate(row) if letter != "-"]
    return columns


def test_pairs_are_what_they_are_called() -> None:
    rows = aligned_family(0)
    residues = tuple(row.replace("-", "") for row in rows)
    places = np.array([[-1 if row[c] == "-" else c - row[:c].count("-") for c in range(COLUMNS)] for row in rows])
    column_of = [{int(place): column for column, place in enumerate(row) if place >= 0} for row in places]
    family = draw_pairs(places, residues, 200, np.random.default_rng(1))
    seen = 0
    for name in CONDITIONS:
        for is_same, pairs in zip((True, False), family.pairs[name], strict=True):
            assert len(pairs) == 200
            for one, i, other, j in pairs.tolist():
                assert one != other
                assert (column_of[one][i] == column_of[other][j]) is is_same
                alike = residues[one][i] == residues[other][j]
                assert name == "all pairs" or alike is (name == "same amino acid")
                seen += 1
    assert seen == 1200


def test_pairs_that_a_family_has_not_are_not_made_up() -> None:
    places = np.array([[0, 1], [0, 1]])
    family = draw_pairs(places, ("MK", "MK"), 10, np.random.default_rng(0))
    assert [len(pairs) for pairs in family.pairs["different amino acids"]] == [0, 10]
    assert [len(pairs) for pairs in family.pairs["same amino acid"]] == [10, 0]


def run(tmp_path: Path, vectors: "dict[str, np.ndarray]") -> "dict[str, Result]":
    def reply(number: int, question: Question) -> Reply:
        assert question.wanted.kept
        return Reply(kept=vectors[question.residues].astype(np.float16))

    return answer(FamilyAlignment(options(tmp_path), facts()), reply)


def test_planted_columns_are_found(data: dict, tmp_path: Path) -> None:
    directions = np.random.default_rng(0).normal(size=(COLUMNS, 64))
    found = run(tmp_path, {residues: directions[columns] for residues, columns in data.items()})
    assert found.keys() == {f"AUC, {name}" for name in CONDITIONS}
    for result in found.values():
        assert result.value > 0.999 and result.groups == result.n == FAMILIES
        assert result.table["family"] == EXAMPLE and len(result.table) == 4


def test_shuffled_vectors_are_chance(data: dict, tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    directions = np.random.default_rng(0).normal(size=(COLUMNS, 64))
    found = run(tmp_path, {residues: directions[random.permutation(columns)] for residues, columns in data.items()})
    for result in found.values():
        # Fourteen families of 2 x 1,000 pairs among 8 x 22 residues.
        assert result.low - 0.02 < 0.5 < result.high + 0.02 and abs(result.value - 0.5) < 0.05


def test_the_kind_of_residue_tells_something_over_all_pairs_only(data: dict, tmp_path: Path) -> None:
    """One-hot vectors: better than chance over all pairs, blind where both residues are alike or both are not."""
    table = np.eye(20)
    found = run(tmp_path, {residues: table[[RESIDUES.index(letter) for letter in residues]] for residues in data})
    assert found["AUC, all pairs"].low > 0.55
    assert found["AUC, same amino acid"].value == found["AUC, different amino acids"].value == 0.5


def test_the_area_is_that_of_the_cosines(data: dict, tmp_path: Path) -> None:
    """One family, pair by pair, with scikit-learn."""
    random = np.random.default_rng(5)
    vectors = {residues: random.normal(size=(len(residues), 6)).astype(np.float16) for residues in data}
    task = FamilyAlignment(options(tmp_path), facts())
    questions = list(task.questions())
    for number, question in enumerate(questions):
        task.collect(number, Reply(kept=vectors[question.residues]))
    family = task.families[0]
    found = {result.measure: result for result in task.finish()}
    for name in CONDITIONS:
        scores, labels = [], []
        for label, pairs in zip((1, 0), family.pairs[name], strict=True):
            for one, i, other, j in pairs.tolist():
                a, b = (vectors[family.residues[s]][r].astype(float) for s, r in ((one, i), (other, j)))
                scores.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
                labels.append(label)
        # Cosines of fp16 vectors in fp32: a few pairs out of 10^6 may change places.
        assert found[f"AUC, {name}"].sums[0] == pytest.approx(roc_auc_score(labels, scores), abs=1e-5)


def test_the_same_seed_draws_the_same_pairs(data: dict, tmp_path: Path) -> None:
    def pairs(seed: int) -> list[list[int]]:
        task = FamilyAlignment(options(tmp_path, seed=seed), facts())
        list(task.questions())
        return [row for family in task.families for row in family.pairs["all pairs"][0].tolist()]

    assert pairs(0) == pairs(0) != pairs(1)
