"""Parquet: a row per protein, for tables and databases.

In: proteins with one vector per layer. Out: one file with the columns index, id, header, length, windows, cropped and
`embedding` (a list of fixed size), or `embedding_<layer>` where several layers were asked for. The provenance is in the
schema's metadata. Needs pyarrow, an optional extra.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from proteinlm.embedding.formats.base import Assembly, Move, OutputFormat, as_provenance, no_bfloat16
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance
from proteinlm.errors import InputError

if TYPE_CHECKING:
    import pyarrow

ROWS = 4096
"""Rows in a row group."""

METADATA_KEY = b"proteinlm"


class Parquet(OutputFormat):
    """`OUT.parquet`."""

    name = "parquet"
    suffixes = (".parquet",)

    def check(self, settings: EmbedSettings) -> None:
        """One vector per protein and layer, no bf16, and pyarrow is there."""
        no_bfloat16(settings, "Parquet")
        if settings.include != ("embeddings",) or not settings.per_protein:
            raise InputError(
                "Parquet holds one vector per protein: no logits, no contacts, no --pooling none; use an .h5 output"
            )
        _pyarrow()

    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """One file."""
        return [out]

    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins."""
        pyarrow = _pyarrow()
        from pyarrow.parquet import ParquetWriter

        path = assembly.folder / assembly.out.name
        first = next(proteins, None)
        schema = _schema(assembly.settings, 0 if first is None else first.tensors["embeddings"].shape[-1])
        schema = schema.with_metadata({METADATA_KEY: assembly.provenance_text.encode()})
        group = [] if first is None else [first, *islice(proteins, ROWS - 1)]
        with ParquetWriter(path, schema) as writer:
            while group:
                writer.write_table(pyarrow.Table.from_arrays(_columns(group, schema), schema=schema))
                group = list(islice(proteins, ROWS))
        return [(path, assembly.out)]

    def provenance(self, path: Path) -> Provenance | None:
        """From the schema's metadata."""
        pyarrow = _pyarrow()
        from pyarrow.parquet import read_schema

        try:
            return as_provenance((read_schema(path).metadata or {}).get(METADATA_KEY))
        except (OSError, pyarrow.ArrowInvalid):
            return None

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Id and vector of every row; several layers are stacked."""
        pyarrow = _pyarrow()
        from pyarrow.parquet import ParquetFile

        try:
            file = ParquetFile(path)
        except (OSError, pyarrow.ArrowInvalid) as error:
            raise InputError(f"{str(path)!r} cannot be read as Parquet ({error}); give a whole file") from error
        with file:
            names = [name for name in file.schema_arrow.names if name == "embedding" or name.startswith("embedding_")]
            if "id" not in file.schema_arrow.names or not names:
                raise InputError(f"{str(path)!r} has no columns id and embedding; give a file that `plm embed` wrote")
            for batch in file.iter_batches(columns=["id", *names]):
                columns = [_matrix(batch.column(name)) for name in names]
                for row, identifier in enumerate(batch.column("id").to_pylist()):
                    vectors = [column[row] for column in columns]
                    yield identifier, vectors[0] if len(vectors) == 1 else np.stack(vectors)


def _pyarrow() -> "pyarrow":
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(
            f"Parquet needs pyarrow ({error}); `pip install 'proteinlm[parquet]'`, or use an .h5 output"
        ) from error
    return pyarrow


def _schema(settings: EmbedSettings, width: int) -> "pyarrow.Schema":
    pyarrow = _pyarrow()
    number = pyarrow.float16() if settings.dtype == torch.float16 else pyarrow.float32()
    names = ["embedding"] if len(settings.layers) == 1 else [f"embedding_{layer}" for layer in settings.layers]
    return pyarrow.schema(
        [
            ("index", pyarrow.int64()),
            ("id", pyarrow.string()),
            ("header", pyarrow.string()),
            ("length", pyarrow.int64()),
            ("windows", pyarrow.int64()),
            ("cropped", pyarrow.int64()),
            *((name, pyarrow.list_(number, width)) for name in names),
        ]
    )


def _columns(group: list[Stored], schema: "pyarrow.Schema") -> list["pyarrow.Array"]:
    """The columns of a row group, in the order of the schema."""
    pyarrow = _pyarrow()
    told = [
        pyarrow.array([vars(item.entry)[name] for item in group], schema.field(name).type) for name in schema.names[:6]
    ]
    values = np.stack([np.atleast_2d(item.tensors["embeddings"].numpy()) for item in group])
    width = values.shape[-1]
    vectors = [
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(np.ascontiguousarray(layer).ravel()), width)
        for layer in values.swapaxes(0, 1)
    ]
    return [*told, *vectors]


def _matrix(column: "pyarrow.FixedSizeListArray") -> np.ndarray:
    """A column of lists as an array of shape (rows, D)."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
