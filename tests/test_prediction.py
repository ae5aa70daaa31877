"""`plm predict` and `model.predict`: the same numbers in any company, tables that add up, every error in a line."""

import csv
import gzip
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from embedding_tools import LONGEST, digests, made_up, plm, save_model, write_fasta
from forked import Death, ended, start
from prediction_tools import contact_head, predict_until, random_heads
from tiny_models import TINY, tiny

import proteinlm
from proteinlm import checkpoints
from proteinlm.checkpoints import Checkpoint
from proteinlm.embedding.progress import Silent
from proteinlm.errors import InputError
from proteinlm.inference import Answer, Query, Runner, RunOptions, forward_all
from proteinlm.models import DEFAULT
from proteinlm.models.base import Want
from proteinlm.prediction import job
from proteinlm.prediction.bundle import HEADS, OURS, choose, load_bundle, read_bundle_card
from proteinlm.prediction.job import PredictJob, predict_file
from proteinlm.prediction.maps import ContactReader
from proteinlm.prediction.predicting import Prediction, Predictor
from proteinlm.prediction.tables import files, rows
from proteinlm.prediction.text import describe
from proteinlm.sequences.fasta import Record, Refused, read_fasta

FP32 = RunOptions(precision="fp32", device="cpu", tokens_per_batch=64)
ALONE = {"rtol": 1e-4, "atol": 1e-5}
"""Alone against batched, fp32: sums in another order through two layers and a head of numbers around 1."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny ESM-2 that takes 40 residues at once."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def heads(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_heads(checkpoints.load(model), tmp_path_factory.mktemp("made") / "heads")


@pytest.fixture
def fasta(tmp_path: Path) -> str:
    """Twelve proteins, one of them in windows, and a record that cannot be used."""
    proteins = [*made_up(11, longest=35), ("long one", "MKTAYIAKQRQISFVKSHFSRQ" * 4)]
    return write_fasta(tmp_path / "in.fasta", [*proteins[:5], ("bad", "MK7"), *proteins[5:]])


def predicted(model: str, heads: Path, fasta: str, out: Path) -> job.Counts:
    return predict_file(PredictJob(fasta, out, model, heads, options=FP32), Silent(), lambda text: None)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def arrays(found: Prediction) -> list[np.ndarray]:
    assert found.q3 is not None and found.q8 is not None and found.location is not None
    assert found.membrane is not None and found.contacts is not None
    return [found.q3, found.q8, np.array(list(found.location.values())), np.array([found.membrane]), found.contacts]


def test_tables_are_the_numbers(
    model: str, heads: Path, fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    command = ("predict", fasta, "--model", model, "--heads", heads, "-o", out, "--precision", "fp32")
    assert plm(monkeypatch, *command) == 1
    said = capsys.readouterr()
    assert f"13 in, 12 predicted, 1 refused (listed in {out / 'refused.tsv'})" in said.out
    assert "1 proteins longer than the model's positions, run in overlapping windows" in said.err
    assert "reads 40 residues at once, longer ones in windows" in said.err
    assert "... and 2 more in" in said.out
    (bad,) = table(out / "refused.tsv")
    assert bad["record"] == "6" and bad["id"] == "bad" and bad["letter"] == "7" and bad["position"] == "3"

    items = read_fasta(fasta, checkpoints.load(model).model.alphabet)
    records = [(item.id, item.residues) for item in items if isinstance(item, Record)]
    language = proteinlm.load(model, device="cpu", precision="fp32")
    found = list(language.predict(records, heads))
    proteins, residues, contacts = (table(out / f"{name}.tsv") for name in ("proteins", "residues", "contacts"))
    assert len(proteins) == len(found) == 12 and len(residues) == sum(len(one.residues) for one in found)
    assert [row["record"] for row in proteins] == [str(number) for number in (*range(1, 6), *range(7, 14))]
    at, compared = 0, 0
    for row, one in zip(proteins, found, strict=True):
        assert one.location is not None and one.q3 is not None and one.q8 is not None and one.contacts is not None
        assert row["id"] == one.id and int(row["length"]) == len(one.residues)
        for name, p in one.location.items():
            assert float(row[f"location_{name}"]) == pytest.approx(p, abs=6e-5)
        assert row["location"] == max(one.location, key=one.location.__getitem__)
        assert float(row["membrane_probability"]) == pytest.approx(one.membrane, abs=6e-5)
        assert int(row["windows"]) == one.windows and (one.windows > 1) == (len(one.residues) > LONGEST)
        mine = residues[at : at + len(one.residues)]
        at += len(mine)
        assert "".join(line["residue"] for line in mine) == one.residues
        assert "".join(line["q3"] for line in mine) == one.states3()
        assert "".join(line["q8"] for line in mine) == one.states8()
        assert [int(line["position"]) for line in mine] == list(range(1, len(mine) + 1))
        q3 = np.array([[float(line[name]) for name in ("helix", "strand", "other")] for line in mine])
        q8 = np.array([[float(line[f"q8_{state}"]) for state in "GHIBESTC"] for line in mine])
        np.testing.assert_allclose(q3, one.q3, atol=6e-5)
        np.testing.assert_allclose(q8, one.q8, atol=6e-5)
        shares = [float(row[name]) for name in ("helix", "strand", "other")]
        np.testing.assert_allclose(shares, [np.mean(one.q3.argmax(1) == state) for state in range(3)], atol=6e-5)
        listed = {(int(line["i"]), int(line["j"])): line for line in contacts if line["record"] == row["record"]}
        i, j = np.triu_indices(len(one.residues), 6)
        expected = {(a + 1, b + 1) for a, b in zip(i, j, strict=True) if one.contacts[a, b] >= 0.1}
        assert set(listed) == expected
        for (a, b), line in listed.items():
            assert float(line["probability"]) == pytest.approx(float(one.contacts[a - 1, b - 1]), abs=6e-5)
            assert (line["residue_i"], line["residue_j"]) == (one.residues[a - 1], one.residues[b - 1])
        assert int(row["long_range_contacts"]) == sum(
            one.contacts[a, b] >= 0.5 and b - a >= 24 for a, b in zip(i, j, strict=True)
        )
        compared += len(listed)
    assert compared > 30 and at == len(residues)
    told = json.loads((out / "provenance.json").read_text())
    assert told["model_digest"] == language.digest and told["counts"]["windowed"] == 1
    assert (out / "summary.txt").read_text() == "".join(describe(one) + "\n\n" for one in found)
    assert not (out / "unfinished").exists()


def test_probabilities_sum_to_1(model: str, heads: Path) -> None:
    language = proteinlm.load(model, device="cpu", precision="fp32")
    seen = 0
    for found in language.predict([residues for _, residues in made_up(8)], heads):
        assert found.q3 is not None and found.q8 is not None and found.location is not None
        for p in (found.q3.sum(1), found.q8.sum(1), np.array(sum(found.location.values()))):
            np.testing.assert_allclose(p, 1, atol=1e-12)
            seen += p.size
        assert found.membrane is not None and 0 < found.membrane < 1
        assert found.contacts is not None and found.contacts.min() >= 0 and found.contacts.max() <= 1
        np.testing.assert_allclose(found.contacts, found.contacts.T, atol=1e-6)
    assert seen > 50


def test_company_and_order_do_not_matter(model: str, heads: Path) -> None:
    proteins = [(header.split()[0], residues) for header, residues in made_up(10)] + [("long", "MKTAYIAKQR" * 9)]
    language = proteinlm.load(model, device="cpu", precision="fp32")
    together = {one.id: arrays(one) for one in language.predict(proteins, heads)}
    turned = {one.id: arrays(one) for one in language.predict(proteins[::-1], heads)}
    compared = 0
    for protein in proteins:
        (alone,) = language.predict([protein], heads)
        for other in (together, turned):
            for mine, theirs in zip(arrays(alone), other[protein[0]], strict=True):
                np.testing.assert_allclose(mine, theirs, **ALONE)
                compared += mine.size
    assert compared > 1000


def test_what_a_block_holds_is_all_that_is_read(model: str, heads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million proteins are not gathered before the first is told."""
    monkeypatch.setattr("proteinlm.prediction.predicting.BLOCK_RECORDS", 3)
    taken = []

    def proteins() -> Iterator[tuple[str, str]]:
        for number in range(100):
            taken.append(number)
            yield str(number), "MKTAYIAK"

    found = proteinlm.load(model, device="cpu", precision="fp32").predict(proteins(), heads)
    assert [next(found).id for _ in range(4)] == ["0", "1", "2", "3"]
    assert len(taken) == 7


