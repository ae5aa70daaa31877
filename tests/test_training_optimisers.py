"""Update rules and schedules against numbers worked out by hand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_tools import ESM2, rows_without_speed, small_corpus, small_recipe, train, trainer, weights

from proteinlm.models import ARCHITECTURES
from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import Esm2Config
from proteinlm.objectives.perplexity import protein_losses
from proteinlm.training.averaging import Average
from proteinlm.training.loop import CHECKPOINT, MODEL
from proteinlm.training.optimisers import Lamb, build_optimisers, rate_factor
from proteinlm.training.recipe import Optimiser, Schedule
from proteinlm.training.records import read_table

ALL = ("adamw", "muon", "lamb", "adafactor")

HALF, THIRD = 1 / 2, 1 / 3


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        (Schedule("constant", warmup=0), 4, [1, 1, 1, 1]),
        (Schedule("constant", warmup=4), 6, [0.25, 0.5, 0.75, 1, 1, 1]),
        (Schedule("linear", warmup=0), 4, [1, 0.75, 0.5, 0.25]),
        (Schedule("linear", warmup=2), 6, [0.5, 1, 1, 0.75, 0.5, 0.25]),
        # 1 at the end of the warm-up, a half when four times as many steps are done.
        (Schedule("inverse-square-root", warmup=2), 8, [0.5, 1, (2 / 3) ** 0.5, 0.5**0.5, 0.4**0.5, THIRD**0.5,
                                                        (2 / 7) ** 0.5, 0.5]),
        (Schedule("inverse-square-root", warmup=0), 4, [1, 0.5**0.5, THIRD**0.5, 0.5]),
        # Cosines of 0, 45, 90 and 135 degrees.
        (Schedule("cosine", warmup=2), 6, [0.5, 1, 1, 0.5 + 0.5**0.5 / 2, 0.5, 0.5 - 0.5**0.5 / 2]),
        (Schedule("cosine", warmup=0), 2, [1, 0.5]),
        (Schedule("warmup-stable-decay", warmup=2, decay=3), 8, [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule("warmup-stable-decay", warmup=1, decay=0), 3, [1, 1, 1]),
        (Schedule("warmup-stable-decay", warmup=0, decay=4), 4, [0.8, 0.6, 0.4, 0.2]),
    ],
)  # fmt: skip
def test_schedules(schedule: Schedule, steps: int, expected: list[float]) -> None:
    factors = [rate_factor(schedule, step, steps) for step in range(steps)]
    assert factors == pytest.approx(expected, abs=1e-12)
    assert all(0 < factor <= 1 for factor in factors), "no step is without effect"


def test_the_rate_of_each_step_is_the_one_logged(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    train(small_recipe(tmp_path, ("schedule.shape", "cosine"), ("optimiser.name", "muon")), tmp_path / "run")
    rates = [float(row["learning_rate"]) for row in read_table(tmp_path / "run" / "training.csv")]
    expected = [4e-4 * rate_factor(Schedule("cosine", warmup=2), step, 10) for step in range(10)]
    assert rates == pytest.approx(expected, rel=1e-5)


def model_with_gradients() -> ProteinModel:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        model = ARCHITECTURES["esm2"].model(Esm2Config(2, 32, 2, 64, contact_head=False))
        for weight in model.parameters():
            weight.grad = torch.randn_like(weight)
    return model


def updates(model: ProteinModel, settings: Optimiser) -> dict[str, torch.Tensor]:
    """How one step of the optimisers changes each weight."""
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for optimiser in build_optimisers(model, settings):
        optimiser.step()
    return {name: weight.detach() - before[name] for name, weight in model.named_parameters()}


def test_muon_makes_steps_of_equal_length_in_every_direction() -> None:
    """A matrix moves by 0.2 sqrt(max(rows, columns)) U V^T, where U S V^T is its gradient in the first step.

    Newton-Schulz makes singular values of 0.7 to 1.2 (Jordan 2024); 0.2 sqrt(n) makes the root mean square of the
    update about 0.2, as AdamW's is (Liu et al. 2025). Vectors, embeddings and heads are AdamW's: their first step is
    the sign.
    """
    model = model_with_gradients()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    moved = updates(model, Optimiser(name="muon", learning_rate=1e-2, weight_decay=0.0))
    matrices = 0
    for name, update in moved.items():
        if name.startswith("layers.") and update.ndim == 2:
            matrices += 1
            direction = -update / (1e-2 * 0.2 * math.sqrt(max(update.shape)))
            values = torch.linalg.svdvals(direction)
            assert values.min() > 0.6 and values.max() < 1.3, (name, values.min(), values.max())
            left, _, right = torch.linalg.svd(gradients[name], full_matrices=False)
            orthogonal = left @ right
            assert torch.nn.functional.cosine_similarity(direction.flatten(), orthogonal.flatten(), dim=0) > 0.97, name
            assert update.square().mean().sqrt().item() == pytest.approx(0.2 * 1e-2, rel=0.25), name
        else:
            assert torch.allclose(update, -1e-2 * gradients[name].sign(), atol=1e-6), name
    assert matrices == 2 * 4
    assert len(moved) > 2 * matrices


def test_adamw_as_in_the_paper() -> None:
    """Two steps by the equations of Loshchilov and Hutter; matrices inside the layers are decayed, nothing else."""
    settings = Optimiser(learning_rate=1e-2, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.1)
    model = model_with_gradients()
    expected = {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        g, w = weight.grad.double(), weight.detach().double()
        decay = 0.1 if name.startswith("layers.") and w.ndim == 2 else 0.0
        m = v = torch.zeros_like(w)
        for step in (1, 2):
            m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
            w = w - 1e-2 * decay * w
            w = w - 1e-2 * (m / (1 - 0.8**step)) / ((v / (1 - 0.9**step)).sqrt() + 1e-3)
        expected[name] = w
    (optimiser,) = build_optimisers(model, settings)
    optimiser.step()
    optimiser.step()
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.detach().double(), expected[name], atol=1e-6), name
    assert len(expected) > 30


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("architecture", ["esm1", "esm1b", "esm2", "lstm"])
def test_every_weight_has_one_optimiser(architecture: str, name: str) -> None:
    kind = ARCHITECTURES[architecture]
    sizes = {"num_layers": 2, "width": 16, "num_heads": 2, "inner": 32}
    model = kind.model(kind.config(**{key: size for key, size in sizes.items() if key in kind.config().__dict__}))
    taken = [
        id(weight)
        for optimiser in build_optimisers(model, Optimiser(name=name))
        for group in optimiser.param_groups
        for weight in group["params"]
    ]
    assert sorted(taken) == sorted(id(weight) for weight in model.parameters())
    assert len(taken) == len(set(taken)) > 10


def test_average_by_hand() -> None:
    model = model_with_gradients()
    average = Average(model, decay=0.75)
    seen = []
    for step in range(4):
        with torch.no_grad():
            for weight in model.parameters():
                weight += step + 1
        seen.append(model.embed_tokens.weight.detach().clone())  # type: ignore[union-attr, operator]
        average.update(first=step == 0)
    # 1, then 3/4 of what was and 1/4 of what is.
    by_hand = 27 / 64 * seen[0] + 9 / 64 * seen[1] + 3 / 16 * seen[2] + 1 / 4 * seen[3]
    assert torch.allclose(average.tensors["embed_tokens.weight"], by_hand, atol=1e-5)


def test_the_average_is_validated_and_shipped(tmp_path: Path) -> None:
    """What is written at the end is the average of the weights after every step, and ECE is its own."""
    small_corpus(tmp_path)
    settings = (("run.steps", 5), ("optimiser.learning_rate", 1e-2), ("run.validate_every", 5))
    recipe = small_recipe(tmp_path, *settings, ("optimiser.averaging", 0.5))
    run = trainer(recipe, tmp_path / "by_hand")
    by_hand: dict[str, torch.Tensor] = {}
    for step in range(5):
        run.step()
        for name, weight in run.model.state_dict().items():
            by_hand[name] = weight.clone() if not step else 0.5 * by_hand[name] + 0.5 * weight
    last = {name: weight.clone() for name, weight in run.model.state_dict().items()}
    interval = run.validate()
    assert all(torch.equal(weight, last[name]) for name, weight in run.model.state_dict().items())

    train(recipe, tmp_path / "run")
    shipped = weights(tmp_path / "run")
    assert shipped.keys() == by_hand.keys()
    assert all(torch.allclose(tensor, by_hand[name], atol=1e-6) for name, tensor in shipped.items())
    assert max((tensor - last[name]).abs().max().item() for name, tensor in shipped.items()) > 1e-3

    from proteinlm.checkpoints import load

    model = load(str(tmp_path / "run" / MODEL)).model
    losses = protein_losses(model, run.objective, run.held_out).hidden
    assert interval is not None
    assert math.exp(losses[0].sum() / losses[1].sum()) == pytest.approx(interval.value, rel=1e-6)
    (row,) = read_table(tmp_path / "run" / "validation.csv")
    assert float(row["ece"]) == pytest.approx(interval.value, rel=1e-5)

    train(small_recipe(tmp_path, *settings), tmp_path / "plain")
    assert all(torch.equal(tensor, last[name]) for name, tensor in weights(tmp_path / "plain").items())
    assert "average" in torch.load(tmp_path / "run" / CHECKPOINT / "state.pt", weights_only=True)


def test_clipping(tmp_path: Path) -> None:
    """The norm that is logged is the one before clipping; the one that counts is no larger than the limit."""
    small_corpus(tmp_path)
    free = trainer(small_recipe(tmp_path, ("optimiser.clip", 0.0)), tmp_path / "free")
    clipped = trainer(small_recipe(tmp_path, ("optimiser.clip", 0.5)), tmp_path / "clipped")
    seen: dict[str, torch.Tensor] = {}
    for name, run in (("free", free), ("clipped", clipped)):
        optimiser = run.optimisers[0]

        def look(*_: object, name: str = name, run: object = run) -> None:
            gradients = [w.grad.flatten() for w in run.model.parameters() if w.grad is not None]  # type: ignore[attr-defined]
            seen[name] = torch.cat(gradients).clone()

        optimiser.register_step_pre_hook(look)
    norm, again = free.step().norm, clipped.step().norm
    assert norm == again == pytest.approx(seen["free"].norm().item(), rel=1e-6)
    assert norm > 1
    assert torch.allclose(seen["clipped"], seen["free"] * (0.5 / norm), rtol=1e-4, atol=1e-9)


def test_what_a_run_has_logged(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    train(small_recipe(tmp_path, ("run.log_every", 2), ("run.validate_every", 4), model=ESM2), tmp_path / "run")
    rows = rows_without_speed(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [2, 4, 6, 8, 10, 4, 8, 10]
    tokens = [int(row["tokens"]) for row in rows[:5]]
    assert tokens == sorted(tokens) and 0.8 * 400 * 10 < tokens[-1] <= 400 * 10
    assert all(float(row["low"]) <= float(row["ece"]) <= float(row["high"]) for row in rows[5:])
    assert [row["proteins"] for row in rows[5:]] == ["3"] * 3


def test_lamb_as_in_the_paper() -> None:
    """Three steps of algorithm 2 of You et al., element by element in double precision.

    Matrices and embeddings are scaled to their own norm, vectors are not; matrices inside the layers are decayed.
    """
    settings = Optimiser("lamb", learning_rate=1e-2, beta1=0.8, beta2=0.9, epsilon=1e-3, weight_decay=0.1)
    model = model_with_gradients()
    (optimiser,) = build_optimisers(model, settings)
    expected: dict[str, list[float]] = {}
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        g, w = weight.grad.double().flatten().tolist(), weight.detach().double().flatten().tolist()
        decay = 0.1 if name.startswith("layers.") and weight.ndim == 2 else 0.0
        m, v = [0.0] * len(w), [0.0] * len(w)
        for step in (1, 2, 3):
            m = [0.8 * mi + 0.2 * gi for mi, gi in zip(m, g, strict=True)]
            v = [0.9 * vi + 0.1 * gi * gi for vi, gi in zip(v, g, strict=True)]
            r = [(mi / (1 - 0.8**step)) / (math.sqrt(vi / (1 - 0.9**step)) + 1e-3) for mi, vi in zip(m, v, strict=True)]
            u = [ri + decay * wi for ri, wi in zip(r, w, strict=True)]
            ratio = math.hypot(*w) / math.hypot(*u) if weight.ndim >= 2 else 1.0
            w = [wi - 1e-2 * ratio * ui for wi, ui in zip(w, u, strict=True)]
        expected[name] = w
    for _ in range(3):
        optimiser.step()
    scaled = 0
    for name, weight in model.named_parameters():
        by_hand = torch.tensor(expected[name], dtype=torch.float64).view_as(weight)
        assert torch.allclose(weight.detach().double(), by_hand, atol=1e-6), name
        scaled += weight.ndim >= 2
    assert len(expected) > 30 and scaled > 8


def test_lamb_leaves_a_tensor_of_zeros_unscaled() -> None:
    """Nothing else could ever move it; and a gradient of zeros moves nothing."""
    weight, still = (torch.nn.Parameter(tensor) for tensor in (torch.zeros(2, 3), torch.ones(2, 3)))
    weight.grad, still.grad = torch.ones(2, 3), torch.zeros(2, 3)
    Lamb([{"params": [weight, still]}], 0.1, (0.9, 0.99), 1e-12).step()
    assert torch.allclose(weight, torch.full((2, 3), -0.1)) and torch.equal(still, torch.ones(2, 3))


def test_adafactor_as_in_the_paper() -> None:
    """Three steps of algorithms 4 and 5 of Shazeer and Stern, in double precision, with T5's settings.

    The rate is the smaller of the recipe's and 1 / sqrt(t); the larger of 1e-3 and the weight's root mean square
    multiplies it.
    """
    for rate in (1e-2, 0.9):
        model = model_with_gradients()
        (optimiser,) = build_optimisers(model, Optimiser("adafactor", learning_rate=rate, weight_decay=0.0))
        expected = {}
        for name, weight in model.named_parameters():
            assert weight.grad is not None
            g, w = weight.grad.double(), weight.detach().double()
            row, column, whole = torch.zeros(()), torch.zeros(()), torch.zeros(())
            for step in (1, 2, 3):
                beta2 = 1 - step**-0.8
                square = g * g + 1e-30
                if g.ndim == 2:
                    row = beta2 * row + (1 - beta2) * square.sum(1)
                    column = beta2 * column + (1 - beta2) * square.sum(0)
                    v = torch.outer(row, column) / row.sum()
                else:
                    v = whole = beta2 * whole + (1 - beta2) * square
                u = g / v.sqrt()
                u = u / max(1.0, u.square().mean().sqrt().item())
                w = w - max(1e-3, w.square().mean().sqrt().item()) * min(rate, step**-0.5) * u
            expected[name] = w
        for _ in range(3):
            optimiser.step()
        for name, weight in model.named_parameters():
            assert torch.allclose(weight.detach().double(), expected[name], atol=2e-6), (name, rate)
        assert len(expected) > 30


def test_adafactor_as_pytorch_has_it() -> None:
    """Twenty steps over gradients that change, with decay, in single precision."""
    random = torch.Generator().manual_seed(0)
    models = [model_with_gradients() for _ in range(2)]
    (ours,) = build_optimisers(models[0], Optimiser("adafactor", learning_rate=0.1, weight_decay=0.0))
    # What T5 adds to the squares is here their least.
    theirs = torch.optim.Adafactor(models[1].parameters(), lr=0.1, eps=(1e-15, 1e-3))
    for _ in range(20):
        for left, right in zip(*(model.parameters() for model in models), strict=True):
            left.grad = torch.randn(left.shape, generator=random)
            right.grad = left.grad.clone()
        ours.step()
        theirs.step()
    pairs = list(zip(*(model.parameters() for model in models), strict=True))
    assert len(pairs) > 30
    assert all(torch.allclose(left, right, rtol=1e-4, atol=1e-5) for left, right in pairs)


def test_a_constant_hundredth_is_the_schedule_of_t5() -> None:
    """1 / sqrt(max(t, 10^4)), which AdaFactor's own limit of 1 / sqrt(t) makes of it."""
    steps = [1, 100, 9_999, 10_000, 10_001, 40_000, 1_000_000]
    for step in steps:
        rate = 1e-2 * rate_factor(Schedule("constant", warmup=0), step - 1, 1_200_000)
        assert min(rate, step**-0.5) == pytest.approx(max(step, 10_000) ** -0.5)


