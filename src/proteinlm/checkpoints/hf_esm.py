"""Hugging Face folders of the ESM family.

In: a folder. Out: `Contents`; and back, so that `EsmForMaskedLM` and `EsmTokenizer` load what we write. Every field of
`config.json` that would change a number is read or checked. Some tensors are left out knowingly (`IGNORED`). The
rotary frequencies are those of the file, one set for all layers; they are computed only where a file has none, which is
what `transformers` does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from proteinlm.checkpoints.names import HUGGING_FACE, has_part, require_tied, to_ours, to_theirs
from proteinlm.config import from_dict
from proteinlm.errors import InputError
from proteinlm.models.esm import FIRST_POSITION, Esm1b, Esm1bConfig, Esm2, Esm2Config
from proteinlm.sequences.alphabet import ESM1B

IGNORED = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
"""Tensors without a part in what we compute: the pooler of `EsmModel` (never trained), and a table of 0, 1, 2 ..."""

POSITIONS = "embeddings.position_embeddings.weight"
"""ESM-2 files of the hub hold an absolute position table that ESM-2 never reads."""

HEAD_COPY = "lm_head.decoder.weight"
FREQUENCIES = "rotary_embeddings.inv_freq"
"""Where `transformers` 5 keeps the rotary frequencies: once, outside the layers."""

FIXED: dict[str, tuple[object, ...]] = {
    "vocab_size": (len(ESM1B),),
    "mask_token_id": (ESM1B.mask,),
    "pad_token_id": (ESM1B.pad,),
    "layer_norm_eps": (1e-5,),
    "hidden_act": ("gelu",),
    "is_folding_model": (False, None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "vocab_list": (None, list(ESM1B.tokens)),
    "tie_word_embeddings": (True, None),
}
"""Fields of `config.json` that may have one value only, here; they change the numbers and nothing published differs."""

DEFAULTS: dict[str, object] = {"layer_norm_eps": 1e-12}
"""What `transformers` assumes where `config.json` does not say, if that is not a value of `FIXED`."""


def read(folder: Path, fields: Fields) -> Contents:
    """Read a folder with `config.json` (`fields`) and weights.

    Raises:
        InputError: fields that this version cannot follow, or tensors that do not fit.
    """
    source = str(folder)
    require_fixed(fields, FIXED, folder, DEFAULTS)
    _require_vocabulary(folder / "vocab.txt")
    state = read_weights(folder, "esm.")
    rotary = _is_rotary(fields, source)
    for name in (*IGNORED, *((POSITIONS,) if rotary else ())):
        state.pop(name, None)
    refuse_heads(state, {"classifier", "score", "esm_s_mlp", "trunk"}, source)
    head = state.pop(HEAD_COPY, None)
    if head is not None and "embeddings.word_embeddings.weight" in state:
        require_tied(head, state["embeddings.word_embeddings.weight"], HEAD_COPY, source)
    layers = count_layers(state, "encoder.layer.")
    if rotary:
        _spread_frequencies(state, fields, layers, source)
    config = _config(fields, state, rotary, source)
    require_layers(config.num_layers, layers, source)
    architecture = "esm2" if rotary else "esm1b"
    model = meta_model(architecture, config, source)
    return Contents(architecture, config, to_ours(model, state, HUGGING_FACE, source), source)


def _require_vocabulary(vocabulary: Path) -> None:
    if vocabulary.is_file() and tuple(vocabulary.read_text(encoding="utf-8").split()) != ESM1B.tokens:
        raise InputError(
            f"{vocabulary} is not the alphabet of ESM ({len(ESM1B)} tokens, '<cls>' first); it cannot be read"
        )


def _is_rotary(fields: Mapping[str, Any], source: str) -> bool:
    kind = fields.get("position_embedding_type", "absolute")
    if kind not in ("absolute", "rotary"):
        raise InputError(
            f"{source}: config.json says position_embedding_type = {kind!r}; absolute and rotary are supported"
        )
    if kind == "rotary" and fields.get("emb_layer_norm_before"):
        raise InputError(
            f"{source}: config.json asks for rotary positions and an embedding norm; no ESM model has both"
        )
    return bool(kind == "rotary")


def _spread_frequencies(state: Tensors, fields: Mapping[str, Any], layers: int, source: str) -> None:
    """Give every layer its copy of the rotary frequencies, wherever the file keeps them; computed only if nowhere."""
    # transformers 5.x saves its single set under a name with a literal `*` for the layer.
    once = [FREQUENCIES, HUGGING_FACE.layer.format("*") + HUGGING_FACE.frequencies]
    found = [state.pop(name) for name in once if name in state]
    names = [HUGGING_FACE.layer.format(index) + HUGGING_FACE.frequencies for index in range(layers)]
    if not found and any(name in state for name in names):
        return
    frequencies = found[0] if found else _computed_frequencies(fields, source)
    state.update(dict.fromkeys(names, frequencies))


def _computed_frequencies(fields: Mapping[str, Any], source: str) -> Tensor:
    width, heads, base = fields.get("hidden_size"), fields.get("num_attention_heads"), fields.get("rope_theta", 10000.0)
    if type(width) is not int or type(heads) is not int or heads < 1 or not isinstance(base, int | float):
        raise InputError(f"{source}: config.json has no usable hidden_size, num_attention_heads or rope_theta")
    channels = width // heads
    return 1.0 / (base ** (torch.arange(0, channels, 2).float() / channels))


def _config(fields: Mapping[str, Any], state: Tensors, rotary: bool, source: str) -> Esm1bConfig | Esm2Config:
    names = {
        "num_layers": "num_hidden_layers",
        "width": "hidden_size",
        "num_heads": "num_attention_heads",
        "inner": "intermediate_size",
        "max_positions": "max_position_embeddings",
    }
    values = whole_numbers(fields, names, source)
    values["token_dropout"] = bool(fields.get("token_dropout", False))
    values["contact_head"] = has_part(state, "contact_head.regression")
    values["language_head"] = has_part(state, "lm_head")
    positions = fields["max_position_embeddings"] - FIRST_POSITION
    del values["max_positions"]
    if rotary:
        return from_dict(Esm2Config, {**values, "max_residues": positions - 2}, source)
    values |= {"max_positions": positions, "embedding_norm": bool(fields.get("emb_layer_norm_before"))}
    return from_dict(Esm1bConfig, values, source)


def write(model: Esm1b | Esm2, dtype: torch.dtype) -> Files:
    """The files of a folder that `EsmForMaskedLM.from_pretrained` and `EsmTokenizer.from_pretrained` read."""
    named = {name: tensor.to(dtype) for name, tensor in to_theirs(model, weights_of(model), HUGGING_FACE).items()}
    tensors = {name if name.startswith("lm_head.") else f"esm.{name}": tensor for name, tensor in named.items()}
    texts: dict[str, Mapping[str, object] | str] = {
        "config.json": _fields(model, dtype),
        "vocab.txt": "\n".join(ESM1B.tokens),
        "tokenizer_config.json": _tokenizer(model),
        "special_tokens_map.json": SPECIAL_TOKENS,
    }
    return Files(tensors, texts)


SPECIAL_TOKENS = {
    "cls_token": "<cls>",
    "eos_token": "<eos>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def _tokenizer(model: Esm1b | Esm2) -> dict[str, object]:
    return {**SPECIAL_TOKENS, "tokenizer_class": "EsmTokenizer", "model_max_length": (model.max_residues or 0) + 2}


def _fields(model: Esm1b | Esm2, dtype: torch.dtype) -> dict[str, object]:
    """`config.json` of a model, with the fields that the published ones have."""
    config = model.config
    positions = config.max_residues + 2 if isinstance(config, Esm2Config) else config.max_positions
    return {
        "architectures": ["EsmForMaskedLM" if config.language_head else "EsmModel"],
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": None,
        "emb_layer_norm_before": isinstance(config, Esm1bConfig) and config.embedding_norm,
        "esmfold_config": None,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": config.width,
        "initializer_range": 0.02,
        "intermediate_size": config.inner,
        "is_folding_model": False,
        "layer_norm_eps": 1e-05,
        "mask_token_id": ESM1B.mask,
        "max_position_embeddings": positions + FIRST_POSITION,
        "model_type": "esm",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": ESM1B.pad,
        "position_embedding_type": "rotary" if isinstance(config, Esm2Config) else "absolute",
        "token_dropout": config.token_dropout,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_list": None,
        "vocab_size": len(ESM1B),
    }


ESM = Family(read, (Esm1b, Esm2), write)
"""`model_type` "esm": ESM-1b, ESM-1v and ESM-2."""
