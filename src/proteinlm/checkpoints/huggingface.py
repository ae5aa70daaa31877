"""Hugging Face folders of the ESM family: `config.json` with safetensors or `.bin` weights, whole or in shards.

In: a folder. Out: `Contents`; and back, so that `EsmForMaskedLM` and `EsmTokenizer` load what we write. Every field of
`config.json` that would change a number is read or checked. Some tensors are left out knowingly (`IGNORED`). The
rotary frequencies are those of the file, one set for all layers; they are computed only where a file has none, which is
what `transformers` does.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proteinlm.checkpoints.contents import (
    Contents,
    architecture_of,
    count_layers,
    meta_model,
    require_layers,
    weights_of,
)
from proteinlm.checkpoints.files import (
    Kind,
    Tensors,
    atomic_folder,
    kind_of,
    read_json,
    read_safetensors,
    read_torch,
    write_safetensors,
)
from proteinlm.checkpoints.names import HUGGING_FACE, has_part, require_tied, to_ours, to_theirs
from proteinlm.config import from_dict
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import FIRST_POSITION, Esm1b, Esm1bConfig, Esm2, Esm2Config
from proteinlm.sequences.alphabet import ESM1B

WEIGHTS: tuple[str, ...] = ("model.safetensors", "pytorch_model.bin")
"""Weights files by preference; each may be replaced by `NAME.index.json` and shards."""

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


def read(folder: Path) -> Contents:
    """Read a folder with `config.json` and weights.

    Raises:
        InputError: another architecture, fields that this version cannot follow, or tensors that do not fit.
    """
    fields = read_json(folder / "config.json")
    source = str(folder)
    _require_esm(fields, folder)
    state = {_plain_name(name): tensor for name, tensor in _read_weights(folder).items()}
    rotary = _is_rotary(fields, source)
    for name in (*IGNORED, *((POSITIONS,) if rotary else ())):
        state.pop(name, None)
    _require_own_head(state, source)
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


def _require_esm(fields: Mapping[str, Any], folder: Path) -> None:
    """Refuse other model types, and ESM models whose fixed fields differ from ours."""
    kind = fields.get("model_type")
    if kind != "esm":
        raise InputError(
            f"{folder}: model type {kind!r} is not supported by this version; ESM-1b, ESM-1v and ESM-2 are"
        )
    for name, allowed in FIXED.items():
        value = fields.get(name, DEFAULTS.get(name, allowed[0]))
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            raise InputError(f"{folder}: config.json says {name} = {value!r}; only {allowed[0]!r} is supported")
    vocabulary = folder / "vocab.txt"
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


def _plain_name(name: str) -> str:
    """A name without the prefix `esm.`, and without TensorFlow's words for weight and bias of a norm.

    `transformers` 5 writes `LayerNorm.gamma` and `.beta`, as the first BERT files had it.
    """
    name = name.removeprefix("esm.")
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda found: f"LayerNorm.{_NORM_WORDS[found[1]]}", name)


_NORM_WORDS = {"gamma": "weight", "beta": "bias"}


def _read_weights(folder: Path) -> Tensors:
    """Every tensor of a folder, by the names of the file."""
    for name in WEIGHTS:
        if (folder / name).is_file():
            return _read_file(folder / name)
        if (folder / f"{name}.index.json").is_file():
            return _read_shards(folder / f"{name}.index.json")
    raise InputError(f"{folder} has a config.json but no weights; {' or '.join(WEIGHTS)} (or its shards) must be there")


def _read_file(path: Path) -> Tensors:
    readers: dict[Kind, Callable[[Path], object]] = {
        "safetensors": lambda file: read_safetensors(file)[0],
        "torch": read_torch,
    }
    kind = kind_of(path)
    state = readers[kind](path) if kind in readers else None
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} does not hold a dictionary of tensors")
    return {str(name): tensor for name, tensor in state.items()}


def _read_shards(index: Path) -> Tensors:
    """All shards that an index names; each must hold exactly the tensors it is said to."""
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise InputError(f"{index} has no 'weight_map' from tensors to files")
    tensors: Tensors = {}
    for shard in sorted(set(shard_of.values())):
        if Path(shard).name != shard:
            raise InputError(f"{index} names the shard {shard!r}; shards must lie in the same folder")
        tensors |= _read_file(index.parent / shard)
    if tensors.keys() != shard_of.keys():
        name = sorted(tensors.keys() ^ shard_of.keys())[0]
        raise InputError(f"{index} and its shards disagree on tensor {name!r}; get the files again")
    return tensors


def _require_own_head(state: Tensors, source: str) -> None:
    """Refuse fine-tuned heads by name, rather than calling them surplus tensors."""
    heads = sorted({name.split(".")[0] for name in state} & {"classifier", "score", "esm_s_mlp", "trunk"})
    if heads:
        raise InputError(
            f"{source}: the tensors {heads[0]}.* belong to a fine-tuned head, which this version cannot run"
        )


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
    theirs = {
        "num_layers": "num_hidden_layers",
        "width": "hidden_size",
        "num_heads": "num_attention_heads",
        "inner": "intermediate_size",
    }
    missing = [name for name in (*theirs.values(), "max_position_embeddings") if type(fields.get(name)) is not int]
    if missing:
        raise InputError(f"{source}: config.json does not say {missing[0]} as a whole number")
    values: dict[str, object] = {ours: fields[name] for ours, name in theirs.items()}
    values["token_dropout"] = bool(fields.get("token_dropout", False))
    values["contact_head"] = has_part(state, "contact_head.regression")
    values["language_head"] = has_part(state, "lm_head")
    positions = fields["max_position_embeddings"] - FIRST_POSITION
    if rotary:
        return from_dict(Esm2Config, {**values, "max_residues": positions - 2}, source)
    values |= {"max_positions": positions, "embedding_norm": bool(fields.get("emb_layer_norm_before"))}
    return from_dict(Esm1bConfig, values, source)


def write(model: ProteinModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that `EsmForMaskedLM.from_pretrained` and `EsmTokenizer.from_pretrained` read.

    Raises:
        InputError: the architecture has no Hugging Face port, or the folder is not empty.
    """
    architecture, _ = architecture_of(model)
    if not isinstance(model, Esm1b | Esm2):
        raise InputError(
            f"architecture {architecture} has no Hugging Face port; export it as native or in its own layout"
        )
    named = {name: tensor.to(dtype) for name, tensor in to_theirs(model, weights_of(model), HUGGING_FACE).items()}
    tensors = {name if name.startswith("lm_head.") else f"esm.{name}": tensor for name, tensor in named.items()}
    with atomic_folder(folder) as temporary:
        write_safetensors(temporary / "model.safetensors", tensors, {"format": "pt"})
        _write_text(temporary / "config.json", json.dumps(_fields(model, dtype), indent=2))
        _write_text(temporary / "vocab.txt", "\n".join(ESM1B.tokens))
        _write_text(temporary / "tokenizer_config.json", json.dumps(_tokenizer(model), indent=2))
        _write_text(temporary / "special_tokens_map.json", json.dumps(SPECIAL_TOKENS, indent=2))


SPECIAL_TOKENS = {
    "cls_token": "<cls>",
    "eos_token": "<eos>",
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
}


def _write_text(path: Path, text: str) -> None:
    path.write_text(text + "\n", encoding="utf-8")


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
