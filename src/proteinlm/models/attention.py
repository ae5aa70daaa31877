"""Attention over packed sequences, and the one place that chooses how it is computed.

In: queries, keys and values, heads first, how queries are to be scaled and both turned by their positions, and the
starts of the sequences in them. Out: (T, H, C). No token sees another sequence, unless keys come from a second batch:
then sequence b of the one sees sequence b of the other. What is added to scores by relative position, causal masks
included, is an `OffsetBias`. `loop` is the reference, one sequence at a time in plain matrix products; every other
kernel is tested against it. Kernels that work best on equal lengths take neighbours of equal length together.

Shape letters: T tokens in the batch, N sequences of one length taken together, L tokens of a sequence, H heads,
C channels of a head, S keys of a sequence (L, plus one where the model learned an extra key; else as many as the
second batch has).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from proteinlm.errors import InputError
from proteinlm.models import native
from proteinlm.models.attention_training import PackedAttention, Run
from proteinlm.models.offsets import OffsetBias
from proteinlm.models.positions import turn

Starts = tuple[int, ...]
ExtraKey = tuple[Float[Tensor, "H C"], Float[Tensor, "H C"]]
"""A learned key and value that every query of ESM-1 sees besides its own sequence."""

SCORES_IN_CACHE = 2**22
"""Scores worked on at a time by `matmul`: 8 MiB in bf16, which stay in cache while few calls are made."""

SAFE_EXPONENT = 60.0
"""Sums of exponentials between 2^-60 and 2^60 have lost no weight that counts, and overflow with no value (2^127)."""

SAFE_BIAS = 25.0
"""Exponentials below 2^-126 are lost; times e^25 and 2^10 keys they are nothing beside a sum of 2^-60."""


@dataclass(frozen=True)
class Heads:
    """What a kernel works on: queries, keys, values, and where each sequence starts.

    Args:
        query_HTC, key_HTC, value_HTC: shape (H, T, C); keys and values may be of another number of tokens.
        starts: B + 1 offsets, as in `PackedBatch`.
        extra: a learned key and value seen by every query, or None.
        bias: what is added to scores by relative position, or None; not together with `extra`.
        key_starts: B + 1 offsets of the keys, where they come from a second batch; None where it is the same.
        scale: queries are to be multiplied by this.
        turns_TF: channel pairs of queries and keys are to be turned by these (`positions.Rotary`), shape (T, C / 2);
            None where positions turn nothing; not together with a second batch.
    """

    query_HTC: Float[Tensor, "H T C"]
    key_HTC: Float[Tensor, "H T C"]
    value_HTC: Float[Tensor, "H T C"]
    starts: Starts
    extra: ExtraKey | None = None
    bias: OffsetBias | None = None
    key_starts: Starts | None = None
    scale: float = 1.0
    turns_TF: Complex[Tensor, "T F"] | None = None

    def __post_init__(self) -> None:
        assert self.extra is None or self.bias is None, "no model has both"
        assert self.turns_TF is None or self.key_starts is None, "a token has one position"

    def turned(self, factor: float = 1.0) -> "Heads":
        """The same with queries scaled, by `factor` too, and queries and keys turned: nothing is left to be done."""
        scale = self.scale * factor
        if self.turns_TF is None:
            query_HTC = self.query_HTC * scale if scale != 1.0 else self.query_HTC
            key_HTC = self.key_HTC.contiguous()
        else:
            query_HTC, key_HTC = turn(self.query_HTC, self.turns_TF * scale), turn(self.key_HTC, self.turns_TF)
        return replace(
            self,
            query_HTC=query_HTC,
            key_HTC=key_HTC,
            value_HTC=self.value_HTC.contiguous(),
            scale=1.0,
            turns_TF=None,
        )

    def each(self) -> Iterator[Run]:
        """Every sequence as a run of its own."""
        for (start, end), (first, last) in zip(
            pairwise(self.starts), pairwise(self.key_starts or self.starts), strict=True
        ):
            yield Run(start, end - start, first, last - first, 1)

    def runs(self) -> Iterator[Run]:
        """Neighbouring sequences of equal length, together."""
        open_run: Run | None = None
        for one in self.each():
            if open_run is not None and (open_run.length, open_run.keys) == (one.length, one.keys):
                open_run = open_run._replace(sequences=open_run.sequences + 1)
                continue
            if open_run is not None:
                yield open_run
            open_run = one
        if open_run is not None:
            yield open_run

    def take(self, run: Run) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (N, H, L, C), keys and values (N, H, S, C) of a run, the extra key appended."""
        query, key, value = (
            x[:, start : start + run.sequences * length].unflatten(1, (run.sequences, length)).transpose(0, 1)
            for x, start, length in (
                (self.query_HTC, run.start, run.length),
                (self.key_HTC, run.key_start, run.keys),
                (self.value_HTC, run.key_start, run.keys),
            )
        )
        if self.extra is not None:
            key, value = (
                torch.cat([x, learned[None, :, None].expand(run.sequences, -1, -1, -1)], dim=2)
                for x, learned in ((key, self.extra[0]), (value, self.extra[1]))
            )
        return query, key, value

    def added(self, run: Run) -> Float[Tensor, "H L S"] | None:
        """What is added to the scores of each sequence of a run, in the precision of the queries."""
        return None if self.bias is None else self.bias.matrix(run.length, run.keys, self.query_HTC.dtype)


