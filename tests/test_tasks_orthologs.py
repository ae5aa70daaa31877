"""Ortholog arithmetic: every rank by a plain loop; planted axes are found, shuffled vectors are chance."""

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from conftest import shared_data
from datasets_tools import write_table
from evaluation_tools import answer, facts, options, protein

from proteinlm.datasets.annotations import read_orthologs
from proteinlm.errors import InputError
from proteinlm.tasks import TASKS
from proteinlm.tasks.base import Question, Reply, Result
from proteinlm.tasks.orthologs import (
    RANKINGS,
    RECOVERED,
    OrthologArithmetic,
    compositions,
    find_queries,
    single_copies,
)

GENES, SPECIES = 9, 6
MEASURES = {
    f"{ranking}, recovery@{k}, {what}"
    for ranking in RANKINGS
    for k in RECOVERED
    for what in ("arithmetic", "composition", "add nothing")
}


def write_orthologs(folder: Path, genes: int = GENES, species: int = SPECIES) -> list[tuple[str, str, str, str]]:
    """One protein of every gene in every species, but for two copies of gene 0 in species 0."""
    places = [(gene, where) for gene in range(genes) for where in range(species)] + [(0, 0)]
    rows = [
        (f"G{gene:02d}", f"S{where:02d}", f"p{number}", protein(20 + gene + where, number))
        for number, (gene, where) in enumerate(places)
    ]
    write_table(folder, "orthobench", "refog species id sequence", rows)
    return rows


def planted(rows: list[tuple[str, str, str, str]], noise: float) -> dict[str, np.ndarray]:
    """A vector for each gene plus one for each species."""
    random = np.random.default_rng(0)
    of_gene, of_species = random.normal(size=(GENES, 12)), random.normal(size=(SPECIES, 12))
    return {
        row[3]: (of_gene[int(row[0][1:])] + of_species[int(row[1][1:])] + noise * random.normal(size=12))
        for row in rows
    }


def run(folder: Path, vectors: dict[str, np.ndarray]) -> dict[str, Result]:
    def reply(number: int, question: Question) -> Reply:
        assert question.wanted.mean
        return Reply(mean=vectors[question.residues].astype(np.float32))

    return answer(OrthologArithmetic(options(folder), facts()), reply)


def plain(rows: list[tuple[str, str, str, str]], vectors: dict[str, np.ndarray], what: str) -> dict[str, list[bool]]:
    """Every figure by loops over distances; sequences are all different here."""
    cells: dict[tuple[str, str], list[str]] = {}
    for gene, where, _, residues in rows:
        cells.setdefault((gene, where), []).append(residues)
    single = {cell: found[0] for cell, found in cells.items() if len(found) == 1}
    genes, species = sorted({row[0] for row in rows}), sorted({row[1] for row in rows})
    found: dict[str, list[bool]] = {}
    for i, j in permutations(genes, 2):
        for a, b in permutations(species, 2):
            four = [(i, a), (j, b), (j, a), (i, b)]
            if any(cell not in single for cell in four):
                continue
            start, plus, minus, target = (single[cell] for cell in four)
            query = vectors[start] + (0 if what == "add nothing" else vectors[plus] - vectors[minus])
            for ranking in RANKINGS:
                ahead = sum(
                    float(((query - vectors[row[3]]) ** 2).sum()) <= float(((query - vectors[target]) ** 2).sum())
                    for row in rows
                    if row[3] not in (start, plus, minus, target)
                    and (ranking != "along species" or row[0] == i)
                    and (ranking != "along genes" or row[1] == b)
                )
                for k in RECOVERED:
                    found.setdefault(f"{ranking}, recovery@{k}, {what}", []).append(ahead < k)
    return found


