"""Safetensors: numbered shards with an index, as Hugging Face lays out large models.

In: proteins. Out: `OUT-00001-of-0000N.safetensors` with a tensor per protein under its id, and
`OUT.safetensors.index.json` with the shard of every key. Each shard's metadata has the provenance, and id, header and
length of its tensors in the order of the input. Logits and contacts go to `OUT.logits-...` and `OUT.contacts-...`.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from proteinlm.checkpoints.files import ordinary_mode
from proteinlm.embedding.formats.base import Assembly, Move, OutputFormat, content_files
from proteinlm.embedding.names import key_of
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance
from proteinlm.errors import InputError

SHARD_BYTES = 1 << 28
"""Bytes of tensors in a shard; it is held in memory until it is full."""

SUFFIX = ".safetensors"
METADATA_KEY = "proteinlm"
RESERVED_KEY = "__metadata__"
"""What safetensors calls its own entry."""


class Safetensors(OutputFormat):
    """`OUT-00001-of-0000N.safetensors` and `OUT.safetensors.index.json`."""

    name = "safetensors"
    suffixes = (SUFFIX,)

    def check(self, settings: EmbedSettings) -> None:
        """Holds everything."""

    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """The index of each content."""
        return [index_of(path) for path in content_files(out, settings).values()]

    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins."""
        assembly.names.claim(RESERVED_KEY)
        sets = {
            what: _ShardSet(assembly, path) for what, path in content_files(assembly.out, assembly.settings).items()
        }
        for protein in proteins:
            name = assembly.names.claim(key_of(protein.entry.id))
            for what, shards in sets.items():
                shards.add(name, protein.tensors[what], {"key": name, **vars(protein.entry)})
        return [move for shards in sets.values() for move in shards.finish()]

    def provenance(self, path: Path) -> Provenance | None:
        """From the index."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))["metadata"][METADATA_KEY]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return values if isinstance(values, dict) else None

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Id and array of every tensor, shard by shard; bfloat16 is read as float32."""
        index = path if path.name.endswith(".index.json") else index_of(path)
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{str(index)!r} cannot be read as an index of shards ({error}); give OUT.safetensors"
            ) from error
        for shard in shards:
            try:
                with safe_open(index.with_name(shard), "pt") as file:
                    for entry in json.loads(file.metadata()[METADATA_KEY])["entries"]:
                        yield entry["id"], as_array(file.get_tensor(entry["key"]))
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{str(index.with_name(shard))!r} cannot be read ({error}); get the shard again"
                ) from error


def index_of(out: Path) -> Path:
    """The index of an output.

    >>> index_of(Path("x.safetensors")).name
    'x.safetensors.index.json'
    """
    return out.with_name(f"{_stem(out)}{SUFFIX}.index.json")


def _stem(out: Path) -> str:
    """The beginning of the names of all files of an output."""
    return out.name.removesuffix(SUFFIX)


def as_array(tensor: Tensor) -> np.ndarray:
    """A tensor for NumPy, which has no bfloat16: that becomes float32, which holds every bfloat16 exactly."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


@dataclass
class _ShardSet:
    """The shards of one content as they fill."""

    assembly: Assembly
    out: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    waiting: int = 0
    written: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        self.keys: TextIO = open(self._temporary("keys"), "w", encoding="utf-8")  # noqa: SIM115 - closed in finish

    def add(self, key: str, tensor: Tensor, entry: dict[str, Any]) -> None:
        size = tensor.numel() * tensor.dtype.itemsize
        if self.waiting and self.waiting + size > SHARD_BYTES:
            self._flush()
        self.tensors[key] = tensor
        self.entries.append(entry)
        self.waiting += size
        self.total += size

    def finish(self) -> list[Move]:
        if self.waiting or not self.written:
            self._flush()
        self.keys.close()
        names = [f"{_stem(self.out)}-{n:05d}-of-{self.written:05d}{SUFFIX}" for n in range(1, self.written + 1)]
        index = self._temporary("index")
        with open(index, "w", encoding="utf-8") as file:
            metadata = {"total_size": self.total, METADATA_KEY: self.assembly.provenance}
            file.write(f'{{"metadata": {json.dumps(metadata, sort_keys=True)},\n "weight_map": {{')
            for number, (key, shard) in enumerate(self._keys()):
                file.write(f"{',' * (number > 0)}\n  {key}: {json.dumps(names[shard])}")
            file.write("}}\n")
        moves = [(self._temporary(str(n)), self.out.with_name(name)) for n, name in enumerate(names)]
        return [*moves, (index, index_of(self.out))]

    def _flush(self) -> None:
        metadata = json.dumps({"provenance": self.assembly.provenance, "entries": self.entries}, sort_keys=True)
        shard = self._temporary(str(self.written))
        save_file(self.tensors, shard, metadata={METADATA_KEY: metadata})
        shard.chmod(ordinary_mode())
        self.keys.writelines(f"{self.written}\t{json.dumps(key)}\n" for key in self.tensors)
        self.tensors, self.entries, self.waiting = {}, [], 0
        self.written += 1

    def _keys(self) -> Iterator[tuple[str, int]]:
        """Each key as JSON, with the number of its shard."""
        with open(self._temporary("keys"), encoding="utf-8") as lines:
            for line in lines:
                shard, _, key = line.rstrip("\n").partition("\t")
                yield key, int(shard)

    def _temporary(self, what: str) -> Path:
        return self.assembly.folder / f"{_stem(self.out)}.{what}.unfinished"
