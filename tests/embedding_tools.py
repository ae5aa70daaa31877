"""What the embedding tests share: tiny models, made-up proteins, and a plain reference for every number.

The reference runs each protein alone through the model, in fp32, without blocks, batches or files.
"""

import hashlib
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from proteinlm import checkpoints
from proteinlm.cli import main
from proteinlm.embedding.merge import Summary
from proteinlm.embedding.progress import Silent
from proteinlm.embedding.run import EmbedJob, embed_file
from proteinlm.embedding.settings import EmbedSettings
from proteinlm.inference import RunOptions
from proteinlm.models.base import ProteinModel, Want
from proteinlm.models.esm import Esm2, Esm2Config
from proteinlm.models.unirep import UniRep, UniRepConfig
from proteinlm.sequences.batch import PackedBatch

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
LAYERS, WIDTH, LONGEST = 2, 16, 40

ALONE_TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Alone against batched, fp32: sums of 16 to 64 terms in another order, through two layers of numbers around 1."""


def tiny_model(seed: int = 0) -> ProteinModel:
    """ESM-2 with random weights and room for 40 residues, so that windows are cheap to reach."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Esm2(Esm2Config(num_layers=LAYERS, width=WIDTH, num_heads=2, inner=64, max_residues=LONGEST))


def tiny_unirep() -> ProteinModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UniRep(UniRepConfig(width=8, num_layers=1))


def save_model(folder: Path, seed: int = 0) -> str:
    """A tiny model in a file; its path."""
    path = folder / f"tiny-{seed}.safetensors"
    checkpoints.save(tiny_model(seed), path)
    return str(path)


def made_up(count: int, longest: int = 30, seed: int = 0) -> list[tuple[str, str]]:
    """Headers and residues of proteins of 1 to `longest` residues."""
    rng = random.Random(seed)
    return [
        (f"sp|P{n:05d}|NAME_{n} protein {n}", "".join(rng.choices(RESIDUES, k=rng.randint(1, longest))))
        for n in range(count)
    ]


def write_fasta(path: Path, proteins: list[tuple[str, str]]) -> str:
    path.write_text("".join(f">{header}\n{residues}\n" for header, residues in proteins))
    return str(path)


def a_job(source: str, out: Path, model: str, **settings: object) -> EmbedJob:
    """A job in fp32 on the CPU with blocks of four records."""
    options = RunOptions(precision="fp32", device="cpu", tokens_per_batch=64)
    return EmbedJob(source, out, model, settings=EmbedSettings(**settings), options=options, block_records=4)


def beside(job: EmbedJob, folder: str) -> EmbedJob:
    """The same job with its output in another, new folder."""
    path = job.out.parent.with_name(folder)
    path.mkdir()
    return replace(job, out=path / job.out.name)


def run(job: EmbedJob, **changes: object) -> Summary:
    summary = embed_file(replace(job, **changes), Silent())
    assert isinstance(summary, Summary)
    return summary


def reference(model: ProteinModel, residues: str, layer: int) -> torch.Tensor:
    """Hidden states of one protein that fits the model, alone: BOS and EOS included, shape (L + 2, D)."""
    batch = PackedBatch.pack([model.alphabet.encode(residues)], prefix=1, suffix=1)
    with torch.inference_mode():
        return model.eval()(batch, Want(layers=(layer,))).hidden[layer]


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file under a folder, by its path there."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def plm(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command line in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["plm", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code is None or isinstance(end.value.code, int)
    return end.value.code or 0
