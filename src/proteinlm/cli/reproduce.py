"""`plm reproduce`: a paper's table, run again at a scale of one's choice.

In: data, a scale, a folder. Out: the table as JSON and Markdown; the same command goes on where it stopped.
"""

from pathlib import Path

import click

from proteinlm.cli.common import say

TABLES = ("table1",)
SCALES = ("tiny", "small", "full")


@click.command()
@click.argument("table", type=click.Choice(TABLES))
@click.option("--store", required=True, help="Corpus store with clusters.")
@click.option("--validation", required=True, help="FASTA file of held-out proteins.")
@click.option("--scale", type=click.Choice(SCALES), default="tiny", show_default=True, help="Size of the models.")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder for results.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of every random choice.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def reproduce(table: str, store: str, validation: str, scale: str, folder: Path, seed: int, device: str) -> int:
    """Run TABLE of Rives et al. again and print ours beside the paper's.

    table1: ECE of n-gram, LSTM and Transformer language models, data fractions and ways of sampling.
    """
    from proteinlm.inference import choose_device, keep_freed_memory
    from proteinlm.reproduce.table1 import Job
    from proteinlm.reproduce.table1 import reproduce as run

    keep_freed_memory()
    job = Job(store, validation, scale, folder, seed)
    try:
        path = run(job, choose_device(device), say)
    except KeyboardInterrupt:
        say(f"plm: interrupted; run the same command again to go on with {folder}")
        return 130
    click.echo(path.read_text("utf-8"), nl=False)
    return 0
