"""What went wrong in other tools when proteins were embedded, one test for each, named after it.

| defect | test here | in full |
| --- | --- | --- |
| cut at 1,022 in silence | test_esm_extract_cut_in_silence | test_inference_windows |
| KeyError on an unknown letter | test_esm_extract_stopped_at_an_unknown_letter | test_fasta |
| `/` and `:` in a header | test_esm_extract_broke_on_headers_that_are_paths | test_embedding_names |
| other batch, other numbers | test_fair_esm_273_other_batch_other_numbers | test_model_table |
| out of memory dropped a batch | test_prottrans_dropped_a_batch_without_memory | test_inference_memory |
| everything in memory to the end | test_prottrans_held_everything_in_memory | test_embedding_memory |
| last batch never flushed | test_eat_lost_the_last_batch | test_embedding_plan |
| last line of a wrapped record only | test_biotrainer_kept_the_last_line_only | test_fasta |
| a partial file passed as complete | test_biotrainer_took_a_partial_file_as_complete | test_embedding_resume |
| duplicates hung the writer | test_biotrainer_hung_on_duplicates | test_embedding_formats |
| long ones under the wrong id | test_bio_embeddings_gave_long_proteins_the_wrong_id | test_embedding_pooling |
| architecture from the name | test_protspace_468_took_the_architecture_from_a_name | test_checkpoints |
| NaN for all but the first | test_fastplms_23_nan_for_all_but_the_first | test_model_table |
| rotary frequencies recomputed | test_fastplms_27_recomputed_rotary_frequencies | test_parity_esm |
| pickles that run code | test_fair_esm_checkpoints_could_run_code | test_checkpoints |
| tests that compare nothing | test_tests_that_compare_nothing | each test counts what it compares |
| tolerances that hide bugs | test_tolerances_that_hide_bugs | each tolerance has its reason |

Pseudo-perplexity (fair-esm `compute_pppl`) is no part of embedding.
"""

import ast
import pickle
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from embedding_tools import (
    ALONE_TOLERANCE,
    LONGEST,
    a_job,
    made_up,
    plm,
    reference,
    run,
    save_model,
    tiny_model,
    tiny_unirep,
    write_fasta,
)
from test_embedding_pooling import embedded, records, runner

from proteinlm import InputError, checkpoints, read_embeddings
from proteinlm.embedding import pooling
from proteinlm.embedding import run as running
from proteinlm.embedding.parts import PartsFolder
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings
from proteinlm.inference import Runner
from proteinlm.models.esm import Esm2

TESTS = Path(__file__).parent


def expected(residues: str) -> np.ndarray:
    """The mean over the residues of one protein, alone in the bare model."""
    return reference(tiny_model(), residues, 2)[1:-1].mean(0).numpy()


def assert_right(out: Path, proteins: list[tuple[str, str]]) -> None:
    """Every protein is there once, under its id, with its own numbers."""
    found = list(read_embeddings(out))
    assert [name for name, _ in found] == [header.split()[0] for header, _ in proteins]
    for (_, vector), (_, residues) in zip(found, proteins, strict=True):
        np.testing.assert_allclose(vector, expected(residues), **ALONE_TOLERANCE)


def test_esm_extract_cut_in_silence(tmp_path: Path) -> None:
    """A protein that differs beyond the model's length must get another vector, and the output must say how."""
    ending = [("a", "M" * LONGEST + "A" * 9), ("c", "M" * LONGEST + "C" * 9)]
    job = a_job(write_fasta(tmp_path / "in.fasta", ending), tmp_path / "o.h5", save_model(tmp_path))
    assert run(job).windowed == 2
    with h5py.File(tmp_path / "o.h5") as file:
        assert abs(file["a"][()] - file["c"][()]).max() > 1e-3
        assert file["a"].attrs["windows"] == 2


def test_esm_extract_stopped_at_an_unknown_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    proteins = [("a", "MKT"), ("b", "MK%T"), ("c", "MVL")]
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "o.h5"
    assert plm(monkeypatch, "embed", source, "-o", out, "--model", save_model(tmp_path), "--precision", "fp32") == 1
    assert "3 in, 2 embedded, 1 refused" in capsys.readouterr().out
    assert "1\tb\t3\t%\tletter '%' at position 3" in Path(f"{out}.refused.tsv").read_text()
    assert_right(out, [proteins[0], proteins[2]])


def test_esm_extract_broke_on_headers_that_are_paths(tmp_path: Path) -> None:
    proteins = [("a/b:c", "MKT"), ("../../up", "MVL"), ("/abs", "MAA"), ("a/b:c", "MCC")]
    source, out = write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "o"
    run(a_job(source, out, save_model(tmp_path)), format="esm-pt")
    labels = [torch.load(path, weights_only=True)["label"] for path in out.glob("*.pt")]
    assert sorted(labels) == sorted(header for header, _ in proteins)
    assert not [path for path in out.iterdir() if path.is_dir()]


