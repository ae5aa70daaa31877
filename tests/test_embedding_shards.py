"""Work split over array tasks or processes gives the bytes of a single run, and nothing is merged unproven."""

import importlib.util
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from embedding_tools import a_job, beside, digests, made_up, plm, run, save_model, threads, write_fasta
from forked import plm_in_a_process, wait_until

from proteinlm import read_embeddings
from proteinlm.embedding.merge import merge
from proteinlm.embedding.parts import PartsFolder, Shard, locked
from proteinlm.embedding.progress import Progress, Silent
from proteinlm.embedding.run import EmbedJob, ShardSummary, embed_file
from proteinlm.embedding.workers import Team, embed_with_team
from proteinlm.errors import InputError

PROTEINS = [*made_up(16), ("bad", "MK7"), ("long", "MKTV" * 15), ("twice", "MKT"), ("twice", "MVL")]
OUTPUTS = [
    ("out.h5", None, {}),
    ("out.parquet", None, {"layers": (2, 0)}),
    ("out.safetensors", None, {"pooling": "none", "include": ("embeddings", "logits")}),
    ("out", "esm-pt", {"include": ("embeddings", "contacts")}),
    ("out.npz", None, {"include": ("contacts",)}),
    ("out", "npz-folder", {"include": ("contacts",)}),
]


@pytest.fixture
def job(tmp_path: Path) -> EmbedJob:
    """20 records in five blocks, two of them beyond the ordinary; the output stands alone in a folder."""
    (tmp_path / "shards").mkdir()
    source = write_fasta(tmp_path / "in.fasta", PROTEINS)
    return a_job(source, tmp_path / "shards" / "out.h5", save_model(tmp_path))


def run_shard(job: EmbedJob, number: int, count: int) -> ShardSummary:
    summary = embed_file(replace(job, shard=Shard(number, count)), Silent())
    assert isinstance(summary, ShardSummary)
    return summary


@pytest.mark.parametrize(("name", "format_name", "settings"), OUTPUTS)
def test_shards_merged_are_the_single_run(name: str, format_name: str | None, settings: dict, job: EmbedJob) -> None:
    if name == "out.parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    job = replace(a_job(job.source, job.out.with_name(name), job.model, **settings), format=format_name)
    single = run(beside(job, "single"))
    summaries = [run_shard(job, number, 3) for number in (3, 1, 2)]
    assert [summary.blocks for summary in summaries] == [1, 2, 2]
    assert sum(summary.records for summary in summaries) == 20
    assert sum(summary.embedded for summary in summaries) == 19 and sum(s.refused for s in summaries) == 1
    assert not job.out.exists(), "shards write no output"
    merged = merge(job.out)
    assert (merged.records, merged.embedded, merged.refused, merged.windowed) == (20, 19, 1, 1)
    assert replace(merged, refused_file=None) == replace(single, refused_file=None)
    assert digests(job.out.parent) == digests(job.out.parent.with_name("single"))
    assert len(digests(job.out.parent)) >= 2
    again = merge(job.out)
    assert again.already and (again.records, again.embedded) == (20, 19), "merging twice is no error"


@pytest.mark.parametrize("count", [1, 2, 5, 7])
def test_any_number_of_shards(count: int, job: EmbedJob) -> None:
    run(beside(job, "single"))
    if count == 1:
        run(job)
    else:
        assert sum(run_shard(job, number, count).blocks for number in range(1, count + 1)) == 5
        merge(job.out)
    assert digests(job.out.parent) == digests(job.out.parent.with_name("single"))


def test_a_missing_shard_is_named(job: EmbedJob) -> None:
    run_shard(job, 1, 3)
    before = digests(job.out.parent)
    with pytest.raises(InputError, match=r"3 of 5 blocks are missing .* \(1, 2, 4\)") as told:
        merge(job.out)
    assert "run again with --shard 2/3 and --shard 3/3" in str(told.value)
    run_shard(job, 3, 3)
    with pytest.raises(InputError, match=r"run again with --shard 2/3$"):
        merge(job.out)
    assert before.items() <= digests(job.out.parent).items() and not job.out.exists()
    run_shard(job, 2, 3)
    assert merge(job.out).embedded == 19


