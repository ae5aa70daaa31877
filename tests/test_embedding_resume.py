"""A run that is killed, at whatever moment, and started again gives the bytes of an uninterrupted run, or refuses.

Runs are killed before each of their file operations, one after the other (`forked.Death`), and by kill -9 and Ctrl-C
from outside at moments of chance.
"""

import importlib.util
import json
import os
import random
import shutil
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest
from embedding_tools import a_job, beside, digests, made_up, plm, run, save_model, write_fasta
from forked import Death, embed_in_a_process, plm_in_a_process, wait_until

from proteinlm.embedding import parts
from proteinlm.embedding.names import UniqueNames
from proteinlm.embedding.parts import PartsFolder, locked
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.run import EmbedJob, embed_file
from proteinlm.errors import InputError
from proteinlm.inference import RunOptions

FORMATS = {
    "parquet": ("out.parquet", {}),
    "safetensors": ("out.safetensors", {"include": ("embeddings", "logits"), "pooling": "none"}),
    "esm-pt": ("out", {"include": ("embeddings", "contacts")}),
    "npz": ("out.npz", {"include": ("contacts",)}),
    "npz-folder": ("out", {"include": ("contacts",)}),
}
"""HDF5 has the test of every moment."""

PROTEINS = [*made_up(5), ("bad", "MK7"), ("twice", "MKT"), ("twice", "MVL")]
FIRST_BLOCK = sum(len(residues) for _, residues in PROTEINS[:4])


@pytest.fixture
def job(tmp_path: Path) -> EmbedJob:
    """Two blocks of four, one of them with a refused record; the output stands alone in a folder."""
    (tmp_path / "out").mkdir()
    source = write_fasta(tmp_path / "in.fasta", PROTEINS)
    return a_job(source, tmp_path / "out" / "out.h5", save_model(tmp_path))


def manifest_lines(job: EmbedJob) -> int:
    manifest = PartsFolder.beside(job.out) / "manifest.jsonl"
    return len(manifest.read_text().splitlines()) if manifest.exists() else 0


def test_killed_before_any_file_operation(job: EmbedJob) -> None:
    whole = beside(job, "whole")
    assert embed_in_a_process(whole)
    expected = digests(whole.out.parent)
    assert expected.keys() == {"out.h5", "out.h5.refused.tsv"}
    states = set()
    for number in range(1, 200):
        killed = beside(job, f"killed-{number}")
        folder = killed.out.parent
        if embed_in_a_process(killed, Death(number, folder)):
            break
        written = len(list(folder.rglob("block-*.safetensors")))
        states.add((written, manifest_lines(killed), killed.out.exists()))
        run(killed)
        assert digests(folder) == expected, f"killed before file operation {number}"
        assert [path.name for path in sorted(folder.iterdir())] == sorted(expected), "nothing is left behind"
    assert number > 30, "a run has many moments to be killed at"
    assert {(n, n - 1, False) for n in (1, 2)} <= states, "between a part and its line"
    assert {(n, n, False) for n in (0, 1, 2)} <= states, "between blocks, and before the output"
    assert (2, 2, True) in states, "after the output, before the work folder was removed"


@pytest.mark.parametrize("format_name", FORMATS)
def test_killed_while_the_output_is_written(format_name: str, job: EmbedJob) -> None:
    if format_name == "parquet" and importlib.util.find_spec("pyarrow") is None:
        pytest.skip("pyarrow is not installed")
    name, settings = FORMATS[format_name]
    job = a_job(job.source, job.out.with_name(name), job.model, **settings)
    job = replace(job, format=format_name)
    whole = beside(job, "whole")
    run(whole)
    expected = digests(whole.out.parent)
    ready = beside(job, "ready")
    assert not embed_in_a_process(ready, Death(1, PartsFolder.beside(ready.out) / "assembly"))
    assert manifest_lines(ready) == 2, "every block is there, and nothing of the output"
    for number in range(1, 100, 2):  # every other one, for time's sake
        killed = replace(job, out=job.out.parent.with_name(f"killed-{number}") / name)
        shutil.copytree(ready.out.parent, killed.out.parent)
        # What happens before is the same for all formats.
        if embed_in_a_process(killed, Death(number, PartsFolder.beside(killed.out) / "assembly")):
            break
        run(killed)
        assert digests(killed.out.parent) == expected, f"killed before file operation {number} of the output"
    assert number > 5