NAMES = ["esm1", "esm1b", "esm2", "esm1v", "esm2-body", "bert", "t5-encoder"]


@pytest.mark.parametrize("name", NAMES)
def test_contacts_against_a_plain_computation(name: str) -> None:
    """In models that fold maps as they arise and in those that hand them out; the model itself stays as it was."""
    network = tiny(name)
    checkpoint = Checkpoint(network, name, "", "0" * 64, "")
    fitted = contact_head(checkpoint)
    had, runner = network.has_contacts, Runner(network, FP32)
    before = run(runner, Want(contacts=True)).contacts if had else None
    reader = ContactReader(runner, fitted)
    want = Want(attentions=True) if reader.attentions else Want(contacts=True)
    found = reader.probabilities(run(reader.runner, want))
    maps = run(runner, Want(attentions=True)).attentions
    assert found is not None and maps is not None
    length = maps.shape[-1]
    expected = np.full((length, length), -1.0)
    weights = fitted.head.weight_DK[:, 1]  # type: ignore[union-attr]
    for weight, one in zip(weights, maps.reshape(-1, length, length).double().numpy(), strict=True):
        both = one + one.T
        expected += weight * (both - both.sum(1, keepdims=True) * both.sum(0, keepdims=True) / both.sum())
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-expected / 1.5)), rtol=1e-3, atol=1e-5)
    assert runner.model is network and network.has_contacts == had
    if before is not None:
        after = run(runner, Want(contacts=True)).contacts
        assert after is not None and torch.equal(before, after)
        assert not np.allclose(found, before.numpy(), atol=1e-3)


