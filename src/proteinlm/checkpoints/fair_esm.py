"""The `.pt` files of fair-esm: `X.pt`, and `X-contact-regression.pt` beside it.

In: a path. Out: `Contents`; and back. What a file is, is read from what it holds: `args.arch` for ESM-1, ESM-1b and
ESM-1v, `cfg.model` for ESM-2. The steps of reading are those of fair-esm, in its order (papers.md 8.1), with two
consequences that matter. The mask row of ESM-1b's `embed_tokens.weight` is zeroed, and `lm_head.weight`, which is
loaded after it, wins: so zeros are seen by the head only where the file stores both as one. And a contact regression
is merged in before names are shortened. What we write holds the two matrices apart, so that fair-esm reads back
exactly what the model had.
"""

import argparse
from collections.abc import Mapping
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
from proteinlm.checkpoints.files import Tensors, atomic_file, read_torch
from proteinlm.checkpoints.names import FAIR_ESM, has_part, require_tied, to_ours, to_theirs
from proteinlm.config import from_dict
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import Esm1, Esm1b, Esm1bConfig, Esm1Config, Esm2, Esm2Config
from proteinlm.sequences.alphabet import ESM1B

REGRESSION = "-contact-regression"
DTYPE_MARKER = "embed_positions._float_tensor"
"""A buffer of ESM-1 that fair-esm made to know its number format. Its value was never set and means nothing."""

CONTACT = "contact_head.regression."
MASK_ROW = ESM1B.tokens.index("<mask>")


def is_fair_esm(content: object) -> bool:
    """Whether the content of a PyTorch file is a fair-esm checkpoint."""
    return isinstance(content, dict) and "model" in content and ("args" in content or "cfg" in content)


def read(path: Path, content: dict[str, Any]) -> Contents:
    """Read a checkpoint, and the contact regression beside it where there is one.

    Args:
        path: the file. content: what `files.read_torch` found in it.

    Raises:
        InputError: the file holds another architecture, or its tensors do not fit its arguments.
    """
    source = str(path)
    state = _tensors(content["model"], source)
    regression = path.with_name(path.stem + REGRESSION + path.suffix)
    if regression.is_file():
        state.update(_read_regression(regression))
    arguments = _arguments(content, source)
    arch = arguments.get("arch")
    if arch == "protein_bert_base":
        return _read_esm1(arguments, _shorten(state, "decoder."), source)
    if arch == "roberta_large":
        return _read_esm1b(arguments, _shorten(_shorten(state, "sentence_encoder."), "encoder."), source)
    if arch is None:
        return _read_esm2(arguments, _strip(state, ("encoder.sentence_encoder.", "encoder.")), source)
    raise InputError(
        f"{source}: architecture {arch!r} of fair-esm is not supported; ESM-1, ESM-1b, ESM-1v and ESM-2 are"
    )


def _tensors(state: object, source: str) -> Tensors:
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{source}: 'model' is not a dictionary of tensors; this is no fair-esm checkpoint")
    return {str(name): tensor for name, tensor in state.items()}


def _read_regression(path: Path) -> Tensors:
    content = read_torch(path)
    state = _tensors(content["model"] if isinstance(content, dict) and "model" in content else None, str(path))
    surplus = [name for name in state if not name.startswith(CONTACT)]
    if surplus:
        raise InputError(f"{path}: tensor {surplus[0]!r} is no part of a contact regression")
    return state


