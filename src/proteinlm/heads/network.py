"""The networks that the papers put on frozen features: CNN, BiLSTM, pooled FNN, light attention, contact ResNet.

In: packed features of proteins. Out: logits per residue, protein or residue pair, for one or several tasks at once. All
standardise their input first, which the papers do not say; other deviations stand with each class.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from proteinlm.heads.batches import FeatureBatch
from proteinlm.heads.layers import (
    BatchNorm,
    BidirectionalLstmLayer,
    Convolution,
    Head,
    Random,
    dropout,
    initialise,
    mean_by_protein,
    pad,
)


@dataclass(frozen=True)
class CnnConfig:
    """Shape of a `ResidueCnn`; the defaults are ProtTrans' (papers.md 7.2).

    Args:
        width: of the features. outputs: task -> classes. hidden: channels between the convolutions. kernel: of both.
    """

    width: int
    outputs: dict = field(default_factory=lambda: {"q8": 8})
    hidden: int = 32
    kernel: int = 7
    dropout: float = 0.25


class ResidueCnn(Head):
    """Convolution, ReLU, dropout, and a convolution for each task (ProtTrans, papers.md 7.2).

    >>> head = ResidueCnn(CnnConfig(width=4, outputs={"q3": 3, "q8": 8}))
    >>> batch = FeatureBatch(torch.zeros(5, 4), (0, 2, 5))
    >>> [tuple(logits.shape) for logits in head(batch, None)]
    [(5, 3), (5, 8)]
    """

    level = "residue"

    def __init__(self, config: CnnConfig) -> None:
        super().__init__(config.width, config.outputs)
        self.config = config
        self.first = Convolution(config.width, config.hidden, config.kernel)
        self.second = Convolution(config.hidden, sum(config.outputs.values()), config.kernel)

    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        x_TC = self.first(self.standardised(batch), batch).relu()
        return self.split(self.second(dropout(x_TC, self.config.dropout, random), batch))


@dataclass(frozen=True)
class LstmConfig:
    """Shape of a `ResidueLstm`. The paper's is filters 32, kernels 129 and 257, hidden 1024 (papers.md 4.3).

    The defaults are a small one that trains on a CPU; `LstmConfig(width, outputs, 32, 129, 257, 1024)` is the paper's.
    """

    width: int
    outputs: dict = field(default_factory=lambda: {"q8": 8})
    filters: int = 16
    kernel: int = 9
    longer_kernel: int = 17
    hidden: int = 64
    layers: int = 2
    dropout: float = 0.5


class ResidueLstm(Head):
    """NetSurfP-2.0's network: two parallel convolutions beside the features, batch norm, BiLSTMs (papers.md 4.3).

    Deviation: dropout between the recurrent layers, none inside their recurrence.
    """

    level = "residue"

    def __init__(self, config: LstmConfig) -> None:
        super().__init__(config.width, config.outputs)
        self.config = config
        self.short = Convolution(config.width, config.filters, config.kernel)
        self.long = Convolution(config.width, config.filters, config.longer_kernel)
        joined, both = config.width + 2 * config.filters, 2 * config.hidden
        self.norm = BatchNorm(joined)
        self.recurrent = nn.ModuleList(
            BidirectionalLstmLayer(joined if layer == 0 else both, config.hidden) for layer in range(config.layers)
        )
        self.last = nn.Linear(both, sum(config.outputs.values()))

    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        share = self.config.dropout
        x_TD = dropout(self.standardised(batch), share, random)
        seen_TD = [x_TD, self.short(x_TD, batch).relu(), self.long(x_TD, batch).relu()]
        x_TD = self.norm(torch.cat(seen_TD, 1), random is not None)
        for layer in self.recurrent:
            x_TD = layer(dropout(x_TD, share, random), batch)
        return self.split(self.last(dropout(x_TD, share, random)))


@dataclass(frozen=True)
class FnnConfig:
    """Shape of a `PooledFnn`; the defaults are ProtTrans' (papers.md 7.2)."""

    width: int
    outputs: dict = field(default_factory=lambda: {"q10": 10, "q2": 2})
    hidden: int = 32
    dropout: float = 0.25


class PooledFnn(Head):
    """Mean over residues, linear, dropout, ReLU, linear for each task (ProtTrans, papers.md 7.2).

    Features may be means already: then each protein is one row.
    """

    level = "protein"

    def __init__(self, config: FnnConfig) -> None:
        super().__init__(config.width, config.outputs)
        self.config = config
        self.first = nn.Linear(config.width, config.hidden)
        self.second = nn.Linear(config.hidden, sum(config.outputs.values()))

    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        pooled_BD = mean_by_protein(self.standardised(batch), batch)
        return self.split(self.second(dropout(self.first(pooled_BD), self.config.dropout, random).relu()))


