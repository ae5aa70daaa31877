"""Every recipe that we ship parses, states the model it names, and takes two steps or more, one in every phase."""

import dataclasses
from pathlib import Path

import pytest
import torch
from corpus_tools import example_store

from proteinlm.checkpoints import load
from proteinlm.config import to_dict
from proteinlm.models import ARCHITECTURES, on_meta
from proteinlm.training.loop import MODEL, pretrain
from proteinlm.training.recipe import Recipe, read_recipe, recipe_of
from proteinlm.training.records import read_table

ROOT = Path(__file__).resolve().parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

SMALL = {
    "num_layers": 2, "decoder_layers": 2, "width": 16, "num_heads": 2, "head_width": 8, "inner": 32, "cell_width": None,
    "embedding_width": 8, "generator_layers": 1, "generator_width": 8, "generator_heads": 1, "generator_inner": 16,
    "max_positions": 64, "segment": 24, "memory": 16,
}  # fmt: skip
"""What every architecture is shrunk to, as far as it has such a field."""

LOSS = {"replaced": (30, 60)}
"""Bounds on the first losses, in nats: of ELECTRA's pair, the generator's and 50 times that of a choice of two."""

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


OF_PROTTRANS = {
    "prottxl-uniref100": 409_306_135,
    "prottxl-bfd": 562_469_911,
    "protbert-uniref100": 419_933_214,
    "protbert-bfd": 419_933_214,
    "protxlnet-uniref100": 409_413_669,
    "protalbert-uniref100": 207_557_794,
    "protelectra-bfd": 444_152_607,
    "prott5-xl-bfd": 2_818_830_336,
    "prott5-xl-uniref50": 2_818_830_336,
    "prott5-xxl-bfd": 11_274_553_344,
    "prott5-xxl-uniref50": 11_274_553_344,
}
"""Recipes of papers.md 6.1. ProtBert and ProtAlbert are without the pooler, which masking does not train; ProtElectra
is the discriminator and the generator, whose embedding they share."""

TOKENS_SEEN = {
    "prottxl-uniref100": 31_300 * 22_464 * 512,
    "prottxl-bfd": 40_700 * 44_928 * 512,
    "protbert-uniref100": 300_000 * 15_360 * 512 + 100_000 * 2_560 * 2_048,
    "protbert-bfd": 800_000 * 32_768 * 512 + 200_000 * 6_144 * 2_048,
    "protxlnet-uniref100": 847_000 * 1_024 * 512,
    "protalbert-uniref100": 150_000 * 10_752 * 512 + 150_000 * 1_024 * 2_048,
    "protelectra-bfd": 400_000 * 9_216 * 512 + 400_000 * 3_584 * 1_024,
    "prott5-xl-bfd": 1_200_000 * 4_096 * 512,
    "prott5-xl-uniref50": 991_000 * 2_048 * 512,
    "prott5-xxl-bfd": 920_000 * 4_096 * 512,
    "prott5-xxl-uniref50": 343_000 * 2_048 * 512,
}
"""Steps x sequences of a step x their length, over both phases (papers.md 6.2)."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_store(tmp_path_factory.mktemp("corpus"))


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_step_in_every_phase(path: Path, corpus: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    architecture, config = recipe.architecture()
    small = {name: SMALL.get(name, value) for name, value in to_dict(config).items()}
    steps = max(2, 1 + len(recipe.phases))
    shrunk = Recipe(
        model={"architecture": architecture, **small},
        data=dataclasses.replace(recipe.data, store=str(corpus), validation="", crop=30, fraction=1.0),
        run=dataclasses.replace(recipe.run, steps=steps, log_every=1),
        batch=dataclasses.replace(recipe.batch, tokens=512, tokens_per_part=256),
        objective=recipe.objective,
        optimiser=recipe.optimiser,
        schedule=dataclasses.replace(recipe.schedule, decay=min(recipe.schedule.decay, 1)),
        phases=tuple(
            dataclasses.replace(phase, after=after, crop=40, tokens=400)
            for after, phase in enumerate(recipe.phases, start=1)
        ),
    )
    assert shrunk == recipe_of(shrunk.as_dict(), "shrunk")
    assert pretrain(shrunk, tmp_path, torch.device("cpu"), lambda line: None)
    rows = read_table(tmp_path / "training.csv")
    assert [int(row["step"]) for row in rows] == list(range(1, steps + 1))
    least, most = LOSS.get(recipe.objective_name, (2, 6))
    assert all(least < float(row["loss"]) < most for row in rows)
    assert type(load(tmp_path / MODEL).model) is ARCHITECTURES[architecture].model


def test_every_row_of_the_papers_tables_has_a_recipe() -> None:
    published = OF_TABLE_1 | OF_PROTTRANS
    assert published.keys() <= {path.stem for path in RECIPES}
    for name, parameters in published.items():
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


def test_prottrans_saw_as_many_tokens_as_its_recipes_say() -> None:
    assert TOKENS_SEEN.keys() == OF_PROTTRANS.keys()
    for name, tokens in TOKENS_SEEN.items():
        stages = read_recipe(ROOT / "recipes" / f"{name}.toml").stages()
        assert sum((stage.end - stage.start) * stage.tokens for stage in stages) == tokens, name


def test_small_recipes_are_alike_but_for_the_model() -> None:
    """Every architecture of ProtTrans at three to five million parameters, on the same tokens."""
    small = {path.stem: read_recipe(path) for path in RECIPES if path.stem.startswith("small-")}
    expected = {"esm2", "bert", "albert", "electra", "t5", "xlnet", "transformer-xl"}
    assert {recipe.architecture()[0] for recipe in small.values()} == expected
    assert len({(recipe.batch, recipe.schedule, recipe.optimiser, recipe.run) for recipe in small.values()}) == 1
    for name, recipe in small.items():
        assert 3e6 < sum(weight.numel() for weight in on_meta(*recipe.architecture()).parameters()) < 5e6, name
        assert recipe.data.crop in (254, 255)