def run(runner: Runner, want: Want) -> Answer:
    (answer,) = forward_all(runner, [Query(0, "MKTAYIAKQRQISFVK")], want)
    assert isinstance(answer, Answer)
    return answer


def test_maps_of_several_windows_make_no_contacts() -> None:
    network = tiny("bert")
    checkpoint = Checkpoint(network, "bert", "", "0" * 64, "")
    reader = ContactReader(Runner(network, FP32), contact_head(checkpoint))
    (answer,) = forward_all(reader.runner, [Query(0, "MKTAYIAKQR" * 5)], Want(attentions=True))
    assert isinstance(answer, Answer) and answer.windows > 1
    assert reader.probabilities(answer) is None


@pytest.mark.parametrize("name", TINY)
def test_every_model(name: str, tmp_path: Path) -> None:
    """Every architecture, a protein that it reads at once and one that some read in windows: rows fit their columns."""
    network = tiny(name)
    checkpoint = Checkpoint(network, name, "", "0" * 64, "")
    made = load_bundle(random_heads(checkpoint, tmp_path / "heads"), "0" * 64)
    assert ("contacts" in made.heads) == network.has_attentions
    predictor, heads = Predictor(Runner(network, FP32), made), frozenset(made.heads)
    proteins = [Record(0, "a", "a", "MKTAYIAKQRQISF"), Record(1, "b", "b", "MKT" * 13)]
    for record, found in zip(proteins, predictor.predict(proteins), strict=True):
        assert isinstance(found, Prediction) and found.q3 is not None and len(found.q3) == len(record.residues)
        for file, row in rows(found, heads):
            assert len(row) == len(files(heads)[file])
        if found.contacts is None:
            assert found.windows > 1 or not network.has_attentions
        else:
            assert found.contacts.shape == (len(record.residues),) * 2 and np.nanmax(found.contacts) <= 1


