"""The table of models, tested in full: what stands in it keeps every promise of `ProteinModel`, at a size of seconds.

Bounds. fp32: 1e-5 of the largest value, tens of roundings. bf16: 2^-8 is one rounding; products of a few dozen terms in
another order may differ by some of them, so neighbours may move a value by 2^-6 of the largest, and a vector keeps a
cosine above 0.999 to fp32.
"""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import TINY, tiny
from torch import Tensor

from proteinlm import checkpoints
from proteinlm.errors import InputError
from proteinlm.models import ARCHITECTURES, PRESETS, on_meta
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.models.unirep import UniRep
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch

FP32_BOUND = 1e-5
BF16_BOUND = 2.0**-6

COUNTS = {
    "prot_bert": 419_933_214,
    "prot_bert_bfd": 419_933_214,
    "prot_albert": 207_557_794,
    "prot_electra_discriminator_bfd": 419_932_161,
    "prot_electra_generator_bfd": 65_215_262,
    "esm1_t6_43M_UR50S": 42_590_208,
    "esm1_t12_85M_UR50S": 85_126_656,
    "esm1_t34_670M_UR50S": 669_209_600,
    "esm1_t34_670M_UR50D": 669_209_600,
    "esm1_t34_670M_UR100": 669_209_600,
    "esm1_t36_700M_UniParc": 708_569_600,
    "esm1b_t33_650M_UR50S": 652_358_433,
    "prot_t5_xl_uniref50": 2_818_830_336,
    "prot_t5_xl_half_uniref50-enc": 1_208_141_824,
    "prot_t5_xxl_bfd": 11_274_553_344,
    "unirep-1900": 18_219_385,
    "unirep-256": 2_327_581,
    "unirep-64": 152_029,
    "ProtTXL": 409_306_135,
    "ProtTXL-BFD": 562_469_911,
    "prot_xlnet": 409_413_669,
}
"""papers.md 2.1, 6.1 and 8.4; contact heads are not counted there."""

WITH_CONTACT_HEAD = {
    "esm2_t6_8M_UR50D": 7_512_474,
    "esm2_t12_35M_UR50D": 33_501_394,
    "esm2_t33_650M_UR50D": 651_043_254,
}
"""What fair-esm's `ESM2` classes count, one weight per head and a bias more."""


def packed(model: ProteinModel, sequences: list[str]) -> PackedBatch:
    alphabet = model.alphabet
    encoded = [alphabet.encode(sequence) for sequence in sequences]
    return PackedBatch.pack(encoded, prefix=len(alphabet.prefix), suffix=len(alphabet.suffix))


def sequences(count: int = 7, longest: int = 26, seed: int = 2) -> list[str]:
    """Random proteins of 1 to `longest` residues; two are of equal length, and one is the shortest there is."""
    random = np.random.default_rng(seed)
    made = ["".join(random.choice(list(STANDARD), size=int(random.integers(2, longest)))) for _ in range(count - 2)]
    return [*made, made[0][::-1], "M"]


def everything(model: ProteinModel) -> Want:
    first = 1 if isinstance(model, UniRep) else 0
    layers = tuple(range(first, model.num_layers + 1))
    return Want(layers, model.has_logits, model.has_attentions, model.has_contacts, replaced=model.has_replaced)


def parts(batch: PackedBatch, output: Output, b: int) -> dict[str, Tensor]:
    """Everything that was said of one sequence."""
    found = {f"layer {layer}": x_TD[batch.tokens(b)] for layer, x_TD in output.hidden.items()}
    if output.logits_TV is not None:
        found["logits"] = output.logits_TV[batch.tokens(b)].clamp(min=-1e4)
    if output.replaced_T is not None:
        found["replaced"] = output.replaced_T[batch.tokens(b)]
    if output.attentions:
        found["attentions"] = output.attentions[b]
    if output.contacts:
        found["contacts"] = output.contacts[b]
    return found


def assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], bound: float) -> int:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name]
        assert tensor.shape == other.shape, name
        difference = (tensor.float() - other.float()).abs().max().item() if tensor.numel() else 0.0
        scale = max(1.0, other.float().clamp(min=-100).abs().max().item()) if other.numel() else 1.0
        assert difference <= bound * scale, f"{name}: {difference} of {scale}"
    return sum(tensor.numel() for tensor in ours.values())


def prepared(model: ProteinModel, precision: torch.dtype) -> ProteinModel:
    return copy.deepcopy(model).prepare(precision)


