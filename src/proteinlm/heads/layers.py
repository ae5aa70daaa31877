"""Layers of the networks, on packed proteins: nothing here lets one protein see another.

In: residue vectors end to end, and the batch that says where proteins begin. Out: the same, transformed. Layers that
draw random numbers take them from the generator they are given; without one they do what they do when predicting.
"""

import abc
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proteinlm.heads.batches import FeatureBatch, Level

Random = torch.Generator | None


class Head(nn.Module, abc.ABC):
    """A network on frozen features. Subclasses are final.

    Attributes:
        level: what an output row is: a residue, a protein or a residue pair (row by row of each protein's L x L).
        outputs: task -> number of classes, in the order of the label columns. config: its shape, a dataclass.
        mean_D, scale_D: of the features; set from the training features before training starts.
    """

    level: Level
    outputs: dict[str, int]
    config: Any
    mean_D: Tensor
    scale_D: Tensor

    def __init__(self, width: int, outputs: dict[str, int]) -> None:
        super().__init__()
        self.outputs = dict(outputs)
        self.register_buffer("mean_D", torch.zeros(width))
        self.register_buffer("scale_D", torch.ones(width))

    @abc.abstractmethod
    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        """Logits of each task, shape (R, K); with `random`, as in training."""

    def standardised(self, batch: FeatureBatch) -> Tensor:
        """The features at mean 0 and deviation 1, shape (T, D)."""
        return torch.addcmul(-self.mean_D / self.scale_D, batch.features_TD, 1 / self.scale_D)

    def split(self, logits_RK: Tensor) -> list[Tensor]:
        """The columns of each task."""
        return list(logits_RK.float().split(list(self.outputs.values()), 1))


class Convolution(nn.Module):
    """A convolution along each protein, with zeros beyond its ends.

    One matrix product gives what every residue adds to each of its neighbours; the products are then added up shifted.
    That is one large product instead of one for each place of the kernel, without padding or turning the features.

    Args:
        width: channels in. channels: out. kernel: residues that one output sees, odd.
    """

    def __init__(self, width: int, channels: int, kernel: int) -> None:
        super().__init__()
        assert kernel % 2 == 1, "a kernel has a middle"
        self.kernel, self.channels = kernel, channels
        self.weight = nn.Parameter(torch.empty(width, kernel * channels))
        self.bias = nn.Parameter(torch.empty(channels))

    def fan_in(self) -> int:
        """How many products an output is the sum of."""
        return self.weight.shape[0] * self.kernel

    def forward(self, x_TD: Tensor, batch: FeatureBatch) -> Tensor:
        gap = self.kernel // 2
        place_T = batch.spaced_T(gap)
        size = batch.starts[-1] + gap * (len(batch) + 1)
        product_TE = x_TD @ self.weight
        spaced_SE = product_TE.new_zeros(size, product_TE.shape[1]).index_copy(0, place_T, product_TE)
        spaced_SKC = spaced_SE.view(size, self.kernel, self.channels)
        # Output s adds up what residue s + k - gap has for its neighbour at distance gap - k.
        inner = size - 2 * gap
        total_SC = sum((spaced_SKC[k : k + inner, k].float() for k in range(self.kernel)), self.bias)
        assert isinstance(total_SC, Tensor)
        return total_SC.index_select(0, place_T - gap)


class BatchNorm(nn.Module):
    """Batch normalisation over the rows that there are; padding, of which there is none, cannot count."""

    mean_C: Tensor
    variance_C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean_C", torch.zeros(channels))
        self.register_buffer("variance_C", torch.ones(channels))

    def forward(self, x_RC: Tensor, training: bool) -> Tensor:
        # A single row has no variance.
        training = training and len(x_RC) > 1
        return F.batch_norm(x_RC.float(), self.mean_C, self.variance_C, self.weight, self.bias, training)


def dropout(x: Tensor, share: float, random: Random) -> Tensor:
    """Zero a random share of the entries and scale up the others; nothing without a generator."""
    if random is None or share == 0:
        return x
    kept = torch.empty(x.shape, device=x.device).bernoulli_(1 - share, generator=random)
    return x * kept / (1 - share)


def mean_by_protein(x_TD: Tensor, batch: FeatureBatch) -> Tensor:
    """Mean over the residues of each protein, shape (B, D)."""
    total_BD = x_TD.new_zeros(len(batch), x_TD.shape[1]).index_add(0, batch.protein_T(), x_TD)
    return total_BD / batch.lengths_B()[:, None]


def pad(x_TD: Tensor, batch: FeatureBatch, value: float = 0.0) -> Tensor:
    """Proteins side by side, shape (B, longest, D), filled up with `value`."""
    parts = x_TD.split(batch.lengths_B().tolist())
    return nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=value)


def unpad(x_BLD: Tensor, batch: FeatureBatch) -> Tensor:
    """The inverse of `pad`, shape (T, D)."""
    return torch.cat([x_LD[:length] for x_LD, length in zip(x_BLD, batch.lengths_B().tolist(), strict=True)])


class BidirectionalLstmLayer(nn.Module):
    """An LSTM from each end of every protein.

    Each direction runs over padded proteins, the backward one over reversed ones, so that padding comes last and tells
    nothing. A packed bidirectional `nn.LSTM` gives the same four times slower on a CPU.

    Args:
        inputs: channels in. hidden: channels of each direction.
    """

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.ahead, self.back = (nn.LSTM(inputs, hidden, batch_first=True) for _ in range(2))

    def forward(self, x_TD: Tensor, batch: FeatureBatch) -> Tensor:
        """(T, inputs) -> (T, 2 hidden)."""
        starts_B = torch.tensor(batch.starts, device=x_TD.device)
        ends_T = (starts_B[:-1] + starts_B[1:] - 1)[batch.protein_T()]
        reversed_T = ends_T - torch.arange(len(x_TD), device=x_TD.device)
        ahead_TH = unpad(self.ahead(pad(x_TD, batch))[0], batch)
        back_TH = unpad(self.back(pad(x_TD[reversed_T], batch))[0], batch)[reversed_T]
        return torch.cat([ahead_TH, back_TH], 1)


def initialise(head: nn.Module, random: torch.Generator) -> None:
    """Draw every weight from `random`: uniform within 1/sqrt(fan in), as PyTorch's own layers are by default.

    Norms keep their ones and zeros.
    """
    for module in head.modules():
        own = dict(module.named_parameters(recurse=False))
        if not own or isinstance(module, BatchNorm | nn.GroupNorm):
            continue
        if isinstance(module, nn.LSTM):
            fan_in = module.hidden_size
        elif isinstance(module, Convolution):
            fan_in = module.fan_in()
        else:
            fan_in = own["weight"][0].numel()
        with torch.no_grad():
            for parameter in own.values():
                parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=random)
