"""UniRep: a recurrent model whose every step multiplies the residue into the state (multiplicative LSTM).

In: a packed batch of `<start>` + residues. Out: the hidden states of the recurrent layers and the logits of the *next*
token, in the order of the batch. Inside, the tokens are laid out time-major, longest sequence first, so that one step
of the recurrence is one matrix product over the sequences that are still running and a finished one simply drops out:
no padding is computed. Source: papers.md 8.4 (Alley et al. 2019, `unirep.py`).

Shape letters beside those of `sequences.batch`: N sequences running at one step, I input channels of a layer, S tokens
of a block of steps, G = 4D channels of the four gates.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.models.base import Output, Preparable, ProteinModel, Want, require_fp32
from proteinlm.sequences.alphabet import UNIREP
from proteinlm.sequences.batch import PackedBatch

NORM_FLOOR = 1e-12
"""Smallest squared column norm, as in TensorFlow's `l2_normalize`."""

BLOCK_TOKENS = 4096
"""Tokens whose input projections exist at once: 5D floats each, so 155 MB for UniRep-1900 whatever the batch."""

PACKING_WIDTH = 256
"""Layers from this width on use oneDNN's own weight layout on a CPU. Measured on two Zen 5 cores in fp32, 50 proteins
to a batch, against plain `torch.mm`: UniRep-1900 runs 2.3 times faster, UniRep-256 1.3 times, UniRep-64 slower."""


@dataclass(frozen=True)
class UniRepConfig:
    """Shape of a UniRep model.

    Args:
        width: channels D of a hidden state.
        num_layers: recurrent layers, each reading the hidden states of the one below.
        embedding_width: channels of the token embedding.

    >>> PRESETS[256]
    UniRepConfig(width=256, num_layers=4, embedding_width=10)
    """

    width: int
    num_layers: int
    embedding_width: int = 10


PRESETS: dict[int, UniRepConfig] = {
    1900: UniRepConfig(width=1900, num_layers=1),
    256: UniRepConfig(width=256, num_layers=4),
    64: UniRepConfig(width=64, num_layers=4),
}
"""The three published models by width (papers.md 8.4)."""


