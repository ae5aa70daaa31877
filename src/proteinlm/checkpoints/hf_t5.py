"""Hugging Face folders of ProtT5: encoder and decoder, or the encoder alone, in full or half precision.

In: a folder. Out: `Contents`; and back, so that `T5ForConditionalGeneration`, `T5EncoderModel` and `T5Tokenizer` load
what we write. Whether there is a decoder is what the tensors say. Copies of the embedding, which older files hold under
three names, must equal it. Where a `spiece.model` lies beside the weights, it says which row stands for which token.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.checkpoints.contents import Contents, count_layers, meta_model, require_layers, require_names, weights_of
from proteinlm.checkpoints.files import Tensors
from proteinlm.checkpoints.hf_family import Family, Fields, Files, read_weights, require_fixed, whole_numbers
from proteinlm.checkpoints.names import has_part, require_tied
from proteinlm.checkpoints.vocabulary import read_sentencepiece, rows_of, sentencepiece_bytes
from proteinlm.config import from_dict
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.t5 import EPSILON, T5, T5Config, T5Encoder, T5EncoderConfig
from proteinlm.sequences.alphabet import PROTT5, Alphabet

EMBEDDING = "shared.weight"
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
IGNORED = ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",)
"""A table that the first files hold by mistake and that T5 never reads."""

FIXED: dict[str, tuple[object, ...]] = {
    "vocab_size": (len(PROTT5),),
    "layer_norm_epsilon": (EPSILON,),
    "feed_forward_proj": ("relu",),
    "is_gated_act": (False,),
    "dense_act_fn": ("relu",),
    "tie_word_embeddings": (True,),
    "scale_decoder_outputs": (True,),
    "pad_token_id": (PROTT5.pad,),
    "eos_token_id": (PROTT5.suffix[0],),
    "decoder_start_token_id": (PROTT5.pad, None),
}
"""Fields of `config.json` that may have one value only; nothing published of proteins differs."""

DEFAULTS: dict[str, object] = {"vocab_size": 32128}
"""What `transformers` assumes where `config.json` does not say."""

SIZES = {
    "num_layers": "num_layers",
    "width": "d_model",
    "num_heads": "num_heads",
    "head_width": "d_kv",
    "inner": "d_ff",
    "buckets": "relative_attention_num_buckets",
    "furthest": "relative_attention_max_distance",
}
ASSUMED = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}
"""Sizes that older files leave out."""

PIECES: Alphabet = dataclasses.replace(PROTT5, tokens=PROTT5.tokens[:28], mask=None)
"""What is in `spiece.model`; the tokeniser adds the sentinels behind it."""

_INSIDE = {
    "attention_norm": ("layer.0.layer_norm",),
    "attention.qkv": ("layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v"),
    "attention.out": ("layer.0.SelfAttention.o",),
    "cross_attention_norm": ("layer.1.layer_norm",),
    "cross_attention.query": ("layer.1.EncDecAttention.q",),
    "cross_attention.key_value": ("layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"),
    "cross_attention.out": ("layer.1.EncDecAttention.o",),
    "feed_forward_norm": ("layer.{last}.layer_norm",),
    "feed_forward.up": ("layer.{last}.DenseReluDense.wi",),
    "feed_forward.down": ("layer.{last}.DenseReluDense.wo",),
}
_OUTSIDE = {
    "positions": "block.0.layer.0.SelfAttention.relative_attention_bias",
    "final_norm": "final_layer_norm",
}
"""papers.md 8.3. `last` is 1 in an encoder and 2 in a decoder."""


def _links(model: ProteinModel) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every tensor of a model with its names in their layout; several, where they keep apart what is one here."""
    for name in model.state_dict():
        if name == "embed_tokens.weight":
            yield name, (EMBEDDING,)
            continue
        stack, rest = name.removesuffix(".weight").split(".", 1)
        inside = re.fullmatch(r"layers\.(\d+)\.(.+)", rest)
        if inside is None:
            yield name, (f"{stack}.{_OUTSIDE[rest]}.weight",)
            continue
        last = 1 if stack == "encoder" else 2
        yield name, tuple(f"{stack}.block.{inside[1]}.{part.format(last=last)}.weight" for part in _INSIDE[inside[2]])