def probabilities(heads: Heads) -> Iterator[Float[Tensor, "H L S"]]:
    """Attention maps, one sequence at a time, in fp32: the slow and plain truth.

    Yields:
        for each sequence, probabilities of shape (H, L, S); S = L, plus one column for an extra key.
    """
    heads = heads.turned()
    for run in heads.each():
        query, key, _ = heads.take(run)
        scores_HLS = query[0].float() @ key[0].float().transpose(1, 2)
        if heads.bias is not None:
            scores_HLS = scores_HLS + heads.bias.matrix(run.length, run.keys, torch.float32)
        yield torch.softmax(scores_HLS, dim=-1)


def loop(heads: Heads) -> Float[Tensor, "T H C"]:
    """The reference: one sequence at a time, softmax of a plain product. Runs anywhere, in any precision."""
    outputs = []
    for maps_HLS, run in zip(probabilities(heads), heads.each(), strict=True):
        _, _, value = heads.take(run)
        outputs.append((maps_HLS @ value[0].float()).transpose(0, 1))
    return torch.cat(outputs).to(heads.query_HTC.dtype)


def sdpa(heads: Heads) -> Float[Tensor, "T H C"]:
    """PyTorch's fused attention, one call for each run of equal lengths. Runs anywhere, in any precision."""
    heads = heads.turned()
    return torch.cat([_fused(heads, run).transpose(1, 2).flatten(0, 1) for run in heads.runs()])


def _fused(heads: Heads, run: Run) -> Float[Tensor, "N H L C"]:
    """`scaled_dot_product_attention` of one run."""
    query, key, value = heads.take(run)
    added_HLS = heads.added(run)
    if added_HLS is None:
        return F.scaled_dot_product_attention(query, key, value, scale=1.0)
    mask = added_HLS.expand(len(heads.query_HTC), -1, -1)[None].expand(run.sequences, -1, -1, -1)
    return F.scaled_dot_product_attention(query, key, value, mask, scale=1.0)


def matmul(heads: Heads) -> Float[Tensor, "T H C"]:
    """Batched matrix products on the CPU's bf16 units, with exponentials that need no row maximum.

    `scaled_dot_product_attention` runs narrow heads far below the rate of the matrix units. Here scores are two batched
    products around one in-place exp2, which needs no maximum as long as sums of exponentials stay in range
    (`SAFE_EXPONENT`). A run in which one does not takes `sdpa`. A bias multiplies the exponentials
    (`OffsetBias.factors`); everything takes `sdpa` where it is large (`SAFE_BIAS`).
    """
    if heads.bias is not None and heads.bias.largest() > SAFE_BIAS:
        return sdpa(heads)
    base_two, natural = heads.turned(math.log2(math.e)), None
    num_heads, num_tokens, channels = heads.query_HTC.shape
    output_THC = heads.query_HTC.new_empty(num_tokens, num_heads, channels)
    for run in heads.runs():
        run_NHLC = output_THC[run.span].unflatten(0, (run.sequences, run.length)).transpose(1, 2)
        factors = None if heads.bias is None else heads.bias.factors(run.length, run.keys, heads.query_HTC.dtype)
        if not _exponential_attention(base_two.take(run), factors, out=run_NHLC):
            natural = natural or heads.turned()
            run_NHLC.copy_(_fused(natural, run))
    return output_THC


