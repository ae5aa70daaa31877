"""Attention with a gradient, for training on the CPU.

In: queries, keys, values (H, T, C) and the starts of the sequences. Out: (T, H, C), differentiable. Autograd through
`attention.sdpa` writes a zero-filled copy of the whole batch for every slice it takes; here the backward pass is
written out, so that each sequence's gradient goes straight to its place. The weights of every sequence are kept for
the backward pass (H L^2 numbers); gradient checkpointing keeps those of one layer at a time.

Shape letters as in `attention`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Runs = tuple[tuple[int, int, int], ...]
"""(first token, length, how many) of neighbouring sequences of equal length."""


def _take(x_HTC: Tensor, run: tuple[int, int, int], learned_HC: Tensor | None = None) -> Tensor:
    """A run's sequences as one stack of matrices, (H N, L, C); (H N, L + 1, C) with a learned key or value."""
    start, length, n = run
    x_HNLC = x_HTC[:, start : start + n * length].unflatten(1, (n, length))
    if learned_HC is not None:
        x_HNLC = torch.cat([x_HNLC, learned_HC[:, None, None].expand(-1, n, -1, -1)], dim=2)
    return x_HNLC.flatten(0, 1)


class PackedAttention(torch.autograd.Function):
    """softmax(q k^T) v within each sequence, with the gradients of q, k, v and of a learned key and value."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, runs: Runs, learned: Tensor | None) -> Tensor:
        """Queries (scaled), keys, values (H, T, C) and learned key and value (2, H, C) or None -> (H, T, C)."""
        output = torch.empty_like(query)
        learned_key, learned_value = (None, None) if learned is None else learned
        kept = []
        for run in runs:
            start, length, n = run
            scores = torch.bmm(_take(query, run), _take(key, run, learned_key).transpose(1, 2))
            weights = torch.softmax(scores, dim=-1)
            mixed = torch.bmm(weights, _take(value, run, learned_value))
            output[:, start : start + n * length] = mixed.view(len(query), n * length, -1)
            kept.append(weights)
        ctx.runs = runs
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
        for run, weights in zip(ctx.runs, kept, strict=True):
            start, length, n = run
            mixed = _take(grad_output, run)
            by_value = torch.bmm(weights.transpose(1, 2), mixed)
            by_weight = torch.bmm(mixed, _take(value, run, learned_value).transpose(1, 2))
            by_score = torch._softmax_backward_data(by_weight, weights, -1, weights.dtype)
            by_query = torch.bmm(by_score, _take(key, run, learned_key))
            by_key = torch.bmm(by_score.transpose(1, 2), _take(query, run))
            parts = [part.unflatten(0, (len(query), n)) for part in (by_query, by_key, by_value)]
            for grad, part_HNSC in zip(grads, parts, strict=True):
                grad[:, start : start + n * length] = part_HNSC[:, :, :length].flatten(1, 2)
            if grad_learned is not None:
                grad_learned += torch.stack([part_HNSC[:, :, length].sum(1) for part_HNSC in parts[1:]])
        return (*grads, None, grad_learned)
