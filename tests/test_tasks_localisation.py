"""Localisation: what is planted is found, shuffled labels are the commonest class, what has no label is left out."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets_tools import write_table
from evaluation_tools import answer, facts, options, protein

from proteinlm.datasets.localisation import LOCATIONS, TWO_LOCATIONS, LocalisedProtein, localisation_splits
from proteinlm.tasks import localisation
from proteinlm.tasks.base import Question, Reply, Result, Task
from proteinlm.tasks.localisation import (
    AttendedLocalisation,
    Localisation,
    Reduced,
    labels_of,
    principal_components,
)

SHARES = np.array([9, 20, 7, 3, 3, 12, 28, 2, 5, 11]) / 100
"""Of the locations, roughly as in DeepLoc."""

WIDTH = len(LOCATIONS) + 2


def write_deeploc(folder: Path, train: int = 500, test: int = 120) -> dict[str, LocalisedProtein]:
    """Proteins of random place; every tenth of the test set has two places, every third an unknown membrane."""
    rows = []
    for number in range(train + test):
        random = np.random.default_rng([5, number])
        place, weak = random.choice(LOCATIONS, p=SHARES), random.choice(["m", "s"], p=[0.3, 0.7])
        split, membrane = "train", weak
        if number >= train:
            split, membrane = "val", "U" if number % 3 == 0 else weak.upper()
            place = TWO_LOCATIONS if number % 10 == 0 else place
        elif number % 50 == 0:
            membrane = "?"
        rows.append((f"P{number:04d}", split, place, membrane, "made up", protein(20 + number % 9, 20_000 + number)))
    write_table(folder, "deeploc", "accession split location membrane sequence_source sequence", rows)
    splits = localisation_splits(folder)
    return {protein.residues: protein for protein in (*splits.train, *splits.test)}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, LocalisedProtein]]:
    folder = tmp_path_factory.mktemp("data")
    return folder, write_deeploc(folder)


def planted(
    known: dict[str, LocalisedProtein], shuffled: bool = False, width: int = WIDTH
) -> Callable[[int, Question], Reply]:
    """Vectors that tell location and membrane in a quarter of the residues, or those of another protein."""
    proteins = list(known.values())
    others = np.random.default_rng(8).permutation(len(proteins))
    told = {one.residues: proteins[others[n]] if shuffled else one for n, one in enumerate(proteins)}

    def reply(number: int, question: Question) -> Reply:
        random = np.random.default_rng(number)
        location, membrane = labels_of(told[question.residues])
        vectors = random.normal(scale=0.2, size=(len(question.residues), width))
        if location >= 0:
            vectors[::4, location] += 4
        if membrane >= 0:
            vectors[::4, len(LOCATIONS) + membrane] += 4
        return Reply(mean=vectors.mean(0, dtype=np.float64).astype(np.float32), kept=vectors.astype(np.float16))

    return reply


def check_planted(found: dict[str, Result], least: float) -> None:
    for measure, result in found.items():
        assert result.value > least and result.low <= result.value <= result.high, (measure, result.value)


def check_chance(found: dict[str, Result], known: dict[str, LocalisedProtein]) -> None:
    """Not better than the commonest class, within three standard deviations of some 100 proteins."""
    for measure, result in found.items():
        place = 0 if "Q10" in measure else 1
        classes = Counter(labels_of(one)[place] for one in known.values() if labels_of(one)[place] >= 0)
        commonest = max(classes.values()) / classes.total()
        assert result.value < commonest + 0.14, (measure, result.value, commonest)


def test_the_network_and_the_probe_find_what_is_planted(data: tuple[Path, dict[str, LocalisedProtein]]) -> None:
    folder, known = data
    found = answer(Localisation(options(folder), facts()), planted(known))
    assert found.keys() == {f"{measure}, {head}" for measure in ("Q10", "Q2") for head in ("network", "linear")}
    check_planted(found, 0.9)
    tested = [protein for protein in known.values() if protein.split == "val"]
    assert found["Q10, linear"].n == sum(protein.location != TWO_LOCATIONS for protein in tested) == 108
    assert found["Q2, linear"].n == sum(protein.membrane != "U" for protein in tested) == 80
    table = found["Q10, network"].table
    assert table["class"] == list(LOCATIONS) and sum(table["proteins"]) == 108
    assert sum(table["right"]) == pytest.approx(108 * found["Q10, network"].value)


def test_the_network_and_the_probe_of_shuffled_proteins_are_chance(
    data: tuple[Path, dict[str, LocalisedProtein]],
) -> None:
    folder, known = data
    check_chance(answer(Localisation(options(folder), facts()), planted(known, shuffled=True)), known)


def test_light_attention_finds_what_is_planted_and_nothing_else(
    data: tuple[Path, dict[str, LocalisedProtein]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, known = data
    found = answer(AttendedLocalisation(options(folder), facts()), planted(known))
    assert found.keys() == {"Q10", "Q2"}
    check_planted(found, 0.8)
    check_chance(answer(AttendedLocalisation(options(folder), facts()), planted(known, shuffled=True)), known)
    monkeypatch.setattr(localisation, "WIDEST_ATTENDED", WIDTH + 4)
    wide = answer(AttendedLocalisation(options(folder), facts()), planted(known, width=40))
    check_planted(wide, 0.8)
    assert any("reduced from 40 to 16 principal components" in note for note in wide["Q10"].notes)


def test_validation_proteins_are_training_proteins_of_every_location(
    data: tuple[Path, dict[str, LocalisedProtein]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, known = data
    given: list[list[np.ndarray]] = []

    def fit(head, train, validation, how):  # type: ignore[no-untyped-def]
        given.extend([list(train.features), list(validation.features)])
        raise InterruptedError

    monkeypatch.setattr(localisation.fitting, "fit", fit)
    task = Localisation(options(folder), facts())
    with pytest.raises(InterruptedError):
        answer(task, planted(known))
    train, validation = ({id(one) for one in part} for part in given)
    assert not train & validation and len(train | validation) == len(task.train) == 500
    assert train | validation == {id(task.vectors[number]) for number in range(500)}, "no test protein is among them"
    held = [task.train[n].location for n in range(500) if id(task.vectors[n]) in validation]
    assert set(held) == set(LOCATIONS) and len(held) == pytest.approx(50, abs=10)


def test_principal_components_keep_what_varies() -> None:
    random = np.random.default_rng(0)
    hidden = random.normal(size=(300, 2)) @ random.normal(size=(2, 6))
    features = [hidden[:100], hidden[100:]]
    reduced = Reduced(features, principal_components(features, 2))
    assert len(reduced) == 2 and reduced[1].shape == (200, 2)
    # Two directions hold all there is: distances stay as they were, up to fp32.
    apart, before = (np.linalg.norm(one[:, None] - one[None], axis=-1) for one in (reduced[0], features[0]))
    np.testing.assert_allclose(apart, before, atol=1e-4)


@pytest.mark.parametrize("kind", [Localisation, AttendedLocalisation])
def test_a_quick_run_is_smaller_and_says_so(
    data: tuple[Path, dict[str, LocalisedProtein]], monkeypatch: pytest.MonkeyPatch, kind: type[Task]
) -> None:
    folder, known = data
    monkeypatch.setattr(kind, "training_limits", (None, 200))
    monkeypatch.setattr(kind, "test_limits", (None, 50))
    task = kind(replace(options(folder), quick=True), facts())
    found = answer(task, planted(known))
    assert all(len(result.sums) == 50 and any("quick" in n for n in result.notes) for result in found.values())