def test_the_tiny_models_cover_the_table() -> None:
    assert {architecture for architecture, _ in TINY.values()} == set(ARCHITECTURES)
    assert {preset.architecture for preset in PRESETS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_counts(name: str) -> None:
    preset = PRESETS[name]
    model = on_meta(preset.architecture, preset.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    contact = sum(p.numel() for key, p in model.named_parameters() if key.startswith("contact_head."))
    assert total - contact == preset.parameters == COUNTS.get(name, preset.parameters)
    assert total == WITH_CONTACT_HEAD.get(name, total)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_the_counts_of_the_papers_are_all_in_the_table() -> None:
    assert len(set(COUNTS) & set(PRESETS)) == len(COUNTS) and set(WITH_CONTACT_HEAD) <= set(PRESETS)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("precision", [None, torch.float32, torch.bfloat16], ids=["plain", "fp32", "bf16"])
def test_alone_equals_batched_equals_reordered(name: str, precision: torch.dtype | None) -> None:
    model = tiny(name)
    if precision is not None and precision not in model.precisions:
        pytest.skip(f"{type(model).__name__} refuses {precision} (test_a_prepared_model_says_the_same)")
    if precision is not None:
        model = prepared(model, precision)
    proteins = sequences()
    want = everything(model)
    bound = BF16_BOUND if precision is torch.bfloat16 else FP32_BOUND
    orders = [list(range(len(proteins))), list(reversed(range(len(proteins)))), [3, 3, 0, 6, 5]]
    compared = 0
    with torch.no_grad():
        alone = []
        for protein in proteins:
            batch = packed(model, [protein])
            alone.append(parts(batch, model(batch, want), 0))
        for order in orders:
            batch = packed(model, [proteins[index] for index in order])
            output = model(batch, want)
            for b, index in enumerate(order):
                compared += assert_near(parts(batch, output, b), alone[index], bound)
    assert compared > 5_000


@pytest.mark.parametrize("name", TINY)
def test_a_saved_model_says_the_same(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    checkpoints.save(model, tmp_path / "a.safetensors")
    again = checkpoints.load(tmp_path / "a.safetensors").model
    batch = packed(model, sequences())
    with torch.no_grad():
        ours, theirs = (one(batch, everything(one)) for one in (model, again))
    for b in range(len(batch)):
        assert assert_near(parts(batch, ours, b), parts(batch, theirs, b), 0.0) > 10


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = tiny(name)
    batch = packed(model, sequences())
    if model.alphabet.mask is not None:
        # One residue is hidden: what answers for hidden residues alone (XLNet's second stream) is to have a part, too.
        batch.tokens_T[batch.residues(0).start] = model.alphabet.mask
    output = model(batch, everything(model))
    outputs = [output.hidden[model.num_layers], *output.contacts]
    if output.logits_TV is not None:
        outputs.append(torch.log_softmax(output.logits_TV[:, 1:], dim=-1))
    if output.replaced_T is not None:
        outputs.append(output.replaced_T)
    sum((tensor * torch.linspace(0.5, 1.5, tensor.numel()).view_as(tensor)).sum() for tensor in outputs).backward()
    without = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not without
    assert len(list(model.parameters())) >= 18


@pytest.mark.parametrize("name", TINY)
def test_a_prepared_model_says_the_same(name: str) -> None:
    model = tiny(name)
    batch = packed(model, sequences())
    want = everything(model)
    with torch.no_grad():
        plain = model(batch, want)
        exact = prepared(model, torch.float32)(batch, want)
        compared = sum(
            assert_near(parts(batch, exact, b), parts(batch, plain, b), FP32_BOUND) for b in range(len(batch))
        )
        assert compared > 1_000
        if torch.bfloat16 not in model.precisions:
            with pytest.raises(InputError, match="bfloat16 is not available"):
                prepared(model, torch.bfloat16)
            return
        fast = prepared(model, torch.bfloat16)(batch, want)
    for layer, x_TD in fast.hidden.items():
        assert x_TD.dtype == torch.float32, "the residual stream keeps fp32"
        assert torch.cosine_similarity(x_TD, plain.hidden[layer]).min() > 0.999
    for ours, theirs in zip(fast.contacts, plain.contacts, strict=True):
        assert (ours - theirs).abs().max() < 0.02 if ours.numel() else True


@pytest.mark.parametrize("name", TINY)
def test_an_output_holds_what_was_wanted_and_nothing_else(name: str) -> None:
    model = tiny(name)
    batch = packed(model, ["MKT", "ACDEF"])
    tested = 0
    for layers, *others in itertools.product([(), (1,), (1, model.num_layers)], *[[False, True]] * 3):
        want = Want(layers, *others)
        can = (model.has_logits, model.has_attentions, model.has_contacts)
        if any(asked and not able for asked, able in zip(others, can, strict=True)):
            with pytest.raises(InputError, match="asked for"):
                model(batch, want)
        else:
            with torch.no_grad():
                output = model(batch, want)
            assert set(output.hidden) == set(layers)
            assert (output.logits_TV is not None) == want.logits
            assert len(output.attentions) == 2 * want.attentions and len(output.contacts) == 2 * want.contacts
            if want.contacts:
                assert [tuple(map_LL.shape) for map_LL in output.contacts] == [(3, 3), (5, 5)]
        tested += 1
    assert tested == 24


@pytest.mark.parametrize("name", TINY)
def test_layers_that_do_not_exist_are_refused(name: str) -> None:
    model = tiny(name)
    for layer in (-1, model.num_layers + 1):
        with pytest.raises(InputError, match=f"layer {layer} is outside"):
            model(packed(model, ["MKT"]), Want(layers=(layer,)))


def test_esm1b_refuses_what_it_has_no_positions_for() -> None:
    model = tiny("esm1b")
    assert model.max_residues == 28
    model(packed(model, ["M" * 28]), Want(layers=(1,)))
    with pytest.raises(InputError, match="31 tokens exceeds the 30 positions"):
        model(packed(model, ["M" * 29]), Want(layers=(1,)))