@dataclass(frozen=True)
class LightAttentionConfig:
    """Shape of a `LightAttention`; the defaults are the published ones (papers.md 7.2)."""

    width: int
    outputs: dict = field(default_factory=lambda: {"q10": 10, "q2": 2})
    kernel: int = 9
    hidden: int = 32
    dropout: float = 0.25


class LightAttention(Head):
    """One convolution weighs the residues of another; weighted sum and maximum make the protein (papers.md 7.2)."""

    level = "protein"

    def __init__(self, config: LightAttentionConfig) -> None:
        super().__init__(config.width, config.outputs)
        self.config = config
        self.values = Convolution(config.width, config.width, config.kernel)
        self.weights = Convolution(config.width, config.width, config.kernel)
        self.first = nn.Linear(2 * config.width, config.hidden)
        self.norm = BatchNorm(config.hidden)
        self.second = nn.Linear(config.hidden, sum(config.outputs.values()))

    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        x_TD, share = self.standardised(batch), self.config.dropout
        values_TD = dropout(self.values(x_TD, batch), share, random)
        weights_BLD = pad(self.weights(x_TD, batch), batch, float("-inf")).softmax(1)
        attended_BD = (weights_BLD * pad(values_TD, batch)).sum(1)
        largest_BD = pad(values_TD, batch, float("-inf")).amax(1)
        x_BC = dropout(self.first(torch.cat([attended_BD, largest_BD], 1)), share, random).relu()
        return self.split(self.second(self.norm(x_BC, random is not None)))


@dataclass(frozen=True)
class ContactResNetConfig:
    """Shape of a `ContactResNet`. The paper's has 32 blocks; projection 128 and channels 64 are likely (papers.md 4.4).

    The defaults are a small one that trains on a CPU.
    """

    width: int
    projection: int = 32
    channels: int = 24
    blocks: int = 8


class ContactResNet(Head):
    """Projected features of both residues, then residual blocks of 3 x 3 with dilation 1, 2, 4 (papers.md 4.4)."""

    level = "pair"

    def __init__(self, config: ContactResNetConfig) -> None:
        super().__init__(config.width, {"contact": 2})
        self.config = config
        self.project = nn.Linear(config.width, config.projection)
        # One product with the residue of the row, one with that of the column: a 1 x 1 convolution of their pair.
        self.row = nn.Linear(config.projection, config.channels)
        self.column = nn.Linear(config.projection, config.channels, bias=False)
        self.blocks = nn.ModuleList(
            nn.Conv2d(config.channels, config.channels, 3, padding=2 ** (block % 3), dilation=2 ** (block % 3))
            for block in range(config.blocks)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, config.channels) for _ in range(config.blocks))
        self.last = nn.Linear(config.channels, 1)

    def forward(self, batch: FeatureBatch, random: Random) -> list[Tensor]:
        x_TC = self.project(self.standardised(batch)).relu()
        logits = []
        for x_LC in x_TC.split(batch.lengths_B().tolist()):
            pair_LLC = self.row(x_LC)[:, None] + self.column(x_LC)[None]
            x_1CLL = pair_LLC.permute(2, 0, 1)[None]
            for block, norm in zip(self.blocks, self.norms, strict=True):
                x_1CLL = x_1CLL + block(norm(x_1CLL).relu())
            logits.append(pair_logits(self.last(x_1CLL[0].permute(1, 2, 0))[..., 0]))
        return [torch.cat(logits)]


def pair_logits(score_LL: Tensor) -> Tensor:
    """Logits of no contact and of contact, one row a pair, shape (L * L, 2); the score of (i, j) is that of (j, i)."""
    symmetric_LL = (score_LL + score_LL.T).float() / 2
    return torch.stack([torch.zeros_like(symmetric_LL), symmetric_LL], -1).view(-1, 2)


def build(make: Callable[..., Head], config: object, seed: int) -> Head:
    """A head with weights drawn from `seed`; PyTorch's global generator is left as it was.

    >>> first, again = (build(PooledFnn, FnnConfig(width=3), seed=1) for _ in range(2))
    >>> torch.equal(first.get_parameter("first.weight"), again.get_parameter("first.weight"))
    True
    """
    with torch.random.fork_rng(devices=[]):
        head = make(config)
    initialise(head, torch.Generator().manual_seed(seed))
    return head