def _arguments(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Arguments of the model: `cfg["model"]` of ESM-2, without an `arch`, or `args` of the older ones."""
    configuration = content.get("cfg")
    model = configuration.get("model") if isinstance(configuration, Mapping) else None
    is_esm2 = model is not None
    arguments = model if is_esm2 else content.get("args")
    if isinstance(arguments, argparse.Namespace):
        arguments = vars(arguments)
    if not isinstance(arguments, Mapping):
        raise InputError(f"{source}: neither 'args' nor 'cfg.model' holds the arguments of a model")
    plain = dict(arguments)
    if is_esm2:
        plain.pop("arch", None)
    elif plain.get("arch") is None:
        raise InputError(f"{source}: 'args' does not say which architecture it is for ('arch' is missing)")
    return plain


def _shorten(state: Tensors, prefix: str) -> Tensors:
    """Drop everything up to `prefix` wherever it stands, as fair-esm splits names for ESM-1 and ESM-1b."""
    return {"".join(name.split(prefix)[1:]) if prefix in name else name: tensor for name, tensor in state.items()}


def _strip(state: Tensors, prefixes: tuple[str, ...]) -> Tensors:
    """Drop the first prefix that a name starts with, as fair-esm does for ESM-2."""
    return {
        next((name[len(prefix) :] for prefix in prefixes if name.startswith(prefix)), name): tensor
        for name, tensor in state.items()
    }


def _shape(arguments: Mapping[str, Any], side: str, state: Tensors, source: str) -> dict[str, Any]:
    """Depth and widths under our names, from arguments that start with `side` (`encoder_` or `decoder_`)."""
    theirs = {
        "num_layers": f"{side}layers",
        "width": f"{side}embed_dim",
        "num_heads": f"{side}attention_heads",
        "inner": f"{side}ffn_embed_dim",
    }
    if side == "encoder_" and "arch" not in arguments:  # ESM-2: fair-esm reads no inner width, it is 4 x width
        del theirs["inner"]
    missing = [name for name in theirs.values() if name not in arguments]
    if missing:
        raise InputError(f"{source}: the arguments do not say {', '.join(missing)}; this is no complete checkpoint")
    values = {ours: arguments[name] for ours, name in theirs.items()}
    values["contact_head"] = has_part(state, "contact_head.regression")
    return values


def _read_esm1(arguments: Mapping[str, Any], state: Tensors, source: str) -> Contents:
    values = _shape(arguments, "decoder_", state, source)
    values["token_dropout"] = bool(arguments.get("token_dropout", False))
    values["output_bias"] = bool(arguments.get("final_bias", False))
    config = from_dict(Esm1Config, values, source)
    state.pop(DTYPE_MARKER, None)
    return _contents("esm1", config, state, source)


def _read_esm1b(arguments: Mapping[str, Any], state: Tensors, source: str) -> Contents:
    values = _shape(arguments, "encoder_", state, source)
    values["max_positions"] = arguments.get("max_positions")
    values["token_dropout"] = bool(arguments.get("token_dropout", False))
    values["embedding_norm"] = has_part(state, "emb_layer_norm_before")
    config = from_dict(Esm1bConfig, values, source)
    embedding = state.get("embed_tokens.weight")
    if embedding is not None and embedding.ndim == 2 and len(embedding) > MASK_ROW:
        embedding[MASK_ROW].zero_()  # in the file's own memory, which lm_head.weight may share
    return _contents("esm1b", config, _tie(state, source, MASK_ROW), source)


def _read_esm2(arguments: Mapping[str, Any], state: Tensors, source: str) -> Contents:
    values = _shape(arguments, "encoder_", state, source)
    values["inner"] = 4 * values["width"] if type(values["width"]) is int else None
    values["token_dropout"] = bool(arguments.get("token_dropout", False))
    if "max_residues" in arguments:  # written by us; the published files do not have it
        values["max_residues"] = arguments["max_residues"]
    config = from_dict(Esm2Config, values, source)
    return _contents("esm2", config, _tie(state, source, None), source)


def _tie(state: Tensors, source: str, except_row: int | None) -> Tensors:
    """Merge `lm_head.weight` into the embedding. Where they differ in `except_row` alone, the head's row is kept."""
    head, embedding = state.pop("lm_head.weight", None), state.get("embed_tokens.weight")
    if head is None or embedding is None:
        return state
    compared = embedding
    if except_row is not None and head.shape == embedding.shape and len(head) > except_row:
        compared = embedding.clone()
        compared[except_row] = head[except_row]
    require_tied(head, compared, "lm_head.weight", source)
    return {**state, "embed_tokens.weight": head}


def _contents(
    architecture: str, config: Esm1Config | Esm1bConfig | Esm2Config, state: Tensors, source: str
) -> Contents:
    require_layers(config.num_layers, count_layers(state, "layers."), source)
    model = meta_model(architecture, config, source)
    return Contents(architecture, config, to_ours(model, state, FAIR_ESM, source), source)


def write(model: ProteinModel, path: Path, dtype: torch.dtype) -> None:
    """Write `path`, and `-contact-regression.pt` beside it where the model has a contact head, each atomically.

    fair-esm tells ESM-2 by its file name, and looks for no contact regression where the name holds `esm1v`.

    Raises:
        InputError: fair-esm has no such architecture, or would read the file as another one by its name.
    """
    architecture, _ = architecture_of(model)
    if not isinstance(model, Esm1 | Esm1b | Esm2):
        raise InputError(f"fair-esm has no architecture {architecture}; export it as native")
    if isinstance(model, Esm2) != path.name.startswith("esm2"):
        raise InputError(
            f"fair-esm takes a file for ESM-2 exactly if its name starts with 'esm2'; this model is {architecture}: "
            f"rename {path.name}"
        )
    named = {name: tensor.to(dtype) for name, tensor in to_theirs(model, weights_of(model), FAIR_ESM).items()}
    regression = {name: named.pop(name).float() for name in list(named) if name.startswith(CONTACT)}
    content = _content(model, named)
    if regression:
        _write_torch(path.with_name(path.stem + REGRESSION + path.suffix), {"model": regression})
    _write_torch(path, content)


def _write_torch(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _content(model: Esm1 | Esm1b | Esm2, named: Tensors) -> dict[str, Any]:
    config = model.config
    if isinstance(config, Esm1Config):
        arguments = {**_sizes(config, "decoder_"), "arch": "protein_bert_base", "final_bias": config.output_bias}
        named[DTYPE_MARKER] = torch.zeros(1, dtype=named["embed_out"].dtype)
        state = {"decoder." + name: tensor for name, tensor in named.items()}
        return {"args": argparse.Namespace(**arguments, token_dropout=config.token_dropout), "model": state}
    if not config.language_head:
        raise InputError("fair-esm cannot read a model without a language-model head; export it as hf or native")
    named["lm_head.weight"] = named["embed_tokens.weight"].clone()
    prefixed = {
        ("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name: tensor
        for name, tensor in named.items()
    }
    arguments = {**_sizes(config, "encoder_"), "token_dropout": config.token_dropout}
    if isinstance(config, Esm1bConfig):
        arguments |= {"arch": "roberta_large", "max_positions": config.max_positions}
        return {"args": argparse.Namespace(**arguments), "model": prefixed}
    if config.inner != 4 * config.width:
        raise InputError(
            f"fair-esm fixes the feed-forward width of ESM-2 at 4 x {config.width}; this model has {config.inner}"
        )
    namespace = argparse.Namespace(**arguments, max_residues=config.max_residues)
    return {"args": None, "cfg": {"model": namespace}, "model": prefixed}


def _sizes(config: Esm1Config | Esm1bConfig | Esm2Config, side: str) -> dict[str, Any]:
    return {
        f"{side}layers": config.num_layers,
        f"{side}embed_dim": config.width,
        f"{side}attention_heads": config.num_heads,
        f"{side}ffn_embed_dim": config.inner,
    }