def test_shards_of_different_runs_are_not_mixed(job: EmbedJob, tmp_path: Path) -> None:
    run_shard(job, 1, 2)
    other = replace(job, settings=replace(job.settings, pooling="max"))
    with pytest.raises(InputError, match="pooling: 'mean' there, 'max' now"):
        run_shard(other, 2, 2)
    with pytest.raises(InputError, match="model digest: "):
        run_shard(replace(job, model=save_model(tmp_path, seed=1)), 2, 2)
    with pytest.raises(InputError, match="blocks are missing"):
        merge(job.out)


def test_a_part_of_another_run_is_not_merged(job: EmbedJob) -> None:
    """A part copied from elsewhere under the right name is not what its line says."""
    other = beside(replace(job, settings=replace(job.settings, layers=(1,))), "other")
    for number in (1, 2):
        run_shard(job, number, 2)
        run_shard(other, number, 2)
    foreign, own = (PartsFolder.beside(one.out) / "block-000001.safetensors" for one in (other, job))
    shutil.copy(foreign, own)
    with pytest.raises(InputError, match=r"1 of 5 blocks are missing .* \(1\); run again with --shard 2/2"):
        merge(job.out)


def test_a_part_that_lost_a_protein_is_not_merged(job: EmbedJob) -> None:
    """Even with a line that fits: the counts must be those of the scan."""
    for number in (1, 2):
        run_shard(job, number, 2)
    manifest = PartsFolder.beside(job.out) / "manifest-1-of-2.jsonl"
    manifest.write_text(manifest.read_text().replace('"records": 4', '"records": 3'))
    with pytest.raises(InputError, match=r"block 0 in .* does not agree with the input: 3 records, 0 refused"):
        merge(job.out)


def test_shards_counted_in_two_ways_complete_each_other(job: EmbedJob) -> None:
    """1/2 has blocks 0, 2, 4; 2/4 and 4/4 have 1 and 3."""
    run(beside(job, "single"))
    for number, count in ((1, 2), (2, 4)):
        run_shard(job, number, count)
    with pytest.raises(InputError, match="run the command that began the work again"):
        merge(job.out)
    run_shard(job, 4, 4)
    merge(job.out)
    assert digests(job.out.parent) == digests(job.out.parent.with_name("single"))


