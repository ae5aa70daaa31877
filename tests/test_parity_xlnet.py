"""Every number of XLNet against `transformers`, with random weights: both streams, memory, segments, left padding.

Bounds: fp32, a few dozen terms in another order; 1e-5 of the largest value is tens of roundings.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import tiny
from torch import Tensor

from proteinlm import checkpoints
from proteinlm.checkpoints.hf_xlnet import links
from proteinlm.checkpoints.names import apart
from proteinlm.checkpoints.vocabulary import sentencepiece_bytes
from proteinlm.errors import InputError
from proteinlm.models.base import Want
from proteinlm.models.xlnet import CLASS, MASK, Xlnet
from proteinlm.sequences.alphabet import PROTXLNET, STANDARD
from proteinlm.sequences.batch import PackedBatch

transformers = pytest.importorskip("transformers")

BOUND = 1e-5


@pytest.fixture
def ours() -> Xlnet:
    model = tiny("xlnet")
    assert isinstance(model, Xlnet)
    return model


@pytest.fixture
def theirs(ours: Xlnet) -> Iterator[torch.nn.Module]:
    """Their model with our weights."""
    config = transformers.XLNetConfig(
        vocab_size=len(PROTXLNET), d_model=16, n_layer=2, n_head=2, d_inner=40, dropout=0.0, mem_len=None,
        pad_token_id=PROTXLNET.pad,
    )  # fmt: skip
    model = transformers.XLNetLMHeadModel(config).eval()
    state = apart(links(ours), ours.state_dict())
    state["lm_loss.weight"] = state["transformer.word_embedding.weight"]
    assert not model.load_state_dict(state, strict=False).unexpected_keys
    yield model


def near(one: Tensor, other: Tensor) -> int:
    assert one.shape == other.shape
    assert (one - other).abs().max() <= BOUND * max(1.0, other.abs().max().item())
    return one.numel()


def proteins(*lengths: int) -> list[str]:
    random = np.random.default_rng(3)
    return ["".join(random.choice(list(STANDARD + "XU"), length)) for length in lengths]


def packed(sequences: list[str]) -> PackedBatch:
    return PackedBatch.pack([PROTXLNET.encode(one) for one in sequences], suffix=2)


def text_segments(ids: Tensor) -> Tensor:
    """As the tokeniser says it: `<cls>` is of segment 2, padding of 3."""
    return torch.where(ids == CLASS, 2, torch.where(ids == PROTXLNET.pad, 3, 0))


@pytest.mark.parametrize("with_segments", [True, False])
def test_hidden_states_attentions_and_logits(ours: Xlnet, theirs: torch.nn.Module, with_segments: bool) -> None:
    """Padded on the left as their tokeniser does it; with text segments, and without as the publishers embed."""
    ours.config = replace(ours.config, text_segments=with_segments)
    sequences = proteins(9, 14, 1, 14)
    batch = packed(sequences)
    longest = batch.max_length
    ids = torch.full((len(sequences), longest), PROTXLNET.pad)
    for b, residues in enumerate(sequences):
        encoded = torch.from_numpy(PROTXLNET.encode(residues))
        ids[b, longest - len(encoded) :] = encoded
    with torch.no_grad():
        expected = theirs(
            input_ids=ids, attention_mask=(ids != PROTXLNET.pad).float(), use_mems=False,
            token_type_ids=text_segments(ids) if with_segments else None,
            output_hidden_states=True, output_attentions=True,
        )  # fmt: skip
        found = ours(batch, Want(layers=(0, 1, 2), logits=True, attentions=True))
    compared = 0
    for b, residues in enumerate(sequences):
        pad = longest - len(residues) - 2
        for layer in range(3):
            compared += near(found.hidden[layer][batch.tokens(b)], expected.hidden_states[layer][b, pad:])
            residue_vectors = found.hidden[layer][batch.residues(b)]
            compared += near(residue_vectors, expected.hidden_states[layer][b, pad:-2])
        compared += near(found.logits_TV[batch.tokens(b)], expected.logits[b, pad:])
        for layer in range(2):
            compared += near(found.attentions[b][layer], expected.attentions[layer][b, :, pad:, pad:])
    assert compared > 8_000


def orders(batch: PackedBatch, share: float) -> tuple[Tensor, Tensor]:
    """A random factorisation order: some residues in random order after all others; and those residues."""
    generator = torch.Generator().manual_seed(4)
    rank_T = torch.full((len(batch.tokens_T),), -1)
    for b in range(len(batch)):
        residues = torch.arange(len(rank_T))[batch.residues(b)]
        chosen = residues[torch.rand(len(residues), generator=generator) < share]
        rank_T[chosen] = torch.randperm(len(chosen), generator=generator)
    return rank_T, torch.nonzero(rank_T >= 0)[:, 0]


def permutation_mask(rank_L: Tensor) -> Tensor:
    """Theirs: 1 where the token of a row may not see the one of a column."""
    return ((rank_L[None, :] >= rank_L[:, None]) & (rank_L[None, :] >= 0)).float()


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_two_streams_loss_and_gradients(ours: Xlnet, theirs: torch.nn.Module, share: float) -> None:
    batch = packed(proteins(12, 12, 7))
    rank_T, places_M = orders(batch, share)
    found = ours.two_stream(batch, rank_T, places_M)
    loss = torch.nn.functional.cross_entropy(found.logits_MV, batch.tokens_T[places_M], reduction="sum")
    loss.backward()
    expected_loss, compared = torch.zeros(()), 0
    for b in range(len(batch)):
        tokens = batch.tokens(b)
        ids = batch.tokens_T[tokens][None]
        mine = torch.nonzero((places_M >= tokens.start) & (places_M < tokens.stop))[:, 0]
        mapping = torch.eye(ids.shape[1])[places_M[mine] - tokens.start][None]
        output = theirs(
            input_ids=ids, perm_mask=permutation_mask(rank_T[tokens])[None], target_mapping=mapping, use_mems=False,
            token_type_ids=text_segments(ids), output_hidden_states=True,
        )  # fmt: skip
        compared += near(found.logits_MV[mine], output.logits[0])
        compared += near(found.content_TD[tokens], output.hidden_states[-2][0])
        compared += near(found.query_MD[mine], output.hidden_states[-1][0])
        targets = ids[0][places_M[mine] - tokens.start]
        expected_loss = expected_loss + torch.nn.functional.cross_entropy(output.logits[0], targets, reduction="sum")
    expected_loss.backward()
    compared += near(loss.detach(), expected_loss.detach())
    gradients = apart(links(ours), {name: parameter.grad for name, parameter in ours.named_parameters()})
    for name, parameter in theirs.named_parameters():
        compared += near(gradients[name], parameter.grad)
    assert compared > 7_000


def test_memory_across_segments(ours: Xlnet, theirs: torch.nn.Module) -> None:
    """A protein of three segments, the last one short, with memory shorter and longer than a segment."""
    batch = packed(proteins(20, 5))
    rank_T, places_M = orders(batch, 0.4)
    compared = 0
    for segment, memory in ((8, 5), (8, 12)):
        ours.config = replace(ours.config, memory=memory)
        with torch.no_grad():
            found = ours.two_stream(batch, rank_T, places_M, segment)
        for b in range(len(batch)):
            tokens, mems = batch.tokens(b), None
            for first in range(tokens.start, tokens.stop, segment):
                last = min(first + segment, tokens.stop)
                ids, rank = batch.tokens_T[first:last][None], rank_T[first:last]
                mine = torch.nonzero((places_M >= first) & (places_M < last))[:, 0]
                # Without a target their model has one stream; one that nobody reads keeps both.
                where = places_M[mine] - first if len(mine) else torch.zeros(1, dtype=torch.long)
                with torch.no_grad():
                    output = theirs(
                        input_ids=ids, perm_mask=permutation_mask(rank)[None], mems=mems, use_mems=False,
                        target_mapping=torch.eye(last - first)[where][None], token_type_ids=text_segments(ids),
                        output_hidden_states=True,
                    )  # fmt: skip
                compared += near(found.content_TD[first:last], output.hidden_states[-2][0])
                if len(mine):
                    compared += near(found.logits_MV[mine], output.logits[0])
                read = [state.transpose(0, 1) for state in output.hidden_states[0:-2:2]]
                grown = read if mems is None else [torch.cat(pair) for pair in zip(mems, read, strict=True)]
                mems = [one[max(0, len(one) - memory) :] for one in grown]
    assert compared > 1_500


def test_hidden_places_are_answered_by_the_second_stream(ours: Xlnet) -> None:
    """`<mask>` in `forward` is a place that nobody sees: what stood there changes nothing else, nor the answer."""
    batch = packed(proteins(11, 6))
    places_M = torch.tensor([2, 5, 14])
    rank_T = torch.full((len(batch.tokens_T),), -1)
    rank_T[places_M] = 0
    with torch.no_grad():
        expected = ours.two_stream(batch, rank_T, places_M)
        batch.tokens_T[places_M] = MASK
        found = ours(batch, Want(layers=(2,), logits=True))
        asked = ours(batch, Want(logits=True, places_M=places_M))
    others = rank_T < 0
    assert near(found.logits_TV[places_M], expected.logits_MV) + near(asked.logits_TV, expected.logits_MV) == 2 * 3 * 37
    assert near(found.hidden[2][others], expected.content_TD[others]) == 16 * 18


def test_their_classes_load_what_we_write(ours: Xlnet, tmp_path: Path) -> None:
    checkpoints.export(ours, tmp_path / "hf", "hf")
    model = transformers.XLNetLMHeadModel.from_pretrained(tmp_path / "hf").eval()
    batch = packed(proteins(13))
    ids = batch.tokens_T[None]
    with torch.no_grad():
        expected = model(input_ids=ids, token_type_ids=text_segments(ids), use_mems=False)
        found = ours(batch, Want(logits=True))
    assert near(found.logits_TV, expected.logits[0]) == 15 * 37
    model.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "spiece.model").write_bytes((tmp_path / "hf" / "spiece.model").read_bytes())
    again = checkpoints.load(tmp_path / "theirs").model
    assert all(torch.equal(one, ours.state_dict()[name]) for name, one in again.state_dict().items())


def test_import_of_export_is_equal_bit_for_bit(ours: Xlnet, tmp_path: Path) -> None:
    checkpoints.export(ours, tmp_path / "hf", "hf")
    again = checkpoints.load(tmp_path / "hf").model
    assert again.config == ours.config
    state = again.state_dict()
    assert len(state) == 2 * 16 + 3 and state.keys() == ours.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())


def test_rows_follow_the_vocabulary_of_the_folder(ours: Xlnet, tmp_path: Path) -> None:
    """A folder whose spiece.model has another order holds the same model, with its rows in that order."""
    folder = tmp_path / "hf"
    checkpoints.export(ours, folder, "hf")
    order = [*range(17), *np.random.default_rng(0).permutation(np.arange(17, 37)).tolist()]
    shuffled = replace(PROTXLNET, tokens=tuple(PROTXLNET.tokens[index] for index in order))
    (folder / "spiece.model").write_bytes(sentencepiece_bytes(shuffled, unknown=0))
    state = load_file(folder / "model.safetensors")
    for name in ("transformer.word_embedding.weight", "lm_loss.bias"):
        state[name] = state[name][order].contiguous()
    save_file(state, folder / "model.safetensors")
    again = checkpoints.load(folder).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in ours.state_dict().items())
    (folder / "spiece.model").unlink()
    with pytest.raises(InputError, match=r"has no spiece\.model"):
        checkpoints.load(folder)
