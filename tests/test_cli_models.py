"""`plm models`, `plm convert` and `plm accelerate`."""

import shutil
from pathlib import Path

import pytest
import torch
from embedding_tools import a_job, made_up, plm, run, save_model, tiny_model, tiny_unirep, write_fasta

from proteinlm import checkpoints, read_embeddings
from proteinlm.models import PRESETS, native
from proteinlm.models.encodings import ENCODINGS


def test_models_lists_every_published_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert plm(monkeypatch, "models") == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "parameters", "here", "licence", "source", "also", "called"]
    assert [row.split()[0] for row in rows] == [*PRESETS, *ENCODINGS] and len(rows) >= 24
    (row,) = [row for row in rows if row.startswith("esm2_t12_35M_UR50D")]
    assert "33,501,153" in row and "MIT" in row and "Hugging Face" in row and "esm2-35m" in row
    assert {row.split()[2] for row in rows} <= {"yes", "no"}


@pytest.mark.parametrize("layout", ["native", "hf", "fair-esm"])
def test_convert_there_and_back(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    first, there, back = (tmp_path / name for name in ("first.safetensors", "esm2-there", "back.safetensors"))
    checkpoints.save(tiny_model(), first)
    assert plm(monkeypatch, "convert", first, "-o", there, "--to", layout) == 0
    assert plm(monkeypatch, "convert", there, "-o", back, "--to", "native") == 0
    told = capsys.readouterr().out.splitlines()
    digest = checkpoints.load(first).digest
    assert told[0] == f"{there}: first in layout {layout}, digest {digest[:12]}"
    tensors, again = (checkpoints.load(path).model.state_dict() for path in (first, back))
    assert tensors.keys() == again.keys() and len(tensors) > 20
    assert all(torch.equal(tensors[name], again[name]) for name in tensors)
    source = write_fasta(tmp_path / "in.fasta", made_up(3))
    for model in (first, there):
        run(a_job(source, tmp_path / f"{model.name}.h5", str(model)))
    ours, theirs = (dict(read_embeddings(tmp_path / f"{model.name}.h5")) for model in (first, there))
    assert len(ours) == 3 and all((ours[name] == theirs[name]).all() for name in ours)


def test_convert_unirep_and_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    first, there, half = (tmp_path / name for name in ("first.safetensors", "there.npz", "half.safetensors"))
    checkpoints.save(tiny_unirep(), first)
    assert plm(monkeypatch, "convert", first, "-o", there, "--to", "unirep-npz") == 0
    assert plm(monkeypatch, "convert", first, "-o", half, "--to", "native", "--storage", "fp16") == 0
    before, after = (checkpoints.load(path).digest for path in (first, half))
    ending = f"in layout native, digest {after[:12]}; that of the model before is {before[:12]}"
    assert before != after and capsys.readouterr().out.splitlines()[1].endswith(ending)
    tensors, again, rounded = (checkpoints.load(path).model.state_dict() for path in (first, there, half))
    assert len(tensors) >= 5 and all(torch.equal(tensors[name], again[name]) for name in tensors)
    assert all(torch.equal(tensors[name].half().float(), rounded[name].float()) for name in tensors)


def test_convert_replaces_nothing_and_invents_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    first, there = tmp_path / "first.safetensors", tmp_path / "there.npz"
    checkpoints.save(tiny_model(), first)
    assert plm(monkeypatch, "convert", first, "-o", first, "--to", "native") == 2
    assert "is there already; choose another -o or remove it" in capsys.readouterr().err
    assert plm(monkeypatch, "convert", first, "-o", there, "--to", "unirep-npz") == 2
    error = capsys.readouterr().err
    assert error.startswith("plm: error: ") and error.count("\n") == 1 and not there.exists()


@pytest.fixture
def no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A machine on which nothing was compiled yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    native.library.cache_clear()
    yield
    monkeypatch.undo()
    native.library.cache_clear()


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize(("precision", "rounding"), [("bf16", 2**-6), ("fp32", 1e-5)])
def test_accelerate_builds_the_kernel_once(
    precision: str, rounding: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A few roundings of its precision apart from PyTorch's own kernels."""
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        pytest.skip("this processor has no AVX-512 bf16 instructions")
    if not (shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")):
        pytest.skip("there is no C compiler")
    command = ("embed", write_fasta(tmp_path / "in.fasta", made_up(9)), "--model", save_model(tmp_path))
    options = ("--precision", precision, "--device", "cpu")
    assert plm(monkeypatch, *command, "-o", tmp_path / "none.h5", *options, "--attention", "compiled") == 2
    assert "is not built on this machine; run `plm accelerate`" in capsys.readouterr().err
    assert not (tmp_path / "none.h5.parts").exists()
    assert plm(monkeypatch, *command, "-o", tmp_path / "without.h5", *options) == 0
    assert "attention auto\n" in capsys.readouterr().err

    assert plm(monkeypatch, "accelerate") == 0
    told = capsys.readouterr().out.splitlines()
    paths = [native.library_path(precision) for precision in (torch.float32, torch.bfloat16)]
    for precision, path, line in zip(("fp32", "bf16"), paths, told, strict=True):
        assert line.startswith(f"{path}: built; runs in {precision} on this CPU now use it") and path.is_file()
    assert set(paths[0].parent.iterdir()) == set(paths)

    assert plm(monkeypatch, *command, "-o", tmp_path / "with.h5", *options) == 0
    assert "attention auto, compiled\n" in capsys.readouterr().err
    assert plm(monkeypatch, *command, "-o", tmp_path / "named.h5", *options, "--attention", "compiled") == 0
    found = [dict(read_embeddings(tmp_path / name)) for name in ("without.h5", "with.h5", "named.h5")]
    assert len(found[0]) == 9
    for name, vector in found[0].items():
        for other in found[1:]:
            assert abs(other[name] - vector).max() <= rounding * abs(vector).max()


@pytest.mark.usefixtures("no_library")
@pytest.mark.parametrize("missing", ["processor", "compiler", "working compiler"])
def test_accelerate_says_what_is_missing(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    capable = {"avx512_f": missing != "processor"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capable)
    monkeypatch.setenv("PATH", str(tmp_path))
    if missing == "working compiler":
        monkeypatch.setenv("CC", "no-such-compiler")
    assert plm(monkeypatch, "accelerate") == 2
    told = {
        "processor": "this processor has no AVX-512 instructions; PyTorch's own kernels are used instead",
        "compiler": "no C compiler found (looked for $CC, cc, gcc, clang); install one, for example gcc",
        "working compiler": "the C compiler 'no-such-compiler' cannot be run (No such file or directory)",
    }[missing]
    output = capsys.readouterr()
    assert output.err.startswith(f"plm: error: {told}") and output.err.count("\n") == 1 and not output.out
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_processor_of_the_same_name_without_an_instruction_gets_a_library_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nodes of a cluster share a cache folder, and an instruction that is missing would kill the process."""
    paths = set()
    for able in (True, False):
        capabilities = {"cpu_name": "AMD EPYC", "avx512_f": True, "avx512_bf16": able, "num_logical_cores": 2}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda capabilities=capabilities: capabilities)
        paths.add(native.library_path(torch.float32))
    assert len(paths) == 2
