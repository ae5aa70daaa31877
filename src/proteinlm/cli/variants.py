"""`plm variants`: how probable a model finds substitutions, as a table and a heat map.

In: options. Out: an exit code: 0 all went well, 1 the table is complete but proteins were refused, 130 interrupted.
"""

from pathlib import Path
from typing import Any

import click

from proteinlm.cli.common import Bar, model_option, say
from proteinlm.errors import InputError

METHODS = ("auto", "wt-marginals", "masked-marginals", "joint-masked-marginals", "pseudo-ppl", "likelihood")


@click.command()
@click.argument("fasta", metavar="IN")
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="Table to write (CSV).")
@click.option(
    "--mutations",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Variants: one per line (A24G, A24G:K30R), or a table with a column mutant and, if need be, protein.",
)
@click.option("--all", "every", is_flag=True, help="All single substitutions; so it is without --mutations.")
@model_option
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="auto: masked-marginals, or likelihood for models without a mask.",
)
@click.option("--offset", type=int, default=0, show_default=True, help="Number of the first residue, less 1.")
@click.option("--heatmap", type=click.Path(path_type=Path), metavar="PNG|SVG", help="Draw the substitutions too.")
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
def variants(fasta: str, every: bool, precision: Any, device: str, tokens_per_batch: int, **options: Any) -> int:
    """Score variants of the proteins of a FASTA file.

    Writes mutant, mutated_sequence, score and protein: the score is in nats, above 0 where the model finds the variant
    more probable than the protein itself. IN is a FASTA file, plain or compressed, or - for standard input.
    """
    from proteinlm.inference import RunOptions
    from proteinlm.variants.job import VariantsJob, score_file

    if every and options["mutations"] is not None:
        raise InputError("--all and --mutations were both given; take one of them")
    how = RunOptions(precision=precision, device=device, tokens_per_batch=tokens_per_batch)
    summary = score_file(VariantsJob(source=fasta, options=how, **options), Bar())
    for note in summary.notes:
        say(note)
    click.echo(summary.closing_line())
    return 1 if summary.refused else 0
