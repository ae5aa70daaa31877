"""Attention with a gradient, for training on the CPU.

In: queries, keys, values (H, T, C) and the runs of sequences in them. Out: (T, H, C), differentiable. Autograd through
`attention.sdpa` writes a zero-filled copy of the whole batch for every slice it takes; here the backward pass is
written out, so that each sequence's gradient goes straight to its place. The weights of every sequence are kept for
the backward pass (H L^2 numbers); gradient checkpointing keeps those of one layer at a time.

Shape letters as in `attention`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Run(NamedTuple):
    """Neighbouring sequences of equal length: where they start, how long they are, and how many.

    `key_start` and `keys` say the same of the keys, which are other tokens where they come from a second batch.
    """

    start: int
    length: int
    key_start: int
    keys: int
    sequences: int

    @property
    def span(self) -> slice:
        """All tokens of the run."""
        return slice(self.start, self.start + self.sequences * self.length)

    @property
    def key_span(self) -> slice:
        """All keys of the run."""
        return slice(self.key_start, self.key_start + self.sequences * self.keys)


def _queries(x_HTC: Tensor, run: Run) -> Tensor:
    """A run's sequences as one stack of matrices, (H N, L, C)."""
    return x_HTC[:, run.span].unflatten(1, (run.sequences, run.length)).flatten(0, 1)


def _keys(x_HTC: Tensor, run: Run, learned_HC: Tensor | None) -> Tensor:
    """The same of keys or values, (H N, S, C); the learned one comes last."""
    x_HNSC = x_HTC[:, run.key_span].unflatten(1, (run.sequences, run.keys))
    if learned_HC is not None:
        x_HNSC = torch.cat([x_HNSC, learned_HC[:, None, None].expand(-1, run.sequences, -1, -1)], dim=2)
    return x_HNSC.flatten(0, 1)


class PackedAttention(torch.autograd.Function):
    """softmax(q k^T + bias) v within each sequence, with gradients of all that is learned."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        runs: tuple[Run, ...],
        learned: Tensor | None,
        *added_HLS: Tensor,
    ) -> Tensor:
        """Queries (scaled), keys, values (H, T, C), learned key and value (2, H, C) or None, a bias per run or none."""
        output = torch.empty_like(query)
        learned_key, learned_value = (None, None) if learned is None else learned
        kept = []
        for index, run in enumerate(runs):
            scores = torch.bmm(_queries(query, run), _keys(key, run, learned_key).transpose(1, 2))
            if added_HLS:
                scores.unflatten(0, (-1, run.sequences)).add_(added_HLS[index][:, None])
            weights = torch.softmax(scores, dim=-1)
            mixed = torch.bmm(weights, _keys(value, run, learned_value))
            output[:, run.span] = mixed.view(len(query), run.sequences * run.length, -1)
            kept.append(weights)
        ctx.runs, ctx.heads_of_bias = runs, [len(one) for one in added_HLS]
        ctx.save_for_backward(query, key, value, learned, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of what `forward` took."""
        query, key, value, learned, *kept = ctx.saved_tensors
        learned_key, learned_value = (None, None) if learned is None else learned
        grads = tuple(torch.empty_like(x) for x in (query, key, value))
        grad_learned = None if learned is None else torch.zeros_like(learned)
        grad_added: list[Tensor | None] = []
        for index, (run, weights) in enumerate(zip(ctx.runs, kept, strict=True)):
            mixed = _queries(grad_output, run)
            # A product that reads the weights as they lie, and gives the transpose, runs faster.
            by_value = torch.bmm(mixed.transpose(1, 2), weights).transpose(1, 2)
            by_weight = torch.bmm(mixed, _keys(value, run, learned_value).transpose(1, 2))
            by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
            by_query = torch.bmm(by_score, _keys(key, run, learned_key))
            by_key = torch.bmm(_queries(query, run).transpose(1, 2), by_score).transpose(1, 2)
            if ctx.heads_of_bias:
                needed = ctx.needs_input_grad[5 + index]
                grad_added.append(_of_bias(by_score, run, ctx.heads_of_bias[index]) if needed else None)
            parts = [part.unflatten(0, (len(query), run.sequences)) for part in (by_query, by_key, by_value)]
            for grad, part_HNSC, span, length in zip(
                grads, parts, (run.span, run.key_span, run.key_span), (run.length, run.keys, run.keys), strict=True
            ):
                grad[:, span] = part_HNSC[:, :, :length].flatten(1, 2)
            if grad_learned is not None:
                grad_learned += torch.stack([part_HNSC[:, :, run.keys].sum(1) for part_HNSC in parts[1:]])
        return (*grads, None, grad_learned, *grad_added)


def _of_bias(by_score: Tensor, run: Run, heads_of_bias: int) -> Tensor:
    """Gradient of a bias that all sequences of a run share, and all heads where it is one for all."""
    by_head_HLS = by_score.unflatten(0, (-1, run.sequences)).sum(1)
    return by_head_HLS if heads_of_bias == len(by_head_HLS) else by_head_HLS.sum(0, keepdim=True)
