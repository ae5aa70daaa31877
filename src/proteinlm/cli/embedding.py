"""`plm embed`, `plm contacts` and `plm merge`: a FASTA file in, vectors or contact maps out.

In: options. Out: an exit code: 0 all went well, 1 the output is complete but records were refused, 130 interrupted.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.common import CONTENTS, STORAGES, Bar, ListCommand, layer_numbers, listed, run_options
from proteinlm.errors import InputError

if TYPE_CHECKING:
    from proteinlm.embedding.run import EmbedJob

FORMATS = ("hdf5", "parquet", "safetensors", "esm-pt")


@click.command(cls=ListCommand)
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Where to write.")
@click.option(
    "--layers",
    multiple=True,
    default=("-1",),
    callback=layer_numbers,
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
    callback=listed,
    show_default=True,
    help=f"Any of {', '.join(CONTENTS)}.",
)
@click.option(
    "--storage",
    type=click.Choice(STORAGES),
    default="fp32",
    show_default=True,
    help="Number format of the output.",
)
@click.option("--format", "format_name", type=click.Choice(FORMATS), help="Else the ending of the output decides.")
@run_options
def embed(fasta: str, out: Path, format_name: str | None, **options: Any) -> int:
    """Embed the proteins of a FASTA file.

    IN is plain or compressed (gzip, zstd, bzip2, xz), or - for standard input. The output's ending chooses the format:
    .h5, .parquet or .safetensors; --format esm-pt writes a folder. Stopped at any moment, the same command goes on.
    """
    from proteinlm.embedding.settings import EmbedSettings

    settings = EmbedSettings(options["layers"], options["pooling"], options["include"], options["storage"])
    return _embed(_job(fasta, out, settings, format_name, options), options)


@click.command(cls=ListCommand)
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="A folder, or OUT.npz.")
@click.option("--png", is_flag=True, help="A picture of each map too (into a folder only).")
@run_options
def contacts(fasta: str, out: Path, png: bool, **options: Any) -> int:
    """Predict which residues touch, for models with a contact head.

    Writes probabilities (L x L) of each protein: one .npz file per protein into a folder, or all into OUT.npz.
    """
    from proteinlm.embedding.settings import EmbedSettings

    one_file = out.suffix.lower() == ".npz"
    if png and one_file:
        raise InputError(f"--png draws into a folder, but {str(out)!r} is one file; leave out .npz")
    format_name = "npz" if one_file else "npz-folder"
    job = _job(fasta, out, EmbedSettings(include=("contacts",)), format_name, options)
    return _embed(replace(job, pictures=png), options)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def merge(out: Path) -> int:
    """Put the shards of OUT together, after proving that every record is there exactly once."""
    from proteinlm.embedding.merge import merge as merge_shards

    return _report(merge_shards(out), out)


def _job(fasta: str, out: Path, settings: Any, format_name: str | None, options: dict[str, Any]) -> "EmbedJob":
    """A job from what the commands have in common."""
    from proteinlm.embedding.parts import Shard
    from proteinlm.embedding.run import EmbedJob
    from proteinlm.inference import RunOptions

    names = ("precision", "device", "tokens_per_batch", "long", "attention")
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
        click.echo(f"{out} is complete already; nothing was done", err=True)
    for note in summary.notes():
        click.echo(note, err=True)
    click.echo(summary.closing_line())
    return 1 if summary.refused else 0
