"""Attention with relative positions, causal masks and keys from a second batch: every kernel against the plain loop.

Bounds as in `test_attention`. A bias moves no bound but one: what it adds to a score is rounded with the score, or as
an exponential on its own, so that |score| there includes it.
"""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from test_attention import LENGTHS, in_fp32, make_heads
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.models import attention
from proteinlm.models.attention import KERNELS, SAFE_BIAS, Heads, attend
from proteinlm.models.offsets import OffsetBias, RelativePositions, buckets, causal

KINDS = ["bias", "causal bias", "causal", "second batch", "second batch, bias"]
WITH_BIAS = ["sdpa", "matmul", "trainable"]
KEY_LENGTHS = [1 + (7 * length) % 60 for length in LENGTHS]


def row(heads: int, size: float = 1.0) -> Tensor:
    reach = max(LENGTHS) - 1
    return size * torch.randn(heads, 2 * reach + 1, generator=torch.Generator().manual_seed(9))


def with_kind(kind: str, dtype: torch.dtype, size: float = 1.0) -> Heads:
    heads, reach = make_heads(16, dtype), max(LENGTHS) - 1
    if kind == "causal":
        return replace(heads, bias=OffsetBias(causal(reach)))
    if kind == "causal bias":
        return replace(heads, bias=OffsetBias(row(3, size) + causal(reach)))
    if "second batch" in kind:
        starts = (0, *torch.tensor(KEY_LENGTHS).cumsum(0).tolist())
        key, value = torch.randn(2, 3, starts[-1], 16, generator=torch.Generator().manual_seed(3)).to(dtype)
        heads = replace(heads, key_HTC=key, value_HTC=value, key_starts=starts)
    return replace(heads, bias=OffsetBias(row(3, size)) if "bias" in kind else None)


def exact(heads: Heads) -> Heads:
    return replace(in_fp32(heads), bias=heads.bias, key_starts=heads.key_starts)


def by_hand(heads: Heads) -> Tensor:
    """One query at a time, scores and bias from the definitions."""
    found = []
    key_starts = heads.key_starts or heads.starts
    for (start, end), (first, last) in zip(pairwise(heads.starts), pairwise(key_starts), strict=True):
        for i in range(end - start):
            scores_HS = torch.einsum(
                "hc,hsc->hs", heads.query_HTC[:, start + i].double(), heads.key_HTC[:, first:last].double()
            )
            if heads.bias is not None:
                at = heads.bias.reach - i
                scores_HS = scores_HS + heads.bias.by_offset_HO[:, at : at + last - first].double()
            weights_HS = torch.softmax(scores_HS, -1)
            found.append(torch.einsum("hs,hsc->hc", weights_HS, heads.value_HTC[:, first:last].double()))
    return torch.stack(found).float()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_is_what_the_definition_says(kind: str) -> None:
    heads = with_kind(kind, torch.float32)
    ours, expected = attend(heads, "loop"), by_hand(heads)
    assert ours.shape == expected.shape == (sum(LENGTHS), 3, 16)
    assert (ours - expected).abs().max().item() < 1e-5


