"""Parity with the originals: every hidden state, attention map, logit, contact and gradient, at random parameters.

Judges: fair-esm for all four families, `transformers` for ESM-1b and ESM-2. Bound: 1e-5 of the largest value (or of 1,
where values are smaller), some fifty roundings of fp32 over three layers; the originals round in another order.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from esm_reference import (
    FAMILIES,
    HEADS,
    LAYERS,
    SEQUENCES,
    WIDTH,
    has_contacts,
    make_judge,
    masked_tokens,
    packed,
    padded,
    randomise,
    write_published,
)
from torch import Tensor, nn

from proteinlm import checkpoints
from proteinlm.checkpoints.names import FAIR_ESM, HUGGING_FACE, Naming, to_theirs
from proteinlm.errors import InputError
from proteinlm.models.base import Output, Want
from proteinlm.models.esm import Esm1, Esm1b, Esm2
from proteinlm.sequences.alphabet import ESM1, ESM1B

BOUND = 1e-5
EVERYTHING = Want(layers=tuple(range(LAYERS + 1)), logits=True, attentions=True, contacts=True)
ALL_BUT_CONTACTS = Want(layers=tuple(range(LAYERS + 1)), logits=True, attentions=True)


class Comparison:
    """Counts what it compares, so that a test cannot pass by comparing nothing."""

    def __init__(self) -> None:
        self.tensors = self.numbers = 0

    def same(self, ours: Tensor, theirs: Tensor, what: str) -> None:
        assert ours.shape == theirs.shape, what
        difference = (ours - theirs).abs().max().item()
        scale = max(1.0, theirs.abs().max().item())
        assert difference <= BOUND * scale, f"{what}: {difference} of {scale}"
        self.tensors += 1
        self.numbers += ours.numel()


def random_like(tensors: list[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tensor.shape, generator=generator) for tensor in tensors]


def scalar(logits: list[Tensor], contacts: list[Tensor], hidden: list[Tensor]) -> Tensor:
    """A loss that every output enters with its own random weight."""
    total = torch.zeros(())
    for seed, group in enumerate((logits, contacts, hidden)):
        for tensor, weight in zip(group, random_like(group, seed), strict=True):
            total = total + (tensor * weight).mean()
    return total


def our_loss(output: Output, model: Esm1 | Esm1b | Esm2, encoded: list[np.ndarray]) -> Tensor:
    batch = packed(model, encoded)
    assert output.logits_TV is not None
    logits = [output.logits_TV[batch.tokens(b)] for b in range(len(batch))]
    hidden = [output.hidden[1][batch.tokens(b)] for b in range(len(batch))]
    return scalar(logits, output.contacts, hidden)


def compare_gradients(
    model: Esm1 | Esm1b | Esm2, judge: nn.Module, naming: Naming, counted: Comparison, prefix: str = ""
) -> None:
    """Our gradients under their names against theirs."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    if isinstance(model, Esm2):
        gradients["rotary.inverse_frequency"] = torch.zeros_like(model.rotary.inverse_frequency)
    ours = to_theirs(model, gradients, naming)
    theirs = {name.removeprefix(prefix): parameter for name, parameter in judge.named_parameters()}
    compared = 0
    for name, parameter in theirs.items():
        if name == "contact_head.regression.weight" and not model.has_contacts:
            continue
        if name == "contact_head.regression.bias" and not model.has_contacts:
            continue
        gradient = parameter.grad
        assert gradient is not None, name
        counted.same(ours[name], gradient, f"gradient of {name}")
        compared += 1
    floating = [name for name in ours if not name.endswith("inv_freq")]
    assert compared == len(floating), "a parameter of ours has no counterpart"


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_fair_esm(family: str, tmp_path: Path) -> None:
    judge = make_judge(family)
    model = checkpoints.load(write_published(judge, tmp_path)).model
    assert isinstance(model, Esm1 | Esm1b | Esm2) and model.has_contacts == has_contacts(family)
    encoded = masked_tokens(model)
    tokens = padded(model, encoded)
    contacts = has_contacts(family)
    theirs = judge.model(tokens, repr_layers=range(LAYERS + 1), need_head_weights=True, return_contacts=contacts)
    ours = model(packed(model, encoded), EVERYTHING if contacts else ALL_BUT_CONTACTS)
    counted = Comparison()
    batch = packed(model, encoded)
    around = batch.prefix + batch.suffix
    for b, ids in enumerate(encoded):
        length = len(ids)
        for layer in range(LAYERS + 1):
            counted.same(
                ours.hidden[layer][batch.tokens(b)], theirs["representations"][layer][b, :length], f"layer {layer}"
            )
        counted.same(ours.logits_TV[batch.tokens(b)], theirs["logits"][b, :length], "logits")
        counted.same(ours.attentions[b], theirs["attentions"][b, :, :, :length, :length], "attentions")
        if contacts:
            inner = length - around
            counted.same(ours.contacts[b], theirs["contacts"][b, :inner, :inner], "contacts")
    assert counted.tensors == len(encoded) * (LAYERS + 3 + contacts)
    our_loss(ours, model, encoded).backward()
    lengths = [len(ids) for ids in encoded]
    scalar(
        [theirs["logits"][b, :length] for b, length in enumerate(lengths)],
        [theirs["contacts"][b, : length - around, : length - around] for b, length in enumerate(lengths)]
        if contacts
        else [],
        [theirs["representations"][1][b, :length] for b, length in enumerate(lengths)],
    ).backward()
    before = counted.tensors
    compare_gradients(model, judge.model, FAIR_ESM, counted)
    assert counted.tensors - before >= 16 * LAYERS and counted.numbers > 90_000


