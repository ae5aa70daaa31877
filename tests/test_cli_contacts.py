"""`plm contacts`: maps as numbers and as pictures."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LONGEST, made_up, plm, save_model, tiny_model, tiny_unirep, write_fasta

from proteinlm import checkpoints
from proteinlm.models.base import Want
from proteinlm.sequences.batch import PackedBatch

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
