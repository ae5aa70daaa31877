"""A checkpoint is written whole or not at all."""

from pathlib import Path

import pytest
import torch
from tiny_models import tiny

from proteinlm import checkpoints
from proteinlm.checkpoints.contents import architecture_of
from proteinlm.checkpoints.files import atomic_file, write_safetensors
from proteinlm.errors import InputError


def test_a_prepared_model_is_not_written(tmp_path: Path) -> None:
    for name in ("esm2", "esm1"):
        with pytest.raises(InputError, match="prepared for inference"):
            checkpoints.save(tiny(name).prepare(torch.bfloat16), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    checkpoints.save(tiny("esm2"), path, name="mine", licence="CC0")
    before = path.read_bytes()

    class Stop(Exception):
        pass

    def interrupted() -> None:
        with atomic_file(path) as temporary:
            temporary.write_bytes(before[:100])
            raise Stop

    with pytest.raises(Stop):
        interrupted()
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]
    found = checkpoints.load(path)
    assert (found.name, found.licence) == ("mine", "CC0")
    checkpoints.save(tiny("esm1"), path)
    assert architecture_of(checkpoints.load(path).model)[0] == "esm1", "a file is replaced"


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    model = tiny("esm2")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    for path, layout in (
        (tmp_path / "full", "hf"),
        (tmp_path / "absent" / "out", "hf"),
        (tmp_path / "absent" / "a.safetensors", "native"),
        (tmp_path / "absent" / "esm2.pt", "fair-esm"),
    ):
        with pytest.raises(InputError):
            checkpoints.export(model, path, layout)
    with pytest.raises(InputError, match="starts with 'esm2'"):
        checkpoints.export(model, tmp_path / "mine.pt", "fair-esm")
    with pytest.raises(InputError, match="layout 'hg' is unknown"):
        checkpoints.export(model, tmp_path / "x", "hg")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["file", "full"]


# Names


def test_others_may_read_what_the_user_lets_them(tmp_path: Path) -> None:
    """A model that was written is as readable as any other new file; safetensors alone would keep it to its owner."""
    (tmp_path / "plain").write_text("")
    with atomic_file(tmp_path / "model.safetensors") as temporary:
        write_safetensors(temporary, {"x": torch.zeros(2)}, {})
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
