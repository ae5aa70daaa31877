"""N-gram counts in a file: one safetensors file, written whole or not at all, used only if its digest fits.

In: an `NGram`. Out: `NAME.safetensors` with the tensors `keys` (int64, ascending) and `counts` (uint32 in the bits of
int32), whose metadata has one entry, `proteinlm-ngram`: a JSON object of `format_version`, `config`, `letters` and
`digest`; and back.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from proteinlm.checkpoints.files import (
    atomic_file,
    kind_of,
    read_card,
    read_metadata,
    read_safetensors,
    write_safetensors,
)
from proteinlm.config import from_dict, to_dict
from proteinlm.errors import InputError
from proteinlm.models.ngram import BITS, LETTERS, NGram, NGramConfig

ENTRY = "proteinlm-ngram"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class NGramCard:
    """What a file of counts says of itself.

    Args:
        config: of the model, as a dictionary. letters: residues in the order of their codes, from 1.
        digest: sha256 over keys and counts. format_version: of this layout.
    """

    config: dict[str, object]
    letters: str
    digest: str
    format_version: int = FORMAT_VERSION


def save_ngram(model: NGram, path: str | Path) -> None:
    """Write counts and configuration; an existing file is replaced.

    Raises:
        InputError: the file cannot be written.
    """
    keys_K, counts_K = model.keys_K, model.counts_K
    card = NGramCard(to_dict(model.config), LETTERS, _digest(keys_K, counts_K))
    tensors = {"keys": torch.from_numpy(keys_K), "counts": torch.from_numpy(counts_K.view(np.int32))}
    with atomic_file(Path(path)) as temporary:
        write_safetensors(temporary, tensors, {ENTRY: json.dumps(to_dict(card))})


def is_ngram(path: Path) -> bool:
    """Whether a safetensors file holds n-gram counts."""
    return ENTRY in read_metadata(path)


def load_ngram(path: str | Path) -> NGram:
    """Read what `save_ngram` wrote.

    Raises:
        InputError: the file is missing, damaged, newer than this version, or something else.

    >>> import tempfile
    >>> model = NGram.fit([np.frombuffer(b"MKTAYIAKQR", dtype=np.uint8)], NGramConfig(left=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_ngram(model, Path(folder) / "counts.safetensors")
    ...     load_ngram(Path(folder) / "counts.safetensors").residues
    10
    """
    path = Path(path)
    if kind_of(path) != "safetensors":
        raise InputError(f"{path} is not a safetensors file; give a file of n-gram counts")
    tensors, metadata = read_safetensors(path)
    if ENTRY not in metadata:
        raise InputError(f"{path} holds no n-gram counts; give a file that was saved from an n-gram model")
    card = read_card(NGramCard, metadata[ENTRY], FORMAT_VERSION, path)
    config = from_dict(NGramConfig, card.config, f"{path}: config")
    found = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    size = len(tensors["keys"]) if "keys" in tensors else 0
    if found != {"keys": (torch.int64, (size,)), "counts": (torch.int32, (size,))}:
        raise InputError(f"{path}: keys and counts of one size are needed, it holds {', '.join(found) or 'nothing'}")
    keys_K, counts_K = tensors["keys"].numpy(), tensors["counts"].numpy().view(np.uint32)
    if card.letters != LETTERS or _digest(keys_K, counts_K) != card.digest:
        raise InputError(f"{path}: its content does not match its digest; it was changed or damaged, get it again")
    fits = size and keys_K[0] >= 0 and keys_K[-1] < 1 << (config.context + 1) * BITS
    if not fits or not (keys_K[1:] > keys_K[:-1]).all():
        raise InputError(f"{path}: its keys are not those of a context of {config.context}; get it again")
    return NGram.from_counts(config, keys_K, counts_K)


def _digest(keys_K: np.ndarray, counts_K: np.ndarray) -> str:
    hasher = hashlib.sha256(np.ascontiguousarray(keys_K).data)
    hasher.update(np.ascontiguousarray(counts_K).data)
    return hasher.hexdigest()
