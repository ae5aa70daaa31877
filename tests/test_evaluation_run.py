"""`plm evaluate`, `plm report` and `plm compare` as a user meets them: a tiny model, small data, what can go wrong."""

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from embedding_tools import plm, save_model, tiny_model
from evaluation_tools import facts, write_held_out, write_scop

from proteinlm import checkpoints
from proteinlm.checkpoints.ngram import save_ngram
from proteinlm.embedding.progress import Silent
from proteinlm.errors import InputError
from proteinlm.evaluation import results
from proteinlm.evaluation.cache import FeatureStore, StoreKey
from proteinlm.evaluation.compare import compare
from proteinlm.evaluation.report import DIFFERENT, gather
from proteinlm.evaluation.run import EvaluateJob, evaluate
from proteinlm.metrics import Bootstrap, bootstrap_difference, bootstrap_interval
from proteinlm.models.ngram import NGram, NGramConfig
from proteinlm.tasks import TASKS
from proteinlm.tasks.base import (
    Entry,
    GroupScores,
    Question,
    Reply,
    Result,
    Task,
    TaskOptions,
    TwoRoundTask,
    Wanted,
)

TWO = "language,homology-scop"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_held_out(folder, 12, longest=40)
    write_scop(folder, {f"a.{number}": 4 for number in range(1, 8)})
    return folder


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Results of two models on two tasks."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        with pytest.MonkeyPatch.context() as patch:
            out = folder / f"model-{seed}"
            command = ("evaluate", save_model(folder, seed), "--tasks", TWO, "--data", data, "-o", out)
            assert plm(patch, *command, "--precision", "fp32") == 0
    return folder / "model-0", folder / "model-1"


def test_the_whole_chain(evaluated: tuple[Path, Path], data: Path) -> None:
    run = results.read(evaluated[0])
    assert [task.name for task in run.tasks] == TWO.split(",") and all(task.status == "done" for task in run.tasks)
    assert sum(len(task.results) for task in run.tasks) == 10
    assert run.model["digest"] == checkpoints.digest_of(tiny_model(0)) and run.name == "tiny-0"
    for task in run.tasks:
        assert task.version == 1 and len(task.data) == 1
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in task.data.values())
        for result in task.results:
            assert result.low <= result.value <= result.high and result.n > 0 and result.notes
            options = Bootstrap(resamples=2000, exponential=result.exponential)
            totals = (np.array(result.sums), np.array(result.counts))
            again = bootstrap_interval(*totals, np.random.default_rng(0), options)
            assert (again.value, again.low, again.high) == (result.value, result.low, result.high)
    assert run.options["precision"] == "fp32" and run.software["proteinlm"] and run.date.startswith("20")
    assert str(data) not in (evaluated[0] / "results.json").read_text(), "results name no path of one machine"
    assert sorted(path.name for path in evaluated[0].iterdir()) == ["report.html", "report.md", "results.json"]


