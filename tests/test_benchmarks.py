"""The benchmark program: it runs, and a speed counts only where the vectors are equal. No timing is asserted."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
CONTESTANTS = ("ours-bf16", "ours-fp32", "fair-esm")


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/embed.py` as a module; its folder is on the path for this test alone."""
    pytest.importorskip("esm", reason="fair-esm is not installed (extra `test`)")
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_embed", BENCHMARKS / "embed.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_embed", module)
    spec.loader.exec_module(module)
    return module


def arguments(output: Path) -> list[str]:
    return ["--sizes", "tiny", "--quick", "--no-startup", "--output", str(output), "--subjects", *CONTESTANTS]


def test_a_run_measures_compares_and_prints(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "result.json"
    program.main(arguments(output))
    result = json.loads(output.read_text())["sizes"]["tiny"]
    assert set(result["subjects"]) == set(CONTESTANTS)
    for name, entry in result["subjects"].items():
        assert entry["agreement"]["reference"] == "fair-esm"
        assert entry["agreement"]["proteins"] == result["proteins"] == 8
        assert set(entry["columns"]) == ({"as run", "tuned"} if name == "fair-esm" else {"as run"})
        assert all(len(column["pass_seconds"]) == 2 for column in entry["columns"].values())
        assert all(column["peak_mib"] > 50 for column in entry["columns"].values())
    assert 0.999999 < result["subjects"]["ours-fp32"]["agreement"]["least_cosine"] <= 1 + 1e-9
    assert 0.9999 < result["subjects"]["ours-bf16"]["agreement"]["least_cosine"] < 0.9999999, "bf16 does round"
    table = capsys.readouterr().out
    assert table.count("PASS") + table.count("MISS") == len(result["verdicts"]) == 3
    assert "of the bf16 GEMM rate" in table and "FLOP" in table

    program.main(["--show", "--output", str(output)])
    assert capsys.readouterr().out == table, "a stored result prints the same table"


def test_a_corrupted_contestant_stops_the_run(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peers measured for real, except that one number of one vector of one of them is wrong."""
    real = program.run_worker

    def corrupted(command: list[str], environment: dict[str, str]) -> dict:
        if command[0] == "rates":
            return {}
        found = real(command, environment)
        if command[0] == "embed" and command[3] == "ours-fp32":
            vectors = np.load(command[6])
            vectors[3, 5] += 0.05
            np.save(command[6], vectors)
        return found

    monkeypatch.setattr(program, "run_worker", corrupted)
    with pytest.raises(program.compare.UnequalOutputs, match=r"ours-fp32: protein 3 has cosine 0\.99"):
        program.main(["--sizes", "tiny", "--quick", "--no-startup", "--subjects", "fair-esm", "ours-fp32"])
    assert not list(tmp_path.iterdir())


def test_what_counts_as_unequal(program: ModuleType) -> None:
    reference = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    check, unequal = program.compare.check, program.compare.UnequalOutputs
    assert check("same", reference, reference, 0.999999).least_cosine == pytest.approx(1, abs=1e-12)
    swapped = reference.copy()
    swapped[[4, 9]] = swapped[[9, 4]]
    missing = reference.copy()
    missing[7, 0] = np.nan
    # The last two have every cosine at 1, or would pass a limit this loose: other rules refuse them.
    for name, vectors, limit in (
        ("shorter", reference[:-1], 0.99),
        ("missing", missing, 0.99),
        ("noisy", reference + 0.1, 0.9999),
        ("longer", reference * 1.1, 0.9999),
        ("swapped", swapped, -1.0),
    ):
        with pytest.raises(unequal, match=name):
            check(name, reference, vectors, limit)


@pytest.mark.parametrize("inner", [128, 96])
def test_the_floor_counts_what_a_model_multiplies(inner: int, program: ModuleType) -> None:
    """Against PyTorch's own counter of products, on one protein: everything but the language-model head."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from proteinlm.models.base import Want
    from proteinlm.models.esm import Esm2, Esm2Config
    from proteinlm.sequences.alphabet import ESM1B
    from proteinlm.sequences.batch import PackedBatch

    shape = dataclasses.replace(program.SHAPES["tiny"], inner=inner)
    model = Esm2(Esm2Config(shape.num_layers, shape.width, shape.num_heads, inner)).eval()
    model.attention_kernel = "loop"  # plain products, which the counter sees
    batch = PackedBatch.pack([ESM1B.encode("MKTV" * 25)], prefix=1, suffix=1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(batch, Want(layers=(shape.num_layers,)))
    floor = program.floor(shape, [100])
    assert counter.get_total_flops() == floor.flops
    unused = [p.numel() for n, p in model.named_parameters() if n.startswith(("masked_head", "contact_head"))]
    assert floor.parameters == sum(p.numel() for p in model.parameters()) - sum(unused)
    assert floor.exponentials == shape.num_layers * shape.num_heads * 102**2


@pytest.mark.slow
def test_a_training_step_is_timed_at_equal_losses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (extra `test`)")
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_train", BENCHMARKS / "train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    output = tmp_path / "result.json"
    module.main(["--shapes", "tiny", "--steps", "1", "--threads", "1", "--output", str(output)])
    subjects = json.loads(output.read_text())["shapes"]["tiny"]["subjects"]
    assert set(subjects) == set(module.SUBJECTS)
    for entry in subjects.values():
        assert len(entry["losses"]) == 2 and entry["tokens_per_second"] > 0
    first, second = (subjects[name]["losses"] for name in ("hf-fp32", "ours-fp32"))
    assert second == pytest.approx(first, rel=1e-4), "equal after an update too"
    assert "of the floor" in capsys.readouterr().out
    monkeypatch.setitem(module.TOLERANCE, "bf16", 1e-9)
    with pytest.raises(SystemExit, match=r"the first loss of hf-bf16 is .*, not"):
        module.main(["--shapes", "tiny", "--steps", "1", "--threads", "1", "--output", str(output)])


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["t5-tiny", "bert-tiny"])
def test_encoders_of_prottrans_are_timed_at_equal_outputs(
    shape: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (extra `test`)")
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("benchmark_prottrans", BENCHMARKS / "prottrans.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_prottrans", module)
    spec.loader.exec_module(module)
    output = tmp_path / "result.json"
    module.main(["--shapes", shape, "--quick", "--threads", "1", "--output", str(output)])
    result = json.loads(output.read_text())["shapes"][shape]
    assert set(result["subjects"]) == {"ours-bf16", "hf-sdpa", "hf-eager"} and result["proteins"] == 6
    for name, entry in result["subjects"].items():
        assert 0.999 < entry["agreement"]["least_cosine"] < 1 and entry["agreement"]["proteins"] == 6, "bf16 does round"
        assert set(entry["columns"]) == ({"as run"} if name == "ours-bf16" else {"as run", "tuned"})
        assert all(column["peak_mib"] > 50 and len(column["pass_seconds"]) == 1 for column in entry["columns"].values())
    table = capsys.readouterr().out
    assert table.count("PASS") + table.count("MISS") == 2 and table.count("in core s") == 2
