"""Heads written and read back, to the bit; another model, damage and surprises refused in one line."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_heads_network import HEADS, WIDTH, proteins, randomised

from proteinlm.checkpoints.files import read_safetensors
from proteinlm.errors import InputError
from proteinlm.heads.calibration import softmax
from proteinlm.heads.linear import LinearProbe
from proteinlm.heads.store import ENTRY, KINDS, Features, FittedHead, load_head, save_head

OURS, OTHER = "a" * 64, "b" * 64


def fitted(name: str) -> FittedHead:
    """A head as it would be after fitting, with odd numbers everywhere."""
    features = Features("toy", OURS, layer=2, width=WIDTH)
    if name == "linear":
        random = np.random.default_rng(0)
        arrays = [random.uniform(0.5, 2, shape).astype(np.float32) for shape in ((WIDTH, 3), 3, WIDTH, WIDTH)]
        return FittedHead(LinearProbe(*arrays, {"rows": 7}), features, {"a": ["x", "y", "z"]}, {"a": 1.7}, {"rows": 7})
    head = randomised(HEADS[name]())
    names = {task: [f"{task}{k}" for k in range(classes)] for task, classes in head.outputs.items()}
    temperatures = {task: 1.5 + number for number, task in enumerate(head.outputs)}
    return FittedHead(head, features, names, temperatures, {"best_epoch": 3, "validation_loss": [0.5, 0.25]})


@pytest.mark.parametrize("name", [*HEADS, "linear"])
def test_written_and_read_back(name: str, tmp_path: Path) -> None:
    before = fitted(name)
    digest = save_head(before, tmp_path / "head.safetensors")
    assert save_head(before, tmp_path / "again.safetensors") == digest
    assert (tmp_path / "head.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    after = load_head(tmp_path / "head.safetensors", OURS)
    assert (after.features, after.classes, after.temperatures) == (before.features, before.classes, before.temperatures)
    assert after.record == before.record
    features = proteins(HEADS["cnn"](), 3).features
    compared = 0
    for first, second in zip(before.predict_proba(features), after.predict_proba(features), strict=True):
        assert list(first) == list(before.classes)
        for task in first:
            np.testing.assert_array_equal(first[task], second[task])
            np.testing.assert_allclose(first[task].sum(-1), 1, atol=1e-12)
            compared += first[task].size
    assert compared > 10


def test_the_table_of_kinds_is_tested_in_full() -> None:
    assert {type(build()) for build in HEADS.values()} == {kind.head for kind in KINDS.values()}


def test_temperature_is_used() -> None:
    head = fitted("linear")
    x = np.random.default_rng(1).standard_normal((4, WIDTH)).astype(np.float32)
    assert isinstance(head.head, LinearProbe)
    expected = softmax(head.head.logits(x) / 1.7)
    np.testing.assert_allclose(head.predict_proba([x])[0]["a"], expected, atol=1e-12)


def test_another_model_is_refused(tmp_path: Path) -> None:
    save_head(fitted("cnn"), tmp_path / "head.safetensors")
    with pytest.raises(InputError, match=r"fitted on features of toy \(digest aaaaaaaaaaaa\), not of this model"):
        load_head(tmp_path / "head.safetensors", OTHER)


def test_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "head.safetensors"
    save_head(fitted("cnn"), path)
    tensors, metadata = read_safetensors(path)
    card = json.loads(metadata[ENTRY])

    def written(changed_tensors: dict[str, torch.Tensor], changes: dict[str, object]) -> Path:
        save_file(changed_tensors, tmp_path / "bad.safetensors", {ENTRY: json.dumps({**card, **changes})})
        return tmp_path / "bad.safetensors"

    one_off = {**tensors, "first.bias": tensors["first.bias"] + 1e-6}
    cases: list[tuple[dict[str, torch.Tensor], dict[str, object], str]] = [
        (one_off, {}, "digest does not fit"),
        (tensors, {"temperatures": {"a": 9.0}}, "digest does not fit"),
        (tensors, {"features": {**card["features"], "digest": OTHER}}, "digest does not fit"),
        (tensors, {"format_version": 2}, "format version 2"),
        (tensors, {"extra": 1}, "'extra' is unknown"),
    ]
    for changed, changes, message in cases:
        with pytest.raises(InputError, match=message):
            load_head(written(changed, changes), OURS)
    save_file(tensors, tmp_path / "plain.safetensors")
    with pytest.raises(InputError, match="holds no head"):
        load_head(tmp_path / "plain.safetensors", OURS)
    # Last: the tensors above are mapped from this file.
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="truncated or damaged"):
        load_head(path, OURS)


def test_names_must_fit(tmp_path: Path) -> None:
    head = fitted("cnn")
    with pytest.raises(InputError, match="name each class once"):
        save_head(replace(head, classes={"a": ["x"], "b": ["y", "z"]}), tmp_path / "head.safetensors")
    assert not list(tmp_path.iterdir())