def test_the_same_run_gives_the_same_figures(evaluated: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    """Another time, in another folder, with a cache: equal but for dates and seconds."""
    with pytest.MonkeyPatch.context() as patch:
        model = save_model(tmp_path)
        command = ("evaluate", model, "--data", data, "--tasks", TWO, "-o", tmp_path / "out")
        assert plm(patch, *command, "--precision", "fp32", "--cache", tmp_path / "cache") == 0
    first, second = results.read(evaluated[0]), results.read(tmp_path / "out")
    assert [task.results for task in first.tasks] == [task.results for task in second.tasks]


class Page(HTMLParser):
    """What a page shows, and whatever it would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.fetched, self.tables, self.plots = "", [], 0, 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tables += tag == "table"
        self.plots += tag == "svg"
        if tag in ("script", "link", "img", "iframe"):
            self.fetched.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_report_needs_the_results_and_nothing_else(evaluated: tuple[Path, Path], tmp_path: Path) -> None:
    copies = []
    for folder in evaluated:
        copies.append(tmp_path / f"{folder.name}.json")
        shutil.copy(folder / "results.json", copies[-1])
    with pytest.MonkeyPatch.context() as patch:
        assert plm(patch, "report", *copies, "-o", tmp_path / "report") == 0
    text = (tmp_path / "report" / "report.md").read_text()
    page = Page()
    page.feed((tmp_path / "report" / "report.html").read_text())
    assert page.fetched == [] and page.tables == 3 and page.plots == 2
    rows = [line for line in text.splitlines() if line.startswith("| fold, Hit-10, cosine")]
    assert len(rows) == 1 and "ESM-1b 0.532" in rows[0] and "Table 2" in rows[0]
    for run in map(results.read, copies):
        assert run.name in page.text and run.name in text
        for result in (result for task in run.tasks for result in task.results):
            shown = f"{result.value:.{2 if abs(result.value) >= 2 else 3}f}"
            assert shown in text and shown in page.text and result.measure in page.text
            assert all(note in text for note in result.notes)
    before = (tmp_path / "report" / "report.html").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        assert plm(patch, "report", *copies, "-o", tmp_path / "report") == 0
    assert (tmp_path / "report" / "report.html").read_bytes() == before


def test_compare_is_the_paired_bootstrap(evaluated: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    runs = [results.read(folder) for folder in evaluated]
    found = compare(*runs, seed=5)
    assert len(found) == 10
    ours, theirs = ({r.measure: r for task in run.tasks for r in task.results} for run in runs)
    for one in found:
        first, second = ours[one.measure], theirs[one.measure]
        options = Bootstrap(resamples=2000, exponential=first.exponential)
        totals = [(np.array(result.sums), np.array(result.counts)) for result in (first, second)]
        gap = bootstrap_difference(*totals, np.random.default_rng(5), options)
        assert one.gap == gap and gap.value == pytest.approx(first.value - second.value)
    with pytest.MonkeyPatch.context() as patch:
        assert plm(patch, "compare", *evaluated) == 0
    told = capsys.readouterr().out
    assert told.startswith("# tiny-0 minus tiny-1") and told.count("\n| ") == 12


def test_a_model_against_itself_differs_in_nothing(evaluated: tuple[Path, Path]) -> None:
    run = results.read(evaluated[0])
    for one in compare(run, run):
        assert one.gap is not None and (one.gap.low, one.gap.high) == (0, 0) and one.verdict == "not resolved"


def test_what_cannot_be_paired_is_told(evaluated: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    write_scop(tmp_path, {f"a.{number}": 4 for number in range(1, 4)})
    with pytest.MonkeyPatch.context() as patch:
        command = ("evaluate", "one-hot", "--data", tmp_path, "--tasks", "homology-scop", "-o", tmp_path / "out")
        assert plm(patch, *command) == 0
    found = {one.measure: one for one in compare(results.read(evaluated[0]), results.read(tmp_path / "out"))}
    assert all(one.gap is None for one in found.values()) and len(found) == 10
    assert "different proteins" in found["fold, AUC, cosine"].reason
    assert "no such figure" in found["ECE, hidden residues"].reason
    runs = [results.read(evaluated[0]), results.read(tmp_path / "out")]
    language, homology = gather(runs)
    assert DIFFERENT in homology.notes() and DIFFERENT not in language.notes()


def test_better_is_told_the_right_way_round(evaluated: tuple[Path, Path]) -> None:
    run = results.read(evaluated[0])
    values = json.loads((evaluated[0] / "results.json").read_text())
    for task in values["tasks"]:
        for result in task["results"]:
            result["sums"] = [
                total - 0.2 * count for total, count in zip(result["sums"], result["counts"], strict=True)
            ]
    lower = evaluated[0].parent / "lower.json"
    lower.write_text(json.dumps(values))
    verdicts = {one.measure: one.verdict for one in compare(results.read(lower), run)}
    assert verdicts["ECE, hidden residues"] == "first" and verdicts["fold, AUC, cosine"] == "second"


def test_what_does_not_apply_and_what_is_missing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without logits, data without CATH: both are listed, the rest is done, and the exit code says so."""
    out = tmp_path / "out"
    tasks = f"{TWO},homology-cath"
    assert plm(monkeypatch, "evaluate", "one-hot", "--tasks", tasks, "--data", data, "-o", out) == 1
    status = {task.name: (task.status, task.reason) for task in results.read(out).tasks}
    assert status["language"] == (
        "not applicable",
        "of one-hot, it has no language-model head that speaks of every residue",
    )
    assert status["homology-scop"] == ("done", "")
    assert status["homology-cath"][0] == "not run"
    assert "cath_chains.tsv.gz" in status["homology-cath"][1] and "get it from" in status["homology-cath"][1]
    told = capsys.readouterr().out
    assert "no language-model head" in told and "cath_chains.tsv.gz" in told


def test_counts_predict_and_have_no_vectors(data: Path, tmp_path: Path) -> None:
    """The n-gram in the same table: its ECE is that of its counts, and tasks on vectors do not apply."""
    counts = NGram.fit([np.frombuffer(b"MKTAYIAKQRQISFVKSHFSRQ", np.uint8)], NGramConfig(left=1))
    save_ngram(counts, tmp_path / "counts.safetensors")
    job = EvaluateJob(str(tmp_path / "counts.safetensors"), tmp_path / "out", TaskOptions(data), tuple(TWO.split(",")))
    language, homology = evaluate(job, Silent()).tasks
    assert language.status == "done" and 20 < language.results[0].value < 30
    assert (homology.status, homology.reason) == ("not applicable", "of counts, it has no vectors of residues")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one-hot", "--tasks", "homology-scob"), "did you mean 'homology-scop'?"),
        (("one-hot", "--tasks", "language"), "no task could be run: language: of one-hot, it has no language-model"),
        (("one-hott", "--tasks", "language"), "there is no file, folder or model 'one-hott'"),
        (("one-hot", "--untrained", "0", "--tasks", "homology-scop"), "has no untrained twin"),
        (("one-hot", "--layer", "4", "--tasks", "homology-scop"), "layer 4 is outside 0..0"),
        (("one-hot", "--data", "nowhere"), "the data folder 'nowhere' is not a folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: tuple[str, ...],
    message: str,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    assert plm(monkeypatch, "evaluate", "--data", data, *arguments, "-o", tmp_path / "out") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("plm: error: ") and message in last
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}', '{"format": 0}', '{"format": 1, "tasks": [{}]}'])
def test_files_that_are_no_results(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "results.json").write_text(content)
    assert plm(monkeypatch, "report", tmp_path, "-o", tmp_path / "out") == 2
    assert "results.json" in capsys.readouterr().err.splitlines()[-1]


def test_untrained_is_another_model(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = save_model(tmp_path), tmp_path / "out"
    command = ("evaluate", model, "--untrained", "3", "--tasks", "homology-scop", "--data", data, "-o", out)
    assert plm(monkeypatch, *command) == 0
    run = results.read(out)
    assert run.name == "tiny-0 untrained (seed 3)" and run.model["untrained"] == 3
    assert run.model["digest"] != checkpoints.digest_of(tiny_model(0))


class Twice(TwoRoundTask):
    """Asks about what it was told first, keeps vectors, and stops at what it cannot use."""

    name, version, title, source = "twice", 1, "Twice", "made up"

    def questions(self) -> Iterator[Question]:
        self.means: dict[int, np.ndarray] = {}
        self.kept: dict[int, np.ndarray] = {}
        yield from (Question(residues, Wanted(mean=True, kept=True)) for residues in ("MKTAY", "ACDEF"))

    def second_questions(self) -> Iterator[Question]:
        assert sorted(self.means) == [0, 1]
        yield Question("WWWWW", Wanted(mean=True))

    def collect(self, number: int, reply: Reply) -> None:
        assert reply.mean is not None
        self.means[number] = reply.mean
        if reply.kept is not None:
            self.kept[number] = reply.kept

    def finish(self) -> list[Result]:
        assert sorted(self.means) == [0, 1, 2] and sorted(self.kept) == [0, 1]
        error = max(float(np.abs(self.kept[n].mean(0, dtype=np.float64) - self.means[n]).max()) for n in self.kept)
        return [self.result("largest", GroupScores(["all"], np.array([error]), np.array([1.0])), better="")]


class Broken(Task):
    """Cannot be finished."""

    name, version, title, source = "broken", 1, "Broken", "made up"

    def questions(self) -> Iterator[Question]:
        yield Question("MK*T", Wanted(mean=True))

    def collect(self, number: int, reply: Reply) -> None:
        raise AssertionError("the letter cannot be read")

    def finish(self) -> list[Result]:
        return []


def test_two_rounds_kept_vectors_and_a_task_that_breaks(tmp_path: Path) -> None:
    table = {"broken": Entry(Broken), "twice": Entry(Twice)}
    job = EvaluateJob("blosum62", tmp_path / "out", TaskOptions(tmp_path), cache=tmp_path / "cache")
    run = evaluate(job, Silent(), table)
    assert [task.status for task in run.tasks] == ["not run", "done"]
    assert "question 0: letter '*'" in run.tasks[0].reason
    # Small whole numbers are exact in fp16; their means are rounded once.
    assert run.tasks[1].results[0].value < 1e-6
    assert len(list((tmp_path / "cache").glob("features-*/residues-*.bin"))) == 1
    again = evaluate(replace(job, out=tmp_path / "again"), Silent(), table)
    assert again.tasks[1].results == run.tasks[1].results


class Counted(Twice):
    """Remembers how often it was scored; can be interrupted while it is."""

    name, finished, interrupted = "counted", 0, False

    def finish(self) -> list[Result]:
        if Counted.interrupted:
            raise KeyboardInterrupt
        Counted.finished += 1
        return super().finish()


class Newer(Counted):
    """The next version of it."""

    version = 2


def test_an_interrupted_evaluation_goes_on_and_another_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is kept, of the same model, options and versions only."""
    table = {"twice": Entry(Twice), "counted": Entry(Counted)}
    job = EvaluateJob("blosum62", tmp_path / "out", TaskOptions(tmp_path))
    monkeypatch.setattr(Counted, "interrupted", True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(job, Silent(), table)
    kept = replace(results.read(job.out), seconds={"all": 100.0, "model": 50.0})
    results.write(kept, job.out / results.FILE)
    assert [task.name for task in kept.tasks] == ["twice"]
    monkeypatch.setattr(Counted, "interrupted", False)
    monkeypatch.setattr(Counted, "finished", 0)
    run = evaluate(job, Silent(), table)
    assert run.tasks[0] == kept.tasks[0], "seconds too: it was not run again"
    assert results.read(job.out) == run and [task.name for task in run.tasks] == ["twice", "counted"]
    assert 100 <= run.seconds["all"] < 120 and 50 <= run.seconds["model"] < 70
    assert evaluate(replace(job, tasks=("counted",)), Silent(), table).tasks == run.tasks and Counted.finished == 1
    evaluate(job, Silent(), {**table, "counted": Entry(Newer)})
    assert Counted.finished == 2, "another version"
    other = replace(job, options=TaskOptions(tmp_path, seed=1), tasks=("counted",))
    assert [task.name for task in evaluate(other, Silent(), table).tasks] == ["counted"] and Counted.finished == 3
    evaluate(replace(other, model="one-hot"), Silent(), table)
    assert Counted.finished == 4 and results.read(job.out).name == "one-hot"


def test_the_temporary_cache_is_removed_and_a_kept_one_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    evaluate(EvaluateJob("one-hot", tmp_path / "a", TaskOptions(tmp_path)), Silent(), {"twice": Entry(Twice)})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["results.json"]
    FeatureStore(tmp_path / "a" / ".vectors-killed", StoreKey("ab", 0, 4, "fp32")).close()
    evaluate(EvaluateJob("blosum62", tmp_path / "a", TaskOptions(tmp_path)), Silent(), {"twice": Entry(Twice)})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["results.json"], "what a killed run left is gone"
    cache = tmp_path / "cache"
    evaluate(EvaluateJob("one-hot", tmp_path / "b", TaskOptions(tmp_path), cache=cache), Silent(), {"t": Entry(Twice)})
    assert list(cache.iterdir())
    assert plm(monkeypatch, "evaluate", "--clear-cache", "--cache", cache) == 0
    assert list(cache.iterdir()) == [] and "removed" in capsys.readouterr().out
    assert plm(monkeypatch, "evaluate", "--clear-cache") == 2


def test_the_table_of_tasks_is_whole() -> None:
    """Every task has what the machine and the report need, and what it sets beside the papers it can measure."""
    assert len(TASKS) >= 3
    for name, entry in TASKS.items():
        kind = entry.task
        assert kind.name == name and kind.version >= 1 and kind.title and kind.source
        assert set(kind.needs) <= {"residues", "logits", "mask", "attentions", "contacts"}
        assert len({(line.measure, line.model) for line in entry.published}) == len(entry.published)
        task = kind(TaskOptions(Path("nowhere")), facts())
        with pytest.raises(InputError, match="each once"):
            task.result("twice", GroupScores(["a", "a"], np.ones(2), np.ones(2)))


def test_the_tasks_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert plm(monkeypatch, "evaluate", "--list-tasks") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(TASKS)
    assert all(entry.task.title in line for entry, line in zip(TASKS.values(), lines, strict=True))
