"""Contacts: what is planted in vectors and maps is told, shuffled ones are chance, relatives stand on one side."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_tools import SITES, Known, answer, facts, options, write_structures

from proteinlm.datasets.splits import structural_folds
from proteinlm.errors import InputError
from proteinlm.models.contacts import ContactHead
from proteinlm.tasks.base import Question, Reply, Result
from proteinlm.tasks.contacts import (
    TRAINING_CHAINS,
    AttentionContacts,
    HeadContacts,
    ProjectedContacts,
    draw_chains,
    weighted_map,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Known]:
    folder = tmp_path_factory.mktemp("data")
    return folder, write_structures(folder)


def vectors(known: Known, shuffled: bool = False) -> Callable[[int, Question], Reply]:
    """Vectors that tell where a residue stands, or where another one does."""

    def reply(number: int, question: Question) -> Reply:
        random = np.random.default_rng(number)
        sites = known.sites[question.residues]
        sites = random.permutation(sites) if shuffled else sites
        noise = random.normal(scale=0.1, size=(len(sites), 8))
        return Reply(kept=(np.eye(8)[sites] + noise).astype(np.float16))

    return reply


def maps(known: Known, shuffled: bool = False) -> Callable[[int, Question], Reply]:
    """Two layers of three heads of random attention; the fourth map looks at contacts, or at others'."""

    def reply(number: int, question: Question) -> Reply:
        random = np.random.default_rng(number)
        touching = known.contacts(question.residues)
        if shuffled:
            order = random.permutation(len(touching))
            touching = touching[order][:, order]
        attention = random.random((2, 3, *touching.shape), np.float32)
        attention[1, 0] += 4 * touching
        return Reply(attentions=attention / attention.sum(-1, keepdims=True), contacts=attention[1, 0] / 5)

    return reply


def check_planted(found: dict[str, Result]) -> None:
    for measure, result in found.items():
        assert result.value > 0.95 and result.low <= result.value <= result.high, (measure, result.value)


def check_chance(found: dict[str, Result]) -> None:
    for measure, result in found.items():
        # Of L/5 pairs of 50 chains, 500 in all; three standard deviations.
        assert abs(result.value - 1 / SITES) < 0.06, (measure, result.value)


def measures(ending: str = "") -> set[str]:
    return {f"P@{part}, {name}{ending}" for part in ("L", "L/2", "L/5") for name in ("short", "medium", "long")}


def test_projections_find_what_is_planted(data: tuple[Path, Known]) -> None:
    folder, known = data
    found = answer(ProjectedContacts(options(folder), facts()), vectors(known))
    assert found.keys() == set().union(*(measures(f", {level}") for level in ("family", "superfamily", "fold")))
    check_planted(found)
    assert all(result.n == len(known.sites) for result in found.values())
    assert [found[f"P@L, long, {level}"].groups for level in ("family", "superfamily", "fold")] == [70, 28, 14]


def test_projections_of_shuffled_vectors_are_chance(data: tuple[Path, Known]) -> None:
    folder, known = data
    check_chance(answer(ProjectedContacts(options(folder, quick=True), facts()), vectors(known, shuffled=True)))


def test_relatives_stand_on_one_side(data: tuple[Path, Known]) -> None:
    folder, _ = data
    task = ProjectedContacts(options(folder), facts())
    list(task.questions())
    folds = structural_folds(task.chains, "fold", 5, 0)
    tested = []
    for fold in range(5):
        train, validation = task._held_out(folds, fold)
        test = np.flatnonzero(folds.test(fold))
        groups = [{task.chains[chain].keys("fold")[-1] for chain in part} for part in (train, validation, test)]
        assert all(groups) and len(set.union(*groups)) == sum(map(len, groups)) == 14
        assert len(train) + len(validation) + len(test) == len(task.chains)
        tested += test.tolist()
    assert sorted(tested) == list(range(70)), "each chain is tested on once"


def test_a_quick_run_is_smaller_and_says_so(data: tuple[Path, Known]) -> None:
    folder, known = data
    found = answer(ProjectedContacts(options(folder, quick=True), facts()), vectors(known))
    assert found.keys() == measures(", superfamily")
    assert any("quick" in note for note in found["P@L, long, superfamily"].notes)


def test_maps_are_fitted_on_twenty_chains_and_tested_on_others(data: tuple[Path, Known]) -> None:
    folder, known = data
    task = AttentionContacts(options(folder), facts())
    asked: list[str] = []

    def reply(number: int, question: Question) -> Reply:
        asked.append(question.residues)
        return maps(known)(number, question)

    found = answer(task, reply)
    assert found.keys() == measures()
    check_planted(found)
    assert len(set(asked)) == len(asked) == 70 and found["P@L, long"].n == 70 - TRAINING_CHAINS
    assert {chain.residues for chain in task.drawn.train} == set(asked[:TRAINING_CHAINS])
    assert task.fitted is not None and int(task.fitted.weight_M.argmax()) == 3
    assert not task.rows and all(isinstance(one, dict) for one in task.precisions.values()), "no map is kept"


def test_shuffled_maps_are_chance(data: tuple[Path, Known]) -> None:
    folder, known = data
    check_chance(answer(AttentionContacts(options(folder), facts()), maps(known, shuffled=True)))


def test_the_head_is_tested_on_the_same_chains(data: tuple[Path, Known]) -> None:
    folder, known = data
    found = answer(HeadContacts(options(folder), facts()), maps(known))
    check_planted(found)
    fitted = answer(AttentionContacts(options(folder), facts()), maps(known))
    assert found["P@L, long"].pairing == fitted["P@L, long"].pairing, "the two can be compared chain by chain"
    check_chance(answer(HeadContacts(options(folder), facts()), maps(known, shuffled=True)))


def test_the_weighted_sum_is_what_a_contact_head_makes_of_the_maps() -> None:
    random = torch.Generator().manual_seed(0)
    head, attention = ContactHead(2, 3), torch.rand(2, 3, 30, 30, generator=random)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.3, 0.0, -1.0], [2.0, 0.0, 0.5]]))
        whole = head.contribution(attention[0], 0) + head.contribution(attention[1], 1)
    ours = weighted_map(attention.view(6, 30, 30).numpy(), head.weight.detach().view(-1))
    # Sums of four terms around 1 in another order.
    np.testing.assert_allclose(ours, whole.numpy(), atol=1e-5)


def test_chains_are_drawn_by_the_seed_and_fit_the_model(data: tuple[Path, Known]) -> None:
    folder, _ = data
    first, again, other = (draw_chains(folder, seed, 30, None) for seed in (0, 0, 1))
    assert [chain.id for chain in first.test] == [chain.id for chain in again.test] and len(first.test) == 30
    assert [chain.id for chain in first.train] != [chain.id for chain in other.train]
    assert not {chain.id for chain in first.train} & {chain.id for chain in first.test}
    short = draw_chains(folder, 0, 500, 50)
    assert max(len(chain.residues) for chain in short.train + short.test) == 50
    with pytest.raises(InputError, match="0 chains with coordinates have at most 43 residues"):
        draw_chains(folder, 0, 500, 43)