class UniRep(ProteinModel):
    """The multiplicative LSTM language model of Alley et al. 2019.

    `hidden[k]` is the sequence of hidden states of recurrent layer k, 1 to `num_layers`. There is no `hidden[0]`: the
    embedding has 10 channels, not D. The state after token t has read tokens 0 to t, so `logits_TV[t]` are about token
    t + 1; column v is alphabet token v. The head was trained without a `<pad>` target (25 outputs, target = id - 1),
    hence column 0 is minus infinity: `<pad>` has probability zero, and softmax or cross-entropy over the 26 columns
    equal those over the 25. The published average representation is the mean over `<start>` and the residues.

    A new model draws from torch's generator: column directions from N(0, 1/I) with lengths 1 (the original's lengths),
    biases 0 but 1 for the forget gate (Jozefowicz et al. 2015), embedding N(0, 1).

    Args:
        config: the shape; `PRESETS` has the published ones.

    >>> model = UniRep(PRESETS[64])
    >>> batch = PackedBatch.pack([UNIREP.encode("MKT"), UNIREP.encode("MARV")], prefix=1)
    >>> output = model(batch, Want(layers=(4,), logits=True))
    >>> output.hidden[4].shape, output.logits_TV.shape, output.hidden[4][batch.residues(1)].shape
    (torch.Size([9, 64]), torch.Size([9, 26]), torch.Size([4, 64]))
    """

    precisions: tuple[torch.dtype, ...] = (torch.float32,)
    """What `prepare` takes. bf16 is refused: its error accumulates in the state (see `prepare_weights`)."""
    logits_ahead = True

    def __init__(self, config: UniRepConfig) -> None:
        super().__init__()
        self.config = config
        self.alphabet = UNIREP
        self.num_layers = config.num_layers
        self.width = config.width
        self.max_residues = None
        self.embedding = nn.Embedding(len(UNIREP), config.embedding_width)
        input_widths = [config.embedding_width] + [config.width] * (config.num_layers - 1)
        self.layers = nn.ModuleList(MultiplicativeLSTM(inputs, config.width) for inputs in input_widths)
        self.head = nn.Linear(config.width, len(UNIREP) - 1)

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run the model over one packed batch.

        Args:
            batch: token ids with `<start>` in front of every sequence.
            want: hidden layers from 1 to `num_layers`, and / or logits.

        Returns:
            hidden states (T, D) and next-token logits (T, 26), both fp32, in the order of the batch.

        Raises:
            InputError: for layer 0, contacts or attentions.
        """
        self.check(want)
        if 0 in want.layers:
            raise InputError(
                f"layer 0 of UniRep is a {self.config.embedding_width}-channel embedding, not a state of "
                f"{self.width} channels; name a layer in 1..{self.num_layers}"
            )
        output = Output()
        order_T, running = time_major(batch)
        place_T = torch.argsort(order_T)
        states_T = self.embedding(batch.tokens_T[order_T])
        last = self.num_layers if want.logits else max(want.layers, default=0)
        for number, layer in enumerate(self.layers[:last], start=1):
            states_T = layer(states_T, running)
            if number in want.layers:
                output.hidden[number] = states_T[place_T]
        if want.logits:
            wanted_MD = self.wanted(states_T[place_T], want)
            output.logits_TV = nn.functional.pad(self.head(wanted_MD), (1, 0), value=-torch.inf)
        return output


def time_major(batch: PackedBatch) -> tuple[Int[Tensor, "T"], list[int]]:
    """The order in which a recurrence reads a packed batch: step by step, longest sequence first.

    Returns:
        order_T: for each place of the time-major layout, the token of `batch` that stands there.
        running: how many sequences have a token at each step; never grows, sums to T.

    >>> batch = PackedBatch.pack([np.array([24, 1]), np.array([24, 2, 3])], prefix=1)
    >>> order_T, running = time_major(batch)
    >>> batch.tokens_T[order_T].tolist(), running
    ([24, 24, 2, 1, 3], [2, 2, 1])
    """
    starts = np.array(batch.starts[:-1])
    lengths = np.diff(batch.starts)
    starts = starts[np.argsort(-lengths, kind="stable")]
    running = len(lengths) - np.searchsorted(np.sort(lengths), np.arange(batch.max_length), side="right")
    order = np.concatenate([starts[:count] + step for step, count in enumerate(running)])
    return torch.from_numpy(order).to(batch.tokens_T.device), running.tolist()


def step_blocks(running: list[int]) -> Iterator[tuple[slice, list[int]]]:
    """Cut the time-major layout between steps into blocks of about `BLOCK_TOKENS`.

    Yields:
        where a block stands in the layout, and how many sequences run at each of its steps.
    """
    ends = list(accumulate(running))
    first_step, first_token = 0, 0
    for step, end in enumerate(ends):
        if end - first_token >= BLOCK_TOKENS or step == len(ends) - 1:
            yield slice(first_token, end), running[first_step : step + 1]
            first_step, first_token = step + 1, end


class NormalisedMatrix(nn.Module):
    """A matrix whose columns keep their direction and their length in separate parameters (weight normalisation).

    Called, it gives the matrix itself, shape (inputs, outputs): `scale * direction / |direction|`, per column.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.scale = nn.Parameter(torch.ones(outputs))

    def forward(self) -> Float[Tensor, "I O"]:
        square_norm_O = self.direction.square().sum(dim=0)
        return self.direction * (self.scale * square_norm_O.clamp(min=NORM_FLOOR).rsqrt())


@dataclass(frozen=True)
class CellWeights:
    """The matrices of one layer as the recurrence multiplies with them.

    Args:
        input: token to multiplier and gates in one product, shape (I, D + G).
        bias: shape (D + G,), zero for the multiplier.
        hidden_to_multiplier: shape (D, D), plain or in oneDNN's layout.
        multiplied_to_gates: shape (D, G), plain or in oneDNN's layout.
    """

    input: Tensor
    bias: Tensor
    hidden_to_multiplier: Tensor
    multiplied_to_gates: Tensor

    def step(
        self, multiplier_ND: Tensor, gates_NG: Tensor, hidden_ND: Tensor, cell_ND: Tensor
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "N D"]]:
        """One token of every running sequence: the projected input and the old state give the new state and cell."""
        multiplied_ND = multiplier_ND * _product(hidden_ND, self.hidden_to_multiplier)
        gates_NG = _product(multiplied_ND, self.multiplied_to_gates, gates_NG)
        width = hidden_ND.shape[1]
        input_gate, forget_gate, output_gate = gates_NG[:, : 3 * width].sigmoid().chunk(3, dim=1)
        cell_ND = torch.addcmul(forget_gate * cell_ND, input_gate, gates_NG[:, 3 * width :].tanh())
        return output_gate * cell_ND.tanh(), cell_ND


