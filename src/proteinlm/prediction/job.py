"""`plm predict` from beginning to end: a FASTA file in, a folder of tables out, block by block.

In: a `PredictJob`. Out: `proteins.tsv`, `residues.tsv`, `contacts.tsv`, `summary.txt`, `figures/` if asked for,
`refused.tsv` if any record was refused, and `provenance.json`, whose presence means that the rest is complete. Until
then everything lies in `OUT/unfinished`: a run that was killed goes on behind the last block that it finished. Memory
holds one block.
"""

import contextlib
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from proteinlm.checkpoints import Checkpoint, load
from proteinlm.checkpoints.files import atomic_file, read_json, to_disk
from proteinlm.embedding.names import file_name_of
from proteinlm.embedding.parts import locked, told_as_input_error
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.settings import differences, versions
from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions
from proteinlm.prediction.bundle import Bundle, choose, load_bundle
from proteinlm.prediction.figure import FORMATS, check_figures, draw
from proteinlm.prediction.predicting import Prediction, Predictor
from proteinlm.prediction.tables import files, rows
from proteinlm.prediction.text import describe
from proteinlm.sequences.fasta import FastaSummary, Record, Refused, read_fasta, scan_fasta
from proteinlm.sequences.source import opened

UNFINISHED, STATE, PROVENANCE = "unfinished", "state.json", "provenance.json"
SUMMARY, REFUSED, FIGURES = "summary.txt", "refused.tsv", "figures"
REFUSED_COLUMNS = ("record", "id", "position", "letter", "reason")
SHOWN = 10
"""Proteins that are described on the terminal; `summary.txt` describes all."""

LONGEST_NAME = 80
"""Letters of an id in the name of a figure."""


@dataclass(frozen=True)
class PredictJob:
    """What to predict, with what, and where to.

    Args:
        source: FASTA file, or "-" for standard input. out: folder to write.
        model: name or path; None for that of the heads. heads: folder; None for those that come with the package.
        figures: "png" or "svg" for a picture of each protein, or None.
        options: how to run. download: fetch the weights if they are not on this machine.
    """

    source: str
    out: Path
    model: str | None = None
    heads: Path | None = None
    figures: str | None = None
    options: RunOptions = field(default_factory=RunOptions)
    download: bool = False


@dataclass
class Counts:
    """How a run stands or ended.

    Attributes:
        records, predicted, refused: what came in and what became of it; the last two add up to the first.
        windowed: proteins longer than the model's positions. figures: drawn. already: nothing was left to do.
    """

    records: int = 0
    predicted: int = 0
    refused: int = 0
    windowed: int = 0
    figures: int = 0
    already: bool = False

    def closing_line(self, out: Path) -> str:
        """The line that reconciles what came in with what came out."""
        listed = f" (listed in {out / REFUSED})" if self.refused else ""
        return f"{self.records} in, {self.predicted} predicted, {self.refused} refused{listed}"

    def notes(self) -> list[str]:
        """What else to know."""
        if not self.windowed:
            return []
        return [f"{self.windowed} proteins longer than the model's positions, run in overlapping windows"]


def predict_file(job: PredictJob, progress: Progress, show: Callable[[str], None]) -> Counts:
    """Predict every protein of a FASTA file.

    Args:
        job: what to do. progress: where to report. show: given what is to be read on the terminal.

    Raises:
        InputError: input, model and heads do not fit, or the folder holds something else.
    """
    if job.figures is not None:
        if job.figures not in FORMATS:
            raise InputError(f"figures as {job.figures!r} are unknown; use {' or '.join(FORMATS)}")
        check_figures()
    if job.source != "-":
        with opened(job.source):
            pass
    model, heads = choose(job.model, job.heads)
    checkpoint = load(model, job.download)
    bundle = load_bundle(heads, checkpoint.digest)
    work = job.out / UNFINISHED
    _require_ours(job.out)
    with told_as_input_error(work):
        work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock"), _tidied(work), _as_file(job, work) as source:
        counts = _predict(job, (checkpoint, bundle), source, progress, show)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(work)
    return counts


