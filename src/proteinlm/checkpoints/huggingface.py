"""Hugging Face folders: `config.json` with safetensors or `.bin` weights, whole or in shards.

In: a folder. Out: `Contents`; and back, so that the classes of `transformers` load what we write. Which family reads a
folder is what its `config.json` says as `model_type`; a folder of TAPE, which has none, is known by other fields. A new
family is one file that ends in a `Family`, and one line in `FAMILIES`.
"""

from pathlib import Path

import torch

from proteinlm.checkpoints import hf_bert, hf_esm, hf_t5, hf_transfoxl, hf_xlnet
from proteinlm.checkpoints.contents import Contents, architecture_of, weights_of
from proteinlm.checkpoints.files import read_json
from proteinlm.checkpoints.hf_family import Family, write_files
from proteinlm.checkpoints.tape import is_tape, read_tape
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel

FAMILIES: dict[str, Family] = {
    "albert": hf_bert.ALBERT,
    "bert": hf_bert.BERT,
    "electra": hf_bert.ELECTRA,
    "esm": hf_esm.ESM,
    "t5": hf_t5.T5_FAMILY,
    "transfo-xl": hf_transfoxl.TRANSFO_XL,
    "xlnet": hf_xlnet.XLNET,
}
"""Families by the `model_type` of their `config.json`."""


def read(folder: Path) -> Contents:
    """Read a folder with `config.json` and weights.

    Raises:
        InputError: another architecture, fields that this version cannot follow, or tensors that do not fit.
    """
    fields = read_json(folder / "config.json")
    if is_tape(fields):
        return read_tape(folder, fields)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(
            f"{folder}: model type {kind!r} is not supported by this version; these are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[kind].read(folder, fields)


def write(model: ProteinModel, folder: Path, dtype: torch.dtype) -> None:
    """Write a folder that `from_pretrained` of the model's class and tokeniser in `transformers` reads.

    Raises:
        InputError: the architecture has no Hugging Face port, or the folder is not empty.
    """
    architecture, _ = architecture_of(model)
    for family in FAMILIES.values():
        if isinstance(model, family.models):
            weights_of(model)
            write_files(folder, family.write(model, dtype))
            return
    raise InputError(f"architecture {architecture} has no Hugging Face port; export it as native or in its own layout")
