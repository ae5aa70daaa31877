"""fair-esm's own models as judges: small, with random parameters, and written in the layout of the published files."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import Esm1
from proteinlm.sequences.batch import PackedBatch

LAYERS, WIDTH, HEADS = 3, 48, 4
SEQUENCES = ("MKTVRQGAAXBUZO", "LAGVSERTIDPKQNFYMHWC", "MAC", "WYVKLLPTMAHEDQ")
MASKED = ((0, 3), (1, 0), (1, 19), (3, 7))
"""Sequence and residue (from 0) of the residues that are replaced by a mask."""

FAMILIES = ("esm1", "esm1-bias-dropout", "esm1b", "esm1v", "esm2", "esm2-no-dropout")


@dataclass
class Judge:
    """A fair-esm model.

    Attributes:
        model, alphabet: of fair-esm. content: what a published checkpoint of it would hold, contact regression apart.
        regression: the same for the contact regression file; None for ESM-1v.
    """

    model: nn.Module
    alphabet: object
    content: dict
    regression: dict | None


def randomise(module: nn.Module, seed: int, std: float = 0.2) -> None:
    """Give every parameter its own random values: fresh biases are zero and fresh norms one, which hides errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0.0, std, generator=generator)


def make_judge(family: str, seed: int = 0) -> Judge:
    """A small fair-esm model of one family, random in every parameter."""
    esm = pytest.importorskip("esm")
    if family.startswith("esm2"):
        alphabet = esm.Alphabet.from_architecture("ESM-1b")
        model = esm.ESM2(LAYERS, WIDTH, HEADS, alphabet, token_dropout=family == "esm2")
    else:
        modern = family in ("esm1b", "esm1v")
        alphabet = esm.Alphabet.from_architecture("roberta_large" if modern else "protein_bert_base")
        model = esm.ProteinBertModel(_arguments(family), alphabet)
    randomise(model, seed)
    if family.startswith("esm2"):  # the published frequencies were rounded to fp16 once
        for layer in model.layers:
            buffer = layer.self_attn.rot_emb.inv_freq
            buffer.copy_(buffer.half().float())
    return Judge(model.eval(), alphabet, *_published(family, model))


def _arguments(family: str) -> argparse.Namespace:
    sizes = {"layers": LAYERS, "embed_dim": WIDTH, "attention_heads": HEADS, "ffn_embed_dim": 3 * WIDTH}
    if family in ("esm1b", "esm1v"):
        return argparse.Namespace(
            **sizes, arch="roberta_large", max_positions=64, token_dropout=True, emb_layer_norm_before=family == "esm1b"
        )
    odd = family == "esm1-bias-dropout"
    return argparse.Namespace(**sizes, arch="protein_bert_base", final_bias=odd, token_dropout=odd)


def _published(family: str, model: nn.Module) -> tuple[dict, dict | None]:
    """The state under the names of the published files, and their arguments."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    contact = {name: state.pop(name) for name in list(state) if name.startswith("contact_head.")}
    regression = None if family == "esm1v" else {"model": contact}
    if family.startswith("esm1-") or family == "esm1":
        arguments = vars(_arguments(family))
        sizes = {
            f"decoder_{name}": arguments.pop(name)
            for name in ("layers", "embed_dim", "attention_heads", "ffn_embed_dim")
        }
        named = {f"decoder.{name}": tensor for name, tensor in state.items()}
        return {"args": argparse.Namespace(**sizes, **arguments, lr=[1e-4]), "model": named}, regression
    head = {f"encoder.{name}": state.pop(name) for name in list(state) if name.startswith("lm_head.")}
    named = {**{f"encoder.sentence_encoder.{name}": tensor for name, tensor in state.items()}, **head}
    if family.startswith("esm2"):
        arguments = argparse.Namespace(
            arch="esm", encoder_layers=LAYERS, encoder_embed_dim=WIDTH, encoder_attention_heads=HEADS
        )
        arguments.token_dropout = family == "esm2"
        return {"args": None, "cfg": {"model": arguments, "task": {"seed": 1}}, "model": named}, regression
    arguments = vars(_arguments(family))
    del arguments["emb_layer_norm_before"]
    sizes = {
        f"encoder_{name}": arguments.pop(name) for name in ("layers", "embed_dim", "attention_heads", "ffn_embed_dim")
    }
    return {"args": argparse.Namespace(**sizes, **arguments), "model": named}, regression


def write_published(judge: Judge, folder: Path, stem: str = "weights") -> Path:
    """The files that fair-esm publishes; the name says nothing of the architecture."""
    torch.save(judge.content, folder / f"{stem}.pt")
    if judge.regression is not None:
        torch.save(judge.regression, folder / f"{stem}-contact-regression.pt")
    return folder / f"{stem}.pt"


def masked_tokens(model: ProteinModel) -> list[np.ndarray]:
    """Token ids of `SEQUENCES` with `MASKED` residues replaced, BOS and EOS in place."""
    encoded = [model.alphabet.encode(sequence) for sequence in SEQUENCES]
    for sequence, residue in MASKED:
        encoded[sequence][residue + len(model.alphabet.prefix)] = model.alphabet.mask
    return encoded


def packed(model: ProteinModel, encoded: list[np.ndarray]) -> PackedBatch:
    """One packed batch."""
    return PackedBatch.pack(encoded, prefix=len(model.alphabet.prefix), suffix=len(model.alphabet.suffix))


def padded(model: ProteinModel, encoded: list[np.ndarray]) -> Tensor:
    """The same tokens as the judges want them: rows of equal length, padded."""
    rows = [torch.from_numpy(ids) for ids in encoded]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.alphabet.pad)


def has_contacts(family: str) -> bool:
    """Whether the published checkpoints of a family have a contact regression."""
    return family != "esm1v"


def is_esm1(model: ProteinModel) -> bool:
    """Whether a model is of the first generation, without EOS and final norm."""
    return isinstance(model, Esm1)