def read(folder: Path, fields: Fields) -> Contents:
    """Read a folder of `model_type` "t5".

    Raises:
        InputError: fields that are not followed, or tensors that do not fit.
    """
    source = str(folder)
    require_fixed(fields, FIXED, folder, DEFAULTS)
    state = read_weights(folder)
    for name in IGNORED:
        state.pop(name, None)
    _untie(state, source)
    has_decoder = has_part(state, "decoder")
    sizes = whole_numbers({**ASSUMED, **fields}, SIZES, source)
    config: T5Config | T5EncoderConfig
    if has_decoder:
        depth = fields.get("num_decoder_layers")
        sizes["decoder_layers"] = sizes["num_layers"] if depth is None else depth
        config = from_dict(T5Config, sizes, source)
        require_layers(config.decoder_layers, count_layers(state, "decoder.block."), source)
    else:
        config = from_dict(T5EncoderConfig, sizes, source)
    require_layers(config.num_layers, count_layers(state, "encoder.block."), source)
    architecture = "t5" if has_decoder else "t5-encoder"
    tensors = _to_ours(meta_model(architecture, config, source), state, source)
    vocabulary = folder / "spiece.model"
    if vocabulary.is_file():
        tensors["embed_tokens.weight"] = tensors["embed_tokens.weight"][_rows(vocabulary)]
    return Contents(architecture, config, tensors, source)


def _untie(state: Tensors, source: str) -> None:
    """Leave one copy of the embedding, under its first name."""
    for name in COPIES:
        copy = state.pop(name, None)
        if copy is not None:
            require_tied(copy, state.setdefault(EMBEDDING, copy), name, source)


def _to_ours(model: ProteinModel, state: Mapping[str, Tensor], source: str) -> Tensors:
    ours = model.state_dict()
    links = list(_links(model))
    expected = {
        their: part for name, theirs in links for their, part in zip(theirs, ours[name].chunk(len(theirs)), strict=True)
    }
    require_names(expected, state, source)
    return {name: torch.cat([state[their] for their in theirs]) for name, theirs in links}


def _rows(vocabulary: Path) -> Tensor:
    pieces = [piece.text for piece in read_sentencepiece(vocabulary)]
    if len(pieces) == len(PIECES):
        pieces += PROTT5.tokens[len(PIECES) :]
    if len(pieces) != len(PROTT5):
        raise InputError(
            f"{vocabulary} has {len(pieces)} pieces; ProtT5 has {len(PIECES)}, and {len(PROTT5)} with its sentinels"
        )
    return rows_of(PROTT5, pieces, str(vocabulary))


def write(model: T5 | T5Encoder, dtype: torch.dtype) -> Files:
    """The files of a folder that `T5ForConditionalGeneration` or `T5EncoderModel`, and `T5Tokenizer`, read."""
    ours = weights_of(model)
    tensors = {
        their: part.to(dtype).clone(memory_format=torch.contiguous_format)
        for name, theirs in _links(model)
        for their, part in zip(theirs, ours[name].chunk(len(theirs)), strict=True)
    }
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    texts: dict[str, Mapping[str, object] | str] = {
        "config.json": _fields(model, dtype),
        "tokenizer_config.json": {
            **special,
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": len(PROTT5) - len(PIECES),
            "do_lower_case": False,
        },
        "special_tokens_map.json": special,
    }
    return Files(tensors, texts, {"spiece.model": sentencepiece_bytes(PIECES, unknown=PROTT5.tokens.index("<unk>"))})


def _fields(model: T5 | T5Encoder, dtype: torch.dtype) -> dict[str, object]:
    """`config.json` of a model, with the fields that the published ones have."""
    config = model.config
    return {
        "architectures": ["T5ForConditionalGeneration" if isinstance(model, T5) else "T5EncoderModel"],
        **{theirs: getattr(config, ours) for ours, theirs in SIZES.items()},
        "num_decoder_layers": config.decoder_layers if isinstance(config, T5Config) else config.num_layers,
        "decoder_start_token_id": PROTT5.pad,
        "dropout_rate": 0.1,
        "eos_token_id": PROTT5.suffix[0],
        "feed_forward_proj": "relu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": isinstance(model, T5),
        "layer_norm_epsilon": EPSILON,
        "model_type": "t5",
        "pad_token_id": PROTT5.pad,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": isinstance(model, T5),
        "vocab_size": len(PROTT5),
    }


T5_FAMILY = Family(read, (T5, T5Encoder), write)
"""`model_type` "t5": ProtT5, with or without its decoder."""