def test_fair_esm_273_other_batch_other_numbers() -> None:
    """Alone, with all others, in another order, in batches of another size."""
    proteins = made_up(20)
    model = runner()
    alone = [embedded(EmbedSettings((2,)), model, [record])[record.index] for record in records(proteins)]
    orders = [records(proteins), records(proteins)[5:12], records(proteins)[12:] + records(proteins)[:12]]
    compared = 0
    for given in orders:
        for tokens in (40, 4096):
            items = list(pooling.embed_records(runner(tokens_per_batch=tokens), given, EmbedSettings((2,))))
            assert len(items) == len(given)
            for item in items:
                assert isinstance(item, Stored)
                torch.testing.assert_close(
                    item.tensors["embeddings"], alone[item.entry.index].tensors["embeddings"], **ALONE_TOLERANCE
                )
                compared += 1
    assert compared == 2 * (20 + 20 + 7)


def test_prottrans_dropped_a_batch_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, refused = Runner.forward, []

    def forward_without_memory(run: Runner, batch, want):
        if len(batch) > 1 and len(refused) < 5:
            refused.append(len(batch))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(run, batch, want)

    monkeypatch.setattr(Runner, "forward", forward_without_memory)
    proteins = made_up(12)
    run(a_job(write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "o.h5", save_model(tmp_path)))
    assert len(refused) == 5
    assert_right(tmp_path / "o.h5", proteins)


