"""Parts that architectures share: projections, self-attention, feed-forward, pre- and post-norm layers, masked heads.

In and out: (T, D) tensors of packed tokens. No part knows which model it serves. The residual stream keeps the
precision of the embedding (fp32), while projections may compute in bf16; sums of both are therefore exact to fp32.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float
from torch import Tensor, nn

from proteinlm.models.attention import Heads, Starts, attend, probabilities
from proteinlm.models.base import Output, Preparable, ProteinModel, Want, computing_in
from proteinlm.models.convolution import DepthwiseConvolution, GappedLayout

Activation = Literal["none", "gelu", "gelu_tanh", "relu"]
_ACTIVATE: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda y: y,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
_FUSED = {"none": ("none", "none"), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "relu": ("relu", "none")}
"""What oneDNN calls an activation, and its algorithm."""


class Projection(nn.Module, Preparable):
    """activation(x W^T + b). On the CPU, `prepare_weights` lays W out once in oneDNN's own order.

    Args:
        inputs, outputs: channels in and out.
        activation: "none", "relu" (T5), "gelu" (the erf form), or "gelu_tanh" (its approximation, ALBERT's `gelu_new`).
        bias: whether b is added (T5 has none).
    """

    def __init__(self, inputs: int, outputs: int, activation: Activation = "none", bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.activation = activation
        self.packed: Tensor | None = None
        nn.init.xavier_uniform_(self.weight)

    def prepare_weights(self, precision: torch.dtype) -> None:
        """Cast to `precision`; on the CPU also prepack, which saves a copy of W per call and opens fused GELU."""
        self.to(precision)
        if self.weight.device.type == "cpu" and torch.backends.mkldnn.is_available():
            self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.detach())
            del self.weight

    def forward(self, x: Float[Tensor, "*T I"]) -> Float[Tensor, "*T O"]:
        """Project channels, (..., inputs) -> (..., outputs), in the precision of the weights or of autocast."""
        if self.packed is not None:
            x = x.to(self.packed.dtype)
            name, algorithm = _FUSED[self.activation]
            output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, name, [], algorithm)
            return output
        return _ACTIVATE[self.activation](F.linear(x.to(computing_in(self.weight)), self.weight, self.bias))


MapSink = Callable[[int, int, Float[Tensor, "H L S"]], None]
"""Takes attention maps as they arise: layer (from 0), sequence, probabilities."""


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of one forward pass share.

    Args:
        starts: B + 1 offsets of the sequences in the packed tokens.
        turns_TF: rotary turns of each token, or None for models without.
        maps: called with every attention map, or None when nobody asked for maps.
        kernel: attention kernel by name; None chooses.
        layout: for the convolutions, or None for models without.
    """

    starts: Starts
    turns_TF: Complex[Tensor, "T F"] | None = None
    maps: MapSink | None = None
    kernel: str | None = None
    layout: GappedLayout | None = None


class SelfAttention(nn.Module):
    """Multi-head self-attention; queries, keys and values come from one fused projection.

    Args:
        width: channels D. num_heads: H; divides D.
        extra_key: learn one more key and value that every token sees (ESM-1, papers.md 2.2).
    """

    def __init__(self, width: int, num_heads: int, extra_key: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (width // num_heads) ** -0.5
        self.qkv = Projection(width, 3 * width)
        self.out = Projection(width, width)
        # fairseq initialises the fused matrix with gain 1/sqrt(2), as three separate ones would come out.
        nn.init.xavier_uniform_(self.qkv.weight, gain=1 / math.sqrt(2))
        self.extra_key = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, width))[0]) if extra_key else None
        self.extra_value = nn.Parameter(nn.init.xavier_normal_(torch.empty(1, width))[0]) if extra_key else None

    def forward(self, x_TD: Float[Tensor, "T D"], layer: int, context: AttentionContext) -> Float[Tensor, "T D"]:
        """Attend within each sequence, (T, D) -> (T, D). `layer` only labels the maps."""
        query, key, value = self.qkv(x_TD).unflatten(-1, (3, self.num_heads, -1)).permute(1, 2, 0, 3)
        extra = self._extra(value)
        heads = Heads(query, key, value, context.starts, extra, scale=self.scale, turns_TF=context.turns_TF)
        if context.maps is not None:
            for b, maps_HLS in enumerate(probabilities(heads)):
                context.maps(layer, b, maps_HLS)
        return self.out(attend(heads, context.kernel).flatten(1))

    def _extra(self, like: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.extra_key is None or self.extra_value is None:
            return None
        shape = (self.num_heads, -1)
        return self.extra_key.view(shape).to(like.dtype), self.extra_value.view(shape).to(like.dtype)


class FeedForward(nn.Module):
    """down(activation(up(x))), (T, D) -> (T, D) through `inner` channels."""

    def __init__(self, width: int, inner: int, activation: Activation = "gelu") -> None:
        super().__init__()
        self.up = Projection(width, inner, activation)
        self.down = Projection(inner, width)

    def forward(self, x_TD: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Apply to every token alone."""
        output: Tensor = self.down(self.up(x_TD))
        return output


class PreNormLayer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)), with a reach feed_forward(convolution(norm(x))).

    Args:
        width, num_heads, inner: D, H and the feed-forward width.
        epsilon: of both norms. extra_key: see `SelfAttention`. reach: of the convolution; None for none.
    """

    def __init__(
        self, width: int, num_heads: int, inner: int, epsilon: float, extra_key: bool = False, reach: int | None = None
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.attention = SelfAttention(width, num_heads, extra_key)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)
        self.convolution = None if reach is None else DepthwiseConvolution(width, reach)
        self.feed_forward = FeedForward(width, inner)

    def forward(self, x_TD: Float[Tensor, "T D"], layer: int, context: AttentionContext) -> Float[Tensor, "T D"]:
        """One layer, (T, D) -> (T, D)."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), layer, context)
        y_TD = self.feed_forward_norm(x_TD)
        if self.convolution is not None:
            assert context.layout is not None, "a model with convolutions lays its batches out"
            y_TD = self.convolution(y_TD, context.layout)
        return x_TD + self.feed_forward(y_TD)


class PostNormLayer(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + feed_forward(x)), as BERT, ALBERT and ELECTRA have it (papers.md 8.3).

    Args:
        width, num_heads, inner: D, H and the feed-forward width.
        epsilon: of both norms. activation: between the two projections of the feed-forward part.
    """

    def __init__(self, width: int, num_heads: int, inner: int, epsilon: float, activation: Activation = "gelu") -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.feed_forward = FeedForward(width, inner, activation)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)

    def forward(self, x_TD: Float[Tensor, "T D"], layer: int, context: AttentionContext) -> Float[Tensor, "T D"]:
        """One layer, (T, D) -> (T, D)."""
        x_TD = self.attention_norm(x_TD + self.attention(x_TD, layer, context))
        return self.feed_forward_norm(x_TD + self.feed_forward(x_TD))


def run_layers(
    model: ProteinModel,
    layers: Iterable[nn.Module],
    x_TD: Float[Tensor, "T D"],
    context: AttentionContext,
    want: Want,
    output: Output,
) -> Float[Tensor, "T D"]:
    """Run a stack whose last hidden state is what its last layer gives, and keep the states that `want` names.

    Args:
        model: whose layers these are. layers: in order; the same one may come again. x_TD: what enters the first.
        context: shared by all layers. want: names the states to keep. output: takes them.
    """
    index = 0
    for index, layer in enumerate(layers, start=1):
        if index - 1 in want.layers:
            output.hidden[index - 1] = x_TD
        x_TD = model.through(layer, x_TD, index - 1, context)
    if index in want.layers:
        output.hidden[index] = x_TD
    return x_TD


class MaskedHead(nn.Module):
    """The language-model head of BERT and its kin: dense, gelu, norm, then the tied embedding and a bias.

    Args:
        width: channels D of the hidden states. num_tokens: V.
        embedding_width: channels E of the embedding; None, D.
        epsilon: of the norm. activation: after the dense projection.

    Source: papers.md 2.3 (RoBERTa, ESM-1b), 8.3 (BERT, ALBERT, ELECTRA's generator).
    """

    def __init__(
        self,
        width: int,
        num_tokens: int,
        embedding_width: int | None = None,
        epsilon: float = 1e-5,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.dense = Projection(width, embedding_width or width, activation)
        self.norm = nn.LayerNorm(embedding_width or width, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(num_tokens))

    def forward(self, x_TD: Float[Tensor, "T D"], embedding_VE: Tensor) -> Float[Tensor, "T V"]:
        """Logits (T, V) from hidden states (T, D) and the embedding (V, E), in the embedding's precision."""
        return F.linear(self.norm(self.dense(x_TD).to(embedding_VE.dtype)), embedding_VE, self.bias)


def token_dropout(embedded_TD: Tensor, is_mask_T: Tensor, starts: Starts) -> Float[Tensor, "T D"]:
    """Zero the embedding of mask tokens and rescale each sequence as in training (papers.md 2.4).

    In training 0.15 x 0.8 of the tokens were masked; a sequence with another share is scaled by
    (1 - 0.12) / (1 - share). An unmasked sequence is therefore scaled by 0.88.

    Args:
        embedded_TD: embeddings, shape (T, D). is_mask_T: which tokens are masks. starts: B + 1 offsets.
    """
    lengths_B = torch.diff(torch.tensor(starts, device=embedded_TD.device))
    share_B = torch.stack([part.float().mean() for part in is_mask_T.split(lengths_B.tolist())])
    scale_T = torch.repeat_interleave((1 - 0.15 * 0.8) / (1 - share_B), lengths_B, output_size=len(is_mask_T))
    scale_T = scale_T.masked_fill(is_mask_T, 0.0)
    return embedded_TD * scale_T[:, None].to(embedded_TD.dtype)
