"""Every recipe that we ship parses, states the model it names, and takes two steps at a shrunken size."""

import dataclasses
from pathlib import Path

import pytest
import torch
from corpus_tools import example_store

from proteinlm.checkpoints import load
from proteinlm.config import to_dict
from proteinlm.models import ARCHITECTURES, on_meta
from proteinlm.training.loop import MODEL, pretrain
from proteinlm.training.recipe import Recipe, read_recipe
from proteinlm.training.records import read_table

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

SMALL = {"num_layers": 2, "width": 16, "num_heads": 2, "inner": 32, "cell_width": None}
"""What every architecture is shrunk to, as far as it has such a field."""

OF_TABLE_1 = {
    "transformer-6-ur50s": 42_590_208,
    "transformer-12-ur50s": 85_126_656,
    "transformer-34-ur50s": 669_209_600,
    "transformer-34-ur50d": 669_209_600,
    "transformer-34-ur100": 669_209_600,
    "transformer-34-ur50s-10-percent": 669_209_600,
    "transformer-34-ur50s-1-percent": 669_209_600,
    "transformer-34-ur50s-0.1-percent": 669_209_600,
    "transformer-36-uniparc": 708_569_600,
    "lstm-small-ur50s": 28_399_137,
    "lstm-large-ur50s": 113_421_345,
    "esm1b-ur50s": 652_358_433,
}
"""Recipes of papers.md 2.1 and 2.6, and the parameters that their models must have, contact head left out."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_store(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_two_steps(path: Path, corpus: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    architecture, config = recipe.architecture()
    small = {name: SMALL.get(name, value) for name, value in to_dict(config).items()}
    shrunk = Recipe(
        model={"architecture": architecture, **small},
        data=dataclasses.replace(recipe.data, store=str(corpus), validation="", crop=30, fraction=1.0),
        run=dataclasses.replace(recipe.run, steps=2, log_every=1),
        batch=dataclasses.replace(recipe.batch, tokens=512, tokens_per_part=256),
        objective=recipe.objective,
        optimiser=recipe.optimiser,
        schedule=dataclasses.replace(recipe.schedule, decay=min(recipe.schedule.decay, 1)),
    )
    assert pretrain(shrunk, tmp_path, torch.device("cpu"), lambda line: None)
    rows = read_table(tmp_path / "training.csv")
    assert [int(row["step"]) for row in rows] == [1, 2]
    assert all(2 < float(row["loss"]) < 6 for row in rows)
    assert type(load(tmp_path / MODEL).model) is ARCHITECTURES[architecture].model


def test_every_row_of_the_papers_table_has_a_recipe() -> None:
    assert OF_TABLE_1.keys() <= {path.stem for path in RECIPES}
    for name, parameters in OF_TABLE_1.items():
        architecture, config = read_recipe(ROOT / "recipes" / f"{name}.toml").architecture()
        model = on_meta(architecture, config)
        counted = sum(p.numel() for part, p in model.named_parameters() if not part.startswith("contact_head"))
        assert counted == parameters, name


def test_the_esm_models_were_trained_on_what_their_recipes_say() -> None:
    sampling = {path.stem: read_recipe(path).data for path in RECIPES}
    assert sampling["transformer-34-ur100"].sampling == "all"
    assert sampling["transformer-34-ur50d"].sampling == "clusters"
    assert sampling["transformer-34-ur50s"].sampling == "representatives"
    assert [sampling[f"transformer-34-ur50s-{part}-percent"].fraction for part in ("10", "1", "0.1")] == [
        0.1,
        0.01,
        0.001,
    ]
