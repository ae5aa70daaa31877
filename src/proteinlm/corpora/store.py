"""A corpus store, opened: every residue, identifier and cluster within reach, nothing of it in memory.

In: the folder that `build` or `split` wrote. Out: views into memory-mapped files. Residues are kept as ASCII letters,
one byte each, so that one store serves the alphabet of every model. The files (little-endian):

- `letters-00000.bin` ...: the letters of all sequences end to end; a sequence never crosses from one file to the next
- `starts.bin` int64 (N+1): where each sequence begins in the letters of all files together; `lengths.bin` int64 (N)
- `names.bin`, `name_starts.bin` int64 (N+1): identifiers in UTF-8, end to end, and where each begins
- `members.bin` int64 (N), `cluster_starts.bin` int64 (C+1): the sequences of each cluster, its representative first
- `refused.tsv`, `merged.tsv`: what is not in the store, and why
"""

import hashlib
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np

from proteinlm.corpora.manifest import Manifest
from proteinlm.errors import InputError

POSITION = np.dtype("<i8")
"""How positions, lengths and numbers are stored."""

HASH_BLOCK = 1 << 22


class Store:
    """Sequences on disk, by number. Open one with `Store.open`.

    Attributes:
        path: the folder.
        manifest: what it holds.
        lengths: residues of each sequence, int64, shape (N,).
        num_clusters: 0 where the store has no clusters.
        cluster_starts: int64, shape (C + 1,); the sequences of cluster c are
            `members[cluster_starts[c]:cluster_starts[c + 1]]`, its representative first.
        members: int64, shape (N,); empty where there are no clusters.

    >>> import io, tempfile
    >>> from proteinlm.corpora.build import BuildOptions, build
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "store")
    ...     fasta = io.BytesIO(b">a a\\nMKT\\n>b a\\nMKV\\n>c c\\nGG\\n")
    ...     manifest = build(fasta, path, BuildOptions(clusters="header"))
    ...     store = Store.open(path)
    ...     first = store.identifier(0), store.letters(0).tobytes()
    ...     print(len(store), store.lengths.tolist(), first, store.num_clusters, store.members.tolist())
    3 [3, 3, 2] ('a', b'MKT') 2 [0, 1, 2]
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.lengths = _mapped(path / "lengths.bin", POSITION)
        self.num_clusters = manifest.clusters
        self.cluster_starts = _mapped(path / "cluster_starts.bin", POSITION)
        self.members = _mapped(path / "members.bin", POSITION)
        self._starts = _mapped(path / "starts.bin", POSITION)
        self._names = _mapped(path / "names.bin", np.dtype(np.uint8))
        self._name_starts = _mapped(path / "name_starts.bin", POSITION)
        self._shards = [_mapped(path / name, np.dtype(np.uint8)) for name in manifest.shards()]
        self._shard_starts = list(accumulate((len(shard) for shard in self._shards), initial=0))[:-1]

    @classmethod
    def open(cls, path: str | Path) -> "Store":
        """The store in folder `path`.

        Sizes of all files are checked against the manifest; `verify` checks every byte.

        Raises:
            InputError: it is not a store, its manifest was changed, or a file is missing or has another size.
        """
        path = Path(path)
        manifest = Manifest.read(path)
        for name, facts in manifest.files.items():
            try:
                size = (path / name).stat().st_size
            except OSError as error:
                raise InputError(f"{str(path / name)!r} is missing; build the store again") from error
            if size != facts["bytes"]:
                raise InputError(
                    f"{str(path / name)!r} has {size} bytes, not {facts['bytes']}: truncated or changed; "
                    "build the store again"
                )
        return cls(path, manifest)

    def __len__(self) -> int:
        """Sequences in the store."""
        return len(self.lengths)

    def letters(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Residues of a sequence, or of a crop of it: a view, upper-case ASCII.

        Args:
            index: which sequence, 0 to N - 1.
            start, stop: residues from `start` up to `stop`, as in a slice.

        Returns:
            uint8 array of shape (L,), read-only.

        Raises:
            IndexError: there is no such sequence.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sequence {index} of a store of {len(self)}")
        first = int(self._starts[index])
        shard = bisect_right(self._shard_starts, first) - 1
        offset = self._shard_starts[shard]
        whole: np.ndarray = self._shards[shard][first - offset : int(self._starts[index + 1]) - offset]
        return whole[start:stop]

    def identifier(self, index: int) -> str:
        """The identifier of a sequence: its header up to the first white space."""
        return self._names[int(self._name_starts[index]) : int(self._name_starts[index + 1])].tobytes().decode("utf-8")

    def verify(self) -> int:
        """Read every byte and compare with the digests of the manifest.

        Returns:
            The number of files compared.

        Raises:
            InputError: a file is not what was written.
        """
        for name, facts in self.manifest.files.items():
            if sha256_of(self.path / name) != facts["sha256"]:
                raise InputError(f"{str(self.path / name)!r} was changed or is damaged; build the store again")
        return len(self.manifest.files)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def _mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The content of a file as a read-only array; an empty file cannot be mapped."""
    if path.stat().st_size == 0:
        return np.empty(0, dtype)
    # A plain view: slicing a memmap object costs several times as much.
    return np.memmap(path, dtype, mode="r").view(np.ndarray)
