"""Transformer-XL against a plain recurrence, one token at a time; memory, leaks, layouts.

Bounds: fp32, a few dozen terms in another order; 1e-5 of the largest value is tens of roundings.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from torch import Tensor

from proteinlm import checkpoints
from proteinlm.errors import InputError
from proteinlm.inference import Runner, RunOptions
from proteinlm.models.base import Want
from proteinlm.models.relative import RelativeLayer, relative_shift
from proteinlm.models.transformer_xl import TransformerXl
from proteinlm.sequences.alphabet import STANDARD
from proteinlm.sequences.batch import PackedBatch

BOUND = 1e-5


@pytest.fixture(params=["transformer-xl", "transformer-xl-bare"])
def model(request: pytest.FixtureRequest) -> TransformerXl:
    made = tiny(request.param)
    assert isinstance(made, TransformerXl)
    return made


def proteins(*lengths: int) -> list[str]:
    random = np.random.default_rng(3)
    return ["".join(random.choice(list(STANDARD + "X"), length)) for length in lengths]


def packed(model: TransformerXl, sequences: list[str]) -> PackedBatch:
    alphabet = model.alphabet
    around = (len(alphabet.prefix), len(alphabet.suffix))
    return PackedBatch.pack([alphabet.encode(one) for one in sequences], None, *around)


def near(one: Tensor, other: Tensor) -> int:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= BOUND * max(1.0, other.abs().max().item())
    return one.numel()


def sinusoid(distance: int, width: int) -> Tensor:
    angles = torch.tensor([distance / 10000 ** (k / width) for k in range(0, width, 2)])
    return torch.cat([angles.sin(), angles.cos()])


def plain_layer(layer: RelativeLayer, own: list[Tensor], context: list[Tensor]) -> tuple[Tensor, Tensor]:
    """One token through one layer: what it sees are `context` and, at last, itself. (state, weights (H, K))"""
    attention = layer.attention
    heads, width = attention.num_heads, len(own[0])
    seen = torch.stack([*context, *own])
    query = (attention.query.weight @ own[-1]).view(heads, -1)
    key, value = (seen @ attention.key_value.weight.t()).chunk(2, dim=1)
    far = torch.stack([sinusoid(len(seen) - 1 - j, width) for j in range(len(seen))]) @ attention.distance.weight.t()
    mixed, maps = [], []
    for h in range(heads):
        part = slice(h * query.shape[1], (h + 1) * query.shape[1])
        scores = key[:, part] @ (query[h] + attention.content_bias[h])
        scores = scores + far[:, part] @ (query[h] + attention.distance_bias[h])
        maps.append(torch.softmax(scores / math.sqrt(query.shape[1]), dim=0))
        mixed.append(maps[-1] @ value[:, part])
    norm, final = layer.attention_norm, layer.feed_forward_norm
    state = F.layer_norm(own[-1] + attention.out.weight @ torch.cat(mixed), (width,), norm.weight, norm.bias, 1e-5)
    up, down = layer.feed_forward.up, layer.feed_forward.down
    inner = down.weight @ torch.relu(up.weight @ state + up.bias) + down.bias
    return F.layer_norm(state + inner, (width,), final.weight, final.bias, 1e-5), torch.stack(maps)


def plainly(model: TransformerXl, ids: Tensor) -> tuple[list[list[Tensor]], Tensor]:
    """States of every layer and token, and attention maps (N, H, L, L), by the definition."""
    config, length = model.config, len(ids)
    states = [[math.sqrt(model.width) * model.embed_tokens.weight[token] for token in ids]]
    maps = torch.zeros(model.num_layers, config.num_heads, length, length)
    for number, layer in enumerate(model.layers):
        assert isinstance(layer, RelativeLayer)
        out = []
        for i in range(length):
            first = i - i % config.segment
            # No gradient flows into what was read in segments before.
            context = [state.detach() for state in states[-1][max(0, first - config.memory) : first]]
            state, weights = plain_layer(layer, states[-1][first : i + 1], context)
            out.append(state)
            maps[number, :, i, first - len(context) : i + 1] = weights.detach()
        states.append(out)
    return states, maps


@pytest.mark.parametrize(("segment", "memory"), [(8, 6), (5, 12), (4, 4), (1, 3), (64, 9)])
def test_states_maps_logits_loss_and_gradients(model: TransformerXl, segment: int, memory: int) -> None:
    model.config = replace(model.config, segment=segment, memory=memory)
    batch = packed(model, proteins(19, 6, 19, 1))
    output = model(batch, Want(layers=(0, 1, 2), logits=True, attentions=True))
    assert output.logits_TV is not None
    loss = F.cross_entropy(output.logits_TV[:-1], batch.tokens_T[1:], reduction="sum")
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    compared, logits = 0, []
    for b in range(len(batch)):
        tokens = batch.tokens(b)
        states, maps = plainly(model, batch.tokens_T[tokens])
        for layer in range(3):
            compared += near(output.hidden[layer][tokens].detach(), torch.stack(states[layer]).detach())
        compared += near(output.attentions[b].detach(), maps)
        logits.append(torch.stack(states[-1]) @ model.embed_tokens.weight.t() + model.head_bias)
    compared += near(output.logits_TV.detach(), torch.cat(logits).detach())
    expected = F.cross_entropy(torch.cat(logits)[:-1], batch.tokens_T[1:], reduction="sum")
    expected.backward()
    compared += near(loss.detach(), expected.detach())
    for name, parameter in model.named_parameters():
        compared += near(gradients[name], parameter.grad)
    assert compared > 8_000


def test_a_later_token_changes_nothing_before_it(model: TransformerXl) -> None:
    """The leak test, across segments: states and logits up to a token depend on no token behind it."""
    (residues,) = proteins(22)
    want = Want(layers=(0, 1, 2), logits=True)
    with torch.no_grad():
        before = model(packed(model, [residues]), want)
        for place in (0, 7, 8, 21):
            other = residues[:place] + ("A" if residues[place] != "A" else "C") + residues[place + 1 :]
            after = model(packed(model, [other]), want)
            changed = place + len(model.alphabet.prefix)
            assert torch.equal(before.logits_TV[:changed], after.logits_TV[:changed])
            assert torch.equal(before.hidden[2][:changed], after.hidden[2][:changed])
            assert (before.logits_TV[changed] - after.logits_TV[changed]).abs().max() > 1e-4


def test_token_by_token_is_the_whole(model: TransformerXl) -> None:
    """Generation reads as training does: the same logits, across the ends of segments."""
    model.config = replace(model.config, segment=7, memory=4)
    batch = packed(model, proteins(18, 18, 18))
    tokens_BL = batch.tokens_T.view(3, -1)
    compared = 0
    with torch.no_grad():
        whole = model(batch, Want(logits=True)).logits_TV.view(3, tokens_BL.shape[1], -1)
        memories = [None] * model.num_layers
        for position in range(tokens_BL.shape[1]):
            logits_BV, memories = model.step(tokens_BL[:, position], memories, position)
            compared += near(logits_BV, whole[:, position])
    assert compared >= 3 * 18 * 23


def test_memory_reaches_back_beyond_the_segment(model: TransformerXl) -> None:
    """With memory the first token of a segment knows what came before; without, it does not."""
    (residues,) = proteins(12)
    other = "AC"[residues[0] == "A"] + residues[1:]
    reaches = {}
    for memory in (6, 0):
        model.config = replace(model.config, segment=6, memory=memory)
        with torch.no_grad():
            one, two = (model(packed(model, [protein]), Want(layers=(1,))).hidden[1] for protein in (residues, other))
        reaches[memory] = (one[6:] - two[6:]).abs().max().item()
    assert reaches[6] > 1e-4 and reaches[0] == 0


def test_a_kernel_asked_for_by_name_is_refused(model: TransformerXl) -> None:
    """There is one way to compute relative attention; nothing is ignored in silence."""
    with pytest.raises(InputError, match="'sdpa' was asked for, but relative attention"):
        Runner(model, RunOptions(precision="fp32", device="cpu", attention="sdpa"))


def test_relative_shift_against_an_index() -> None:
    generator = torch.Generator().manual_seed(1)
    compared = 0
    for length, keys, causal in ((1, 1, False), (4, 4, False), (5, 9, False), (4, 4, True), (3, 8, True), (1, 6, True)):
        count = keys if causal else keys + length - 1
        scores = torch.randn(2, length, count, generator=generator)
        shifted = relative_shift(scores, keys)
        for i in range(length):
            for j in range(keys - length + i + 1 if causal else keys):
                assert torch.equal(shifted[:, i, j], scores[:, i, length - 1 - i + j])
                compared += 1
    assert compared == 1 + 16 + 45 + 10 + 21 + 6


def test_import_of_export_is_equal_bit_for_bit(model: TransformerXl, tmp_path: Path) -> None:
    checkpoints.export(model, tmp_path / "hf", "hf")
    again = checkpoints.load(tmp_path / "hf").model
    assert again.config == model.config
    state = again.state_dict()
    assert len(state) == 2 * 14 + 2 and state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    names = load_file(tmp_path / "hf" / "model.safetensors")
    assert names["transformer.layers.1.dec_attn.qkv_net.weight"].shape == (
        3 * model.layers[0].attention.query.weight.shape[0],
        16,
    )
    assert names["transformer.layers.0.pos_ff.CoreNet.3.weight"].shape == (16, 24)
    assert torch.equal(names["crit.out_layers.0.weight"], names["transformer.word_emb.emb_layers.0.weight"])


def test_rows_follow_the_vocabulary_of_the_folder(model: TransformerXl, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    checkpoints.export(model, folder, "hf")
    order = np.random.default_rng(0).permutation(23).tolist()
    (folder / "vocab.txt").write_text("\n".join(model.alphabet.tokens[index] for index in order))
    state = load_file(folder / "model.safetensors")
    for name in ("transformer.word_emb.emb_layers.0.weight", "crit.out_layers.0.weight", "crit.out_layers.0.bias"):
        state[name] = state[name][order].contiguous()
    state["transformer.pos_emb.inv_freq"] = torch.ones(8)
    save_file(state, folder / "model.safetensors")
    again = checkpoints.load(folder).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("same_length", True),
        ("clamp_len", 1000),
        ("cutoffs", [10]),
        ("d_embed", 8),
        ("pre_lnorm", True),
        ("untie_r", False),
    ],
)
def test_what_cannot_be_followed_is_refused(model: TransformerXl, tmp_path: Path, field: str, value: object) -> None:
    checkpoints.export(model, tmp_path / "hf", "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(InputError, match=field):
        checkpoints.load(tmp_path / "hf")
