"""A recipe says everything; whatever in it is misspelt, misplaced or out of range is told in one line."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from training_tools import small_corpus, small_recipe, train, trainer, weights

from proteinlm.config import to_dict
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES, PRESETS
from proteinlm.objectives import OBJECTIVES
from proteinlm.training.loop import MODEL, first_model
from proteinlm.training.recipe import MAY_CHANGE, Batch, Data, Optimiser, Recipe, Run, Schedule, read_recipe, recipe_of

GOOD = """
[model]
preset = "esm2-8m"

[data]
store = "store"

[run]
steps = 10
"""


def read(tmp_path: Path, text: str, *settings: str) -> Recipe:
    (tmp_path / "recipe.toml").write_text(text)
    return read_recipe(tmp_path / "recipe.toml", settings)


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD)
    assert recipe == Recipe({"preset": "esm2-8m"}, Data("store"), Run(steps=10))
    assert recipe.architecture() == ("esm2", PRESETS["esm2_t6_8M_UR50D"].config)
    assert recipe_of(recipe.as_dict(), "again") == recipe


def test_settings_stand_over_the_file(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, GOOD, "run.steps=20", "data.store=other store", "optimiser.name = muon",
        "optimiser.learning_rate=1e-3", "schedule.shape='cosine'", "objective.chosen=0.2", "model.num_layers=3",
        "data.fraction=1",
    )  # fmt: skip
    assert (recipe.run.steps, recipe.data.store, recipe.optimiser.name) == (20, "other store", "muon")
    assert (recipe.optimiser.learning_rate, recipe.schedule.shape, recipe.objective.chosen) == (1e-3, "cosine", 0.2)
    assert recipe.data.fraction == 1.0 and isinstance(recipe.data.fraction, float)
    architecture, config = recipe.architecture()
    assert architecture == "esm2" and to_dict(config)["num_layers"] == 3 and to_dict(config)["width"] == 320


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        # Misspelt sections and keys: the nearest is named.
        ("optimizer.name=adamw", "section [optimizer] is unknown; did you mean 'optimiser'?"),
        ("optimiser.learning_rat=1e-3", "[optimiser]: key 'learning_rat' is unknown; did you mean 'learning_rate'?"),
        ("run.step=10", "[run]: key 'step' is unknown; did you mean 'steps'?"),
        ("data.validaton=x", "[data]: key 'validaton' is unknown; did you mean 'validation'?"),
        ("batch.token=5", "[batch]: key 'token' is unknown; did you mean 'tokens'?"),
        ("schedule.warm_up=5", "[schedule]: key 'warm_up' is unknown; did you mean 'warmup'?"),
        ("objective.chose=0.1", "[objective]: key 'chose' is unknown; did you mean 'chosen'?"),
        ("objective.name=maskt", "[objective]: name 'maskt' is unknown; did you mean 'masked'?; choose one of autoreg"),
        ("model.num_layer=2", "[model]: key 'num_layer' is unknown; did you mean 'num_layers'?"),
        ("model.preset=esm2-8n", "did you mean 'esm2-8m'?"),
        ("schedule.shape=cosin", "schedule.shape is 'cosin'; did you mean 'cosine'?; choose one of constant,"),
        ("optimiser.name=moun", "optimiser.name is 'moun'; did you mean 'muon'?; choose one of adamw, muon"),
        ("data.sampling=cluster", "data.sampling is 'cluster'; did you mean 'clusters'?; choose one of all,"),
        ("run.engine=dpp", "run.engine is 'dpp'; did you mean 'ddp'?; choose one of single, ddp, fsdp"),
        ("run.precision=fp16", "run.precision is 'fp16'; did you mean 'bf16'?; choose one of fp32, bf16"),
        # Values of another type.
        ("run.steps=ten", "steps is 'ten', which is not of type int"),
        ("run.steps=10.5", "steps is 10.5, which is not of type int"),
        ("run.steps=true", "steps is True, which is not of type int"),
        ("optimiser.learning_rate='fast'", "learning_rate is 'fast', which is not of type float"),
        ("data.store=3", "store is 3, which is not of type str"),
        ("run.gradient_checkpointing=1", "gradient_checkpointing is 1, which is not of type bool"),
        ("data.crop=[1]", "crop is [1], which is not of type int"),
        # Values out of their range.
        ("run.steps=0", "run.steps is 0; give a number above 0"),
        ("batch.tokens=-1", "batch.tokens is -1; give a number above 0"),
        ("optimiser.learning_rate=0.0", "optimiser.learning_rate is 0.0; give a number above 0"),
        ("optimiser.learning_rate=nan", "optimiser.learning_rate is nan; give a number above 0"),
        ("optimiser.learning_rate=inf", "optimiser.learning_rate is inf; give a number above 0"),
        ("optimiser.epsilon=0.0", "optimiser.epsilon is 0.0; give a number above 0"),
        ("optimiser.beta2=1.0", "optimiser.beta2 is 1.0; give 0 or a number between 0 and 1"),
        ("optimiser.averaging=1.5", "optimiser.averaging is 1.5; give 0 or a number between 0 and 1"),
        ("optimiser.weight_decay=-0.1", "optimiser.weight_decay is -0.1; give 0 or a number above it"),
        ("optimiser.clip=-1.0", "optimiser.clip is -1.0; give 0 or a number above it"),
        ("schedule.warmup=-1", "schedule.warmup is -1; give 0 or a number above it"),
        ("schedule.decay=11", "schedule.decay is 11, more than run.steps = 10; lower it"),
        ("objective.chosen=0.0", "masking chosen=0.0"),
        ("objective.random=0.3", "masked and random at least 0 and together at most 1"),
        ("model.num_heads=0", "num_heads is 0; a size between 1 and"),
        ("model.num_heads=7", "width 320 is not a multiple of num_heads 7; choose one that is"),
        ("data.crop=1023", "data.crop is 1023, and the model has positions for 1022 residues; lower it"),
        # Settings that are none.
        ("steps=10", "setting 'steps=10' is not of the form section.key=value, such as run.steps=1000"),
        ("run.steps", "setting 'run.steps' is not of the form section.key=value"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, setting: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as error:
        read(tmp_path, GOOD, setting)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("[run]\nsteps = 10", ""), "section [run] is missing"),
        (GOOD.replace("steps = 10", ""), "steps"),
        (GOOD.replace("[data]", "").replace("[model]", "x = 1\n[model]"), "'x' stands outside every section"),
        (GOOD + "[x]\ny = 1\n", "section [x] is unknown; known: model, data, run, batch"),
        ("steps = 10\n" + GOOD, "'steps' stands outside every section; put it below the one"),
        ("data = 3\n" + GOOD.replace('[data]\nstore = "store"\n', ""), "'data' stands outside every section"),
        (GOOD.replace('preset = "esm2-8m"', 'architecture = "esm3"'), "architecture 'esm3' is unknown; did you mean"),
        (GOOD.replace('preset = "esm2-8m"', ""), "architecture None is unknown"),
        (GOOD.replace("=", ":"), "is not TOML"),
        (GOOD + "steps = 11\n", "is not TOML"),
    ],
)  # fmt: skip
def test_a_bad_file_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)) as error:
        read(tmp_path, text)
    assert "recipe" in str(error.value) and "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing\.toml' cannot be read: No such file"):
        read_recipe(tmp_path / "nothing.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary\.toml' is not TOML"):
        read_recipe(tmp_path / "binary.toml")
    with pytest.raises(InputError, match="'data' stands outside every section of the recipe"):
        read(tmp_path, "data = 3\n", "data.store=x")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("objective.name=denoising", "'denoising' does not train architecture 'esm2'; set objective.name to masked"),
        (
            "model.architecture=t5-encoder",
            "'masked' does not train architecture 't5-encoder'; it is part of another model",
        ),
        ("model.architecture=xlnet", None),
    ],
)  # fmt: skip
def test_the_objective_must_suit_the_model(tmp_path: Path, setting: str, told: str | None) -> None:
    text = GOOD.replace('preset = "esm2-8m"', 'architecture = "esm2"')
    if told is None:
        assert read(tmp_path, text, setting).objective_name == "masked"
        return
    with pytest.raises(InputError, match=re.escape(told)):
        read(tmp_path, text, setting)


def test_a_run_begins_with_the_weights_that_it_names(tmp_path: Path) -> None:
    """Of a file, of the same shape; a run that goes on needs them no longer."""
    small_corpus(tmp_path)
    train(small_recipe(tmp_path, ("run.steps", 2)), tmp_path / "first")
    path = tmp_path / "first" / MODEL
    recipe = small_recipe(tmp_path, ("model.weights", str(path)), ("run.seed", 7), ("run.steps", 1))
    begun = trainer(recipe, tmp_path / "second").model.state_dict()
    before, random = weights(tmp_path / "first"), first_model(small_recipe(tmp_path, ("run.seed", 7))).state_dict()
    assert begun.keys() == before.keys() and len(before) > 10
    assert all(torch.equal(begun[name], tensor) for name, tensor in before.items())
    assert not all(torch.equal(begun[name], tensor) for name, tensor in random.items())
    with pytest.raises(InputError, match=r"holds another model than the recipe's: \d+ tensors are in one of them only"):
        trainer(small_recipe(tmp_path, ("model.weights", str(path)), ("model.width", 24)), tmp_path / "other")
    train(recipe, tmp_path / "second")
    path.unlink()
    longer = small_recipe(tmp_path, ("model.weights", str(path)), ("run.seed", 7), ("run.steps", 2))
    assert "going on from step 1" in train(longer, tmp_path / "second")
    with pytest.raises(InputError, match="there is no file, folder or model"):
        train(longer, tmp_path / "third")


def test_the_corpus_must_be_there(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    with pytest.raises(InputError, match="nowhere"):
        trainer(small_recipe(tmp_path, ("data.store", str(tmp_path / "nowhere"))), tmp_path / "run")
    with pytest.raises(InputError, match="nowhere"):
        trainer(small_recipe(tmp_path, ("data.validation", str(tmp_path / "nowhere.fasta"))), tmp_path / "run")
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_held_out_proteins_are_all_used_or_the_run_is_refused(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    (tmp_path / "bad.fasta").write_text(">a\nMKT\n>b\nM*K\n")
    with pytest.raises(InputError, match="b cannot be used"):
        trainer(small_recipe(tmp_path, ("data.validation", str(tmp_path / "bad.fasta"))), tmp_path / "run")
    (tmp_path / "long.fasta").write_text(f">a\nMKT\n>long\n{'M' * 1023}\n")
    with pytest.raises(InputError, match="long has 1023 residues, and the model takes 1022; leave it out"):
        trainer(small_recipe(tmp_path, ("data.validation", str(tmp_path / "long.fasta"))), tmp_path / "run")


def test_what_may_change_in_a_run_exists() -> None:
    sections = {"data": Data, "batch": Batch, "optimiser": Optimiser, "schedule": Schedule, "run": Run}
    known = {f"{section}.{field.name}" for section, kind in sections.items() for field in fields(kind)}
    assert known >= MAY_CHANGE
    assert len(MAY_CHANGE) >= 10


def test_the_page_has_every_key_and_its_default() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "pretraining.md").read_text("utf-8")
    sections = {"data": Data, "batch": Batch, "optimiser": Optimiser, "schedule": Schedule, "run": Run}
    told = dict(re.findall(rf"^\| `((?:{'|'.join(sections)})\.\w+)` \| ([^|]+) \|", page, flags=re.MULTILINE))
    rows = re.findall(rf"^\| `({'|'.join(OBJECTIVES)})` \| `(\w+)` \| ([^|]+) \|", page, flags=re.MULTILINE)
    told.update({f"{name}.{key}": word for name, key, word in rows if key not in ARCHITECTURES})
    expected = {}
    for section, kind in [*sections.items(), *((name, one.config) for name, one in OBJECTIVES.items())]:
        for field in fields(kind):
            value = field.default
            word = (
                {"": "none", True: "true", False: "false"}.get(value, value) if isinstance(value, str | bool) else value
            )
            expected[f"{section}.{field.name}"] = "required" if value is MISSING else word
    assert told.keys() == expected.keys()
    for name, word in told.items():
        value = expected[name]
        same = word.strip("`") == value if isinstance(value, str) else float(word) == value
        assert same, f"{name}: the page says {word}, the default is {value}"


def test_the_page_has_every_objective_and_what_it_trains() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "pretraining.md").read_text("utf-8")
    for name in OBJECTIVES:
        row = re.search(rf"^\| `{name}` \| ([^|]+) \| [^|]+ \|$", page, flags=re.MULTILINE)
        assert row, f"{name} is not on the page"
        trained = {one for one, kind in ARCHITECTURES.items() if name in kind.objectives}
        assert set(re.findall(r"`([\w-]+)`", row[1])) == trained
