"""Output formats: an explicit table, and the two questions asked of it.

Which format does an output have (`choose_format`), and what is in a file of embeddings, whoever wrote it
(`read_embeddings`)? Each format is a module: `hdf5`, `parquet`, `safetensors`, `esm_pt`, `npz`; `base` says what they
have in common.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proteinlm.embedding.formats.base import OutputFormat
from proteinlm.embedding.formats.esm_pt import EsmPt
from proteinlm.embedding.formats.hdf5 import Hdf5
from proteinlm.embedding.formats.npz import Npz, NpzFolder
from proteinlm.embedding.formats.parquet import Parquet
from proteinlm.embedding.formats.safetensors import Safetensors
from proteinlm.errors import InputError

FORMATS: dict[str, OutputFormat] = {
    output.name: output for output in (Hdf5(), Parquet(), Safetensors(), EsmPt(), Npz(), NpzFolder())
}
"""Formats by the name that `--format` takes."""


def choose_format(out: Path, name: str | None = None) -> OutputFormat:
    """The format named, or the one that the ending of `out` stands for.

    Raises:
        InputError: there is no such format, or no name is given and the ending says nothing.

    >>> choose_format(Path("x.h5")).name, choose_format(Path("x"), "esm-pt").name
    ('hdf5', 'esm-pt')
    """
    if name is not None:
        if name not in FORMATS:
            raise InputError(f"format {name!r} is unknown; use one of {', '.join(FORMATS)}")
        return FORMATS[name]
    for output in FORMATS.values():
        if out.suffix.lower() in output.suffixes:
            return output
    endings = ", ".join(suffix for output in FORMATS.values() for suffix in output.suffixes)
    raise InputError(f"the ending of {str(out)!r} says no format; end it in {endings}, or name a --format")


def read_embeddings(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and arrays of a file or folder of embeddings.

    Args:
        path: what `plm embed` wrote, in any format, or an HDF5 file of ProtTrans, EAT, bio_embeddings or biotrainer.

    Yields:
        id as it stood in the FASTA file (where the file knows it), and array: (D,) or (L, D), with an axis of layers
        in front where there are several. HDF5, Parquet and safetensors that we wrote come in the order of the input.

    Raises:
        InputError: the file is not there, or is none of these.

    >>> import h5py, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with h5py.File(Path(folder, "x.h5"), "w") as file:
    ...         file["P12345"] = np.ones(3)
    ...     [(name, array.shape) for name, array in read_embeddings(Path(folder, "x.h5"))]
    [('P12345', (3,))]
    """
    path = Path(path)
    if path.is_dir():
        folder = FORMATS["esm-pt"] if any(path.glob("*.pt")) else FORMATS["npz-folder"]
        yield from folder.read(path)
        return
    name = path.name.removesuffix(".index.json")
    output = choose_format(path.with_name(name))
    if not path.exists() and output.name != "safetensors":
        raise InputError(f"{str(path)!r} is not there; give the output of `plm embed`")
    yield from output.read(path)
