"""`plm heads train`: planted labels are found, probabilities are what they say, what cannot be trained is told."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import plm, save_model
from evaluation_tools import write_structures
from prediction_tools import MEMBRANE_MARKER, WRONG, localised, states8, write_data

import proteinlm
from proteinlm import checkpoints
from proteinlm.checkpoints.files import read_safetensors
from proteinlm.datasets.localisation import LOCATIONS, localisation_splits
from proteinlm.datasets.relatives import hold_out
from proteinlm.datasets.secondary_structure import secondary_structure_splits
from proteinlm.embedding.progress import Silent
from proteinlm.errors import InputError
from proteinlm.heads.calibration import softmax
from proteinlm.heads.linear import LinearProbe
from proteinlm.heads.store import FittedHead
from proteinlm.prediction.bundle import HEADS, load_bundle
from proteinlm.prediction.trainers import TRAINERS, ContactTrainer, TrainerOptions
from proteinlm.prediction.training import HeadsJob, train_heads
from proteinlm.tasks.base import ModelFacts, Question, Reply


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads on one-hot residues, off which every label can be read."""
    out = tmp_path_factory.mktemp("heads") / "one-hot"
    with pytest.MonkeyPatch.context() as patch:
        assert plm(patch, "heads", "train", "--model", "one-hot", "--data", data, "-o", out) == 0
    return out


def figures(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "heads.json").read_text())["figures"]
    return found