def _predict(
    job: PredictJob,
    parts: tuple[Checkpoint, Bundle],
    source: Path,
    progress: Progress,
    show: Callable[[str], None],
) -> Counts:
    """The work, once nobody else does it."""
    checkpoint, bundle = parts
    runner = Runner(checkpoint.model, job.options)
    predictor = Predictor(runner, bundle)
    alphabet, limit = checkpoint.model.alphabet, checkpoint.model.max_residues
    found = scan_fasta(source, alphabet)
    provenance = _provenance(job, (checkpoint, bundle), runner, found)
    if (done := _finished(job.out, provenance)) is not None:
        return done
    longest = "any length" if limit is None else f"{limit} residues at once, longer ones in windows"
    progress.say(f"model    {checkpoint.name}, digest {checkpoint.digest[:12]}; reads {longest}")
    progress.say(f"heads    {', '.join(bundle.heads)}" + (" (from a quick run)" if bundle.card.quick else ""))
    progress.say(f"running  on {runner.device} in {runner.precision} ({runner.precision_reason})")
    progress.say(f"input    {found.records:,} records, {found.residues:,} residues, {found.refused:,} refused")
    output = Output(job, frozenset(bundle.heads), provenance)
    if output.counts.records:
        progress.say(f"going on {output.counts.records:,} of {found.records:,} records were done before")
    items = islice(read_fasta(source, alphabet), output.counts.records, None)
    progress.begin(found.residues)
    try:
        for block in predictor.blocks(items):
            for item in predictor.predict(block):
                output.add(item, show)
            output.keep()
            progress.advance(sum(len(item.residues) for item in block if isinstance(item, Record)))
    finally:
        progress.end()
        output.close()
    if output.counts.records != found.records:
        raise InputError(f"{job.source!r} changed while it was being read; run again on a file that stays as it is")
    if output.counts.predicted > SHOWN:
        show(f"... and {output.counts.predicted - SHOWN:,} more in {job.out / SUMMARY}")
    output.finish()
    return output.counts


class Output:
    """The files of a run, open at their ends; what was written after the last finished block of a killed run is cut.

    Args:
        job: what is being done. heads: whose columns there are. provenance: of the run.
    """

    def __init__(self, job: PredictJob, heads: frozenset[str], provenance: dict[str, Any]) -> None:
        self.job, self.heads, self.provenance = job, heads, provenance
        self.work, self.counts = job.out / UNFINISHED, Counts()
        self.tables = {**files(heads), REFUSED: list(REFUSED_COLUMNS)}
        sizes = self._resumed([*self.tables, SUMMARY])
        with told_as_input_error(self.work):
            (self.work / FIGURES).mkdir(exist_ok=True)
            self.handles = {name: (self.work / name).open("a", encoding="utf-8", newline="") for name in sizes}
            for name, handle in self.handles.items():
                os.truncate(self.work / name, sizes[name])
                handle.seek(sizes[name])
        self.writers = {
            name: csv.writer(self.handles[name], delimiter="\t", lineterminator="\n") for name in self.tables
        }
        for name, columns in self.tables.items():
            if not sizes[name]:
                self.writers[name].writerow(columns)

    def _resumed(self, names: list[str]) -> dict[str, int]:
        """Bytes of each file that are kept from a killed run, whose counts are taken over; 0 where there was none.

        Raises:
            InputError: another run is unfinished here.
        """
        state = self.work / STATE
        if not state.exists():
            return dict.fromkeys(names, 0)
        told = read_json(state)
        if different := differences(told["provenance"], self.provenance):
            raise InputError(
                f"{str(self.work)!r} holds another run that was stopped ({'; '.join(different)}); remove it, or choose "
                "another -o"
            )
        with told_as_input_error(self.work):
            for name in (*names, FIGURES):
                # Killed while the files were being moved to their places.
                if (self.job.out / name).exists() and not (self.work / name).exists():
                    os.replace(self.job.out / name, self.work / name)
        sizes: dict[str, int] = told["sizes"]
        for name in names:
            path = self.work / name
            if not path.exists() or path.stat().st_size < sizes[name]:
                raise InputError(
                    f"{path} lost something of what was finished; remove {str(self.work)!r}, and run again"
                )
        self.counts = Counts(**told["counts"])
        return sizes

    def add(self, item: Prediction | Refused, show: Callable[[str], None]) -> None:
        """Write one protein, or the reason why it was refused."""
        self.counts.records += 1
        with told_as_input_error(self.work):
            if isinstance(item, Refused):
                self.counts.refused += 1
                self.writers[REFUSED].writerow((item.index + 1, item.id, item.position, item.letter, item.reason))
                return
            self.counts.predicted += 1
            self.counts.windowed += item.windows > 1
            for name, row in rows(item, self.heads):
                self.writers[name].writerow(row)
            text = describe(item) + "\n"
            self.handles[SUMMARY].write(text + "\n")
            if self.job.figures is not None:
                name = f"{item.index + 1:06d}.{file_name_of(item.id)[:LONGEST_NAME]}.{self.job.figures}"
                self.counts.figures += draw(item, self.work / FIGURES / name)
        if self.counts.predicted <= SHOWN:
            show(text)

    def keep(self) -> None:
        """What is written so far survives a kill."""
        with told_as_input_error(self.work):
            for handle in self.handles.values():
                handle.flush()
                os.fsync(handle.fileno())
        sizes = {name: (self.work / name).stat().st_size for name in self.handles}
        told = {"provenance": self.provenance, "sizes": sizes, "counts": vars(self.counts)}
        with atomic_file(self.work / STATE) as temporary:
            temporary.write_text(json.dumps(told), "utf-8")

    def close(self) -> None:
        """Let go of the files."""
        for handle in self.handles.values():
            handle.close()

    def finish(self) -> None:
        """Move everything to its place, and say last how it came to be."""
        kept = [name for name in (*self.tables, SUMMARY) if name != REFUSED or self.counts.refused]
        if self.counts.figures:
            kept.append(FIGURES)
        told = {**self.provenance, "counts": vars(self.counts)}
        with told_as_input_error(self.job.out):
            (self.work / PROVENANCE).write_text(json.dumps(told, indent=1) + "\n", "utf-8")
            for name in (*kept, PROVENANCE):
                os.replace(self.work / name, self.job.out / name)
            to_disk(self.job.out)


