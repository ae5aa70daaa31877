"""Flat HDF5: one dataset per protein under its id, as ProtTrans, EAT and UniProt's downloads have it.

In: proteins. Out: one file for each content. A dataset's attributes are `original_id` and `header`, and `windows` or
`cropped` where the protein was not run whole; the file's attributes hold the provenance. Datasets come back in the
order of the input. Reading also takes the files of other tools: keys that are ids, keys in which `/` and `.` became
`_`, and keys that are hashes with the attribute `original_id`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import h5py
import numpy as np

from proteinlm.embedding.formats.base import (
    Assembly,
    Move,
    OutputFormat,
    as_provenance,
    content_files,
    no_bfloat16,
)
from proteinlm.embedding.names import key_of
from proteinlm.embedding.pooling import Entry, Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance
from proteinlm.errors import InputError

_TEXT = h5py.h5t.py_create(h5py.string_dtype(), logical=True)
_SCALAR = h5py.h5s.create(h5py.h5s.SCALAR)
_NUMBER = {np.dtype(np.float32): h5py.h5t.IEEE_F32LE, np.dtype(np.float16): h5py.h5t.IEEE_F16LE}

AXES = {"mean": "D", "max": "D", "cls": "D", "none": "L D"}
"""Axes of an embedding by pooling; an axis of layers comes first where there are several."""


class Hdf5(OutputFormat):
    """`OUT.h5`, and `OUT.logits.h5` and `OUT.contacts.h5` beside it."""

    name = "hdf5"
    suffixes = (".h5", ".hdf5")

    def check(self, settings: EmbedSettings) -> None:
        """No bf16."""
        no_bfloat16(settings, "HDF5")

    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """One for each content."""
        return list(content_files(out, settings).values())

    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins."""
        moves = {what: (assembly.folder / out.name, out) for what, out in _contents(assembly)}
        with ExitStack() as stack:
            files = {}
            for what, (path, _) in moves.items():
                files[what] = stack.enter_context(h5py.File(path, "w", track_order=True))
                files[what].attrs["content"] = what
                files[what].attrs["provenance"] = assembly.provenance_text
                if what == "embeddings":
                    files[what].attrs["layers"] = assembly.settings.layers
                    files[what].attrs["axes"] = axes_of(assembly.settings)
            for protein in proteins:
                name = assembly.names.claim(key_of(protein.entry.id))
                for what, file in files.items():
                    _write_dataset(file, name, protein.tensors[what].numpy(), protein.entry)
        return list(moves.values())

    def provenance(self, path: Path) -> Provenance | None:
        """From the file's attributes."""
        try:
            with h5py.File(path, "r") as file:
                return as_provenance(file.attrs.get("provenance"))
        except OSError:
            return None

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Id and array of every dataset, also of those that stand in groups."""
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise InputError(f"{str(path)!r} cannot be read as HDF5 ({error}); give a whole .h5 file") from error
        with file:
            yield from _datasets(file)


def axes_of(settings: EmbedSettings) -> str:
    """The axes of an embedding in words.

    >>> axes_of(EmbedSettings(layers=(6, 33), pooling="none"))
    'layers L D'
    """
    return ("layers " if len(settings.layers) > 1 else "") + AXES[settings.pooling]


def _contents(assembly: Assembly) -> list[tuple[str, Path]]:
    return list(content_files(assembly.out, assembly.settings).items())


def _write_dataset(file: h5py.File, name: str, array: np.ndarray, entry: Entry) -> None:
    """One dataset with its attributes, through the C-like interface: a fifth of the time of `create_dataset`."""
    space = h5py.h5s.create_simple(array.shape)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_obj_track_times(False)
    dataset = h5py.h5d.create(file.id, name.encode("utf-8"), _NUMBER[array.dtype], space, properties)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(array))
    for attribute, text in (("original_id", entry.id), ("header", entry.header)):
        h5py.h5a.create(dataset, attribute.encode(), _TEXT, _SCALAR).write(np.array(text, dtype=object))
    for attribute, count, usual in (("windows", entry.windows, 1), ("cropped", entry.cropped, 0)):
        if count != usual:
            value = np.array(count, dtype="<i8")
            h5py.h5a.create(dataset, attribute.encode(), h5py.h5t.STD_I64LE, _SCALAR).write(value)


def _datasets(group: h5py.Group) -> Iterator[tuple[str, np.ndarray]]:
    """The datasets of a group and of the groups in it."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from _datasets(item)
        else:
            identifier = item.attrs.get("original_id", item.name.removeprefix("/") if "/" in item.name[1:] else name)
            yield str(identifier.decode() if isinstance(identifier, bytes) else identifier), item[()]
