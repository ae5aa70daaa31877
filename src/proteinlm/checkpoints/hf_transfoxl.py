"""Hugging Face folders of Transformer-XL, as `TransfoXLLMHeadModel` of transformers up to 4.57 keeps them, both ways.

In: a folder. Out: `Contents`; and back. ProtTXL was never released, so that such folders come from those who trained
one. Only vocabularies of a single cluster are read (an adaptive softmax of proteins has nothing to adapt to), with one
width throughout and the output tied to the embedding. `vocab.txt` holds the tokens in the order of their ids; rows are
put into the order of our alphabet.

Where nothing was read before, the port in `transformers` lets tokens see `mem_len` states of zeros, which the original
does not, and neither do we: call it with `mems` of length 0 to get our numbers.

Source: papers.md 8.3; names from transformers 4.30.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from proteinlm.checkpoints.contents import Contents, count_layers, meta_model, require_layers, weights_of
from proteinlm.checkpoints.files import Tensors
from proteinlm.checkpoints.hf_family import Family, Fields, Files, read_weights, require_fixed, whole_numbers
from proteinlm.checkpoints.names import Link, Same, Split, apart, require_tied, together
from proteinlm.checkpoints.vocabulary import read_lines, rows_of
from proteinlm.config import from_dict
from proteinlm.errors import InputError
from proteinlm.models.relative import frequencies
from proteinlm.models.transformer_xl import TransformerXl, TransformerXlConfig
from proteinlm.sequences.alphabet import PROTTXL

OURS = "proteinlm"
"""Key of `config.json` for what Transformer-XL's own configuration does not hold."""

FIXED: dict[str, tuple[object, ...]] = {
    "vocab_size": (len(PROTTXL),),
    "cutoffs": ([], None),
    "div_val": (1,),
    "layer_norm_epsilon": (1e-5,),
    "pre_lnorm": (False,),
    "same_length": (False,),
    "attn_type": (0,),
    "clamp_len": (-1, 0),
    "untie_r": (True,),
    "tie_word_embeddings": (True, None),
}
"""Fields of `config.json` that may have one value only, here."""

DEFAULTS: dict[str, object] = {
    "vocab_size": 267735,
    "cutoffs": [20000, 40000, 200000],
    "div_val": 4,
    "same_length": True,
    "clamp_len": 1000,
}
"""What `transformers` assumes where `config.json` does not say."""

SIZES = {
    "num_layers": "n_layer",
    "width": "d_model",
    "num_heads": "n_head",
    "head_width": "d_head",
    "inner": "d_inner",
    "memory": "mem_len",
}

FREQUENCIES = "transformer.pos_emb.inv_freq"
"""The frequencies of the sinusoids, which we compute; `transformers` wants to find them."""

EMBEDDING, COPY, BIAS = "transformer.word_emb.emb_layers.0.weight", "crit.out_layers.0.weight", "crit.out_layers.0.bias"
VOCABULARY = "vocab.txt"
LAYER = "transformer.layers.{}."
INSIDE = {
    "attention.distance": "dec_attn.r_net",
    "attention.out": "dec_attn.o_net",
    "attention_norm": "dec_attn.layer_norm",
    "feed_forward.up": "pos_ff.CoreNet.0",
    "feed_forward.down": "pos_ff.CoreNet.3",
    "feed_forward_norm": "pos_ff.layer_norm",
}
BIASES = {"attention.content_bias": "dec_attn.r_w_bias", "attention.distance_bias": "dec_attn.r_r_bias"}
QUERY, KEY_VALUE, FUSED = "attention.query.weight", "attention.key_value.weight", "dec_attn.qkv_net.weight"


def links(model: TransformerXl) -> Iterator[Link]:
    """Every tensor of a model with its names and its conversion, queries, keys and values apart (`_split`)."""
    outside = {"embed_tokens.weight": EMBEDDING, "head_bias": BIAS}
    for name in model.state_dict():
        if name in outside:
            yield Link(name, (outside[name],), Same())
            continue
        _, index, rest = name.split(".", 2)
        prefix = LAYER.format(index)
        part, _, kind = rest.rpartition(".")
        if rest == QUERY:
            yield Link(name, (f"{prefix}{FUSED}.0",), Same())
        elif rest == KEY_VALUE:
            yield Link(name, (f"{prefix}{FUSED}.1", f"{prefix}{FUSED}.2"), Split(2, Same()))
        elif rest in BIASES:
            yield Link(name, (prefix + BIASES[rest],), Same())
        else:
            yield Link(name, (f"{prefix}{INSIDE[part]}.{kind}",), Same())