def test_prottrans_held_everything_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a block is computed, those before it are on the disk and nowhere else."""
    seen = []

    def embed_records(runner: Runner, given: list, settings: EmbedSettings):
        folder = PartsFolder.beside(tmp_path / "o.h5")
        seen.append((len(given), len(list(folder.glob("block-*.safetensors")))))
        yield from pooling.embed_records(runner, given, settings)

    monkeypatch.setattr(running, "embed_records", embed_records)
    run(a_job(write_fasta(tmp_path / "in.fasta", made_up(14)), tmp_path / "o.h5", save_model(tmp_path)))
    assert seen == [(4, 0), (4, 1), (4, 2), (2, 3)]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9])
def test_eat_lost_the_last_batch(count: int, tmp_path: Path) -> None:
    """Counts around a block of four; the last one is never full."""
    proteins = made_up(count)
    summary = run(a_job(write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "o.h5", save_model(tmp_path)))
    assert (summary.records, summary.embedded, summary.refused) == (count, count, 0)
    assert_right(tmp_path / "o.h5", proteins)


def test_biotrainer_kept_the_last_line_only(tmp_path: Path) -> None:
    proteins = made_up(6)
    wrapped = [(header, "\n".join(re.findall(".{1,7}", residues))) for header, residues in proteins]
    run(a_job(write_fasta(tmp_path / "in.fasta", wrapped), tmp_path / "o.h5", save_model(tmp_path)))
    assert_right(tmp_path / "o.h5", proteins)


def test_biotrainer_took_a_partial_file_as_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output's name appears when the output is whole; until then the same command goes on."""
    proteins = made_up(9)
    job = a_job(write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "o.h5", save_model(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(h5py.File, "close", lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(job)
    assert not job.out.exists()
    run(job)
    assert_right(job.out, proteins)
    # A file that was cut afterwards is not taken for the output either.
    job.out.write_bytes(job.out.read_bytes()[:-100])
    with pytest.raises(InputError, match="is there already and is not ours to replace"):
        run(job)


@pytest.mark.timeout(60)
def test_biotrainer_hung_on_duplicates(tmp_path: Path) -> None:
    proteins = [("same", residues) for _, residues in made_up(30)] + [("same__2", "MKT")]
    assert run(a_job(write_fasta(tmp_path / "i.fa", proteins), tmp_path / "o.h5", save_model(tmp_path))).renamed == 30
    assert_right(tmp_path / "o.h5", proteins)


def test_bio_embeddings_gave_long_proteins_the_wrong_id(tmp_path: Path) -> None:
    """Long ones between short ones: windows finish in another order than proteins come."""
    chosen = enumerate(made_up(20, longest=20))
    proteins = [(f"p{n}", residues * (9 if n % 3 == 1 else 1)) for n, (_, residues) in chosen]
    job = a_job(write_fasta(tmp_path / "in.fasta", proteins), tmp_path / "o.h5", save_model(tmp_path), pooling="none")
    assert run(job).windowed >= 4
    found = dict(read_embeddings(job.out))
    assert {name: len(array) for name, array in found.items()} == {name: len(residues) for name, residues in proteins}
    short = [(name, residues) for name, residues in proteins if len(residues) <= LONGEST]
    assert len(short) >= 14
    for name, residues in short:
        np.testing.assert_allclose(found[name].mean(0), expected(residues), **ALONE_TOLERANCE)


@pytest.mark.parametrize("name", ["esm1b.safetensors", "prot_t5.safetensors", "my-esm2-lookalike.safetensors"])
def test_protspace_468_took_the_architecture_from_a_name(name: str, tmp_path: Path) -> None:
    proteins = made_up(5)
    source = write_fasta(tmp_path / "in.fasta", proteins)
    for model, kind in ((tiny_model(), "esm"), (tiny_unirep(), "unirep")):
        for n, path in enumerate((tmp_path / name, tmp_path / f"{kind}-itself.safetensors")):
            checkpoints.save(model, path)
            assert run(a_job(source, tmp_path / f"{kind}-{n}.h5", str(path))).embedded == 5
            path.unlink()
        named, true = (dict(read_embeddings(tmp_path / f"{kind}-{n}.h5")) for n in (0, 1))
        assert len(named) == 5 and all(np.array_equal(named[key], true[key]) for key in true)


def test_fastplms_23_nan_for_all_but_the_first() -> None:
    items = embedded(EmbedSettings((0, 1, 2), "none", ("embeddings", "logits")), runner(), records(made_up(20)))
    assert len(items) == 20
    for item in items.values():
        assert all(tensor.isfinite().all() for tensor in item.tensors.values())


def test_fastplms_27_recomputed_rotary_frequencies(tmp_path: Path) -> None:
    """Frequencies that a checkpoint carries are used, here ones that no formula gives."""
    model = tiny_model()
    assert isinstance(model, Esm2)
    model.rotary.inverse_frequency.mul_(1.3)
    checkpoints.save(model, tmp_path / "changed.safetensors")
    source = write_fasta(tmp_path / "in.fasta", [("a", "MKTAYIAKQRQISFVK")])
    for name, path in (("usual", save_model(tmp_path)), ("changed", str(tmp_path / "changed.safetensors"))):
        run(a_job(source, tmp_path / f"{name}.h5", path, pooling="none"))
    usual, changed = (dict(read_embeddings(tmp_path / f"{name}.h5"))["a"] for name in ("usual", "changed"))
    np.testing.assert_allclose(changed, reference(model, "MKTAYIAKQRQISFVK", 2)[1:-1].numpy(), **ALONE_TOLERANCE)
    assert abs(usual - changed).max() > 1e-3


class _RunsCode:
    """A pickle that makes a file where it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_fair_esm_checkpoints_could_run_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    source, proof = write_fasta(tmp_path / "in.fasta", made_up(2)), tmp_path / "code-was-run"
    torch.save({"args": _RunsCode(proof), "model": {}}, tmp_path / "esm2.pt")
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"model": _RunsCode(proof)}, protocol=2))
    for name in ("esm2.pt", "old.pt"):
        assert plm(monkeypatch, "embed", source, "-o", tmp_path / "o.h5", "--model", tmp_path / name) == 2
        error = capsys.readouterr().err
        assert error.startswith("plm: error: ") and error.count("\n") == 1
    assert not proof.exists()


def test_tests_that_compare_nothing() -> None:
    """Each test of embedding asserts something, and the ones in this table are there."""
    files = [
        path for pattern in ("embedding", "cli", "inference", "known") for path in TESTS.glob(f"test_{pattern}*.py")
    ]
    seen = 0
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                text = ast.unparse(node)
                assert re.search(r"\bassert|assert_|pytest\.raises|\.check\(", text), f"{path.name}: {node.name}"
                seen += 1
    assert seen > 100 and len(files) >= 12
    rows = re.findall(r"\| (test_\w+) \| (\S+)", __doc__ or "")
    assert len(rows) == 17
    for name, module in rows:
        assert name in globals(), name
        assert not module.startswith("test_") or (TESTS / f"{module}.py").exists(), module


def test_tolerances_that_hide_bugs() -> None:
    """The bound of these tests sees the error of one wrong residue, and of one residue too many in a mean."""
    residues = "MKTAYIAKQRQISFVKSHFSRQ"
    right = expected(residues)
    model = tiny_model()
    wrong = [
        expected(residues[:-1] + ("A" if residues[-1] != "A" else "C")),
        reference(model, residues, 2).mean(0).numpy(),
        reference(model, residues, 2)[1:-2].mean(0).numpy(),
        reference(model, residues, 1)[1:-1].mean(0).numpy(),
    ]
    for other in wrong:
        with pytest.raises(AssertionError):
            np.testing.assert_allclose(other, right, **ALONE_TOLERANCE)