def test_planted_labels_are_found(trained: Path) -> None:
    told = figures(trained)
    for name in ("secondary-structure: Q8 on CB513", "secondary-structure: Q3 on CB513"):
        assert told[name]["value"] > 0.99 and told[name]["proteins"] == 15
    assert told["localisation: Q10 on DeepLoc validation"]["value"] > 0.97
    # Labels that are wrong cannot be foreseen: four in five is all there is; 300 proteins are within 3 x 0.023.
    assert told["membrane: Q2 on DeepLoc validation"]["value"] == pytest.approx(1 - WRONG, abs=0.07)
    random = np.random.default_rng(77)
    residues = [localised(random, location, membrane) for location in LOCATIONS for membrane in (True, False)]
    model = proteinlm.load("one-hot", device="cpu")
    right = 0
    for number, found in enumerate(model.predict(residues, trained)):
        assert found.location is not None and found.membrane is not None
        assert max(found.location, key=found.location.__getitem__) == LOCATIONS[number // 2]
        assert (found.membrane > 0.5) == (MEMBRANE_MARKER in residues[number] and number % 2 == 0)
        assert found.states8() == states8(residues[number])
        right += 1
    assert right == 20


def test_probabilities_mean_what_they_say(trained: Path) -> None:
    """Nobody can be surer of the membrane than its labels are right."""
    random = np.random.default_rng(5)
    model = proteinlm.load("one-hot", device="cpu")
    proteins = [localised(random, LOCATIONS[0], number % 2 == 0) for number in range(40)]
    sure = [max(found.membrane or 0, 1 - (found.membrane or 0)) for found in model.predict(proteins, trained)]
    assert len(sure) == 40 and np.mean(sure) == pytest.approx(1 - WRONG, abs=0.08)
    told = figures(trained)
    assert told["membrane: Q2 calibration error on DeepLoc validation"]["value"] < 0.1


def by_hand(probabilities: np.ndarray, known: np.ndarray) -> float:
    """The expected calibration error in 15 steps, in a plain loop."""
    total = 0.0
    for step in range(15):
        inside = [
            (row.max(), float(row.argmax() == label))
            for row, label in zip(probabilities, known, strict=True)
            if step / 15 <= row.max() < (step + 1) / 15 or (step == 14 and row.max() == 1)
        ]
        if inside:
            sure, right = np.mean(inside, axis=0)
            total += len(inside) * abs(sure - right)
    return total / len(known)


@pytest.mark.parametrize("task", ["q8", "q2"])
def test_calibration_against_a_computation_by_hand(task: str, trained: Path, data: Path) -> None:
    checkpoint = checkpoints.load("one-hot")
    heads = load_bundle(trained, checkpoint.digest).heads
    one_hot = {letter: row for letter, row in zip("ACDEFGHIKLMNPQRSTVWY", np.eye(20, dtype=np.float32), strict=True)}

    def vectors(residues: str) -> np.ndarray:
        return np.stack([one_hot[letter] for letter in residues])

    if task == "q8":
        fitted, name = heads["secondary-structure"], "secondary-structure: Q8{} calibration error on CB513"
        chains = secondary_structure_splits(data).test
        features = [vectors(one.residues) for one in chains]
        known = np.concatenate([one.ss8_classes() for one in chains])
    else:
        fitted, name = heads["membrane"], "membrane: Q2{} calibration error on DeepLoc validation"
        proteins = localisation_splits(data).test
        features = [vectors(one.residues).mean(0, keepdims=True) for one in proteins]
        known = np.array([one.membrane_class for one in proteins])
    found = np.concatenate([np.atleast_2d(one[task]) for one in fitted.predict_proba(features)])
    counted = known >= 0
    assert counted.sum() > 100 and (~counted).sum() == (15 if task == "q8" else 0)
    expected = by_hand(found[counted], known[counted])
    # Kept vectors are fp16, which holds 0 and 1 exactly; means of residues are rounded to fp32 on both ways.
    assert figures(trained)[name.format("")]["value"] == pytest.approx(expected, abs=1e-5)


def test_the_temperature_lowers_the_cross_entropy(trained: Path, data: Path) -> None:
    """On what it was fitted on; at any other temperature, the cross-entropy is higher."""
    checkpoint = checkpoints.load("one-hot")
    fitted = load_bundle(trained, checkpoint.digest).heads["membrane"]
    proteins = localisation_splits(data).train
    known = np.array([one.membrane_class for one in proteins])
    random = np.random.default_rng([0, *b"held out"])
    held_out = hold_out([one.residues for one in proteins], known, 0.1, random)
    letters = "ACDEFGHIKLMNPQRSTVWY"
    mean = [
        np.array([[one.residues.count(letter) for letter in letters]], np.float32) / len(one.residues)
        for one, out in zip(proteins, held_out, strict=True)
        if out
    ]
    plain = FittedHead(fitted.head, fitted.features, fitted.classes, {})
    logits = np.log([one["q2"] for one in plain.predict_proba(mean)])
    temperature = fitted.temperatures["q2"]

    def loss(at: float) -> float:
        return float(-np.log(softmax(logits / at)[np.arange(len(logits)), known[held_out]]).mean())

    assert len(mean) == 70
    assert all(loss(temperature) < loss(temperature * factor) for factor in (0.7, 0.9, 1.1, 1.5))


def test_folder_and_card(trained: Path, data: Path) -> None:
    told = json.loads((trained / "heads.json").read_text())
    assert sorted(path.name for path in trained.iterdir()) == sorted(
        ["README.md", "heads.json", *(f"{name}.safetensors" for name in HEADS if name != "contacts")]
    )
    assert set(told["data"]) == {
        "secondary_structure/netsurfp_train_val.tsv.gz",
        "secondary_structure/CB513.tsv.gz",
        "deeploc/deeploc_train_val.tsv.gz",
    }
    card = (trained / "README.md").read_text()
    assert told["digest"] in card and "no attention maps" in card and "| membrane | Q2 |" in card
    for name, digest in told["heads"].items():
        _, metadata = read_safetensors(trained / f"{name}.safetensors")
        assert json.loads(metadata["proteinlm_head"])["digest"] == digest
    assert not [path for path in trained.parent.iterdir() if path != trained], "residue vectors are removed"


def test_the_same_seed_gives_the_same_heads(trained: Path, data: Path, tmp_path: Path) -> None:
    report = train_heads(HeadsJob("one-hot", tmp_path / "again", data, heads=("membrane",)), Silent())
    assert list(report.card.heads) == ["membrane"]
    again, before = (folder / "membrane.safetensors" for folder in (tmp_path / "again", trained))
    assert again.read_bytes() == before.read_bytes()


def test_relatives_stay_together() -> None:
    """Forty families of three at 70 % identity, sixty loners: a tenth of each class, no family on both sides."""
    random = np.random.default_rng(3)
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    sequences, families = [], []
    for family in range(100):
        ancestor = random.choice(letters, size=300)
        for _ in range(3 if family < 40 else 1):
            changed = random.random(300) < 0.16
            sequences.append("".join(np.where(changed, random.choice(letters, size=300), ancestor)))
            families.append(family)
    classes, of_family = np.array(families) % 2, np.array(families)
    out = hold_out(sequences, classes, 0.1, np.random.default_rng(0))
    assert [int(out[classes == one].sum()) for one in (0, 1)] == [9, 9]
    assert not set(of_family[out]) & set(of_family[~out])
    np.testing.assert_array_equal(out, hold_out(sequences, classes, 0.1, np.random.default_rng(0)))
    with pytest.raises(InputError, match="none is small enough to be held out"):
        hold_out(sequences[:3], np.zeros(3, int), 0.1, np.random.default_rng(0))


def contact_trainer(folder: Path, longest: int | None = None) -> ContactTrainer:
    facts = ModelFacts("fake", "0" * 64, 2, 8, frozenset(("residues", "attentions")), longest)
    trainer = TRAINERS["contacts"]("contacts", TrainerOptions(folder, facts, layer=2))
    assert isinstance(trainer, ContactTrainer)
    return trainer


def test_planted_contacts_are_found(tmp_path: Path) -> None:
    """Two layers of three random maps; the fourth map looks at contacts."""
    known = write_structures(tmp_path)
    trainer = contact_trainer(tmp_path)

    def ask(questions: list[Question], before: int) -> None:
        for number, question in enumerate(questions, before):
            touching = known.contacts(question.residues)
            random = np.random.default_rng(number)
            attention = random.random((2, 3, *touching.shape), np.float32)
            attention[1, 0] += 4 * touching
            trainer.collect(number, Reply(attentions=attention / attention.sum(-1, keepdims=True)))

    first = list(trainer.questions())
    ask(first, 0)
    second = list(trainer.second_questions())
    ask(second, len(first))
    found = trainer.finish()
    assert (len(first), len(second)) == (20, 50)
    assert not {one.residues for one in first} & {one.residues for one in second}
    told = {f"{one.measure} on {one.data}": one for one in found.figures}
    assert told["contact calibration error on PDB test chains"].value < 0.01
    best = told["long-range P@L on PDB test chains"]
    assert best.value > 0.9 and best.proteins == 25
    assert isinstance(found.fitted.head, LinearProbe)
    assert int(np.abs(found.fitted.head.weight_DK[:, 1]).argmax()) == 3


def refused(job: HeadsJob, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        train_heads(job, Silent())
    assert "\n" not in str(error.value)


def test_what_cannot_be_trained_is_told(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    refused(HeadsJob("one-hot", out, data, heads=("membran",)), "did you mean 'membrane'")
    refused(HeadsJob("one-hot", out, data, heads=("contacts",)), "reads attention maps, which one-hot has not")
    refused(HeadsJob("one-hot", out, tmp_path), "missing file: secondary_structure/netsurfp_train_val")
    refused(HeadsJob("one-hot", tmp_path / "no" / "out", data), "there is no folder")
    refused(HeadsJob("one-hot", data, data), "not an empty folder")
    refused(HeadsJob("one-hot", out, data, layer=3), "layer 3 is outside")
    assert not out.exists()
    part = tmp_path / "part"
    shutil.copytree(data, part)
    facts = ModelFacts("fake", "0" * 64, 2, 8, frozenset(("attentions",)), 10)
    with pytest.raises(InputError, match="have at most 10 residues"):
        list(TRAINERS["contacts"]("contacts", TrainerOptions(part, facts, 2)).questions())


def test_quick_with_contacts(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Transformer through the whole command: every head, and a card that says that it is a quick run."""
    short = tmp_path / "data"
    shutil.copytree(data, short)
    # The tiny model takes 40 residues at once, and maps of several windows cannot be fitted on.
    write_structures(short, count=40, shortest=28)
    model = save_model(tmp_path)
    command = ("heads", "train", "--model", model, "--data", short, "-o", tmp_path / "heads", "--quick")
    assert plm(monkeypatch, *command, "--precision", "fp32", "--cache", tmp_path / "cache") == 0
    digest = checkpoints.load(model).digest
    bundle = load_bundle(tmp_path / "heads", digest)
    assert list(bundle.heads) == list(HEADS) and bundle.card.quick
    assert "quick run" in (tmp_path / "heads" / "README.md").read_text()
    assert bundle.heads["contacts"].features.width == 4
    assert all(torch.isfinite(torch.tensor(one["value"])) for one in figures(tmp_path / "heads").values())
    assert list((tmp_path / "cache").glob("features-*"))
