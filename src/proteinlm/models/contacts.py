"""Attention maps on their way out: kept whole for whoever asked, or folded into residue contacts as they arise.

In: one map at a time from `SelfAttention`. Out: attention tensors, or contact probabilities (papers.md 8.1). A contact
logit is a weighted sum over all maps, so each map is symmetrised, corrected and added at once; no more than one layer's
maps are ever held for contacts.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from proteinlm.models.base import Output, Want
from proteinlm.sequences.batch import PackedBatch


def average_product_correction(maps_HLL: Float[Tensor, "H L L"]) -> Float[Tensor, "H L L"]:
    """Subtract from each entry what its row and column sums alone predict: row sum x column sum / total.

    >>> average_product_correction(torch.ones(1, 2, 2)).abs().max().item()
    0.0
    """
    row_HL1, column_H1L = maps_HLL.sum(2, keepdim=True), maps_HLL.sum(1, keepdim=True)
    return maps_HLL - row_HL1 * column_H1L / maps_HLL.sum((1, 2), keepdim=True)


class ContactHead(nn.Module):
    """Logistic regression from attention maps to residue contacts (fair-esm `ContactPredictionHead`).

    Args:
        num_layers, num_heads: of the model; the weights are indexed layer * num_heads + head.
    """

    def __init__(self, num_layers: int, num_heads: int) -> None:
        super().__init__()
        bound = (num_layers * num_heads) ** -0.5
        self.weight = nn.Parameter(torch.empty(num_layers, num_heads).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(1))

    def contribution(self, maps_HLL: Float[Tensor, "H L L"], layer: int) -> Float[Tensor, "L L"]:
        """What the maps of one layer, BOS and EOS removed, add to the contact logits."""
        corrected_HLL = average_product_correction(maps_HLL + maps_HLL.transpose(1, 2))
        return torch.einsum("h,hij->ij", self.weight[layer].float(), corrected_HLL)


class MapCollector:
    """Takes every attention map of a forward pass and fills `Output.attentions` and `Output.contacts`.

    Args:
        batch: the packed batch. want: what is asked for. head: contact head, or None where contacts are not wanted.
    """

    def __init__(self, batch: PackedBatch, want: Want, head: ContactHead | None) -> None:
        self.batch = batch
        self.want = want
        self.head = head
        self.attentions: list[list[Tensor]] = [[] for _ in range(len(batch))]
        self.logits: list[Tensor | None] = [None] * len(batch)

    def __call__(self, layer: int, b: int, maps_HLS: Float[Tensor, "H L S"]) -> None:
        """Take the maps of one layer and one sequence; a column of an extra key is dropped."""
        length = maps_HLS.shape[1]
        maps_HLL = maps_HLS[:, :, :length]
        if self.want.attentions:
            self.attentions[b].append(maps_HLL)
        if self.want.contacts and self.head is not None:
            inner = slice(self.batch.prefix, length - self.batch.suffix)
            added_LL = self.head.contribution(maps_HLL[:, inner, inner], layer)
            before = self.logits[b]
            self.logits[b] = added_LL if before is None else before + added_LL

    def finish(self, output: Output) -> None:
        """Write what was collected into `output`."""
        if self.want.attentions:
            output.attentions = [torch.stack(layers) for layers in self.attentions]
        if self.want.contacts and self.head is not None:
            output.contacts = [torch.sigmoid(logit + self.head.bias) for logit in self.logits if logit is not None]
