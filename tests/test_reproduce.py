"""Table 1 at a scale of seconds: every row, the paper's orderings, going on after a stop, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shared_data
from corpus_tools import example_store
from embedding_tools import plm
from tiny_models import tiny

from proteinlm import checkpoints
from proteinlm.cli.reproduce import reproduce as command
from proteinlm.corpora.split import SplitOptions, is_held_out
from proteinlm.corpora.store import Store
from proteinlm.errors import InputError
from proteinlm.models.ngram_model import NGramModel
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.objectives.perplexity import hidden_positions, protein_losses
from proteinlm.reproduce import prottrans, table1
from proteinlm.reproduce.table1 import ORDERINGS, ROWS, SCALES, Job, Scale, recipe_of_row
from proteinlm.sequences.alphabet import ESM1B

CPU = torch.device("cpu")


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """Models of a few thousand parameters, two steps each; the fraction of a thousandth would leave no cluster."""
    deep = {"architecture": "esm1", "num_layers": 12, "width": 8, "num_heads": 2, "inner": 32}
    monkeypatch.setitem(SCALES, "tiny", Scale(8, 2, deep, 8, 16, 600, 300, 60, 1e-3, (1, 2)))
    monkeypatch.setattr(table1, "ROWS", tuple(replace(row, fraction=max(row.fraction, 0.1)) for row in ROWS))
    store = example_store(tmp_path)
    held_out = tmp_path / "held_out.fasta"
    held_out.write_text("".join(f">p{n}\n{'MKTAYIAKQRQISFVKSHFSRQ'[n:] * 3}\n" for n in range(5)))
    # A fiftieth of twenty clusters is none in most seeds; in this one it is some.
    return Job(str(store), str(held_out), "tiny", tmp_path / "out", seed=seed_that_holds_out(store))


def seed_that_holds_out(store: Path) -> int:
    opened = Store.open(store)
    names = [opened.identifier(int(index)) for index in opened.members[opened.cluster_starts[:-1]]]
    return next(seed for seed in range(1000) if any(is_held_out(name, SplitOptions(0.02, seed)) for name in names))


def test_every_row_is_run_once_and_compared(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    pretrain = table1.pretrain
    monkeypatch.setattr(table1, "pretrain", lambda *given: trained.append(given[1].name) or pretrain(*given))
    said: list[str] = []
    text = table1.reproduce(job, CPU, said.append).read_text()
    results = json.loads((job.folder / "table1.json").read_text())
    assert [row["row"] for row in results["rows"]] == [row.name for row in ROWS]
    assert [(one["better"], one["worse"]) for one in results["orderings"]] == list(ORDERINGS)
    values = {row["row"]: row["value"] for row in results["rows"]}
    for row in results["rows"]:
        # Eight wide and two steps old, a model may be surer than it should: worse than uniform, but finite.
        assert 5 < row["low"] <= row["value"] <= row["high"] < 1000, row
    # Twelve layers stand for 34, so that is one run; and all fractions are a tenth here.
    assert values["Transformer-12"] == values["Transformer-34 UR50/S"]
    assert len(trained) == len(set(trained)) == 7
    assert any(line.endswith("the same run as Transformer-12") for line in said)
    for one in results["orderings"]:
        gap = values[one["better"]] - values[one["worse"]]
        assert one["value"] == pytest.approx(gap) and one["low"] <= gap <= one["high"]
        expected = "holds" if one["high"] < 0 else "reversed" if one["low"] > 0 else "not resolved"
        assert one["verdict"] == expected and f"| {expected} |" in text
    assert all(f"| {row.name} |" in text and f"{row.paper:.2f}" in text for row in ROWS)
    counts = checkpoints.load(job.folder / "n-gram" / "n-gram.safetensors").model
    assert isinstance(counts, NGramModel), "the n-gram can be evaluated like every other model"
    trained.clear()
    assert table1.reproduce(job, CPU, said.append).read_text() == text
    assert not trained, "what is finished is not run again"
    with pytest.raises(InputError, match="belongs to another job"):
        table1.reproduce(replace(job, seed=job.seed + 1), CPU, said.append)


def test_all_rows_see_the_same_tokens(job: Job) -> None:
    runs = [recipe_of_row(row, job) for row in ROWS if row.model is not None]
    assert len({(run.run.steps, run.batch.tokens, run.data.crop, run.optimiser.learning_rate) for run in runs}) == 1
    sampling = [run.data.sampling for run in runs]
    assert sampling.count("all") == sampling.count("clusters") == 1


def test_what_cannot_be_used_is_refused_before_anything_is_run(job: Job, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    plain = example_store(tmp_path / "plain", clusters=False)
    for changes, message in (
        ({"store": str(plain)}, "needs clusters"),
        ({"store": "none"}, "is not a corpus store"),
        ({"validation": "none.fasta"}, "cannot open"),
        ({"scale": "huge"}, "scale 'huge' is unknown; choose one of tiny, small, full"),
        ({"folder": Path(job.validation)}, "cannot write in"),
    ):
        with pytest.raises(InputError, match=message):
            table1.reproduce(replace(job, **changes), CPU)
    assert not job.folder.exists()


def test_the_command_prints_the_table(job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for scales, name in ((SCALES, "table1"), (prottrans.SCALES, "prottrans")):
        told = next(option.help for option in command.params if option.name == "scale")
        *others, last = scales
        assert f"{name}: {', '.join(others)} or {last}" in told
    options = ["--store", job.store, "--validation", job.validation, "--seed", job.seed, "--device", "cpu"]
    assert plm(monkeypatch, "reproduce", "table1", *options, "--scale", "tiny", "-o", job.folder) == 0
    assert capsys.readouterr().out == (job.folder / "table1.md").read_text()
    assert plm(monkeypatch, "reproduce", "table1", *options, "--scale", "tiny", "-o", job.validation) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_n_gram_is_scored_where_the_others_are_masked() -> None:
    model, objective = tiny("esm2"), MaskedLanguageModel(ESM1B, Masking())
    proteins = ["MKTAYIAKQRQISFVKSHFSRQ"[start:] for start in range(12)]
    places = hidden_positions(objective, proteins, seed=3)
    _, counts = protein_losses(model, objective, proteins, seed=3).hidden
    assert [len(one) for one in places] == counts.tolist() and sum(counts) > 10
    assert all(one.min() >= 0 and one.max() < len(p) for one, p in zip(places, proteins, strict=True) if len(one))


def test_what_residue_frequencies_alone_score() -> None:
    """15.3 over all chosen residues and 18.2 over the hidden ones, as `objectives.perplexity` says."""
    text = (Path(__file__).resolve().parents[1] / "examples" / "proteins.fasta").read_text()
    residues = "".join(line for line in text.splitlines() if not line.startswith(">"))
    share = np.array([residues.count(letter) for letter in "ACDEFGHIKLMNPQRSTVWY"], float)
    share /= share.sum()
    hidden = -(share * np.log(share)).sum()
    # Seen at a chosen place that is not hidden: as often the true residue as one of the twenty at random.
    joint = 0.5 * np.diag(share) + 0.5 * share[None, :] / 20
    visible = -(joint * np.log(joint / joint.sum(1, keepdims=True))).sum()
    assert np.exp(hidden) == pytest.approx(18.2, abs=0.3)
    assert np.exp(0.8 * hidden + 0.2 * visible) == pytest.approx(15.3, abs=0.3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tiny_scale_on_swiss_prot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What anyone can repeat in minutes: the whole table, on real proteins, through the command line."""
    data = shared_data() / "pretrain"
    store, out = tmp_path / "store", tmp_path / "table1"
    assert plm(monkeypatch, "corpus", "build", data / "train_ur90.fasta.zst", "-o", store, "--clusters", "header") == 0
    options = ["--store", store, "--validation", data / "valid_public.fasta.gz", "--device", "cpu", "-o", out]
    assert plm(monkeypatch, "reproduce", "table1", "--scale", "tiny", *options) == 0
    results = json.loads((out / "table1.json").read_text())
    values = {row["row"]: row["value"] for row in results["rows"]}
    assert len(values) == len(ROWS)
    # Residue frequencies score 18.2; counts of three residues must beat them, and no model may be wild.
    assert 17 < values[table1.NGRAM] < 18.2 and max(values.values()) < 25, values
