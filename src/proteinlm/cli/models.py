"""`plm models`, `convert`, `contacts-fit` and `accelerate`: which models there are, their files, what makes them fast.

In: options. Out: lines on standard output, and the files that were asked for.
"""

from pathlib import Path
from typing import Any

import click

from proteinlm.cli.common import STORAGES
from proteinlm.errors import InputError

LAYOUTS = ("native", "hf", "fair-esm", "unirep-npz", "unirep-npy")


@click.command()
def models() -> None:
    """List the published models and the encodings, and whether their weights are on this machine."""
    from proteinlm.checkpoints import table
    from proteinlm.models.encodings import ENCODINGS

    lines = [("name", "parameters", "here", "licence", "source", "also called")]
    for row in table():
        here = "yes" if row.path is not None else "no"
        lines.append((row.name, f"{row.parameters:,}", here, row.licence, row.source, ", ".join(row.aliases)))
    for name, vectors in ENCODINGS.items():
        lines.append((name, "0", "yes", "no weights", f"built in: {vectors}", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(6)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        cells[1] = line[1].rjust(widths[1])
        click.echo("  ".join(cells).rstrip())


@click.command()
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="A file, or a new folder.")
@click.option("--to", "layout", required=True, type=click.Choice(LAYOUTS), help="Layout to write.")
@click.option("--storage", type=click.Choice(STORAGES), help="Number format to store; else that of MODEL.")
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def convert(model: str, out: Path, layout: str, storage: str | None, download: bool) -> None:
    """Write a checkpoint in another layout, bit for bit unless --storage is narrower than what MODEL has."""
    from proteinlm.checkpoints import digest_of, export, load
    from proteinlm.embedding.settings import STORAGES as DTYPES

    if out.exists():
        raise InputError(f"{str(out)!r} is there already; choose another -o or remove it")
    checkpoint = load(model, download)
    dtype = DTYPES[storage or checkpoint.stored]
    export(checkpoint.model, out, layout, dtype)
    written = digest_of(checkpoint.model.to(dtype).float())
    changed = "" if written == checkpoint.digest else f"; that of the model before is {checkpoint.digest[:12]}"
    click.echo(f"{out}: {checkpoint.name} in layout {layout}, digest {written[:12]}{changed}")


@click.command("contacts-fit")
@click.argument("model", metavar="MODEL")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The new checkpoint.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the data sets; else $PROTEINLM_DATA.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the choice of chains.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def contacts_fit(model: str, out: Path, data: Path | None, seed: int, download: bool, **run: Any) -> None:
    """Fit a contact head to the attention maps of MODEL on 20 chains of known structure, and save it with the model.

    For ESM-1, ESM-1b, ESM-1v and ESM-2, with or without a contact head. `plm contacts` takes the new checkpoint.
    """
    from proteinlm.datasets.sources import data_folder
    from proteinlm.evaluation.contacts import FitJob, fit_contact_head
    from proteinlm.inference import RunOptions

    fitted, digest = fit_contact_head(FitJob(model, out, data_folder(data), seed, RunOptions(**run), download))
    used = int((fitted.weight_M != 0).sum())
    click.echo(
        f"{out}: a contact head of {used} of {len(fitted.weight_M)} attention maps, fitted on {fitted.proteins} chains "
        f"({fitted.pairs:,} pairs, {fitted.contacts:,} contacts), digest {digest[:12]}"
    )


@click.command()
def accelerate() -> None:
    """Compile the attention kernel for this processor, once.

    Needs a C compiler and a processor with AVX-512. Runs on the CPU then use it, with numbers that are the same up to
    rounding; without it everything works, on PyTorch's own kernels.
    """
    from proteinlm.models.native import build

    for precision, path in build().items():
        click.echo(f"{path}: built; runs in {precision} on this CPU now use it; remove the file to go back")
