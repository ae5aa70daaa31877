"""`plm generate`: proteins out of a model, with their log-likelihoods and what they are made of.

In: a model and how to draw. Out: a FASTA file whose headers say where each protein comes from, and a report.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proteinlm.cli.common import model_option, say

if TYPE_CHECKING:
    from proteinlm.checkpoints import Checkpoint
    from proteinlm.generation import Composition, Generated, Sampling


@click.command()
@model_option
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="FASTA file to write.")
@click.option("--count", default=8, show_default=True, help="How many proteins.")
@click.option("--length", default=100, show_default=True, help="Residues of each; at most, if the model ends proteins.")
@click.option("--prompt", default="", help="Residues that every protein begins with.")
@click.option("--temperature", default=1.0, show_default=True, help="Below 1: more probable; 0: the most probable.")
@click.option("--top-p", default=1.0, show_default=True, help="Draw among the letters that reach this probability.")
@click.option("--sweeps", default=10, show_default=True, help="Masked models: how often each residue is drawn anew.")
@click.option("--seed", default=0, show_default=True, help="Of all draws.")
@click.option("--first", default=0, show_default=True, help="Number of the first protein; others follow (array jobs).")
@click.option("--at-once", default=32, show_default=True, help="Proteins side by side; changes speed and memory only.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the report as JSON.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), default="auto", show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--download", is_flag=True, help="Fetch the weights if they are not on this machine.")
def generate(out: Path, report: Path | None, **options: Any) -> int:
    """Generate proteins with a model.

    Causal models (ProtTXL, UniRep) and XLNet draw letter after letter; masked models (ESM, BERT) by Gibbs sampling. The
    log-likelihood in the header is natural, under the model as it is; for masked models, each residue given all others.
    """
    from proteinlm import checkpoints
    from proteinlm.checkpoints.files import atomic_file
    from proteinlm.generation import Plan, Sampling, composition
    from proteinlm.generation import generate as run
    from proteinlm.inference import Runner, RunOptions

    checkpoint = checkpoints.load(options["model"], options["download"])
    sampling = Sampling(options["temperature"], options["top_p"], options["seed"])
    plan = Plan(**{name: options[name] for name in ("count", "length", "first", "prompt", "sweeps", "at_once")})
    runner = Runner(checkpoint.model, RunOptions(precision=options["precision"], device=options["device"]))
    say(f"{checkpoint.name}, {runner.precision} on {runner.device}: {runner.precision_reason}")
    made: list[Generated] = []
    with atomic_file(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for protein in run(runner, plan, sampling):
            made.append(protein)
            file.write(_record(protein, checkpoint, sampling))
    found = composition(protein.residues for protein in made)
    if report is not None:
        with atomic_file(report) as temporary:
            temporary.write_text(json.dumps(_report(made, found, checkpoint, options), indent=2) + "\n", "utf-8")
    _print(made, found, out)
    return 0


def _record(protein: "Generated", checkpoint: "Checkpoint", sampling: "Sampling") -> str:
    """A FASTA record; the header names the protein, its likelihood and where it comes from."""
    header = (
        f">generated_{protein.number} log_likelihood={protein.log_likelihood:.4f} drawn={protein.drawn} "
        f"ended={'yes' if protein.ended else 'no'} model={checkpoint.name} digest={checkpoint.digest[:12]} "
        f"seed={sampling.seed} temperature={sampling.temperature:g} top_p={sampling.top_p:g}"
    )
    return f"{header}\n{protein.residues}\n"


def _perplexity(made: "list[Generated]") -> float:
    import math

    return math.exp(-sum(protein.log_likelihood for protein in made) / sum(protein.drawn for protein in made))


def _report(
    made: "list[Generated]", found: "Composition", checkpoint: "Checkpoint", options: dict[str, Any]
) -> dict[str, Any]:
    """The report as plain values."""
    from proteinlm import __version__
    from proteinlm.generation import SWISS_PROT

    return {
        "version": __version__,
        "model": checkpoint.name,
        "digest": checkpoint.digest,
        "options": options,
        "proteins": [vars(protein) for protein in made],
        "perplexity": _perplexity(made),
        "residues": found.residues,
        "share": found.share,
        "swiss_prot_per_cent": SWISS_PROT,
        "divergence_bits": found.divergence,
    }


def _print(made: "list[Generated]", found: "Composition", out: Path) -> None:
    """The report in words."""
    from proteinlm.generation import SWISS_PROT

    click.echo("residue  generated  Swiss-Prot")
    for letter, share in found.share.items():
        click.echo(f"{letter:>7}  {100 * share:8.2f} %  {SWISS_PROT[letter]:8.2f} %")
    click.echo(
        f"{len(made)} proteins, {found.residues} residues, perplexity {_perplexity(made):.2f}, "
        f"{found.divergence:.3f} bits from the composition of Swiss-Prot: {out}"
    )
