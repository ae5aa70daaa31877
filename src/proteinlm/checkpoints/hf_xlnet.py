"""Hugging Face folders of XLNet: Rostlab/prot_xlnet, and our own models, both ways.

In: a folder. Out: `Contents`; and back, so that `XLNetLMHeadModel` and `XLNetTokenizer` load what we write. The rows of
the embedding are put into the order of our alphabet, by the vocabulary that lies beside the weights.

Fields that change nothing here are not read: `mem_len` and `reuse_len` say how long texts are fed in, and are the
caller's business. What `config.json` has no field for stands under `OURS`.

Source: papers.md 8.3.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from proteinlm.checkpoints.contents import Contents, count_layers, meta_model, require_layers, weights_of
from proteinlm.checkpoints.files import Tensors
from proteinlm.checkpoints.hf_family import (
    Family,
    Fields,
    Files,
    read_weights,
    refuse_heads,
    require_fixed,
    whole_numbers,
)
from proteinlm.checkpoints.names import (
    Conversion,
    Link,
    PerHead,
    Reshaped,
    Same,
    Split,
    apart,
    require_tied,
    together,
)
from proteinlm.checkpoints.vocabulary import read_sentencepiece, rows_of, sentencepiece_bytes
from proteinlm.config import from_dict, to_dict
from proteinlm.errors import InputError
from proteinlm.models.xlnet import Xlnet, XlnetConfig
from proteinlm.sequences.alphabet import PROTXLNET

OURS = "proteinlm"
"""Key of `config.json` for what XLNet's own configuration does not hold."""

EXTRA = ("text_segments", "segment", "memory")

FIXED: dict[str, tuple[object, ...]] = {
    "vocab_size": (len(PROTXLNET),),
    "layer_norm_eps": (1e-12,),
    "ff_activation": ("gelu",),
    "attn_type": ("bi",),
    "bi_data": (False,),
    "clamp_len": (-1,),
    "same_length": (False,),
    "untie_r": (True,),
    "tie_word_embeddings": (True, None),
}
"""Fields of `config.json` that may have one value only, here."""

DEFAULTS: dict[str, object] = {"vocab_size": 32000}

SIZES = {"num_layers": "n_layer", "width": "d_model", "num_heads": "n_head", "inner": "d_inner"}

HEADS = {"sequence_summary", "logits_proj", "classifier", "qa_outputs", "start_logits", "end_logits", "answer_class"}
"""First words of the tensors of fine-tuned heads."""

VOCABULARY = "spiece.model"

LAYER = "transformer.layer.{}."
INSIDE = {
    "attention.query": ("rel_attn.q",),
    "attention.key_value": ("rel_attn.k", "rel_attn.v"),
    "attention.distance": ("rel_attn.r",),
    "attention.out": ("rel_attn.o",),
    "attention.content_bias": ("rel_attn.r_w_bias",),
    "attention.distance_bias": ("rel_attn.r_r_bias",),
    "attention.segment_bias": ("rel_attn.r_s_bias",),
    "attention.segment_keys": ("rel_attn.seg_embed",),
    "attention_norm": ("rel_attn.layer_norm",),
    "feed_forward.up": ("ff.layer_1",),
    "feed_forward.down": ("ff.layer_2",),
    "feed_forward_norm": ("ff.layer_norm",),
}
OUTSIDE = {
    "embed_tokens.weight": "transformer.word_embedding.weight",
    "query_start": "transformer.mask_emb",
    "head_bias": "lm_loss.bias",
}


def links(model: Xlnet) -> Iterator[Link]:
    """Every tensor of a model with its names and its conversion."""
    for name, tensor in model.state_dict().items():
        if not name.startswith("layers."):
            shape = tuple(tensor.shape)
            yield Link(name, (OUTSIDE[name],), Reshaped(shape, (1, 1, *shape)) if name == "query_start" else Same())
            continue
        _, index, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        prefix = LAYER.format(index)
        if rest in INSIDE:
            yield Link(name, (prefix + INSIDE[rest][0],), Same())
        elif part.startswith("attention."):
            yield Link(name, tuple(prefix + theirs for theirs in INSIDE[part]), _projection(part, model))
        else:
            yield Link(name, (f"{prefix}{INSIDE[part][0]}.{kind}",), Same())


