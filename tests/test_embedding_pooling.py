"""Pooling and storage: residues only, in fp32, and no number is cast to what it is not."""

import numpy as np
import pytest
import torch
from embedding_tools import ALONE_TOLERANCE, LAYERS, LONGEST, WIDTH, made_up, reference, tiny_model, tiny_unirep

from proteinlm.embedding.pooling import Stored, embed_records
from proteinlm.embedding.settings import EmbedSettings
from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.base import ProteinModel
from proteinlm.sequences.fasta import Record, Refused

PROTEINS = made_up(20)


def records(proteins: list[tuple[str, str]] = PROTEINS) -> list[Record]:
    return [Record(n, header.split()[0], header, residues) for n, (header, residues) in enumerate(proteins)]


def runner(model: ProteinModel | None = None, **options: object) -> Runner:
    return Runner(model or tiny_model(), RunOptions(precision="fp32", device="cpu", **options))


def embedded(settings: EmbedSettings, run: Runner, given: list[Record]) -> dict[int, Stored]:
    items = list(embed_records(run, given, settings))
    assert all(isinstance(item, Stored) for item in items)
    assert sorted(item.entry.index for item in items) == [record.index for record in given]
    return {item.entry.index: item for item in items}


@pytest.mark.parametrize("layer", [0, 1, LAYERS])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "none"])
def test_pooling_equals_the_plain_computation(pooling: str, layer: int) -> None:
    model, plain = tiny_model(), tiny_model()
    settings = EmbedSettings((layer,), pooling)
    for index, item in embedded(settings, runner(model), records()).items():
        whole = reference(plain, PROTEINS[index][1], layer)
        inner = whole[1:-1]
        expected = {"mean": inner.mean(0), "max": inner.amax(0), "cls": whole[0], "none": inner}[pooling]
        assert item.tensors.keys() == {"embeddings"}
        torch.testing.assert_close(item.tensors["embeddings"], expected, **ALONE_TOLERANCE)


def test_several_layers_are_stacked_in_the_order_in_which_they_were_named() -> None:
    together = embedded(EmbedSettings((2, 0, 1), "none"), runner(), records())
    for position, layer in enumerate((2, 0, 1)):
        alone = embedded(EmbedSettings((layer,), "none"), runner(), records())
        for index in range(20):
            assert torch.equal(together[index].tensors["embeddings"][position], alone[index].tensors["embeddings"])


def test_logits_and_contacts_come_with_the_right_shapes() -> None:
    settings = EmbedSettings((2,), include=("logits", "contacts"), storage="bf16")
    for index, item in embedded(settings, runner(), records()).items():
        length = len(PROTEINS[index][1])
        assert {name: tuple(tensor.shape) for name, tensor in item.tensors.items()} == {
            "logits": (length, 33),
            "contacts": (length, length),
        }
        assert {tensor.dtype for tensor in item.tensors.values()} == {torch.bfloat16}


def test_stored_tensors_own_their_memory() -> None:
    for item in embedded(EmbedSettings((2,), "none"), runner(), records()).values():
        tensor = item.tensors["embeddings"]
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4


def test_what_was_done_to_long_proteins_is_told() -> None:
    given = records([("short", "A" * LONGEST), ("long", "A" * (3 * LONGEST))])
    windows = embedded(EmbedSettings((2,), "none"), runner(long="window"), given)
    assert (windows[0].entry.windows, windows[1].entry.windows > 3) == (1, True)
    assert windows[1].tensors["embeddings"].shape == (3 * LONGEST, WIDTH)
    cropped = embedded(EmbedSettings((2,), "none"), runner(long="crop"), given)
    assert [cropped[n].entry.cropped for n in (0, 1)] == [0, 2 * LONGEST]
    assert cropped[1].tensors["embeddings"].shape == (LONGEST, WIDTH)
    assert cropped[1].entry.length == 3 * LONGEST
    items = list(embed_records(runner(long="error"), given, EmbedSettings((2,))))
    (refused,) = [item for item in items if isinstance(item, Refused)]
    assert refused.id == "long" and "120 residues exceed the 40" in refused.reason


def test_a_number_beyond_fp16_is_refused_and_never_becomes_infinity() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.final_norm.weight.mul_(1e5)
    run = runner(model)
    items = list(embed_records(run, records(), EmbedSettings((2,), "max", storage="fp16")))
    assert len(items) == 20
    for item in items:
        assert isinstance(item, Refused)
        assert "65504 of fp16; use --storage fp32" in item.reason
    kept = embedded(EmbedSettings((2,), "max", storage="bf16"), run, records())
    assert all(item.tensors["embeddings"].isfinite().all() for item in kept.values())


def test_the_fp16_limit_is_the_last_number_that_fits() -> None:
    assert np.isfinite(np.float16(65504))
    assert not np.isfinite(torch.tensor(65520.0).half().item())
    assert torch.finfo(torch.float16).max == 65504


def test_numbers_that_are_not_finite_are_refused() -> None:
    model = tiny_model()
    with torch.no_grad():
        model.final_norm.bias[3] = float("nan")
    items = list(embed_records(runner(model), records(), EmbedSettings((2,))))
    assert len(items) == 20 and all(isinstance(item, Refused) and "not finite" in item.reason for item in items)


@pytest.mark.parametrize("storage", ["fp32", "fp16", "bf16"])
def test_a_token_that_is_never_predicted_is_no_reason_to_refuse(storage: str) -> None:
    """UniRep says -infinity of its padding token."""
    settings = EmbedSettings((1,), include=("embeddings", "logits"), storage=storage)
    for item in embedded(settings, runner(tiny_unirep()), records()).values():
        logits_LV = item.tensors["logits"].float()
        assert (logits_LV[:, 0] == float("-inf")).all() and logits_LV[:, 1:].isfinite().all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(wrong: float) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.masked_head.bias[7] = wrong
    items = list(embed_records(runner(model), records(), EmbedSettings((2,), include=("logits",))))
    assert len(items) == 20 and all(isinstance(item, Refused) and "not finite" in item.reason for item in items)


def test_cls_needs_a_bos_token_that_has_seen_the_protein() -> None:
    EmbedSettings((2,), "cls").check(tiny_model())
    with pytest.raises(InputError, match="reads left to right"):
        EmbedSettings((1,), "cls").check(tiny_unirep())
    with pytest.raises(InputError, match="no contact head"):
        EmbedSettings((1,), include=("contacts",)).check(tiny_unirep())
