"""Every architecture through the four commands that take a model: embed, convert, evaluate, pretrain.

What a model truly cannot do is refused in one line, and that line is asserted.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, made_up, plm, write_fasta
from evaluation_tools import write_held_out, write_scop
from tiny_models import TINY, tiny
from training_tools import small_corpus

from proteinlm import checkpoints, read_embeddings
from proteinlm.config import to_dict
from proteinlm.evaluation import results
from proteinlm.models import ARCHITECTURES
from proteinlm.models.base import ProteinModel, Want
from proteinlm.sequences.batch import PackedBatch
from proteinlm.training.records import read_table

NO_PORT = "architecture {} has no Hugging Face port; export it as native or in its own layout"
SILENT = ("transformer-xl-bare",)
"""Predicts the next token and has none in front of a protein: nothing is said of the first residue."""

NO_HEAD = "logits were asked for, but this checkpoint has no language-model head"

LAYOUT = {
    "bert-tape": ("a BERT with the alphabet TAPE has no Hugging Face layout; keep it as native", "native"),
    "elmo": (NO_PORT.format("elmo"), "native"),
    "esm1": (NO_PORT.format("esm1"), "fair-esm"),
    "esm1-bias": (NO_PORT.format("esm1"), "fair-esm"),
    "esm2-convolved": ("this layout has no place for 'convolution'", "native"),
    "lstm": (NO_PORT.format("lstm"), "native"),
    "lstm-projected": (NO_PORT.format("lstm"), "native"),
    "unirep": (NO_PORT.format("unirep"), "unirep-npz"),
}
"""Models that no class of `transformers` holds: how that is said, and the layout to write instead; the rest take hf."""

UNTRAINED = "does not train architecture {!r}; it is part of another model, or has no head"

UNTRAINABLE = {
    "bert-body": NO_HEAD,
    "albert-body": NO_HEAD,
    "esm1b-body": NO_HEAD,
    "esm2-body": NO_HEAD,
    "elmo": UNTRAINED.format("elmo"),
    "electra-discriminator": UNTRAINED.format("electra-discriminator"),
    "t5-encoder": UNTRAINED.format("t5-encoder"),
}
"""Models that cannot be pretrained, and why."""


@dataclass(frozen=True)
class Case:
    """A tiny model, the file it is saved in, and a folder to work in."""

    name: str
    model: ProteinModel
    path: Path
    folder: Path


@pytest.fixture(params=TINY)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    model = tiny(request.param)
    path = tmp_path / f"{request.param}.safetensors"
    checkpoints.save(model, path)
    return Case(request.param, model, path, tmp_path)


def mean_of_last_layer(model: ProteinModel, residues: str) -> np.ndarray:
    """The protein alone through the model, without any of what commands do."""
    alphabet = model.alphabet
    batch = PackedBatch.pack([alphabet.encode(residues)], None, len(alphabet.prefix), len(alphabet.suffix))
    with torch.no_grad():
        output = model(batch, Want(layers=(model.num_layers,)))
    return output.hidden[model.num_layers][batch.residues(0)].mean(0).numpy()


def test_embed_and_convert(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    proteins = made_up(6, longest=24)
    source = write_fasta(case.folder / "in.fasta", proteins)
    command = ("embed", source, "--precision", "fp32", "--model")
    assert plm(monkeypatch, *command, case.path, "-o", case.folder / "first.h5") == 0
    first = dict(read_embeddings(case.folder / "first.h5"))
    assert len(first) == len(proteins)
    for header, residues in proteins:
        np.testing.assert_allclose(
            first[header.split()[0]], mean_of_last_layer(case.model, residues), **ALONE_TOLERANCE
        )
    layout, there = "hf", case.folder / "there"
    if case.name in LAYOUT:
        capsys.readouterr()
        assert plm(monkeypatch, "convert", case.path, "-o", there, "--to", "hf") == 2
        message, layout = LAYOUT[case.name]
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and not there.exists()
        there = there.with_suffix(".npz" if layout == "unirep-npz" else ".safetensors")
    assert plm(monkeypatch, "convert", case.path, "-o", there, "--to", layout) == 0
    if case.name == "electra":
        # Hugging Face holds the two apart; as an embedder the pair is its discriminator.
        assert [path.name for path in sorted(there.iterdir())] == ["discriminator", "generator"]
        there = there / "discriminator"
    else:
        assert checkpoints.load(there).digest == checkpoints.load(case.path).digest
    assert plm(monkeypatch, *command, there, "-o", case.folder / "second.h5") == 0
    second = dict(read_embeddings(case.folder / "second.h5"))
    assert first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_evaluate(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out = case.folder / "data", case.folder / "out"
    write_held_out(data, 6, longest=26)
    write_scop(data, {f"a.{number}": 4 for number in range(1, 6)}, longest=24)
    command = ("evaluate", case.path, "--tasks", "language,homology-scop", "--data", data, "-o", out)
    assert plm(monkeypatch, *command, "--precision", "fp32") == 0
    language, homology = results.read(out).tasks
    assert homology.status == "done" and len(homology.results) >= 4
    if case.model.has_logits and case.name not in SILENT:
        assert language.status == "done" and language.results[0].value > 1
    else:
        reason = f"of {case.name}, it has no language-model head that speaks of every residue"
        assert (language.status, language.reason) == ("not applicable", reason)


def recipe_file(case: Case, objective: str) -> Path:
    """A recipe that begins with the weights of the case."""
    architecture, config = TINY[case.name]
    model = {"architecture": architecture, **to_dict(config), "weights": str(case.path)}
    sections: dict[str, dict[str, Any]] = {
        "model": {key: value for key, value in model.items() if value is not None},
        "data": {"store": str(case.folder / "store"), "validation": str(case.folder / "short.fasta"), "crop": 20},
        "objective": {"name": objective},
        "batch": {"tokens": 200, "tokens_per_part": 100},
        "schedule": {"warmup": 1},
        "run": {"steps": 2, "precision": "fp32", "log_every": 1},
    }
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{key} = {shown}")
    path = case.folder / "recipe.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_pretrain(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    small_corpus(case.folder)
    (case.folder / "short.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHF\n>b\nSRQLEERLGLIEVQ\n")
    objectives = ARCHITECTURES[TINY[case.name][0]].objectives or ("masked",)
    for objective in objectives:
        run = case.folder / objective
        code = plm(monkeypatch, "pretrain", recipe_file(case, objective), "-o", run, "--device", "cpu")
        if case.name in UNTRAINABLE:
            error = capsys.readouterr().err.splitlines()[-1]
            assert code == 2 and UNTRAINABLE[case.name] in error
            continue
        assert code == 0
        assert [row["step"] for row in read_table(run / "training.csv")] == ["1", "2"]
        trained, before = checkpoints.load(run / "model.safetensors").model, case.model.state_dict()
        assert trained.state_dict().keys() == before.keys()
        assert sum(not torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items()) >= 10
        source = write_fasta(case.folder / "in.fasta", made_up(2, longest=20))
        embed = ("embed", source, "-o", case.folder / f"{objective}.h5", "--model", run / "model.safetensors")
        assert plm(monkeypatch, *embed) == 0
        assert len(dict(read_embeddings(case.folder / f"{objective}.h5"))) == 2


def test_what_is_excepted_is_there() -> None:
    assert {*LAYOUT, *UNTRAINABLE, *SILENT} <= set(TINY)
