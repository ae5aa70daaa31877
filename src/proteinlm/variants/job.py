"""What `plm variants` does: proteins and variants in, a table of scores out, and a list of what could not be scored.

In: a `VariantsJob`. Out: `OUT.csv`, `OUT.csv.provenance.json`, `OUT.csv.refused.tsv` if proteins were refused, heat
maps if asked for, and a `Summary`. The table takes its place when all is done; a run that was stopped leaves nothing.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from proteinlm.checkpoints import Checkpoint, load
from proteinlm.checkpoints.files import atomic_file
from proteinlm.embedding.merge import REFUSED_COLUMNS, refused_file_of
from proteinlm.embedding.names import file_name_of
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.settings import versions
from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions
from proteinlm.sequences.alphabet import STANDARD, Alphabet
from proteinlm.sequences.fasta import Record, Refused, read_fasta
from proteinlm.variants.changes import Variants, all_substitutions
from proteinlm.variants.files import ScoreTable, assign, read_mutations, variants_of
from proteinlm.variants.heatmap import check_heatmap, draw_heatmap
from proteinlm.variants.run import VariantScores, method_for, score_variants
from proteinlm.variants.scoring import METHODS


@dataclass(frozen=True)
class VariantsJob:
    """What to score, with what, and where to.

    Args:
        source: FASTA file, or "-" for standard input. out: the table. model: name or path.
        mutations: file of variants (`files.read_mutations`); None for all single substitutions.
        method: a key of `scoring.METHODS`, or "auto".
        offset: what the positions of the variants exceed those of the residues by, in what is read and written.
        heatmap: picture of a protein; with several proteins its name is put before the ending.
        options: how to run. download: fetch the weights if they are not on this machine.
    """

    source: str
    out: Path
    model: str
    mutations: Path | None = None
    method: str = "auto"
    offset: int = 0
    heatmap: Path | None = None
    options: RunOptions = field(default_factory=RunOptions)
    download: bool = False


@dataclass
class Summary:
    """How a run ended.

    Attributes:
        records, scored, refused: proteins in, with scores, and refused; the last two add up to the first.
        variants: rows of the table. refused_file: list of the refused proteins, or None. notes: what else to know.
    """

    records: int = 0
    scored: int = 0
    refused: int = 0
    variants: int = 0
    refused_file: Path | None = None
    notes: list[str] = field(default_factory=list)

    def closing_line(self) -> str:
        """The line that reconciles what came in with what came out."""
        listed = f" (listed in {self.refused_file})" if self.refused_file is not None else ""
        return f"{self.records} in, {self.scored} scored ({self.variants:,} variants), {self.refused} refused{listed}"


@dataclass(frozen=True)
class Todo:
    """A protein and its variants."""

    record: Record
    variants: Variants


@dataclass
class Work:
    """A job under way: what is to be done with what, and what has come of it."""

    job: VariantsJob
    checkpoint: Checkpoint
    runner: Runner
    method: str
    todo: list[Todo]
    refused: list[Refused]
    summary: Summary


def score_file(job: VariantsJob, progress: Progress) -> Summary:
    """Score the variants of every protein of a FASTA file.

    Args:
        job: what to do. progress: where to report.

    Raises:
        InputError: input, model or method do not fit, or a line of the list of variants cannot be used.
    """
    if job.heatmap is not None:
        check_heatmap(job.heatmap)
    checkpoint = load(job.model, job.download)
    method = method_for(checkpoint.model, job.method)
    records, refused = _read(job.source, checkpoint.model.alphabet)
    summary = Summary(records=len(records) + len(refused))
    todo, without_residues = _todo(job, records, refused, summary)
    with atomic_file(job.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        runner = Runner(checkpoint.model, replace(job.options, long="window"))
        work = Work(job, checkpoint, runner, method, todo, [*refused, *without_residues], summary)
        _say_header(work, progress)
        _score_all(work, ScoreTable(file, job.offset), progress)
    _write_refused(work)
    _write_provenance(work)
    return summary


def _read(source: str, alphabet: Alphabet) -> tuple[list[Record], list[Refused]]:
    """Proteins that can be used, and those that cannot. Ids tell the rows of the table apart: each is taken once."""
    records: dict[str, Record] = {}
    refused: list[Refused] = []
    for item in read_fasta(source, alphabet):
        if isinstance(item, Refused):
            refused.append(item)
        elif item.id in records:
            why = f"record {records[item.id].index + 1} has the id {item.id!r}, too; ids must be unique here"
            refused.append(Refused(item.index, item.id, item.header, why))
        else:
            records[item.id] = item
    return list(records.values()), refused


def _todo(
    job: VariantsJob, records: Sequence[Record], refused: Sequence[Refused], summary: Summary
) -> tuple[list[Todo], list[Refused]]:
    """The variants of every protein; and proteins that are to be substituted throughout and have no residue for it."""
    if job.mutations is None:
        odd = sum(residue not in STANDARD for record in records for residue in record.residues)
        if odd:
            summary.notes.append(f"{odd} residues are not among the twenty; they are left as they are")
        found = [Todo(item, Variants.of(item.residues, all_substitutions(item.residues))) for item in records]
        why = "no residue is among the twenty, so there is nothing to substitute"
        empty = [item.record for item in found if not item.variants]
        return [item for item in found if item.variants], [
            Refused(record.index, record.id, record.header, why) for record in empty
        ]
    lost = {item.id for item in refused} - {record.id for record in records}
    by_protein = assign(read_mutations(job.mutations), [*(record.id for record in records), *sorted(lost)])
    if unscored := sum(len(by_protein[name]) for name in lost):
        summary.notes.append(f"{unscored} variants of refused proteins have no score")
    found = [Todo(item, variants_of(item.residues, by_protein[item.id], job.offset)) for item in records]
    if without := sum(not item.variants for item in found):
        summary.notes.append(f"{without} proteins have no variant in {job.mutations.name}")
    return found, []


def _say_header(work: Work, progress: Progress) -> None:
    """The choices of a run in words, and how long it is going to be."""
    method, checkpoint = METHODS[work.method], work.checkpoint
    runs = residues = 0
    for item in work.todo:
        if item.variants:
            scoring = method.scoring(item.variants, checkpoint.model.max_residues)
            runs += scoring.count()
            residues += scoring.count() * (scoring.window if method.masks else scoring.length)
    count = sum(len(item.variants) for item in work.todo)
    progress.say(f"model    {checkpoint.name}, digest {checkpoint.digest[:12]}")
    progress.say(f"running  on {work.runner.device} in {work.runner.precision} ({work.runner.precision_reason})")
    progress.say(f"method   {work.method}: {method.meaning}")
    progress.say(f"todo     {count:,} variants of {len(work.todo):,} proteins in {runs:,} runs of the model")
    progress.begin(residues)


def _score_all(work: Work, table: ScoreTable, progress: Progress) -> None:
    """Protein by protein; one that cannot be scored joins the refused."""
    windowed, pictures = 0, set[Path]()
    try:
        for item in work.todo:
            record = item.record
            if item.variants:
                try:
                    scores = score_variants(work.runner, item.variants, work.method, progress.advance)
                except InputError as error:
                    work.refused.append(Refused(record.index, record.id, record.header, str(error)))
                    continue
                table.write(record.id, scores)
                windowed += scores.windows
                if work.job.heatmap is not None:
                    _draw(work, scores, record, pictures)
            work.summary.scored += 1
            work.summary.variants += len(item.variants)
    finally:
        progress.end()
    if windowed:
        work.summary.notes.append(f"{windowed} proteins longer than the model's positions, run in windows")


def _draw(work: Work, scores: VariantScores, record: Record, pictures: set[Path]) -> None:
    """Draw a protein into a file of its own."""
    path, first = work.job.heatmap, 1 + work.job.offset
    assert path is not None, "a picture was asked for"
    if np.isnan(scores.matrix()).all():
        work.summary.notes.append(f"no heat map of {record.id}: only multiple mutants were scored")
        return
    if work.summary.records > 1:
        stem = f"{path.stem}.{file_name_of(record.id)}"
        name = path.with_name(stem + path.suffix)
        path = path.with_name(f"{stem}.{record.index + 1}{path.suffix}") if name in pictures else name
    pictures.add(path)
    draw_heatmap(path, scores, record.id, first)


def _write_refused(work: Work) -> None:
    """The list of refused proteins, in the order of the input; none is left from an earlier run."""
    path, work.summary.refused = refused_file_of(work.job.out), len(work.refused)
    if not work.refused:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(REFUSED_COLUMNS)
        for item in sorted(work.refused, key=lambda item: item.index):
            writer.writerow((item.index, item.id, item.position, item.letter, item.reason))
    work.summary.refused_file = path


def _write_provenance(work: Work) -> None:
    """How the table came to be, beside it."""
    job, summary = work.job, work.summary
    told = {
        "model": work.checkpoint.name,
        "model_digest": work.checkpoint.digest,
        "method": work.method,
        "unit": "nats; higher is more probable; 0 is the wild type",
        "offset": job.offset,
        "mutations": None if job.mutations is None else job.mutations.name,
        "precision": work.runner.precision,
        "device": work.runner.device.type,
        "counts": {name: getattr(summary, name) for name in ("records", "scored", "refused", "variants")},
        **versions(),
    }
    path = job.out.with_name(job.out.name + ".provenance.json")
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