def _exponential_attention(taken: tuple[Tensor, Tensor, Tensor], factors_HLS: Tensor | None, out: Tensor) -> bool:
    """softmax(q k^T) v with base-2 scores, a cacheful of heads at a time, while sums of exponentials stay in range.

    Args:
        taken: queries (N, H, L, C), scores in powers of two; keys and values (N, H, S, C).
        factors_HLS: of the exponentials, for keys in reverse order; None where there is no bias.
        out: filled, (N, H, L, C).

    Returns:
        whether all sums were in range; if not, `out` is worth nothing.
    """
    query, key, value, out = (x.transpose(0, 1) for x in (*taken, out))
    h, n, length, _ = query.shape
    if factors_HLS is not None:
        key, value, factors_HLS = key.flip(2), value.flip(2), factors_HLS.expand(h, -1, -1)
    step = max(1, SCORES_IN_CACHE // (n * length * key.shape[2]))
    for first in range(0, h, step):
        some = slice(first, min(first + step, h))
        query_, key_, value_ = (x[some].flatten(0, 1) for x in (query, key, value))
        weights = torch.bmm(query_, key_.transpose(1, 2)).exp2_()
        if factors_HLS is not None:
            weights.unflatten(0, (-1, n)).mul_(factors_HLS[some, None])
        total = weights.sum(-1, keepdim=True)
        least, most = (x.item() for x in total.aminmax())
        if not 2.0**-SAFE_EXPONENT <= least <= most <= 2.0**SAFE_EXPONENT:
            return False
        mixed = torch.bmm(weights, value_).unflatten(0, (-1, n))
        torch.div(mixed, total.unflatten(0, (-1, n)), out=out[some])
    return True


def varlen(heads: Heads) -> Float[Tensor, "T H C"]:
    """FlashAttention over variable lengths on CUDA, bf16 or fp16; one launch for the whole batch."""
    if heads.bias is not None:
        raise InputError("the varlen attention kernel takes no relative-position bias (T5); use sdpa")
    heads = heads.turned()
    lengths = [run.keys for run in heads.each()]
    device = heads.query_HTC.device
    starts_q = torch.tensor(heads.starts, dtype=torch.int32, device=device)
    query, key, value = (x.transpose(0, 1) for x in (heads.query_HTC, heads.key_HTC, heads.value_HTC))
    starts_k = torch.tensor(heads.key_starts or heads.starts, dtype=torch.int32, device=device)
    if heads.extra is not None:
        key, value = (
            torch.cat([part for piece in x.split(lengths) for part in (piece, learned[None].to(x.dtype))])
            for x, learned in ((key, heads.extra[0]), (value, heads.extra[1]))
        )
        starts_k = starts_k + torch.arange(len(heads.starts), dtype=torch.int32, device=device)
    output = varlen_attn(
        query.contiguous(),
        key.contiguous(),
        value.contiguous(),
        starts_q,
        starts_k,
        max(run.length for run in heads.each()),
        max(lengths) + (heads.extra is not None),
        scale=1.0,
    )
    assert isinstance(output, Tensor)
    return output


def compiled(heads: Heads) -> Float[Tensor, "T H C"]:
    """The optional C kernel for CPUs with AVX-512 (`models.native`); runs on the calling thread."""
    if not _plain(heads):
        raise InputError(
            "the compiled attention kernel takes no extra key (ESM-1), no relative-position bias and no second batch "
            "(T5); use matmul or sdpa"
        )
    return native.attend(
        (heads.query_HTC, heads.key_HTC, heads.value_HTC), heads.starts, heads.turns_TF, heads.scale * math.log2(math.e)
    )


def _plain(heads: Heads) -> bool:
    """Whether the queries of each sequence see the keys of that sequence, and nothing else makes a difference."""
    return heads.extra is None and heads.bias is None and heads.key_starts is None


def trainable(heads: Heads) -> Float[Tensor, "T H C"]:
    """Matrix products whose backward pass is written out (`attention_training`); any precision."""
    heads = heads.turned()
    learned = None if heads.extra is None else torch.stack(heads.extra)
    runs = tuple(heads.runs())
    added = () if heads.bias is None else tuple(heads.added(run) for run in runs)
    output: Tensor = PackedAttention.apply(heads.query_HTC, heads.key_HTC, heads.value_HTC, runs, learned, *added)
    return output.transpose(0, 1)


Kernel = Callable[[Heads], Tensor]
KERNELS: dict[str, Kernel] = {
    "loop": loop,
    "sdpa": sdpa,
    "matmul": matmul,
    "compiled": compiled,
    "trainable": trainable,
    "varlen": varlen,
}

FEW_THREADS = 4
"""The compiled kernel keeps to one thread; with more threads than this on one batch, PyTorch's kernels win."""


def choose(heads: Heads) -> str:
    """Name of the fastest kernel for these tensors on this machine.

    >>> zeros = torch.zeros(2, 4, 8)
    >>> choose(Heads(zeros, zeros, zeros, starts=(0, 4)))
    'sdpa'
    """
    query, channels = heads.query_HTC, heads.query_HTC.shape[2]
    if query.device.type == "cuda":
        low_precision = query.dtype in (torch.bfloat16, torch.float16)
        return "varlen" if low_precision and channels % 8 == 0 and heads.bias is None else "sdpa"
    if torch.is_grad_enabled() and query.requires_grad:
        return "trainable"
    fits = _plain(heads) and channels % 2 == 0 and channels <= native.MOST_CHANNELS
    if fits and torch.get_num_threads() <= FEW_THREADS and native.library(query.dtype) is not None:
        return "compiled"
    return "matmul" if query.dtype == torch.bfloat16 else "sdpa"


def attend(heads: Heads, kernel: str | None = None) -> Float[Tensor, "T H C"]:
    """softmax(q k^T) v within each sequence.

    Args:
        heads: queries, keys and values, each (H, T, C), and what is to be done with them.
        kernel: a name in `KERNELS`, which then runs or raises; None chooses by device and precision.

    Raises:
        InputError: the name is unknown, or that kernel cannot run here.

    >>> one = torch.ones(1, 3, 4)
    >>> attend(Heads(one, one, one, starts=(0, 1, 3))).shape
    torch.Size([3, 1, 4])
    """
    name = kernel or choose(heads)
    if name not in KERNELS:
        raise InputError(f"attention kernel {name!r} is unknown; choose one of {', '.join(KERNELS)}")
    return KERNELS[name](heads)