def read(folder: Path, fields: Fields) -> Contents:
    """Read a folder with `config.json` (`fields`), weights and `vocab.txt`.

    Raises:
        InputError: fields that this version cannot follow, tensors that do not fit, or no vocabulary.
    """
    source = str(folder)
    require_fixed(fields, FIXED, folder, DEFAULTS)
    config = _config(fields, source)
    if fields.get("d_embed", config.width) != config.width:
        raise InputError(f"{source}: config.json says d_embed = {fields['d_embed']!r}; only d_model is supported")
    state = read_weights(folder)
    state.pop(FREQUENCIES, None)
    copy = state.pop(COPY, None)
    if copy is not None and EMBEDDING in state:
        require_tied(copy, state[EMBEDDING], COPY, source)
    require_layers(config.num_layers, count_layers(state, "transformer.layers."), source)
    model = meta_model("transformer-xl", config, source)
    assert isinstance(model, TransformerXl)
    tensors = together(list(links(model)), model.state_dict(), _split(state), source)
    path = folder / VOCABULARY
    if not path.is_file():
        raise InputError(f"{folder} has no {VOCABULARY}, which says what the rows of the embedding stand for; add it")
    rows = rows_of(PROTTXL, read_lines(path), str(path))
    ordered = {name: tensors[name][rows] for name in ("embed_tokens.weight", "head_bias")}
    return Contents("transformer-xl", config, {**tensors, **ordered}, source)


def _config(fields: Fields, source: str) -> TransformerXlConfig:
    extra = fields.get(OURS, {})
    if not isinstance(extra, dict) or set(extra) - {"segment", "boundaries"}:
        raise InputError(f"{source}: config.json says {OURS} = {extra!r}; only segment and boundaries may stand there")
    sizes = whole_numbers(fields, SIZES, source)
    segment = sizes["memory"]
    return from_dict(TransformerXlConfig, {**sizes, "segment": segment, **extra}, source)


def _split(state: Tensors) -> Tensors:
    """The fused matrices of queries, keys and values, each in three."""
    split: Tensors = {}
    for name, tensor in state.items():
        if name.endswith(FUSED):
            split.update({f"{name}.{number}": part for number, part in enumerate(tensor.chunk(3))})
        else:
            split[name] = tensor
    return split


def write(model: TransformerXl, dtype: torch.dtype) -> Files:
    """The files of a folder that `TransfoXLLMHeadModel.from_pretrained` of transformers up to 4.57 reads."""
    named = apart(links(model), weights_of(model))
    for index in range(model.num_layers):
        name = LAYER.format(index) + FUSED
        named[name] = torch.cat([named.pop(f"{name}.{number}") for number in range(3)])
    tensors = {name: tensor.to(dtype) for name, tensor in named.items()}
    tensors[COPY] = tensors[EMBEDDING].clone()
    tensors[FREQUENCIES] = frequencies(model.width)
    texts: dict[str, dict[str, object] | str] = {
        "config.json": _fields(model, dtype),
        VOCABULARY: "\n".join(PROTTXL.tokens),
    }
    return Files(tensors, texts)


def _fields(model: TransformerXl, dtype: torch.dtype) -> dict[str, object]:
    """`config.json` of a model."""
    config = model.config
    return {
        "adaptive": True,
        "architectures": ["TransfoXLLMHeadModel"],
        "attn_type": 0,
        "clamp_len": -1,
        "cutoffs": [],
        "d_embed": config.width,
        "d_head": config.head_width,
        "d_inner": config.inner,
        "d_model": config.width,
        "div_val": 1,
        "dropatt": 0.0,
        "dropout": 0.0,
        "eos_token_id": PROTTXL.tokens.index("<eos>"),
        "layer_norm_epsilon": 1e-5,
        "mem_len": config.memory,
        "model_type": "transfo-xl",
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "pre_lnorm": False,
        OURS: {"segment": config.segment, "boundaries": config.boundaries},
        "proj_share_all_but_first": True,
        "same_length": False,
        "sample_softmax": -1,
        "tie_word_embeddings": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "untie_r": True,
        "vocab_size": len(PROTTXL),
    }


TRANSFO_XL = Family(read, (TransformerXl,), write)
"""`model_type` "transfo-xl": ProtTXL."""
