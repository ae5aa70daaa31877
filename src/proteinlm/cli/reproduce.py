"""`plm reproduce`: a paper's table, run again at a scale of one's choice.

In: data, a scale, a folder. Out: the table as JSON and Markdown; the same command goes on where it stopped.
"""

from pathlib import Path
from typing import Any

import click

from proteinlm.cli.common import say
from proteinlm.errors import InputError

TABLES = ("table1", "prottrans")


@click.command()
@click.argument("table", type=click.Choice(TABLES))
@click.option("--store", required=True, help="Corpus store; for table1 with clusters.")
@click.option("--validation", required=True, help="FASTA file of held-out proteins.")
@click.option("--data", type=click.Path(path_type=Path), help="prottrans: labelled sets; else $PROTEINLM_DATA.")
@click.option(
    "--scale", default="tiny", show_default=True, help="table1: tiny, small or full; prottrans: tiny, short or small."
)
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder for results.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def reproduce(table: str, device: str, **options: Any) -> int:
    """Run a TABLE of the papers again and print ours beside the paper's.

    table1: Rives et al.: ECE of n-gram, LSTM and Transformer language models, data fractions and ways of sampling.
    prottrans: Elnaggar et al.: all architectures on equal tokens; losses, linear Q3 and Q10, speed, memory.
    """
    from proteinlm.inference import keep_freed_memory

    keep_freed_memory()
    folder = options["folder"]
    try:
        path = RUN[table](device, options)
    except KeyboardInterrupt:
        say(f"plm: interrupted; run the same command again to go on with {folder}")
        return 130
    click.echo(path.read_text("utf-8"), nl=False)
    return 0


def _table1(device: str, options: dict[str, Any]) -> Path:
    from proteinlm.inference import choose_device
    from proteinlm.reproduce.table1 import Job, reproduce

    if options.pop("data") is not None:
        raise InputError("table1 reads no labelled sets; leave --data out")
    return reproduce(Job(**options), choose_device(device), say)


def _prottrans(device: str, options: dict[str, Any]) -> Path:
    from proteinlm.inference import choose_device
    from proteinlm.reproduce.prottrans import Job, reproduce

    return reproduce(Job(**options), choose_device(device), say)


RUN = {"table1": _table1, "prottrans": _prottrans}
