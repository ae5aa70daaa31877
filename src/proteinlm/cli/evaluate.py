"""`plm evaluate`, `plm report` and `plm compare`: what a model has learned, as figures, as a page, beside another's.

In: options. Out: a folder with results and a report; exit code 1 where a task could not be run, which is then listed.
"""

from pathlib import Path
from typing import Any

import click

from proteinlm.cli.common import Bar, say
from proteinlm.errors import InputError


def _names(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Names given apart, by commas or by repeating the option."""
    return tuple(item.strip() for value in values for item in value.split(",") if item.strip())


@click.command()
@click.argument("model", metavar="MODEL", required=False)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), help="Folder for results and report.")
@click.option("--tasks", multiple=True, callback=_names, metavar="A,B", help="Only these; else all that apply.")
@click.option("--list-tasks", is_flag=True, help="Print the tasks and what they measure, and do nothing else.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of the data sets; else $PROTEINLM_DATA.")
@click.option("--quick", is_flag=True, help="A fixed small part of the data: minutes instead of an hour.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of every random choice.")
@click.option("--layer", type=int, default=-1, show_default=True, help="Whose vectors are judged; -1 is the last.")
@click.option("--untrained", type=click.IntRange(min=0), metavar="SEED", help="Random weights in the model's shape.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--cache", type=click.Path(path_type=Path), help="Keep residue vectors here for later runs.")
@click.option(
    "--cache-precision",
    type=click.Choice(["fp16", "fp32"]),
    default="fp16",
    show_default=True,
    help="Number format of kept residue vectors.",
)
@click.option("--clear-cache", is_flag=True, help="Remove the vectors in --cache, and do nothing else.")
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def evaluate(model: str | None, out: Path | None, clear_cache: bool, list_tasks: bool, **options: Any) -> int:
    """Score MODEL on the tasks of the papers.

    MODEL is a name (see `plm models`), a path, or one of the encodings one-hot, blosum62 and composition. Writes
    results.json, report.md and report.html into the folder OUT; tasks that it holds already are not run again. A task
    that does not apply, or whose data are not here, is listed with the reason.
    """
    if list_tasks:
        return _list()
    if clear_cache:
        return _clear(options["cache"])
    if model is None or out is None:
        raise click.UsageError("give a MODEL and -o FOLDER (or --clear-cache with --cache FOLDER)")
    from proteinlm.datasets.sources import data_folder
    from proteinlm.evaluation.report import report as write_report
    from proteinlm.evaluation.run import EvaluateJob
    from proteinlm.evaluation.run import evaluate as run
    from proteinlm.inference import RunOptions
    from proteinlm.tasks.base import TaskOptions

    names = {name: options[name] for name in ("tasks", "cache", "untrained", "download")}
    job = EvaluateJob(
        model=model,
        out=out,
        options=TaskOptions(data_folder(options["data"]), options["quick"], options["seed"], options["layer"]),
        run=RunOptions(precision=options["precision"], device=options["device"]),
        storage=options["cache_precision"],
        **names,
    )
    try:
        found = run(job, Bar())
    except KeyboardInterrupt:
        say("plm: interrupted; the same command goes on with the tasks that are done, and with the vectors in --cache")
        return 130
    page = write_report([out], out)
    click.echo(page.read_text("utf-8"), nl=False)
    return 1 if any(task.status == "not run" for task in found.tasks) else 0


def _list() -> int:
    from proteinlm.tasks import TASKS

    width = max(map(len, TASKS))
    for name, entry in TASKS.items():
        click.echo(f"{name.ljust(width)}  {entry.task.title} [{entry.task.source}]")
    return 0


def _clear(cache: Path | None) -> int:
    from proteinlm.evaluation.cache import clear

    if cache is None or not cache.is_dir():
        raise InputError("--clear-cache needs --cache FOLDER, a folder that is there")
    click.echo(f"{cache}: {clear(cache) / 1e9:.2f} GB of residue vectors removed")
    return 0


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Folder for the report.")
def report(results: tuple[Path, ...], out: Path) -> None:
    """Set RESULTS (folders of `plm evaluate`, or results.json files) side by side, and the papers' figures with them.

    Writes report.md and report.html, which needs no other file.
    """
    from proteinlm.evaluation.report import report as write_report

    out.mkdir(parents=True, exist_ok=True)
    click.echo(str(write_report(list(results), out)))


@click.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the bootstrap.")
def compare(first: Path, second: Path, seed: int) -> None:
    """FIRST minus SECOND for every figure that both have, paired protein by protein.

    FIRST and SECOND are folders of `plm evaluate`, or results.json files. The intervals are of the difference: it is
    real, at that level, where they exclude 0.
    """
    from proteinlm.evaluation.compare import compare as run
    from proteinlm.evaluation.compare import markdown
    from proteinlm.evaluation.results import read

    runs = read(first), read(second)
    click.echo(markdown(*runs, run(*runs, seed)), nl=False)