def test_killed_again_and_again_by_chance(tmp_path: Path) -> None:
    """`plm embed` in processes of its own, three blocks of up to 4,096 records; kill -9 after a time of chance."""
    rng = random.Random(1)
    source, model = write_fasta(tmp_path / "in.fasta", made_up(8200, longest=6)), save_model(tmp_path)
    outputs = [tmp_path / name / "out.h5" for name in ("killed", "whole")]
    commands = [("embed", source, "-o", out, "--model", model, "--device", "cpu") for out in outputs]
    with plm_in_a_process(commands[1], tmp_path / "whole.txt") as process:
        began = time.monotonic()
        process.join()
        seconds = time.monotonic() - began
        assert process.exitcode == 0
    manifest = PartsFolder.beside(outputs[0]) / "manifest.jsonl"
    for begun in (tmp_path.exists, manifest.exists, manifest.exists):
        with plm_in_a_process(commands[0], tmp_path / "killed.txt") as process:
            assert wait_until(begun, process)
            process.join(rng.uniform(0.1, 0.4) * seconds)
            assert process.exitcode in (None, 0), "killed at the end of this block, unless it was done before"
    with plm_in_a_process(commands[0], tmp_path / "killed.txt") as process:
        process.join()
        assert process.exitcode == 0
    assert digests(outputs[0].parent) == digests(outputs[1].parent)
    told = (tmp_path / "killed.txt").read_text()
    assert told.rstrip().endswith("8200 in, 8200 embedded, 0 refused") and "blocks were finished before" in told


def test_interrupted_by_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, model = write_fasta(tmp_path / "in.fasta", made_up(15_000, longest=6)), save_model(tmp_path)
    out = tmp_path / "out.h5"
    manifest = PartsFolder.beside(out) / "manifest.jsonl"
    command = ("embed", source, "-o", out, "--model", model, "--device", "cpu")
    with plm_in_a_process(command, tmp_path / "told.txt") as process:
        assert wait_until(manifest.exists, process) and process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        process.join(30)
        assert process.exitcode == 130
    assert f"plm: interrupted; run the same command again to go on with {out}" in (tmp_path / "told.txt").read_text()
    assert not out.exists() and manifest.exists()
    assert plm(monkeypatch, *command) == 0
    assert out.exists() and not manifest.exists()


class Interrupting(Progress):
    """Raises what Ctrl-C raises, in the second block."""

    def __init__(self) -> None:
        self.left = FIRST_BLOCK

    def say(self, line: str) -> None:
        pass

    def begin(self, residues: int) -> None:
        pass

    def advance(self, residues: int) -> None:
        self.left -= residues
        if self.left < 0:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


def begun(job: EmbedJob) -> EmbedJob:
    """The job, interrupted after its first block."""
    with pytest.raises(KeyboardInterrupt):
        embed_file(job, Interrupting())
    assert manifest_lines(job) == 1
    return job


CHANGES = {
    "layers": ("layers: [2] there, [1] now", {"settings": {"layers": (1,)}}),
    "pooling": ("pooling: 'mean' there, 'max' now", {"settings": {"pooling": "max"}}),
    "include": ("include: ['embeddings'] there", {"settings": {"include": ("embeddings", "logits")}}),
    "storage": ("storage: 'fp32' there, 'fp16' now", {"settings": {"storage": "fp16"}}),
    "long": ("long: 'window' there, 'crop' now", {"options": {"long": "crop"}}),
    "precision": ("precision: 'fp32' there, 'bf16' now", {"options": {"precision": "bf16"}}),
    "batch": ("tokens per batch: 64 there, 65 now", {"options": {"tokens_per_batch": 65}}),
    "attention": ("attention: 'auto' there, 'loop' now", {"options": {"attention": "loop"}}),
    "blocks": ("block records: 4 there, 5 now", {"job": {"block_records": 5}}),
    "format": ("output format: 'hdf5' there, 'safetensors' now", {"job": {"format": "safetensors"}}),
}


def changed(job: EmbedJob, change: dict) -> EmbedJob:
    return replace(
        job,
        settings=replace(job.settings, **change.get("settings", {})),
        options=replace(job.options, **change.get("options", {})),
        **change.get("job", {}),
    )


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_refused_and_named(name: str, job: EmbedJob) -> None:
    message, change = CHANGES[name]
    begun(job)
    before = digests(job.out.parent)
    with pytest.raises(InputError, match="holds the unfinished work of another run") as told:
        run(changed(job, change))
    assert message in str(told.value) and "choose another -o" in str(told.value)
    assert digests(job.out.parent) == before
    run(job)
    if name != "format":  # the output of another format is another file
        finished = digests(job.out.parent)
        with pytest.raises(InputError, match="is there already, made by another run") as told:
            run(changed(job, change))
        assert message in str(told.value)
        assert digests(job.out.parent) == finished


def test_every_option_of_a_run_is_among_the_changes() -> None:
    """A new option must be said to matter, or not to."""
    tested = {key for _, change in CHANGES.values() for part in ("settings", "options") for key in change.get(part, {})}
    assert set(vars(RunOptions())) - tested == {"device"}, "its kind is in the provenance; there is one kind here"
    assert tested >= set(vars(a_job("", Path("x.h5"), "").settings))


