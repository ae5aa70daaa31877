"""From a FASTA file to an output: the steps in order, and nothing done twice.

In: an `EmbedJob`. Out: the output's files and a `Summary`. Model, plan, work folder, missing blocks, assembly: each
step is one function, and a run that was killed goes through the same steps and finds most of them done.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from proteinlm.checkpoints import Checkpoint, load
from proteinlm.embedding.formats.npz import check_pictures
from proteinlm.embedding.merge import Summary, assemble, check_output, finished_before
from proteinlm.embedding.parts import Line, PartsFolder, Shard, locked, told_as_input_error
from proteinlm.embedding.plan import BLOCK_RECORDS, Block, Plan, block_size, describe_refused, make_plan, read_blocks
from proteinlm.embedding.pooling import Stored, embed_records
from proteinlm.embedding.progress import Progress
from proteinlm.embedding.settings import EmbedSettings, Provenance, versions
from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions, choose_attention, choose_device, choose_precision
from proteinlm.models.base import ProteinModel
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.fasta import Record, Refused
from proteinlm.sequences.source import opened

SECONDS_TO_LET_GO = 10.0
"""How long a worker waits for a lock: those of a killed run notice within this time and end."""


@dataclass(frozen=True)
class EmbedJob:
    """What to embed, with what, and where to.

    Args:
        source: FASTA file, or "-" for standard input. out: the output. model: name or path.
        format: name of the output format; None to go by the ending of `out`.
        settings: what to keep. options: how to run.
        shard: which blocks to do; with more than one shard, `merge` writes the output.
        strict: stop at the first record that cannot be embedded.
        download: fetch the weights if they are not on this machine.
        pictures: draw every contact map (format npz-folder).
        block_records: records in a block at most.
    """

    source: str
    out: Path
    model: str
    format: str | None = None
    settings: EmbedSettings = field(default_factory=EmbedSettings)
    options: RunOptions = field(default_factory=RunOptions)
    shard: Shard = field(default_factory=Shard)
    strict: bool = False
    download: bool = False
    pictures: bool = False
    block_records: int = BLOCK_RECORDS


@dataclass(frozen=True)
class ShardSummary:
    """How a shard ended: its blocks are there; `plm merge` makes the output once all shards have ended.

    Attributes:
        shard: which one. blocks: how many are its own. records, embedded, refused: in these.
    """

    shard: Shard
    blocks: int
    records: int
    embedded: int
    refused: int

    def closing_line(self) -> str:
        """The line that reconciles what came in with what came out."""
        which = f"shard {self.shard.number}/{self.shard.count} ({self.blocks} blocks)"
        return f"{which}: {self.records} in, {self.embedded} embedded, {self.refused} refused"


@dataclass(frozen=True)
class Prepared:
    """A job whose model is known and whose input is scanned.

    Attributes:
        job: with resolved settings. source: the file to read. alphabet: of the model. plan: of the file.
        provenance: says how the output comes to be. header: the same for the user, with reasons.
    """

    job: EmbedJob
    source: Path
    alphabet: Alphabet
    plan: Plan
    provenance: Provenance
    header: tuple[str, ...]


def embed_file(job: EmbedJob, progress: Progress) -> Summary | ShardSummary:
    """Embed a FASTA file, or one shard of it.

    Args:
        job: what to do. progress: where to report.

    Returns:
        how it ended; with one of several shards, the output is still to be merged.

    Raises:
        InputError: input, model or settings do not fit; the output belongs to another run; or, with `strict`, a
            record cannot be embedded.
    """
    checkpoint = load_checked(job)
    with prepared(job, checkpoint) as ready:
        for line in ready.header:
            progress.say(line)
        if (found := finished_before(job.out, ready.provenance)) is not None:
            remove_leftovers(ready)
            return found
        folder = open_folder(ready)
        wait = SECONDS_TO_LET_GO if job.shard.count > 1 else 0.0
        with locked(folder.path / f"{job.shard.manifest}.lock", wait):
            lines = run_blocks(ready, checkpoint.model, folder, progress)
            if job.shard.count == 1:
                return assemble(job.out, folder, lines)
    return _shard_summary(job.shard, ready.plan, lines)


def load_checked(job: EmbedJob) -> Checkpoint:
    """Load the model of a job, after a look at everything that can be wrong without it.

    Raises:
        InputError: the output cannot be what is asked for, the input cannot be opened, the model cannot be loaded.
    """
    check_output(job.out, job.format, job.settings)
    if job.pictures:
        check_pictures()
    if job.source != "-":
        with opened(job.source):
            pass
    return load(job.model, job.download)


@contextmanager
def prepared(job: EmbedJob, checkpoint: Checkpoint) -> Iterator[Prepared]:
    """Scan the input of a job and say what is going to be done; does not hold on to the model.

    Standard input is kept in the work folder while this is open.

    Raises:
        InputError: as `embed_file`.
    """
    model = checkpoint.model
    settings = job.settings.resolved(model.num_layers)
    settings.check(model)
    job = replace(job, settings=settings)
    device = choose_device(job.options.device)
    precision, reason = choose_precision(job.options.precision, device, model)
    attention = choose_attention(job.options, device, precision, model)
    with _as_file(job) as source:
        plan = make_plan(source, model.alphabet, block_size(model, settings, job.block_records))
        if job.strict and plan.first_refused is not None:
            raise InputError(f"{plan.first_refused} (--strict stops here; without it the rest is embedded)")
        provenance = {
            "model": checkpoint.name,
            "model_digest": checkpoint.digest,
            "input_digest": plan.digest,
            "output_format": check_output(job.out, job.format, settings),
            **settings.described(),
            "precision": precision,
            "device": device.type,
            "long": job.options.long,
            "tokens_per_batch": job.options.tokens_per_batch,
            "attention": attention,
            "block_records": job.block_records,
            **({"pictures": True} if job.pictures else {}),
            **versions(),
        }
        header = _header(job, checkpoint, plan, f"on {device} in {precision} ({reason}), attention {attention}")
        ready = Prepared(job, source, model.alphabet, plan, provenance, header)
        del checkpoint, model
        yield ready


def _header(job: EmbedJob, checkpoint: Checkpoint, plan: Plan, running: str) -> tuple[str, ...]:
    """The choices of a run in words, those that were made for the user above all."""
    settings, model = job.settings, checkpoint.model
    parameters = sum(parameter.numel() for parameter in model.parameters())
    limit = "no limit" if model.max_residues is None else f"{model.max_residues} residues"
    vectors = (f"layers {', '.join(map(str, settings.layers))}", f"pooling {settings.pooling}")
    kept = (*settings.include, *(vectors if "embeddings" in settings.include else ()), settings.storage)
    return (
        f"model    {checkpoint.name}: {parameters:,} parameters, digest {checkpoint.digest[:12]}",
        f"running  {running}",
        f"keeping  {', '.join(kept)}",
        f"long     the model takes {limit}, the longest record has {plan.longest}; --long {job.options.long}",
        f"letters  {model.alphabet.policy()}; a record with any other is refused",
        f"input    {plan.records:,} records, {plan.residues:,} residues, {plan.refused:,} refused",
    )


def open_folder(ready: Prepared) -> PartsFolder:
    """Begin the work folder of a job, or go on with it."""
    return PartsFolder.create_or_join(PartsFolder.beside(ready.job.out), ready.provenance, ready.plan)


def run_blocks(ready: Prepared, model: ProteinModel, folder: PartsFolder, progress: Progress) -> dict[int, Line]:
    """Do what is missing of a shard's blocks.

    Args:
        ready: the job. model: is laid out for inference here, if there is anything to do.
        folder: where parts are kept. progress: where to report.

    Returns:
        the lines of all blocks of the shard, old and new.
    """
    shard = ready.job.shard
    own = {block.number for block in ready.plan.blocks if shard.owns(block.number)}
    lines = folder.finished(own)
    missing = own - lines.keys()
    if lines:
        progress.say(f"going on {len(lines)} of {len(own)} blocks were finished before")
    if not missing:
        return lines
    runner = Runner(model, ready.job.options)
    progress.begin(sum(block.residues for block in ready.plan.blocks if block.number in missing))
    try:
        for block, records, refused in read_blocks(ready.source, ready.alphabet, ready.plan, missing):
            lines[block.number] = _run_block(ready.job, runner, (block, records, refused), folder, progress)
    finally:
        progress.end()
    if runner.halvings:
        progress.say(f"memory   {runner.halvings} batches were halved; a smaller --tokens-per-batch avoids that")
    return lines


def remove_leftovers(ready: Prepared) -> None:
    """Remove the work folder that a kill left behind after the output was complete."""
    path = PartsFolder.beside(ready.job.out)
    if (path / "run.json").exists():
        folder = PartsFolder.existing(path)
        if folder.provenance == ready.provenance:
            folder.remove()
    elif path.is_dir() and not any(path.iterdir()):
        path.rmdir()


def _run_block(
    job: EmbedJob,
    runner: Runner,
    content: tuple[Block, list[Record], list[Refused]],
    folder: PartsFolder,
    progress: Progress,
) -> Line:
    """Embed one block and keep it."""
    block, records, refused = content
    lengths = {record.index: len(record.residues) for record in records}
    stored: list[Stored] = []
    failed: list[Refused] = []
    for item in embed_records(runner, records, job.settings):
        if isinstance(item, Stored):
            stored.append(item)
            progress.advance(item.entry.length)
            continue
        if job.strict:
            raise InputError(f"{describe_refused(item)} (stopped by --strict)")
        failed.append(item)
        progress.advance(lengths[item.index])
    return folder.write(block, stored, [*refused, *failed], job.shard)


def _shard_summary(shard: Shard, plan: Plan, lines: dict[int, Line]) -> ShardSummary:
    records = sum(block.count for block in plan.blocks if block.number in lines)
    embedded = sum(line.records for line in lines.values())
    return ShardSummary(shard, len(lines), records, embedded, sum(line.refused for line in lines.values()))


@contextmanager
def _as_file(job: EmbedJob) -> Iterator[Path]:
    """The input as a file that can be read twice; standard input is copied into the work folder."""
    if job.source != "-":
        yield Path(job.source)
        return
    if job.shard.count > 1:
        raise InputError(
            "standard input cannot be sharded, since every shard reads all of it; write it to a file first"
        )
    folder = PartsFolder.beside(job.out)
    kept = folder / "standard-input"
    try:
        with told_as_input_error(kept):
            folder.mkdir(parents=True, exist_ok=True)
            with open(kept, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
        yield kept
    finally:
        if folder.exists() and not (folder / "run.json").exists():
            kept.unlink(missing_ok=True)
            if not any(folder.iterdir()):
                folder.rmdir()
