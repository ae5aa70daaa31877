"""`plm figures`: the papers' pictures of a model's representations, each with the table of what is in it.

In: options. Out: a folder of pictures and CSV files; exit code 1 where a figure could not be made, which is then told.
"""

from pathlib import Path
from typing import Any

import click

from proteinlm.cli.common import Bar, listed, say


@click.command()
@click.argument("model", metavar="MODEL", required=False)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Folder for pictures and tables.")
@click.option("--figures", multiple=True, callback=listed, metavar="A,B", help="Only these; else all that apply.")
@click.option("--list-figures", is_flag=True, help="Print the figures and what they show, and do nothing else.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the data sets; else $PROTEINLM_DATA.")
@click.option("--format", "formats", multiple=True, callback=listed, metavar="png,svg", help="Of the pictures; both.")
@click.option("--quick", is_flag=True, help="Fewer proteins.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random choice.")
@click.option("--layer", type=int, default=-1, show_default=True, help="Whose vectors are shown; -1 is the last.")
@click.option(
    "--untrained", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the untrained twin."
)
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--compare", nargs=2, type=click.Path(path_type=Path), help="Two results of `plm evaluate`: a scatter.")
@click.option("--measure", metavar="TASK: MEASURE", help="Which of them --compare shows; else contacts, if any.")
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def figures(model: str | None, out: Path | None, list_figures: bool, **options: Any) -> int:
    """Draw what MODEL has learned: maps of amino acids and proteins, alignments, secondary structure, contacts.

    Each figure is a picture in each format and a CSV file of what is plotted. A figure that MODEL cannot serve, or
    whose data are not here, is told with the reason. `--compare A B` needs no MODEL: it sets two results side by side,
    protein by protein.
    """
    if list_figures:
        return _list()
    compared = options["compare"]
    if out is None or (model is None) == (compared is None):
        raise click.UsageError("give a MODEL, or --compare A B; and -o FOLDER")
    from proteinlm.figures.run import FiguresJob, draw_figures, draw_precision
    from proteinlm.figures.style import FORMATS

    formats = tuple(options["formats"]) or FORMATS
    if model is None:
        drawn = [draw_precision((compared[0], compared[1]), options["measure"], out, formats)]
    else:
        from proteinlm.figures.base import FigureOptions
        from proteinlm.inference import RunOptions

        drawn = draw_figures(
            FiguresJob(
                model=model,
                out=out,
                options=FigureOptions(options["data"], options["seed"], options["layer"], options["quick"]),
                figures=options["figures"],
                formats=formats,
                untrained=options["untrained"],
                run=RunOptions(precision=options["precision"], device=options["device"]),
                download=options["download"],
            ),
            Bar(),
        )
    for one in drawn:
        for file in one.files:
            click.echo(str(file))
        for note in one.notes:
            say(f"{one.name}: {note}")
    return 1 if any(one.status == "not run" for one in drawn) else 0


def _list() -> int:
    from proteinlm.figures import FIGURES

    width = max(map(len, FIGURES))
    for name, kind in FIGURES.items():
        click.echo(f"{name.ljust(width)}  {kind.title} [{kind.source}]")
    return 0