def test_every_figure_by_a_plain_loop(tmp_path: Path) -> None:
    rows = write_orthologs(tmp_path)
    vectors = planted(rows, noise=0.7)
    found, compared = run(tmp_path, vectors), 0
    assert found.keys() == MEASURES
    as_read = {residues: vector.astype(np.float32).astype(np.float64) for residues, vector in vectors.items()}
    composed = dict(zip((row[3] for row in rows), compositions([row[3] for row in rows]), strict=True))
    for what, source in (("arithmetic", as_read), ("add nothing", as_read), ("composition", composed)):
        for measure, right in plain(rows, source, what).items():
            assert found[measure].value == pytest.approx(np.mean(right), abs=1e-12), measure
            assert found[measure].n == len(right) and found[measure].groups == GENES
            compared += 1
    assert compared == len(MEASURES) == 27


def test_planted_axes_are_found(tmp_path: Path) -> None:
    found = run(tmp_path, planted(write_orthologs(tmp_path), noise=0.01))
    for ranking in RANKINGS:
        assert found[f"{ranking}, recovery@1, arithmetic"].value > 0.99
    for ranking in ("all proteins", "along species"):
        assert found[f"{ranking}, recovery@1, add nothing"].high < 0.5, "v(i, a) says nothing of species b"
    assert found["along genes, recovery@1, add nothing"].value > 0.5, "v(i, a) says which gene it is"


def test_shuffled_vectors_are_chance(tmp_path: Path) -> None:
    rows = write_orthologs(tmp_path)
    vectors = planted(rows, noise=0.5)
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = {row[3]: vectors[rows[number][3]] for row, number in zip(rows, order, strict=True)}
    found = run(tmp_path, shuffled)
    # Candidates besides the four of the query: all but these; the other species; the other genes.
    candidates = {"all proteins": len(rows) - 3, "along species": SPECIES - 1, "along genes": GENES - 1}
    for ranking, count in candidates.items():
        result = found[f"{ranking}, recovery@1, arithmetic"]
        # One shuffle of 55 vectors: the interval is over genes, given that shuffle.
        assert result.low - 0.08 < 1 / count < result.high + 0.08, (ranking, result.value, 1 / count)
        assert result.value < 0.45


def test_what_is_asked_and_what_is_left_out(tmp_path: Path) -> None:
    rows = write_orthologs(tmp_path, genes=3, species=3)
    proteins = read_orthologs(tmp_path)
    single = single_copies(proteins)
    assert "S00" not in single["G00"] and len(single["G00"]) == 2 and len(single["G01"]) == 3
    number_of = {row[3]: number for number, row in enumerate(rows)}
    # Genes 0 and 1, and 0 and 2, share two ordered pairs of species, genes 1 and 2 six; either gene may come first.
    assert len(find_queries(proteins, number_of)) == 2 * (2 + 2 + 6)
    alike = [*rows[:4], (*rows[4][:3], rows[3][3]), *rows[5:]]
    write_table(tmp_path, "orthobench", "refog species id sequence", alike)
    proteins = read_orthologs(tmp_path)
    number_of = {row[3]: number for number, row in enumerate(alike)}
    queries = find_queries(proteins, number_of)
    assert 0 < len(queries) < 20, "the same sequence in two species is no query"
    for four in zip(queries.start_Q, queries.plus_Q, queries.minus_Q, queries.target_Q, strict=True):
        assert len(set(four)) == 4
    assert len(list(OrthologArithmetic(options(tmp_path), facts()).questions())) == len(rows) - 1


def test_nothing_to_be_asked_is_told(tmp_path: Path) -> None:
    write_orthologs(tmp_path, genes=1)
    task = OrthologArithmetic(options(tmp_path), facts())
    with pytest.raises(InputError, match="no two orthogroups"):
        answer(task, lambda number, question: Reply(mean=np.ones(3, np.float32)))


def test_the_public_set_has_as_many_queries_as_are_told() -> None:
    proteins = read_orthologs(shared_data("orthobench").parent)
    number_of = {residues: n for n, residues in enumerate(dict.fromkeys(protein.residues for protein in proteins))}
    queries = find_queries(proteins, number_of)
    assert len({protein.species for protein in proteins}) == 12 and len(proteins) == 1108
    assert len(queries) == 23_388 and len(set(queries.gene_Q.tolist())) == 33 and len(number_of) == 1064
    assert TASKS["orthologs"].task is OrthologArithmetic
