"""What every model is: a module that turns a packed batch into the outputs that the caller named, and nothing else.

In: `PackedBatch` and `Want`. Out: `Output`, whose tensors are token-addressable through the batch that made them
(`batch.residues(b)`), so that an id, a residue and its vector cannot come apart.
"""

import abc
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch


@dataclass(frozen=True)
class Want:
    """What a forward pass is to return; whatever is not named is not computed.

    Args:
        layers: hidden states to keep, 0 (the embedding) to `num_layers` (what the head reads).
        logits: alphabet logits of every token.
        places_M: the tokens whose logits are wanted, int64, shape (M,); None for every token.
        attentions: attention maps of every layer and head, per sequence (memory grows with layers x heads x L^2).
        contacts: contact probabilities of residue pairs, per sequence.
        replaced: for every token, how likely it is not the original one (ELECTRA's discriminator).
    """

    layers: tuple[int, ...] = ()
    logits: bool = False
    attentions: bool = False
    contacts: bool = False
    places_M: Int[Tensor, "M"] | None = None
    replaced: bool = False


@dataclass
class Output:
    """What a forward pass returned: exactly what `Want` named.

    Attributes:
        hidden: layer -> hidden states, shape (T, D).
        logits_TV: shape (T, V), or (M, V) where `Want.places_M` names tokens; None unless wanted.
        attentions: per sequence, shape (num_layers, H, L, L) over its tokens; empty unless wanted.
        contacts: per sequence, probabilities of shape (L, L) over its residues; empty unless wanted.
        replaced_T: log odds that each token was replaced, shape (T,); None unless wanted.
    """

    hidden: dict[int, Float[Tensor, "T D"]] = field(default_factory=dict)
    logits_TV: Float[Tensor, "T V"] | None = None
    attentions: list[Float[Tensor, "N H L L"]] = field(default_factory=list)
    contacts: list[Float[Tensor, "L L"]] = field(default_factory=list)
    replaced_T: Float[Tensor, "T"] | None = None


def require_fp32(precision: torch.dtype, model: str) -> None:
    """Refuse any other precision for a recurrent model, whose state adds up rounding over a long protein.

    Raises:
        InputError: for any other precision.
    """
    if precision != torch.float32:
        raise InputError(
            f"precision {str(precision).removeprefix('torch.')} is not available for {model}: "
            "its recurrence accumulates rounding errors; use fp32"
        )


class ProteinModel(nn.Module, abc.ABC):
    """A protein language model. Subclasses are final: they set the attributes below and write `forward`.

    Attributes:
        alphabet: the token table the model was trained with.
        num_layers: index of the last hidden state.
        width: channels D of a hidden state.
        max_residues: longest sequence the model has positions for; None where there is no limit.
        has_contacts, has_attentions, has_logits, has_replaced: whether `Want` of that name can be answered.
        attention_kernel: a name in `attention.KERNELS` that every layer is to use; None chooses.
        takes_kernels: whether attention is computed by `attention.KERNELS`; relative attention has a way of its own.
        logits_ahead: whether the logits at a token are about the next one instead of the token itself.
        precisions: those that `prepare` takes.
        recompute_layers: whether training keeps only what enters each layer, and computes what is inside again for the
            backward pass: less memory, one more forward pass, the same numbers.
    """

    alphabet: Alphabet
    num_layers: int
    width: int
    max_residues: int | None
    has_contacts: bool = False
    has_attentions: bool = False
    attention_kernel: str | None = None
    takes_kernels: bool = True
    precisions: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    has_logits: bool = True
    has_replaced: bool = False
    logits_ahead: bool = False
    recompute_layers: bool = False

    @abc.abstractmethod
    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run the model over one packed batch and return what `want` names."""

    def through(self, layer: nn.Module, *inputs: Any) -> Any:
        """What `layer` makes of its inputs; see `recompute_layers`."""
        if self.recompute_layers and torch.is_grad_enabled():
            # No layer draws random numbers, so that the generator need not be put back.
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs)

    def wanted(self, hidden_TD: Float[Tensor, "T D"], want: Want) -> Float[Tensor, "M D"]:
        """The hidden states whose logits are wanted."""
        return hidden_TD if want.places_M is None else hidden_TD[want.places_M]

    def prepare(self, precision: torch.dtype) -> "ProteinModel":
        """Make the model ready for inference in `precision`, in place; weights may be cast and laid out for kernels.

        A prepared model can no longer be trained or saved.
        """
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, Preparable):
                module.prepare_weights(precision)
        return self

    def check(self, want: Want) -> None:
        """Raise `InputError` if `want` names what this model cannot give."""
        for layer in want.layers:
            if not 0 <= layer <= self.num_layers:
                raise InputError(
                    f"layer {layer} is outside 0..{self.num_layers} of this model; name a layer in that range"
                )
        if want.contacts and not self.has_contacts:
            raise InputError(
                "contacts were asked for, but this checkpoint has no contact head; "
                "use one that has (ESM-1, ESM-1b and ESM-2 checkpoints with contact regression)"
            )
        if want.logits and not self.has_logits:
            raise InputError(
                "logits were asked for, but this checkpoint has no language-model head; use one that was saved with it"
            )
        if want.replaced and not self.has_replaced:
            raise InputError(
                "replaced tokens were asked for, but this checkpoint has no head that tells them; ELECTRA's "
                "discriminators have one"
            )
        if want.attentions and not self.has_attentions:
            raise InputError("attention maps were asked for, but this model has no attention")


class Preparable(abc.ABC):
    """A part of a model that lays its weights out for inference."""

    @abc.abstractmethod
    def prepare_weights(self, precision: torch.dtype) -> None:
        """Cast and lay out the weights for inference in `precision`, in place."""


def computing_in(weight: Tensor) -> torch.dtype:
    """The precision in which products with a weight are computed: autocast's where it is on, or else its own.

    What goes into a product is cast to this and nothing else: a detour over the weight's fp32 would be exact, and cost
    two passes over the activations in each direction.
    """
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