class MultiplicativeLSTM(nn.Module, Preparable):
    """One recurrent layer: an LSTM whose state is multiplied by a projection of the input before it meets the gates.

    m = (x Wmx) * (h Wmh); z = x Wx + m Wh + b, split into the gates i, f, o and the update u;
    c = sigmoid(f) c + sigmoid(i) tanh(u); h = sigmoid(o) tanh(c). State h and cell c start at zero.

    Args:
        inputs: channels I of the layer's input.
        width: channels D of its state.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.input_to_multiplier = NormalisedMatrix(inputs, width)
        self.hidden_to_multiplier = NormalisedMatrix(width, width)
        self.input_to_gates = NormalisedMatrix(inputs, 4 * width)
        self.multiplied_to_gates = NormalisedMatrix(width, 4 * width)
        self.bias = nn.Parameter(torch.cat([torch.zeros(width), torch.ones(width), torch.zeros(2 * width)]))
        self._prepared: CellWeights | None = None

    def prepare_weights(self, precision: torch.dtype) -> None:
        """Compute the normalised matrices once, and lay the recurrent ones out for oneDNN where that is faster.

        Only fp32. With matrix products in bf16 and the cell in fp32, the published weights keep a per-protein cosine of
        0.99997 to fp32, but single residues fall to 0.9985 (1900) and 0.9996 (64), for 1.2 times the speed at best.

        Raises:
            InputError: for any other precision.
        """
        require_fp32(precision, "UniRep")
        on_cpu = self.bias.device.type == "cpu"
        with torch.no_grad():
            self._prepared = self._weights()
            if self.width >= PACKING_WIDTH and on_cpu and torch.backends.mkldnn.is_available():
                self._prepared = replace(
                    self._prepared,
                    hidden_to_multiplier=_packed(self._prepared.hidden_to_multiplier),
                    multiplied_to_gates=_packed(self._prepared.multiplied_to_gates),
                )

    def _weights(self) -> CellWeights:
        return CellWeights(
            torch.cat([self.input_to_multiplier(), self.input_to_gates()], dim=1),
            torch.cat([torch.zeros_like(self.bias[: self.width]), self.bias]),
            self.hidden_to_multiplier(),
            self.multiplied_to_gates(),
        )

    def forward(self, input_TI: Float[Tensor, "T I"], running: list[int]) -> Float[Tensor, "T D"]:
        """Hidden states of a time-major layout (`time_major`), in the same layout."""
        weights = self._prepared or self._weights()
        hidden = cell = input_TI.new_zeros(running[0], self.width)
        states = []
        for block, counts in step_blocks(running):
            projected_S = torch.addmm(weights.bias, input_TI[block], weights.input)
            # split() rather than slices: its backward pass is one concatenation, not one full-size tensor per step.
            multiplier_S, gates_S = projected_S.split([self.width, 4 * self.width], dim=1)
            steps = zip(counts, multiplier_S.split(counts), gates_S.split(counts), strict=True)
            for count, multiplier_ND, gates_NG in steps:
                hidden, cell = weights.step(multiplier_ND, gates_NG, hidden[:count], cell[:count])
                states.append(hidden)
        return torch.cat(states)


def _packed(weight_IO: Tensor) -> Tensor:
    """The matrix in oneDNN's own layout, so that a product of a few rows with it need not copy it first."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_IO.t().contiguous())
    return packed


def _product(rows_NI: Tensor, weight: Tensor, addend_NO: Tensor | None = None) -> Tensor:
    """Multiply rows by a matrix, and add, with the kernel that the layout of the matrix asks for."""
    if weight.is_mkldnn:
        output_NO: Tensor = torch.ops.mkldnn._linear_pointwise(rows_NI, weight, None, "none", [], "")
        return output_NO if addend_NO is None else output_NO + addend_NO
    return torch.mm(rows_NI, weight) if addend_NO is None else torch.addmm(addend_NO, rows_NI, weight)