def test_a_shard_reads_its_own_parts_only(job: EmbedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hundred shards, each verifying all parts would read everything a hundred times."""
    for number in (1, 2, 3):
        run_shard(job, number, 3)
    read = []
    monkeypatch.setattr(PartsFolder, "_intact", lambda folder, line: read.append(line.block) or True)
    run_shard(job, 2, 3)
    assert read == [1, 4]


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no unfinished work in .*`plm embed --shard i/n` begins it"):
        merge(tmp_path / "out.h5")
    (tmp_path / "out.h5").write_text("not ours")
    with pytest.raises(InputError, match="there is no unfinished work in"):
        merge(tmp_path / "out.h5")


def test_merging_waits_for_nobody_and_is_told(job: EmbedJob) -> None:
    run_shard(job, 1, 2)
    with locked(PartsFolder.beside(job.out) / "merge.lock"), pytest.raises(InputError, match=r"holds merge\.lock"):
        merge(job.out)


def test_on_the_command_line(job: EmbedJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    command = ("embed", job.source, "-o", job.out, "--model", job.model, "--device", "cpu")
    assert plm(monkeypatch, *command, "--shard", "1/2") == 0
    told = capsys.readouterr()
    assert told.out == "shard 1/2 (1 blocks): 20 in, 19 embedded, 1 refused\n"
    assert f"once every shard has ended: plm merge {job.out}" in told.err
    assert plm(monkeypatch, *command, "--shard", "2/2") == 0
    assert capsys.readouterr().out == "shard 2/2 (0 blocks): 0 in, 0 embedded, 0 refused\n"
    assert plm(monkeypatch, "merge", job.out) == 1
    listed = job.out.with_name("out.h5.refused.tsv")
    assert capsys.readouterr().out == f"20 in, 19 embedded, 1 refused (listed in {listed})\n"
    assert plm(monkeypatch, "merge", job.out) == 1
    assert "is complete already; nothing was done" in capsys.readouterr().err
    assert plm(monkeypatch, "merge", job.out.with_name("other.h5")) == 2


class Counting(Progress):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.begun = self.done = 0

    def say(self, line: str) -> None:
        self.lines.append(line)

    def begin(self, residues: int) -> None:
        self.begun += residues

    def advance(self, residues: int) -> None:
        self.done += residues

    def end(self) -> None:
        pass


def test_two_workers_are_the_single_run(job: EmbedJob) -> None:
    single = run(beside(job, "single"))
    told = Counting()
    summary = embed_with_team(job, Team(("cpu", "cpu")), told)
    assert replace(summary, refused_file=None) == replace(single, refused_file=None)
    assert digests(job.out.parent) == digests(job.out.parent.with_name("single"))
    assert told.lines[-1] == "workers  2: cpu, cpu"
    assert told.done == told.begun == sum(len(residues) for name, residues in PROTEINS if name != "bad")
    assert embed_with_team(job, Team(("cpu", "cpu")), Silent()).already


def test_workers_end_with_their_parent_and_the_work_goes_on(tmp_path: Path) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", made_up(8200, longest=6)), save_model(tmp_path)
    out = tmp_path / "out" / "out.h5"
    command = ("embed", source, "-o", out, "--model", model, "--device", "cpu")
    folder = PartsFolder.beside(out)
    with plm_in_a_process((*command, "--workers", "2"), tmp_path / "told.txt") as process:
        assert wait_until(lambda: any(folder.glob("manifest-*.jsonl")), process), (tmp_path / "told.txt").read_text()
        process.kill()
        process.join()
    # The workers notice and let go of their locks; then one process alone goes on with what they finished.
    for number in (1, 2):
        with locked(folder / f"manifest-{number}-of-2.jsonl.lock", seconds=10):
            pass
    job = EmbedJob(source, out, model)
    summary = embed_file(replace(job, options=replace(job.options, device="cpu")), told := Counting())
    assert summary.embedded == 8200 and any("blocks were finished before" in line for line in told.lines)
    assert len(list(read_embeddings(out))) == 8200 and not folder.exists()


def test_a_worker_that_dies_is_told_and_nothing_is_lost(job: EmbedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    run_shard(job, 1, 2)
    before = digests(job.out.parent)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(InputError, match=r"worker \d of 2 ended with status 1; finished blocks are kept"):
        embed_with_team(job, Team(("cpu", "cpu")), Silent())
    assert not job.out.exists() and before.items() <= digests(job.out.parent).items()
    assert run(job).embedded == 19


@pytest.mark.parametrize(
    ("workers", "devices", "device", "team"),
    [(3, (), "cpu", ("cpu",) * 3), (1, ("cuda:0", "cuda:1"), "auto", ("cuda:0", "cuda:1")), (1, (), "auto", ("auto",))],
)
def test_teams(workers: int, devices: tuple[str, ...], device: str, team: tuple[str, ...]) -> None:
    assert Team.of(workers, devices, device).devices == team


def test_teams_that_cannot_be(job: EmbedJob) -> None:
    with pytest.raises(InputError, match="--workers and --devices exclude each other"):
        Team.of(2, ("cpu",), "auto")
    with pytest.raises(InputError, match="devices of several kinds"):
        embed_with_team(job, Team(("cpu", "cuda:0")), Silent())


def test_threads_change_the_last_bits_at_most(job: EmbedJob) -> None:
    """Why the bytes are promised for equal numbers of threads."""
    run(job)
    with threads(2):
        run(beside(job, "two"))
    ours, theirs = (list(read_embeddings(job.out.parent.with_name(name) / "out.h5")) for name in ("shards", "two"))
    assert len(ours) == len(theirs) == 19
    for (name, vector), (other, array) in zip(ours, theirs, strict=True):
        assert name == other
        np.testing.assert_allclose(vector, array, rtol=1e-4, atol=1e-5)
