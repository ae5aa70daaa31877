"""`plm heads train` and `plm predict`: heads for a model, and what they say of a biologist's proteins.

In: options. Out: an exit code: 0 all went well, 1 the output is complete but records were refused, 130 interrupted.
"""

from pathlib import Path
from typing import Any

import click

from proteinlm.cli.common import Bar, listed, say


@click.group()
def heads() -> None:
    """Prediction heads: secondary structure, localisation, membrane, contacts."""


@heads.command()
@click.option("--model", required=True, metavar="NAME|PATH", help="Name (see `plm models`), hub id or path.")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Folder to write, new.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the data sets; else $PROTEINLM_DATA.")
@click.option(
    "--heads",
    "names",
    multiple=True,
    callback=listed,
    metavar="A,B",
    help="secondary-structure, localisation, membrane, contacts; else all that the model can have.",
)
@click.option("--quick", is_flag=True, help="A small part of the data: to try things out, not to be relied on.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random choice.")
@click.option("--layer", type=int, default=-1, show_default=True, help="Whose vectors are read; -1 is the last.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keep residue vectors here for later runs.")
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def train(data: Path | None, names: tuple[str, ...], precision: Any, device: str, **options: Any) -> int:
    """Train prediction heads for a model, calibrate and test them.

    Writes a folder that `plm predict --heads` takes: a file for each head, heads.json, and README.md, which says how
    good they are. They belong to the model whose digest they carry.
    """
    from proteinlm.datasets.sources import data_folder
    from proteinlm.inference import RunOptions
    from proteinlm.prediction.training import HeadsJob, train_heads

    how = RunOptions(precision=precision, device=device)
    job = HeadsJob(data=data_folder(data), heads=names, options=how, **options)
    try:
        report = train_heads(job, Bar())
    except KeyboardInterrupt:
        say("plm: interrupted" + ("; the same command goes on with the vectors in --cache" if job.cache else ""))
        return 130
    for one in report.figures:
        interval = f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"
        click.echo(f"{one.head:<20} {one.measure:<27} {interval:<25} {one.data}, {one.proteins:,}")
    for note in report.notes:
        say(note)
    spent = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    say(f"time: {spent}")
    click.echo(f"{len(report.card.heads)} heads for {report.card.model} in {job.out}")
    return 0


@click.command()
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Folder to write.")
@click.option("--model", metavar="NAME|PATH", help="Name, hub id or path; else the model of the heads.")
@click.option(
    "--heads", type=click.Path(path_type=Path), metavar="FOLDER", help="From `plm heads train`; else the package's own."
)
@click.option("--figures", type=click.Choice(["png", "svg"]), help="Draw every protein into OUT/figures.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16"]),
    default="auto",
    show_default=True,
    help="Number format of the arithmetic; auto takes bf16 where the hardware has it, fp32 is exact.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--tokens-per-batch", type=click.IntRange(min=1), default=4096, show_default=True, help="Size of a batch."
)
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def predict(precision: Any, device: str, tokens_per_batch: int, fasta: str, **options: Any) -> int:
    """Predict structure, location and contacts of the proteins of a FASTA file.

    Describes the first ten here, and writes proteins.tsv, residues.tsv, contacts.tsv and summary.txt into the folder
    OUT. IN is plain or compressed, or - for standard input. Stopped at any moment, the same command goes on.
    """
    from proteinlm.inference import RunOptions
    from proteinlm.prediction.job import PredictJob, predict_file

    how = RunOptions(precision=precision, device=device, tokens_per_batch=tokens_per_batch)
    job = PredictJob(source=fasta, options=how, **options)
    try:
        counts = predict_file(job, Bar(), click.echo)
    except KeyboardInterrupt:
        say(f"plm: interrupted; run the same command again to go on with {job.out}")
        return 130
    if counts.already:
        say(f"{job.out} is complete already; nothing was done")
    for note in counts.notes():
        say(note)
    click.echo(counts.closing_line(job.out))
    return 1 if counts.refused else 0
