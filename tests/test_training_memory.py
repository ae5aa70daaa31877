"""Gradient checkpointing: the same numbers in less memory."""

from pathlib import Path

import numpy as np
import pytest
import torch
from training_tools import small_corpus, small_recipe, train, weights

from proteinlm.models import ARCHITECTURES
from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import Esm1bConfig, Esm1Config, Esm2Config
from proteinlm.models.recurrent import LstmConfig
from proteinlm.objectives.base import Example
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch

DEEP = {
    "esm1": Esm1Config(6, 32, 2, 128, contact_head=False),
    "esm1b": Esm1bConfig(6, 32, 2, 128, contact_head=False),
    "esm2": Esm2Config(6, 32, 2, 128, contact_head=False),
    "lstm": LstmConfig(6, 32),
}


def model_and_example(name: str) -> tuple[ProteinModel, MaskedLanguageModel, Example]:
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = ARCHITECTURES[name].model(DEEP[name]).train()
    objective = MaskedLanguageModel(model.alphabet, Masking())
    random = np.random.default_rng(0)
    encoded = [model.alphabet.encode("".join(random.choice(list(STANDARD), length))) for length in (50, 80, 80, 120)]
    batch = PackedBatch.pack(encoded, None, len(model.alphabet.prefix), len(model.alphabet.suffix))
    return model, objective, objective.prepare(batch, np.arange(4, dtype=np.uint64))


def step(
    model: ProteinModel, objective: MaskedLanguageModel, example: Example, precision: torch.dtype
) -> tuple[float, list[torch.Tensor], int]:
    """Loss, gradients, and bytes that were kept for the backward pass, weights left out."""
    own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16),
    ):
        loss = objective.loss(model, example).sum
    loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    return loss.item(), gradients, sum(kept.values())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", DEEP)
def test_same_loss_and_gradients_in_less_memory(name: str, precision: torch.dtype) -> None:
    model, objective, example = model_and_example(name)
    loss, gradients, memory = step(model, objective, example, precision)
    model.recompute_layers = True
    again, recomputed, less = step(model, objective, example, precision)
    assert again == loss
    assert len(gradients) == len(recomputed) > 20
    assert all(torch.equal(one, other) for one, other in zip(gradients, recomputed, strict=True))
    # What enters a layer (both directions of the LSTM) is held by the checkpoint, out of sight of the hooks.
    less += 2 * model.num_layers * len(example.batch.tokens_T) * model.width * 4
    print(f"{name}: {memory / 1e6:.2f} MB kept, {less / 1e6:.2f} MB with checkpointing")
    assert less < memory / 2


def test_a_recipe_asks_for_it(tmp_path: Path) -> None:
    """It changes nothing but memory, and may be switched on in the middle of a run."""
    small_corpus(tmp_path)
    checkpointing = ("run.gradient_checkpointing", True)
    train(small_recipe(tmp_path, ("run.steps", 4)), tmp_path / "plain")
    train(small_recipe(tmp_path, ("run.steps", 4), checkpointing), tmp_path / "less")
    left, right = weights(tmp_path / "plain"), weights(tmp_path / "less")
    assert len(left) > 30 and all(torch.equal(tensor, right[name]) for name, tensor in left.items())
