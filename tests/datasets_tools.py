"""What the tests of datasets share: small tables, plain or compressed, written where the readers look for them."""

import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from proteinlm.datasets.sources import SOURCES


def write_table(folder: Path, key: str, columns: str, rows: Sequence[Sequence[str]]) -> Path:
    """A gzipped table at the place of a set; `columns` are separated by spaces."""
    return write_text(folder / SOURCES[key].path, ["\t".join(columns.split()), *("\t".join(row) for row in rows)])


def write_text(path: Path, lines: Sequence[str]) -> Path:
    """A text file, gzipped if its name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def write_archive(path: Path, members: Mapping[str, str | bytes]) -> Path:
    """A tar.xz archive of the members given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_coordinates(folder: Path, chains: Mapping[str, np.ndarray], scale: float = 0.02) -> Path:
    """Coordinates in Å, stored as the public file stores them."""
    path = folder / SOURCES["coordinates"].path
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.cumsum([0, *(len(points) for points in chains.values())])
    stored = np.round(np.concatenate(list(chains.values())) / scale).astype(np.int16)
    np.savez(path, ids=np.array(list(chains)), offsets=offsets, xyz=stored, scale=np.float32(scale))
    return path