def test_another_model_and_another_input_are_refused(job: EmbedJob, tmp_path: Path) -> None:
    begun(job)
    with pytest.raises(InputError, match="model digest: "):
        run(replace(job, model=save_model(tmp_path, seed=1)))
    with open(job.source, "a", encoding="utf-8") as file:
        file.write(">one more\nMK\n")
    with pytest.raises(InputError, match="input digest: "):
        run(job)


def test_the_same_weights_under_another_name_go_on(job: EmbedJob, tmp_path: Path) -> None:
    begun(job)
    moved = tmp_path / "moved.safetensors"
    Path(job.model).rename(moved)
    assert run(replace(job, model=str(moved))).embedded == 7


def test_another_version_is_refused(job: EmbedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(job)
    monkeypatch.setattr("proteinlm.embedding.settings.__version__", "999")
    with pytest.raises(InputError, match=r"proteinlm: .* there, '999' now"):
        run(job)


def test_a_finished_run_is_not_repeated(job: EmbedJob) -> None:
    first = run(job)
    before = {path: path.stat().st_mtime_ns for path in job.out.parent.iterdir()}
    again = run(job)
    assert again.already and replace(again, already=False) == replace(first, renamed=0)
    assert {path: path.stat().st_mtime_ns for path in job.out.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["out.h5", "out.npz", "out.safetensors.index.json", "out.parquet"])
def test_a_file_that_is_not_ours_is_never_replaced(name: str, job: EmbedJob) -> None:
    if name == "out.parquet":
        pytest.importorskip("pyarrow", exc_type=ImportError)
    path = job.out.with_name(name)
    path.write_text("precious")
    include = ("contacts",) if name == "out.npz" else ("embeddings",)
    with pytest.raises(InputError, match="is there already and is not ours to replace"):
        run(
            replace(
                job,
                out=job.out.with_name(name.removesuffix(".index.json")),
                settings=replace(job.settings, include=include),
            )
        )
    assert path.read_text() == "precious" and list(job.out.parent.iterdir()) == [path]


def test_a_folder_that_is_not_ours_is_never_replaced(job: EmbedJob) -> None:
    precious = job.out.parent / "precious.txt"
    precious.write_text("precious")
    with pytest.raises(InputError, match="is there already and is not ours to replace"):
        run(replace(job, out=job.out.parent, format="esm-pt"))
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("damage", ["torn line", "torn part", "altered part", "lost part", "nonsense", "lost manifest"])
def test_what_a_power_cut_leaves_is_done_again(damage: str, job: EmbedJob) -> None:
    whole = beside(job, "whole")
    run(whole)
    begun(job)
    folder = PartsFolder.beside(job.out)
    manifest, part = folder / "manifest.jsonl", folder / "block-000000.safetensors"
    stored = part.read_bytes()
    if damage == "torn line":
        manifest.write_bytes(manifest.read_bytes()[:-20])
    elif damage == "torn part":
        part.write_bytes(stored[: len(stored) // 2])
    elif damage == "altered part":
        part.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    elif damage == "lost part":
        part.unlink()
    elif damage == "nonsense":
        manifest.write_bytes(b"\xff\x00[1]\n{}\n" + json.dumps({"block": 0}).encode())
    else:
        manifest.unlink()
    run(job)
    assert digests(job.out.parent) == digests(whole.out.parent)


def test_a_full_disk_keeps_what_is_finished(job: EmbedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = beside(job, "whole")
    run(whole)
    calls = []

    def save_on_a_full_disk(*arguments: object, metadata: dict[str, str]) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real(*arguments, metadata=metadata)

    real = parts.save_file
    monkeypatch.setattr(parts, "save_file", save_on_a_full_disk)
    with pytest.raises(InputError, match=r"No space left on device; make room and run the same command again"):
        run(job)
    assert manifest_lines(job) == 1
    run(job)
    assert len(calls) == 3, "the first block was not done again"
    assert digests(job.out.parent) == digests(whole.out.parent)


def test_a_disk_that_is_full_while_the_output_is_written(job: EmbedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def claim(names: UniqueNames, name: str) -> str:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(UniqueNames, "claim", claim)
        with pytest.raises(InputError, match=r"disk is full; make room .* \(finished blocks are kept\)"):
            run(job)
    assert manifest_lines(job) == 2 and not job.out.exists()
    assert run(job).embedded == 7


def test_a_file_system_without_locks_is_told(job: EmbedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """As filelock says it, on Lustre mounted without them for example."""

    def acquire(lock: filelock.FileLock, timeout: float) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    with pytest.raises(InputError, match="has no file locks, which keep two runs apart; choose -o on another disk"):
        run(job)


def test_two_runs_do_not_write_one_output(job: EmbedJob) -> None:
    begun(job)
    lock = PartsFolder.beside(job.out) / "manifest.jsonl.lock"
    with locked(lock), pytest.raises(InputError, match="another process is at work"):
        run(job)
    assert run(job).embedded == 7