def _projection(part: str, model: Xlnet) -> Conversion:
    """How a projection into heads, or out of them, is stored."""
    heads, width = model.config.num_heads, model.config.width
    if part == "attention.out":
        return Reshaped((width, width), (width, heads, width // heads))
    return Split(len(INSIDE[part]), PerHead(heads))


def read(folder: Path, fields: Fields) -> Contents:
    """Read a folder with `config.json` (`fields`), weights and `spiece.model`.

    Raises:
        InputError: fields that this version cannot follow, tensors that do not fit, or no vocabulary.
    """
    source = str(folder)
    require_fixed(fields, FIXED, folder, DEFAULTS)
    state = read_weights(folder)
    refuse_heads(state, HEADS, source)
    config = _config(fields, source)
    if fields.get("d_head") not in (None, config.width // config.num_heads):
        raise InputError(
            f"{source}: config.json says d_head = {fields['d_head']!r}; only d_model / n_head is supported"
        )
    require_layers(config.num_layers, count_layers(state, "transformer.layer."), source)
    model = meta_model("xlnet", config, source)
    assert isinstance(model, Xlnet)
    embedding, head = state.get(OUTSIDE["embed_tokens.weight"]), state.pop("lm_loss.weight", None)
    if head is not None and embedding is not None:
        require_tied(head, embedding, "lm_loss.weight", source)
    state.setdefault("lm_loss.bias", torch.zeros(len(PROTXLNET)))
    tensors = together(list(links(model)), model.state_dict(), state, source)
    return Contents("xlnet", config, _in_our_order(tensors, folder), source)


def _config(fields: Fields, source: str) -> XlnetConfig:
    extra = fields.get(OURS, {})
    if not isinstance(extra, dict) or set(extra) - set(EXTRA):
        raise InputError(f"{source}: config.json says {OURS} = {extra!r}; only {', '.join(EXTRA)} may stand there")
    return from_dict(XlnetConfig, {**whole_numbers(fields, SIZES, source), **extra}, source)


def _in_our_order(tensors: Tensors, folder: Path) -> Tensors:
    """The rows of the embedding and of its bias, from the order of the file to that of the alphabet."""
    path = folder / VOCABULARY
    if not path.is_file():
        raise InputError(f"{folder} has no {VOCABULARY}, which says what the rows of the embedding stand for; add it")
    rows = rows_of(PROTXLNET, [piece.text for piece in read_sentencepiece(path)], str(path))
    return {**tensors, **{name: tensors[name][rows] for name in ("embed_tokens.weight", "head_bias")}}


def write(model: Xlnet, dtype: torch.dtype) -> Files:
    """The files of a folder that `XLNetLMHeadModel.from_pretrained` and `XLNetTokenizer.from_pretrained` read."""
    tensors = {name: tensor.to(dtype) for name, tensor in apart(links(model), weights_of(model)).items()}
    texts: dict[str, dict[str, object]] = {
        "config.json": _fields(model, dtype),
        "tokenizer_config.json": {
            **SPECIAL_TOKENS,
            "tokenizer_class": "XLNetTokenizer",
            "do_lower_case": False,
            "padding_side": "left",
        },
        "special_tokens_map.json": dict(SPECIAL_TOKENS),
    }
    return Files(tensors, texts, {VOCABULARY: sentencepiece_bytes(PROTXLNET, unknown=0)})


SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "cls_token": "<cls>",
    "eos_token": "</s>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "sep_token": "<sep>",
    "unk_token": "<unk>",
}


def _fields(model: Xlnet, dtype: torch.dtype) -> dict[str, object]:
    """`config.json` of a model."""
    config, ours = model.config, to_dict(model.config)
    return {
        "architectures": ["XLNetLMHeadModel"],
        "attn_type": "bi",
        "bi_data": False,
        "bos_token_id": PROTXLNET.tokens.index("<s>"),
        "clamp_len": -1,
        "d_head": config.width // config.num_heads,
        "d_inner": config.inner,
        "d_model": config.width,
        "dropout": 0.0,
        "eos_token_id": PROTXLNET.tokens.index("</s>"),
        "ff_activation": "gelu",
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "mem_len": None,
        "model_type": "xlnet",
        "n_head": config.num_heads,
        "n_layer": config.num_layers,
        "pad_token_id": PROTXLNET.pad,
        OURS: {name: ours[name] for name in EXTRA},
        "reuse_len": None,
        "same_length": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "untie_r": True,
        "vocab_size": len(PROTXLNET),
    }


XLNET = Family(read, (Xlnet,), write)
"""`model_type` "xlnet": ProtXLNet."""