def _provenance(
    job: PredictJob, parts: tuple[Checkpoint, Bundle], runner: Runner, found: FastaSummary
) -> dict[str, Any]:
    """How the tables come to be; two runs with the same are the same."""
    checkpoint, bundle = parts
    return {
        "model": checkpoint.name,
        "model_digest": checkpoint.digest,
        "heads": list(bundle.heads),
        "heads_digest": bundle.digest,
        "quick_heads": bundle.card.quick,
        "input_digest": found.digest,
        "precision": runner.precision,
        "device": runner.device.type,
        "figures": job.figures,
        **versions(),
    }


def _require_ours(out: Path) -> None:
    """Refuse a place that holds something that we did not write."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} is a file; -o names a folder")
    if out.is_dir() and any(out.iterdir()) and not any((out / name).exists() for name in (UNFINISHED, PROVENANCE)):
        raise InputError(f"{str(out)!r} is not empty and holds no predictions; choose another folder")


def _finished(out: Path, provenance: dict[str, Any]) -> Counts | None:
    """The counts of a run that ended here with the same input and choices; None where none has ended.

    Raises:
        InputError: another one did.
    """
    path = out / PROVENANCE
    if not path.exists():
        return None
    told = read_json(path)
    counts = told.pop("counts", None)
    if different := differences(told, provenance):
        raise InputError(
            f"{str(out)!r} holds the predictions of another run ({'; '.join(different)}); choose another -o"
        )
    if not isinstance(counts, dict):
        raise InputError(f"{path} says nothing of its counts; remove {str(out)!r} and run again")
    return Counts(**{**counts, "already": True})


@contextlib.contextmanager
def _tidied(work: Path) -> Iterator[None]:
    """Where nothing could be begun, nothing is left behind."""
    try:
        yield
    except InputError:
        if not (work / STATE).exists():
            shutil.rmtree(work)
            if not any(work.parent.iterdir()):
                work.parent.rmdir()
        raise


@contextlib.contextmanager
def _as_file(job: PredictJob, work: Path) -> Iterator[Path]:
    """The input as a file that can be read twice; standard input is copied into the work folder."""
    if job.source != "-":
        yield Path(job.source)
        return
    kept = work / "standard-input"
    with told_as_input_error(kept), kept.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    yield kept
