"""`plm contacts`: maps as numbers and as pictures."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LONGEST, made_up, plm, save_model, tiny_model, tiny_unirep, write_fasta
from evaluation_tools import write_structures
from tiny_models import tiny

from proteinlm import checkpoints
from proteinlm.heads.contact import fit_contact_regression, pair_features
from proteinlm.models.base import Want
from proteinlm.sequences.batch import PackedBatch
from proteinlm.tasks.contacts import draw_chains

PROTEINS = [*made_up(4), ("a/b: c", "MKTAYIAK"), ("long", "MKTV" * 12)]


def expected(residues: str) -> np.ndarray:
    """The contact head on one protein alone."""
    model = tiny_model().eval()
    batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
    with torch.inference_mode():
        return model(batch, Want(contacts=True)).contacts[0].numpy()


def test_one_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    source, out = write_fasta(tmp_path / "in.fasta", PROTEINS), tmp_path / "maps.npz"
    command = ("contacts", source, "-o", out, "--model", save_model(tmp_path), "--device", "cpu", "--precision", "fp32")
    assert plm(monkeypatch, *command) == 0
    assert capsys.readouterr().out == "6 in, 6 embedded, 0 refused\n"
    with np.load(out) as archive:
        assert list(archive) == [*(header.split()[0] for header, _ in PROTEINS[:4]), "a_b:", "long"]
        for name, (_, residues) in zip(archive, PROTEINS, strict=True):
            map_LL = archive[name]
            assert map_LL.shape == (len(residues), len(residues)) and map_LL.dtype == np.float32
            if len(residues) <= LONGEST:
                np.testing.assert_allclose(map_LL, expected(residues), **ALONE_TOLERANCE)
                assert ((map_LL >= 0) & (map_LL <= 1)).all()
        assert np.isnan(archive["long"][0, -1]), "no window held both ends"
    with zipfile.ZipFile(out) as archive:
        assert json.loads(archive.comment)["counts"]["windowed"] == 1


def test_a_folder_with_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    source, out = write_fasta(tmp_path / "in.fasta", PROTEINS[2:]), tmp_path / "maps"
    command = ("contacts", source, "-o", out, "--model", save_model(tmp_path), "--device", "cpu")
    assert plm(monkeypatch, *command, "--png") == 0
    names = [*(header for header, _ in PROTEINS[2:4]), "a_b_ c", "long"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["provenance.json", *(f"{name}.{ending}" for name in names for ending in ("npz", "png"))]
    )
    for name in names:
        picture = matplotlib_image.imread(out / f"{name}.png")
        assert picture.shape[:2] == (750, 900) and picture.std() > 0.01, "something is drawn"
    # Without the pictures is another run, and what is there is not taken for it.
    assert plm(monkeypatch, *command) == 2


def test_pictures_need_a_folder_and_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", PROTEINS[:1]), save_model(tmp_path)
    assert plm(monkeypatch, "contacts", source, "-o", tmp_path / "x.npz", "--model", model, "--png") == 2
    assert "--png draws into a folder, but" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert plm(monkeypatch, "contacts", source, "-o", tmp_path / "x", "--model", model, "--png") == 2
    assert "pip install 'proteinlm[plot]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta", "tiny-0.safetensors"]


def test_a_model_without_a_contact_head_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source = write_fasta(tmp_path / "in.fasta", PROTEINS[:1])
    checkpoints.save(tiny_unirep(), tmp_path / "unirep.safetensors")
    command = ("contacts", source, "--model", tmp_path / "unirep.safetensors", "-o")
    assert plm(monkeypatch, *command, tmp_path / "x") == 2
    assert "this checkpoint has no contact head; use one that has" in capsys.readouterr().err
    assert plm(monkeypatch, *command, ".") == 2
    assert "'.' is no name for an output" in capsys.readouterr().err


def test_a_fitted_contact_head_is_saved_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From attention maps by way of 20 chains to contacts of a protein, alone and in an evaluation."""
    write_structures(tmp_path / "data", shortest=30)
    model, fitted, maps = save_model(tmp_path), tmp_path / "fitted.safetensors", tmp_path / "maps.npz"
    exact = ("--device", "cpu", "--precision", "fp32")
    command = ("contacts-fit", model, "-o", fitted, "--data", tmp_path / "data", *exact)
    assert plm(monkeypatch, *command) == 0
    told = capsys.readouterr().out
    assert "attention maps, fitted on 20 chains" in told and checkpoints.load(fitted).digest[:12] in told
    before, after = (checkpoints.load(path).model.state_dict() for path in (model, fitted))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and changed == {"contact_head.weight", "contact_head.bias"}

    drawn = draw_chains(tmp_path / "data", 0, 0, LONGEST)
    ours = fit_contact_regression(
        [attention_maps(chain.residues) for chain in drawn.train],
        [drawn.coordinates.contacts(chain.id) for chain in drawn.train],
    )
    # The optimum of a penalised loss over some 6,000 pairs, from maps that differ by rounding.
    torch.testing.assert_close(after["contact_head.weight"].flatten(), ours.weight_M, atol=2e-2, rtol=2e-2)

    residues = drawn.train[0].residues
    source = write_fasta(tmp_path / "in.fasta", [("one", residues)])
    assert plm(monkeypatch, "contacts", source, "-o", maps, "--model", fitted, *exact) == 0
    features = pair_features(attention_maps(residues))
    logits_P = features @ after["contact_head.weight"].flatten() + after["contact_head.bias"]
    with np.load(maps) as archive:
        i, j = np.triu_indices(len(residues), 6)
        np.testing.assert_allclose(archive["one"][i, j], logits_P.sigmoid(), rtol=1e-3)
    tasks = ("--tasks", "contacts-head,contacts-attention", "--data", tmp_path / "data", *exact)
    assert plm(monkeypatch, "evaluate", fitted, *tasks, "-o", tmp_path / "results") == 0
    run = json.loads((tmp_path / "results" / "results.json").read_text())
    head, attention = ({one["measure"]: one["value"] for one in task["results"]} for task in run["tasks"][::-1])
    assert len(head) == 9 and head == pytest.approx(attention, abs=0.02), "one fit, by way of the file and without it"


def attention_maps(residues: str) -> torch.Tensor:
    model = tiny_model().eval()
    batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
    with torch.inference_mode():
        return model(batch, Want(attentions=True)).attentions[0][:, :, 1:-1, 1:-1].flatten(0, 1)


def test_models_without_attention_or_without_a_place_for_contacts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write_structures(tmp_path / "data", shortest=30)
    for name, model, reason in (
        ("unirep", tiny_unirep(), "unirep cannot have a contact head: it has no attention; `plm evaluate"),
        ("bert", tiny("bert"), "bert is bert, whose files have no place for a contact head (esm1, esm1b and esm2"),
    ):
        checkpoints.save(model, tmp_path / f"{name}.safetensors")
        command = ("contacts-fit", tmp_path / f"{name}.safetensors", "-o", tmp_path / "new.safetensors")
        assert plm(monkeypatch, *command, "--data", tmp_path / "data") == 2
        assert reason in capsys.readouterr().err
    model = save_model(tmp_path)
    assert plm(monkeypatch, "contacts-fit", model, "-o", model, "--data", tmp_path / "data") == 2
    assert "is there already; choose another -o" in capsys.readouterr().err
    assert plm(monkeypatch, "contacts-fit", model, "-o", tmp_path / "new.safetensors", "--data", tmp_path) == 2
    assert not (tmp_path / "new.safetensors").exists()