@pytest.mark.parametrize("name", WITH_BIAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_kernels_equal_the_loop(name: str, kind: str, dtype: torch.dtype) -> None:
    heads = with_kind(kind, dtype)
    expected = KERNELS["loop"](exact(heads))
    with torch.no_grad():
        ours = attend(heads, name)
    assert ours.dtype == dtype and ours.shape == expected.shape
    scores = max(
        (query[0].float() @ key[0].float().transpose(1, 2)).abs().max().item()
        for query, key, _ in map(heads.take, heads.each())
    )
    largest = scores + (heads.bias.largest() if heads.bias is not None else 0.0)
    bound = 1e-5 if dtype == torch.float32 else (3 + 2 * largest) * 2.0**-9 * heads.value_HTC.float().abs().max().item()
    assert (ours.float() - expected).abs().max().item() <= bound


def test_matmul_leaves_a_large_bias_to_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where exp2 of score and bias together could leave the range, the row maximum is found."""
    called = []
    original = attention._fused
    monkeypatch.setattr(attention, "_fused", lambda heads, run: called.append(run) or original(heads, run))
    for size, expected in ((1.0, 0), (60.0, len(list(with_kind("bias", torch.bfloat16).runs())))):
        heads = with_kind("bias", torch.bfloat16, size)
        assert heads.bias is not None
        assert (heads.bias.largest() > SAFE_BIAS) == (expected > 0)
        called.clear()
        with torch.no_grad():
            ours = attend(heads, "matmul")
        assert len(called) == expected and torch.isfinite(ours).all()


@pytest.mark.parametrize("name", ["loop", *WITH_BIAS])
def test_no_query_sees_a_later_key(name: str) -> None:
    """In a causal mask, what comes later may be anything, and the value at the last place reaches the last query."""
    heads = with_kind("causal bias", torch.float32)
    changed = replace(heads, value_HTC=heads.value_HTC.clone(), key_HTC=heads.key_HTC.clone())
    start, end = heads.starts[50], heads.starts[51]
    changed.value_HTC[:, end - 3 : end] += 7.0
    changed.key_HTC[:, end - 3 : end] -= 1.0
    with torch.no_grad():
        before, after = attend(heads, name), attend(changed, name)
    same = (before == after).all(-1).all(-1)
    assert end - start > 40 and same[: end - 3].all() and same[end:].all() and not same[end - 3 : end].any()


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_loop(kind: str) -> None:
    """Queries, keys, values and the row of offsets; the bound is that of fp32 sums over 70 tokens."""

    def gradients(kernel: str) -> list[Tensor]:
        heads = with_kind(kind, torch.float32)
        leaves = [heads.query_HTC, heads.key_HTC, heads.value_HTC]
        if heads.bias is not None:
            leaves.append(heads.bias.by_offset_HO)
        for leaf in leaves:
            leaf.requires_grad_()
        output = attend(heads, kernel)
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        (output * weights).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    ours, expected = gradients("trainable"), gradients("loop")
    assert len(ours) == len(expected) == (4 if "bias" in kind or kind == "causal" else 3)
    for one, other in zip(ours, expected, strict=True):
        assert other.abs().max() > 0.1
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["compiled", "varlen"])
def test_kernels_that_take_no_bias_say_so(name: str) -> None:
    with pytest.raises(InputError, match=r"takes no .*relative-position bias"):
        attend(with_kind("bias", torch.bfloat16), name)


def test_what_is_chosen() -> None:
    with torch.no_grad():
        assert [attention.choose(with_kind(kind, torch.bfloat16)) for kind in KINDS] == ["matmul"] * len(KINDS)
        assert attention.choose(with_kind("bias", torch.float32)) == "sdpa"


def test_layers_share_what_is_made_of_a_bias() -> None:
    bias = OffsetBias(row(3))
    assert bias.matrix(5, 5, torch.float32) is bias.matrix(5, 5, torch.float32)
    assert bias.factors(5, 9, torch.bfloat16).data_ptr() - bias.factors(5, 8, torch.bfloat16).data_ptr() == -2
    assert torch.equal(bias.factors(5, 9, torch.float32), bias.matrix(5, 9, torch.float32).exp().flip(2))


def test_a_table_of_buckets() -> None:
    """Every offset has the number of its bucket; a decoder hides what comes later."""
    for is_causal in (False, True):
        table = RelativePositions(2, 32, 128, is_causal)
        torch.nn.init.normal_(table.weight)
        bias = table(200)
        assert bias.by_offset_HO.shape == (2, 399)
        for offset in (-199, -128, -20, -1, 0, 1, 9, 130):
            bucket = int(buckets(torch.tensor(offset), 32, 128, both_sides=not is_causal))
            expected = torch.full((2,), -math.inf) if is_causal and offset > 0 else table.weight[bucket]
            assert torch.equal(bias.by_offset_HO[:, 199 + offset], expected)