def make_hugging_face(family: str, seed: int = 0) -> nn.Module:
    """A small `EsmForMaskedLM`, random in every parameter, its frequencies rounded to fp16 as the published ones."""
    transformers = pytest.importorskip("transformers")
    config = transformers.EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=3 * WIDTH,
        max_position_embeddings=66,
        layer_norm_eps=1e-5,
        position_embedding_type="rotary" if family == "esm2" else "absolute",
        emb_layer_norm_before=family == "esm1b",
        token_dropout=True,
        attn_implementation="eager",
    )
    model = transformers.EsmForMaskedLM(config).eval()
    randomise(model, seed)
    if family == "esm2":
        model.esm.rotary_embeddings.inv_freq.copy_(model.esm.rotary_embeddings.inv_freq.half().float())
    return model


@pytest.mark.parametrize("family", ["esm1b", "esm1v", "esm2"])
def test_equals_transformers(family: str, tmp_path: Path) -> None:
    judge = make_hugging_face(family)
    judge.save_pretrained(tmp_path)
    model = checkpoints.load(tmp_path).model
    assert isinstance(model, Esm1b | Esm2)
    encoded = masked_tokens(model)
    tokens = padded(model, encoded)
    mask = (tokens != ESM1B.pad).long()
    theirs = judge(tokens, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    their_contacts = judge.predict_contacts(tokens, mask)
    assert len(theirs.hidden_states) == LAYERS + 1 and len(theirs.attentions) == LAYERS
    ours = model(packed(model, encoded), EVERYTHING)
    counted = Comparison()
    batch = packed(model, encoded)
    for b, ids in enumerate(encoded):
        length = len(ids)
        for layer in range(LAYERS + 1):
            counted.same(ours.hidden[layer][batch.tokens(b)], theirs.hidden_states[layer][b, :length], f"layer {layer}")
        counted.same(ours.logits_TV[batch.tokens(b)], theirs.logits[b, :length], "logits")
        maps = torch.stack([layer[b, :, :length, :length] for layer in theirs.attentions])
        counted.same(ours.attentions[b], maps, "attentions")
        counted.same(ours.contacts[b], their_contacts[b, : length - 2, : length - 2], "contacts")
    assert counted.tensors == len(encoded) * (LAYERS + 4)
    our_loss(ours, model, encoded).backward()
    scalar(
        [theirs.logits[b, : len(ids)] for b, ids in enumerate(encoded)],
        [their_contacts[b, : len(ids) - 2, : len(ids) - 2] for b, ids in enumerate(encoded)],
        [theirs.hidden_states[1][b, : len(ids)] for b, ids in enumerate(encoded)],
    ).backward()
    before = counted.tensors
    compare_gradients(model, judge, HUGGING_FACE, counted, prefix="esm.")
    assert counted.tensors - before >= 16 * LAYERS and counted.numbers > 90_000


def test_hidden_states_of_the_body_alone(tmp_path: Path) -> None:
    """`EsmModel` without a language-model head: the same vectors, and logits are refused."""
    judge = make_hugging_face("esm2").esm
    judge.save_pretrained(tmp_path)
    model = checkpoints.load(tmp_path).model
    encoded = masked_tokens(model)
    tokens = padded(model, encoded)
    with torch.no_grad():
        theirs = judge(tokens, attention_mask=(tokens != ESM1B.pad).long()).last_hidden_state
        ours = model(packed(model, encoded), Want(layers=(LAYERS,))).hidden[LAYERS]
    counted = Comparison()
    for b, ids in enumerate(encoded):
        counted.same(ours[packed(model, encoded).tokens(b)], theirs[b, : len(ids)], "last hidden state")
    assert counted.tensors == len(SEQUENCES)
    with pytest.raises(InputError, match="no language-model head"):
        model(packed(model, encoded), Want(logits=True))


def test_token_ids_equal_both_tokenisers(tmp_path: Path) -> None:
    esm = pytest.importorskip("esm")
    transformers = pytest.importorskip("transformers")
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    compared = 0
    for ours, theirs in ((ESM1, "ESM-1"), (ESM1B, "ESM-1b")):
        alphabet = esm.Alphabet.from_architecture(theirs)
        assert (
            tuple(alphabet.all_toks) == ours.tokens
            and alphabet.padding_idx == ours.pad
            and alphabet.mask_idx == ours.mask
        )
        for sequence in (*SEQUENCES, letters):
            _, _, tokens = alphabet.get_batch_converter()([("name", sequence)])
            assert tokens[0].tolist() == ours.encode(sequence).tolist()
            compared += tokens.numel()
    (tmp_path / "vocab.txt").write_text("\n".join(ESM1B.tokens))
    tokeniser = transformers.EsmTokenizer(str(tmp_path / "vocab.txt"))
    for sequence in (*SEQUENCES, letters):
        assert tokeniser(sequence)["input_ids"] == ESM1B.encode(sequence).tolist()
        compared += len(sequence) + 2
    assert compared > 200