def test_adam_is_adamw_without_decay() -> None:
    """To the bit, as PyTorch's Adam with the same options."""
    model, other = model_with_gradients(), model_with_gradients()
    (ours,) = build_optimisers(model, Optimiser(learning_rate=1e-2, weight_decay=0.0))
    theirs = torch.optim.Adam(other.parameters(), lr=1e-2, betas=(0.9, 0.98), eps=1e-8, fused=True)
    for _ in range(3):
        ours.step()
        theirs.step()
    pairs = list(zip(model.parameters(), other.parameters(), strict=True))
    assert len(pairs) > 30 and all(torch.equal(left, right) for left, right in pairs)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *((name, key, 0.5) for name in ("adamw", "lamb") for key in ("beta1", "beta2", "epsilon")),
        ("muon", "momentum", 0.5),
        *((name, key, 0.5) for name in ALL for key in ("learning_rate", "weight_decay")),
    ],
)  # fmt: skip
def test_every_option_changes_the_weights(name: str, key: str, value: float) -> None:
    def moved(settings: Optimiser) -> torch.Tensor:
        model = model_with_gradients()
        optimisers = build_optimisers(model, settings)
        for sign in (1.0, -0.5):
            for weight in model.parameters():
                assert weight.grad is not None
                weight.grad *= sign
            for optimiser in optimisers:
                optimiser.step()
        return torch.cat([weight.detach().flatten() for weight in model.parameters()])

    plain = moved(Optimiser(name, weight_decay=0.1))
    assert torch.equal(plain, moved(Optimiser(name, weight_decay=0.1)))
    assert not torch.equal(plain, moved(replace(Optimiser(name, weight_decay=0.1), **{key: value})))
