"""`plm pretrain`: a recipe and a corpus become a model.

In: a recipe, settings over it, a folder. Out: the run's folder; the same command goes on with it.
"""

import os
from pathlib import Path

import click

from proteinlm.cli.common import TrainingBar, say
from proteinlm.errors import InputError


@click.command()
@click.argument("recipe", metavar="RECIPE", type=click.Path(path_type=Path))
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder of the run.")
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE", help="Put over the recipe; repeatable.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def pretrain(recipe: Path, folder: Path, settings: tuple[str, ...], device: str) -> int:
    """Train a model as RECIPE says.

    RECIPE is a TOML file; `recipes/` holds many. Stopped at any moment, the same command goes on. Writes
    model.safetensors, which `plm embed --model` takes, tables of losses and a learning curve.
    """
    from proteinlm.inference import choose_device, keep_freed_memory
    from proteinlm.training.curves import draw
    from proteinlm.training.loop import MODEL, pretrain
    from proteinlm.training.recipe import read_recipe

    keep_freed_memory()
    bar = TrainingBar()
    try:
        finished = pretrain(read_recipe(recipe, settings), folder, choose_device(device), bar.say, bar.step)
    finally:
        bar.end()
    if os.environ.get("RANK", "0") != "0":
        # One of many processes under torchrun; the first one tells how it went.
        return 0
    try:
        draw(folder)
    except InputError as error:
        say(f"no learning curve: {error}")
    if not finished:
        say(f"stopped; run the same command again to go on with {folder}")
        return 130
    click.echo(f"{folder / MODEL}")
    return 0