def test_a_killed_run_goes_on(
    model: str, heads: Path, fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the midst of the third block: the same bytes in the end, and two blocks are not run again."""
    monkeypatch.setattr("proteinlm.prediction.predicting.BLOCK_RECORDS", 4)
    predicted(model, heads, fasta, tmp_path / "whole")
    add, ran = job.Output.add, []

    def dying(self: job.Output, item: Prediction | Refused, show: object) -> None:
        add(self, item, lambda text: None)
        ran.append(item.index)
        if len(ran) == 10:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(job.Output, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            predicted(model, heads, fasta, out)
        assert sorted(path.name for path in out.iterdir()) == ["unfinished"]
        counts = predicted(model, heads, fasta, out)
    assert ran[10:] == list(range(8, 13)) and (counts.records, counts.predicted, counts.refused) == (13, 12, 1)
    assert digests(out) == digests(tmp_path / "whole") and len(digests(out)) == 6
    again = predicted(model, heads, fasta, out)
    assert again.already and replace(again, already=False) == counts


@pytest.mark.parametrize("stride", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_a_file_operation(stride: int, model: str, heads: Path, fasta: str, tmp_path: Path) -> None:
    """kill -9 at file operations from the first to the last, the moving of the finished files among them."""
    predicted(model, heads, fasta, tmp_path / "whole")
    expected, moment, code = digests(tmp_path / "whole"), 1, -signal.SIGKILL
    while code != 0:
        out = tmp_path / f"out{moment}"
        todo = PredictJob(fasta, out, model, heads, options=FP32)
        code = ended(start(predict_until, todo, 7, Death(moment, out)))
        assert code in (0, -signal.SIGKILL)
        assert predicted(model, heads, fasta, out).records == 13
        assert digests(out) == expected
        moment += stride
    assert moment > 25


def test_another_run_that_was_stopped_is_not_lost(
    model: str, heads: Path, fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(job.Output, "finish", stopped)
        predicted(model, heads, fasta, out)
    before = digests(out)
    with pytest.raises(InputError, match=r"another run that was stopped \(input digest"):
        predicted(model, heads, write_fasta(tmp_path / "other.fasta", made_up(3)), out)
    assert digests(out) == before
    (out / "unfinished" / "residues.tsv").write_text("")
    with pytest.raises(InputError, match="lost something of what was finished"):
        predicted(model, heads, fasta, out)


def stopped(self: job.Output) -> None:
    raise KeyboardInterrupt


def test_another_run_is_not_mixed_in(model: str, heads: Path, fasta: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predicted(model, heads, fasta, out)
    before = digests(out)
    other = write_fasta(tmp_path / "other.fasta", made_up(3))
    with pytest.raises(InputError, match=r"predictions of another run \(input digest: .*choose another -o"):
        predicted(model, heads, other, out)
    assert digests(out) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    for place, message in ((tmp_path / "mine", "not empty and holds no predictions"), (Path(other), "is a file")):
        with pytest.raises(InputError, match=message):
            predicted(model, heads, fasta, place)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_compressed_input_and_standard_input(
    model: str, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.fasta.gz"
    path.write_bytes(gzip.compress(b">a\nMKTAYIAK\n>a\nMKTV\n"))
    predicted(model, heads, str(path), tmp_path / "file")
    with path.open("rb") as file:
        monkeypatch.setattr("sys.stdin", type("Pipe", (), {"buffer": file}))
        counts = predicted(model, heads, "-", tmp_path / "pipe")
    assert counts.predicted == 2 and digests(tmp_path / "pipe") == digests(tmp_path / "file")
    # Two proteins of one id are told apart by their records.
    assert [row["record"] for row in table(tmp_path / "file" / "proteins.tsv")] == ["1", "2"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_figures(suffix: str, model: str, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    fasta = write_fasta(tmp_path / "in.fasta", [("../up/a:b", "MKTAYIAKQRQISFVKSHFSRQ"), ("one", "M")])
    command = ("predict", fasta, "--model", model, "--heads", heads, "-o", tmp_path / "out", "--figures", suffix)
    assert plm(monkeypatch, *command) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == [f"000001._._up_a_b.{suffix}", f"000002.one.{suffix}"]
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    for name in names:
        content = (tmp_path / "out" / "figures" / name).read_bytes()
        assert content.startswith(start) and len(content) > 5000


def test_figures_without_matplotlib(
    model: str, heads: Path, fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="figures need matplotlib"):
        predict_file(PredictJob(fasta, tmp_path / "out", model, heads, figures="png"), Silent(), print)
    with pytest.raises(InputError, match="figures as 'pdf' are unknown"):
        predict_file(PredictJob(fasta, tmp_path / "out", model, heads, figures="pdf"), Silent(), print)
    assert not (tmp_path / "out").exists()


def test_every_error_is_one_line(
    model: str, heads: Path, fasta: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    other = save_model(tmp_path, seed=1)
    damaged = random_heads(checkpoints.load(model), tmp_path / "damaged")
    (damaged / "membrane.safetensors").write_bytes(b"")
    strange = random_heads(checkpoints.load(model), tmp_path / "strange")
    told = json.loads((strange / "heads.json").read_text())
    (strange / "heads.json").write_text(json.dumps({**told, "format_version": 9}))
    cases = [
        ((fasta, "--model", other, "--heads", heads), "belong to tiny-0 (digest"),
        ((fasta, "--heads", heads), "belong to tiny-0, which is a file; name it with --model"),
        ((fasta, "--model", model, "--heads", damaged), "is truncated or damaged"),
        ((fasta, "--model", model, "--heads", strange), "format version 9"),
        ((fasta, "--model", model, "--heads", tmp_path), "is no folder of heads"),
        ((fasta, "--model", "esm2-8n", "--heads", heads), "did you mean"),
        ((tmp_path / "no.fasta", "--model", model, "--heads", heads), "no.fasta"),
    ]
    for number, (arguments, message) in enumerate(cases):
        assert plm(monkeypatch, "predict", *arguments, "-o", tmp_path / f"out{number}") == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
        assert not (tmp_path / f"out{number}").exists()


def test_what_comes_with_the_package(tmp_path: Path, heads: Path) -> None:
    """Our own model and its heads need not be named; heads of others bring their model with them."""
    assert choose(None, None) == (DEFAULT, OURS) and choose("mine", None) == ("mine", OURS)
    card = read_bundle_card(OURS)
    assert card.model == DEFAULT and set(card.heads) == set(HEADS) and not card.quick
    bundle = load_bundle(OURS, checkpoints.load("default").digest)
    assert set(bundle.heads) == set(HEADS)
    random_heads(checkpoints.load("one-hot"), tmp_path / "heads")
    assert choose(None, tmp_path / "heads") == ("one-hot", tmp_path / "heads")


def test_some_heads_make_some_columns() -> None:
    assert files(frozenset(("contacts",))) == {
        "proteins.tsv": ["record", "id", "length", "long_range_contacts", "windows"],
        "contacts.tsv": ["record", "id", "i", "j", "residue_i", "residue_j", "separation", "probability"],
    }
    bare = Prediction("a", 0, "MK", contacts=np.full((2, 2), 0.9))
    assert describe(bare) == (
        "a   2 residues\n  contacts   0 at long range (24 or more apart) of probability 0.5 or more"
    )


def test_a_model_that_overflows_is_refused(model: str, heads: Path) -> None:
    checkpoint = checkpoints.load(model)
    with torch.no_grad():
        checkpoint.model.get_parameter("final_norm.weight").fill_(float("inf"))
    predictor = Predictor(Runner(checkpoint.model, FP32), load_bundle(heads, checkpoint.digest))
    (found,) = predictor.predict([Record(0, "a", "a", "MKTV")])
    assert isinstance(found, Refused) and "not finite" in found.reason
