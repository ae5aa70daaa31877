"""SeqVec's folder: `options.json`, and the weights of an ELMo model in HDF5.

In: a folder. Out: `Contents` of an `Elmo`. The original computes the embedding of a token from its characters, by
convolutions, highway layers and a projection; that is done here once for every token of the alphabet. TensorFlow's
gates stand in the order input, cell, forget, output, its matrices are transposed, and a 1 is added to the bias of the
forget gate; ours are as PyTorch's. Nothing outside the file is followed from within it.

Source: papers.md 8.5; allennlp 0.9, `modules/elmo.py`, `elmo_lstm.py`, `data/token_indexers/elmo_indexer.py`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from proteinlm.checkpoints.contents import Contents
from proteinlm.checkpoints.files import Tensors, read_json
from proteinlm.config import from_dict
from proteinlm.errors import InputError
from proteinlm.models.elmo import ElmoConfig
from proteinlm.sequences.alphabet import SEQVEC

OPTIONS = "options.json"

START_OF_SENTENCE, END_OF_SENTENCE, START_OF_WORD, END_OF_WORD, PADDING = 256, 257, 258, 259, 260
"""Characters beyond the bytes (`ELMoCharacterMapper`)."""

DIRECTIONS = ("ahead", "back")

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


def elmo_weights(folder: Path) -> Path | None:
    """The HDF5 file of an ELMo folder, or None where it is none."""
    if not (folder / OPTIONS).is_file():
        return None
    files = sorted((*folder.glob("*.hdf5"), *folder.glob("*.h5")))
    return files[0] if len(files) == 1 else None


def read_elmo(folder: Path, weights: Path) -> Contents:
    """Read SeqVec, or another ELMo model whose words are residues.

    Raises:
        InputError: options that this version cannot follow, or arrays that are missing or do not fit.
    """
    options = read_json(folder / OPTIONS)
    try:
        lstm, characters = options["lstm"], options["char_cnn"]
        sizes = {
            "num_layers": lstm["n_layers"],
            "width": lstm["projection_dim"],
            "cell_width": lstm["dim"],
            "cell_limit": float(lstm["cell_clip"]),
            "state_limit": float(lstm["proj_clip"]),
        }
        activation = ACTIVATIONS[characters["activation"]]
        filters = [(int(width), int(count)) for width, count in characters["filters"]]
        highways, longest = int(characters["n_highway"]), int(characters["max_characters_per_token"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / OPTIONS} is not ELMo's ({type(error).__name__}: {error}); get it again") from error
    if lstm.get("use_skip_connections") is not True:
        raise InputError(f"{folder / OPTIONS}: use_skip_connections is not true; only that is supported")
    config = from_dict(ElmoConfig, sizes, str(folder))
    try:
        with h5py.File(weights, "r") as file:
            arrays = Arrays(file, weights)
            words_VEK = spelled(arrays.get("char_embed"), longest)
            table_VC = convolved(words_VEK, arrays, filters, activation)
            weight_CD, bias_D = arrays.get("CNN_proj/W_proj"), arrays.get("CNN_proj/b_proj")
            table_VD = highway(table_VC, arrays, highways) @ weight_CD + bias_D
            table_VD[SEQVEC.pad] = 0
            tensors = {"embed_tokens.weight": table_VD, **recurrent(arrays, config)}
    except OSError as error:
        raise InputError(f"{weights} cannot be read as HDF5 ({error}); get it again") from error
    except RuntimeError as error:
        raise InputError(f"{weights}: arrays do not fit {OPTIONS} ({str(error).splitlines()[0]})") from error
    return Contents("elmo", config, {name: tensor.contiguous() for name, tensor in tensors.items()}, str(folder))


class Arrays:
    """The arrays of an open HDF5 file, as fp32."""

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path

    def get(self, name: str) -> Tensor:
        """One array.

        Raises:
            InputError: it is missing, not of floating point, or lies in another file.
        """
        found: Any = self.file.get(name)
        if not isinstance(found, h5py.Dataset) or found.dtype.kind != "f":
            raise InputError(f"{self.path}: array {name} is missing; another model's file, or damaged")
        if found.is_virtual or found.external or found.file.filename != self.file.filename:
            raise InputError(f"{self.path}: array {name} lies in another file; refused")
        return torch.from_numpy(np.asarray(found[...], np.float32))


def characters_of(longest: int) -> Int[Tensor, "V K"]:
    """The characters of every token of the alphabet: its own between the marks of a word, and padding.

    >>> characters_of(5)[SEQVEC.tokens.index("A")].tolist()
    [258, 65, 259, 260, 260]
    """
    special = {SEQVEC.tokens[SEQVEC.prefix[0]]: START_OF_SENTENCE, SEQVEC.tokens[SEQVEC.suffix[0]]: END_OF_SENTENCE}
    rows = []
    for token in SEQVEC.tokens:
        own = special.get(token, ord(token) if len(token) == 1 else PADDING)
        rows.append([START_OF_WORD, own, END_OF_WORD, *[PADDING] * (longest - 3)])
    return torch.tensor(rows)


def spelled(embedding_CE: Float[Tensor, "C E"], longest: int) -> Float[Tensor, "V E K"]:
    """Every token as the vectors of its characters."""
    return F.embedding(characters_of(longest), embedding_CE).transpose(1, 2)


def convolved(
    words_VEK: Float[Tensor, "V E K"], arrays: Arrays, filters: list[tuple[int, int]], activation: Any
) -> Float[Tensor, "V C"]:
    """The largest answer of each filter along the characters of each token."""
    found = []
    for number, (width, count) in enumerate(filters):
        kernel = arrays.get(f"CNN/W_cnn_{number}")  # (1, width, E, count)
        if kernel.shape != (1, width, words_VEK.shape[1], count):
            raise InputError(
                f"{arrays.path}: CNN/W_cnn_{number} has shape {tuple(kernel.shape)}; {OPTIONS} says another"
            )
        answers_VCK = F.conv1d(words_VEK, kernel[0].permute(2, 1, 0), arrays.get(f"CNN/b_cnn_{number}"))
        found.append(activation(answers_VCK.amax(dim=2)))
    return torch.cat(found, dim=1)


def highway(x_VC: Float[Tensor, "V C"], arrays: Arrays, count: int) -> Float[Tensor, "V C"]:
    """Layers that carry part of their input and transform the rest."""
    for number in range(count):
        part = {
            name: arrays.get(f"CNN_high_{number}/{name}")
            for name in ("W_carry", "b_carry", "W_transform", "b_transform")
        }
        transformed_VC = torch.relu(x_VC @ part["W_transform"] + part["b_transform"])
        share_VC = torch.sigmoid(x_VC @ part["W_carry"] + part["b_carry"])
        x_VC = share_VC * transformed_VC + (1 - share_VC) * x_VC
    return x_VC


def recurrent(arrays: Arrays, config: ElmoConfig) -> Tensors:
    """The LSTMs of both directions, under our names."""
    tensors: Tensors = {}
    for direction, name in enumerate(DIRECTIONS):
        for layer in range(config.num_layers):
            cell = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell"
            weight_GI = in_our_order(arrays.get(f"{cell}/W_0").T)
            bias_G = in_our_order(arrays.get(f"{cell}/B"))
            bias_G[config.cell_width : 2 * config.cell_width] += 1
            ours: Mapping[str, Tensor] = {
                "read.weight": weight_GI[:, : config.width],
                "read.bias": bias_G,
                "recall.weight": weight_GI[:, config.width :],
                "project.weight": arrays.get(f"{cell}/W_P_0").T,
            }
            tensors |= {f"layers.{layer}.{name}.{part}": tensor for part, tensor in ours.items()}
    return tensors


def in_our_order(gates: Tensor) -> Tensor:
    """Input, cell, forget, output -> input, forget, cell, output."""
    first, cell, forget, last = gates.chunk(4)
    return torch.cat([first, forget, cell, last])
