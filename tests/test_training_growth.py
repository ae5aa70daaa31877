"""A grown model: it computes what the smaller one did, and all that it has more of learns."""

from pathlib import Path

import pytest
import torch
from training_tools import small_corpus, small_recipe, train, trainer, weights

from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel, Want
from proteinlm.models.esm import Esm1, Esm1b, Esm1bConfig, Esm1Config, Esm2, Esm2Config
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch
from proteinlm.training.growth import grow
from proteinlm.training.loop import MODEL, first_model

EVERYTHING = Want(layers=(0, 2), logits=True)


def randomised(model: ProteinModel) -> ProteinModel:
    """A model none of whose parameters is a constant, as after training."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch_of(alphabet: Alphabet) -> PackedBatch:
    return PackedBatch.pack([alphabet.encode("MKTAYIAKQR"), alphabet.encode("GSH")], prefix=1, suffix=1)


SMALL = {"num_layers": 2, "width": 16, "num_heads": 2, "inner": 24}


@pytest.mark.parametrize("more", [{"num_layers": 5}, {"inner": 56}, {"num_layers": 3, "inner": 32}, {}])
@pytest.mark.parametrize("reach", [None, 2])
def test_a_grown_model_computes_the_same(more: dict[str, int], reach: int | None) -> None:
    small, large = (randomised(Esm2(Esm2Config(**sizes, reach=reach))) for sizes in (SMALL, SMALL | more))
    batch = batch_of(small.alphabet)
    before = large(batch, Want(logits=True)).logits_TV
    grow(large, small)
    ours, theirs = large(batch, Want(logits=True)).logits_TV, small(batch, EVERYTHING).logits_TV
    assert torch.allclose(ours, theirs, atol=1e-5) and not torch.allclose(before, theirs, atol=1e-1)
    ours.square().sum().backward()
    # Where a new part reads, a gradient comes only once it writes, which its zeros do after one step.
    silent = [name for name, one in large.named_parameters() if one.grad is None or not one.grad.any()]
    assert not [name for name in silent if name.endswith(("out.weight", "down.weight"))], silent


@pytest.mark.parametrize(("kind", "config"), [(Esm1, Esm1Config), (Esm1b, Esm1bConfig)])
def test_esm1_and_esm1b_grow(kind: type[ProteinModel], config: type) -> None:
    small, large = (randomised(kind(config(**sizes))) for sizes in (SMALL, SMALL | {"num_layers": 4, "inner": 40}))
    grow(large, small)
    batch = batch_of(small.alphabet)
    ours, theirs = (model(batch, Want(logits=True)).logits_TV for model in (large, small))
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_layers_are_spread_and_contacts_kept_where_they_fit() -> None:
    small, wider, deeper = (
        randomised(Esm2(Esm2Config(**(SMALL | more)))) for more in ({}, {"inner": 32}, {"num_layers": 4})
    )
    deepest = {name: tensor.clone() for name, tensor in deeper.contact_head.state_dict().items()}
    grow(wider, small)
    grow(deeper, small)
    assert [bool(layer.feed_forward.down.weight.any()) for layer in deeper.layers] == [True, False, True, False]
    batch = batch_of(small.alphabet)
    ours, theirs = (model(batch, Want(contacts=True)).contacts[0] for model in (wider, small))
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert all(torch.equal(tensor, deepest[name]) for name, tensor in deeper.contact_head.state_dict().items())


@pytest.mark.parametrize(
    ("large", "told"),
    [
        (Esm2(Esm2Config(**SMALL | {"width": 32})), "width is 32, and the model to grow from has 16; only num_layers"),
        (Esm2(Esm2Config(**SMALL | {"inner": 16})), "inner is 16, and the model to grow from has 24; give as much"),
        (Esm2(Esm2Config(**SMALL, reach=3)), "reach is 3, and the model to grow from has None"),
        (Esm1b(Esm1bConfig(**SMALL)), "a Esm1b cannot grow from a Esm2"),
    ],
)
def test_what_cannot_grow_is_refused(large: ProteinModel, told: str) -> None:
    with pytest.raises(InputError, match=told):
        grow(large, Esm2(Esm2Config(**SMALL)))


def test_a_run_may_begin_as_a_smaller_model(tmp_path: Path) -> None:
    small_corpus(tmp_path)
    train(small_recipe(tmp_path, ("run.steps", 2)), tmp_path / "first")
    before = weights(tmp_path / "first")
    grown = ("model.grown_from", str(tmp_path / "first" / MODEL))
    larger = small_recipe(tmp_path, grown, ("model.num_layers", 3), ("model.inner", 48), ("run.steps", 2))
    begun = first_model(larger).state_dict()
    assert torch.equal(begun["embed_tokens.weight"], before["embed_tokens.weight"])
    assert not begun["layers.2.feed_forward.down.weight"].any()
    train(larger, tmp_path / "second")
    after = weights(tmp_path / "second")
    assert all(after[f"layers.2.{name}.weight"].any() for name in ("attention.out", "feed_forward.down"))
    assert all(
        (after[name] != begun[name]).any() for name in after if name.startswith("layers.2.") and "weight" in name
    )
    with pytest.raises(InputError, match="only num_layers and inner can grow"):
        trainer(small_recipe(tmp_path, grown, ("model.width", 24)), tmp_path / "third")
    with pytest.raises(InputError, match="weights and grown_from are both given"):
        small_recipe(tmp_path, grown, ("model.weights", "default"))
