"""The command `plm`: parse, call one function, print.

Nothing heavy is imported before a command runs. Exit codes: 0 all went well; 1 the output is complete, but records
were refused (they are listed); 2 the input cannot be used, told in one line; 130 interrupted.
"""

import errno
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm import __version__
from proteinlm.embedding.progress import Progress
from proteinlm.errors import InputError

if TYPE_CHECKING:
    from proteinlm.embedding.run import EmbedJob

CONTENTS = ("embeddings", "logits", "contacts")
FORMATS = ("hdf5", "parquet", "safetensors", "esm-pt")
LAYOUTS = ("native", "hf", "fair-esm", "unirep-npz", "unirep-npy")

LIST_OPTIONS = {
    "--include": re.compile("|".join(CONTENTS)),
    "--layers": re.compile(r"-?\d+(,-?\d+)*"),
    "--devices": re.compile(r"cpu|cuda(:\d+)?"),
}
"""Options that take several values, and what a further value looks like."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class ListCommand(click.Command):
    """A command whose list options also take their values apart: `--include logits contacts`, `--layers -1 6`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Join the values that follow such an option by commas, then parse as usual."""
        joined: list[str] = []
        pattern: re.Pattern[str] | None = None
        for argument in args:
            if joined and joined[-1] in LIST_OPTIONS:
                joined.append(argument)
            elif pattern is not None and pattern.fullmatch(argument):
                joined[-1] += f",{argument}"
            else:
                pattern = LIST_OPTIONS.get(argument)
                joined.append(argument)
        return super().parse_args(ctx, joined)


class Bar(Progress):
    """Lines on standard error, and a bar there if it is a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None

    def say(self, line: str) -> None:
        """Print the line."""
        click.echo(line, err=True)

    def begin(self, residues: int) -> None:
        """Draw the bar."""
        from tqdm import tqdm

        self._bar = tqdm(total=residues, unit=" residues", unit_scale=True, disable=None, file=sys.stderr)

    def advance(self, residues: int) -> None:
        """Move the bar."""
        self._bar.update(residues)

    def end(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def _listed(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a list option, given apart, by commas or by repeating it."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


def _layers(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[int, ...]:
    """Layer numbers."""
    try:
        return tuple(int(item) for item in _listed(context, parameter, values))
    except ValueError as error:
        raise click.BadParameter(f"{', '.join(values)!r} are not layer numbers; -1 is the last") from error


def _run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say how a model is run, which `embed` and `contacts` share."""
    options = [
        click.option("--model", required=True, metavar="NAME|PATH", help="Name (see `plm models`), hub id or path."),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16"]),
            default="auto",
            show_default=True,
            help="Number format of the arithmetic; auto takes bf16 where the hardware has it, fp32 is exact.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
        click.option(
            "--long",
            type=click.Choice(["window", "error", "crop"]),
            default="window",
            show_default=True,
            help="Proteins beyond the model's length: overlapping windows, refused, or cropped.",
        ),
        click.option(
            "--tokens-per-batch", type=click.IntRange(min=1), default=4096, show_default=True, help="Size of a batch."
        ),
        click.option(
            "--shard", metavar="I/N", help="Do every N-th block only (array jobs); `plm merge` ends the work."
        ),
        click.option("--workers", type=int, default=1, show_default=True, help="Processes on this machine."),
        click.option("--devices", multiple=True, callback=_listed, help="One process on each: cuda:0,cuda:1."),
        click.option("--strict", is_flag=True, help="Stop at the first record that cannot be embedded."),
        click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="plm")
def cli() -> None:
    """Protein language models: from a FASTA file to embeddings and contacts, with nothing lost in silence."""


@cli.command(cls=ListCommand)
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option(
    "--layers",
    multiple=True,
    default=("-1",),
    callback=_layers,
    help="0 to N, or -1 (the last) and down; several: -1,6.",
)
@click.option(
    "--pooling",
    type=click.Choice(["mean", "max", "cls", "none"]),
    default="mean",
    show_default=True,
    help="Over the residues of a protein; none keeps a vector per residue.",
)
@click.option(
    "--include",
    multiple=True,
    default=("embeddings",),
    callback=_listed,
    show_default=True,
    help=f"Any of {', '.join(CONTENTS)}.",
)
@click.option(
    "--storage",
    type=click.Choice(["fp32", "fp16", "bf16"]),
    default="fp32",
    show_default=True,
    help="Number format of the output.",
)
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="Else the ending of the output decides.")
@_run_options
def embed(fasta: str, out: Path, format_name: str | None, **options: Any) -> int:
    """Embed the proteins of a FASTA file.

    IN is plain or compressed (gzip, zstd, bzip2, xz), or - for standard input. The output's ending chooses the format:
    .h5, .parquet or .safetensors; --format esm-pt writes a folder. Stopped at any moment, the same command goes on.
    """
    from proteinlm.embedding.settings import EmbedSettings

    settings = EmbedSettings(options["layers"], options["pooling"], options["include"], options["storage"])
    return _embed(_job(fasta, out, settings, format_name, options), options)


@cli.command(cls=ListCommand)
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="A folder, or OUT.npz.")
@click.option("--png", is_flag=True, help="A picture of each map too (into a folder only).")
@_run_options
def contacts(fasta: str, out: Path, png: bool, **options: Any) -> int:
    """Predict which residues touch, for models with a contact head.

    Writes probabilities (L x L) of each protein: one .npz file per protein into a folder, or all into OUT.npz.
    """
    from dataclasses import replace

    from proteinlm.embedding.settings import EmbedSettings

    one_file = out.suffix.lower() == ".npz"
    if png and one_file:
        raise InputError(f"--png draws into a folder, but {str(out)!r} is one file; leave out .npz")
    format_name = "npz" if one_file else "npz-folder"
    job = _job(fasta, out, EmbedSettings(include=("contacts",)), format_name, options)
    return _embed(replace(job, pictures=png), options)


@cli.command()
@click.argument("out", type=click.Path(path_type=Path))
def merge(out: Path) -> int:
    """Put the shards of OUT together, after proving that every record is there exactly once."""
    from proteinlm.embedding.merge import merge as merge_shards

    return _report(merge_shards(out), out)


@cli.command()
def models() -> None:
    """List the published models, and whether their weights are on this machine."""
    from proteinlm.checkpoints import table

    lines = [("name", "parameters", "here", "licence", "source", "also called")]
    for row in table():
        here = "yes" if row.path is not None else "no"
        lines.append((row.name, f"{row.parameters:,}", here, row.licence, row.source, ", ".join(row.aliases)))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        cells[1] = line[1].rjust(widths[1])
        click.echo("  ".join(cells).rstrip())


@cli.command()
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="A file, or a new folder.")
@click.option("--to", "layout", required=True, type=click.Choice(LAYOUTS), help="Layout to write.")
@click.option(
    "--storage", type=click.Choice(["fp32", "fp16", "bf16"]), help="Number format to store; else that of MODEL."
)
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def convert(model: str, out: Path, layout: str, storage: str | None, download: bool) -> None:
    """Write a checkpoint in another layout, bit for bit."""
    from proteinlm.checkpoints import export, load
    from proteinlm.embedding.settings import STORAGES

    if out.exists():
        raise InputError(f"{str(out)!r} is there already; choose another -o or remove it")
    checkpoint = load(model, download)
    export(checkpoint.model, out, layout, STORAGES[storage or checkpoint.stored])
    click.echo(f"{out}: {checkpoint.name} in layout {layout}, digest {checkpoint.digest[:12]}")


def _job(fasta: str, out: Path, settings: Any, format_name: str | None, options: dict[str, Any]) -> "EmbedJob":
    """A job from what the commands have in common."""
    from proteinlm.embedding.parts import Shard
    from proteinlm.embedding.run import EmbedJob
    from proteinlm.inference import RunOptions

    names = ("precision", "device", "tokens_per_batch", "long")
    return EmbedJob(
        source=fasta,
        out=out,
        model=options["model"],
        format=format_name,
        settings=settings,
        options=RunOptions(**{name: options[name] for name in names}),
        shard=Shard() if options["shard"] is None else Shard.parse(options["shard"]),
        strict=options["strict"],
        download=options["download"],
    )


def _embed(job: "EmbedJob", options: dict[str, Any]) -> int:
    """Run a job in this process or in several, and report."""
    from proteinlm.embedding.merge import Summary
    from proteinlm.embedding.run import embed_file
    from proteinlm.embedding.workers import Team, embed_with_team

    team = Team.of(options["workers"], options["devices"], job.options.device)
    try:
        summary = embed_file(job, Bar()) if len(team.devices) == 1 else embed_with_team(job, team, Bar())
    except KeyboardInterrupt:
        click.echo(f"plm: interrupted; run the same command again to go on with {job.out}", err=True)
        return 130
    if isinstance(summary, Summary):
        return _report(summary, job.out)
    click.echo(summary.closing_line())
    click.echo(f"once every shard has ended: plm merge {job.out}", err=True)
    return 0


def _report(summary: Any, out: Path) -> int:
    """Say how a run ended; 1 if records were refused."""
    if summary.already:
        click.echo(f"{out} is complete already, from the same model, settings and input; nothing was done", err=True)
    for note in summary.notes():
        click.echo(note, err=True)
    click.echo(summary.closing_line())
    return 1 if summary.refused else 0


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        code = cli.main(prog_name="plm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        click.echo("plm: interrupted", err=True)
        code = 130
    except InputError as error:
        click.echo(f"plm: error: {' '.join(str(error).split())}", err=True)
        code = 2
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        click.echo(f"plm: error: {error}", err=True)
        code = 2
    sys.exit(code)


if __name__ == "__main__":
    main()
