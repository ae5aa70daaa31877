"""A folder of `.pt` files as fair-esm's `esm-extract` writes them, one per protein.

In: proteins. Out: `OUT/<header>.pt`, each a dictionary with `label` (the whole header), and what was asked for of
`representations` (layer -> (L, D)), `mean_representations` and `bos_representations` (layer -> (D,)), `contacts`
(L, L) and `logits` (L, V). Unlike there, a header never leaves the folder and two proteins never share a file. The
provenance is in `OUT/provenance.json`.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proteinlm.embedding.formats.base import Assembly, Move, OutputFormat, as_provenance
from proteinlm.embedding.formats.safetensors import as_array
from proteinlm.embedding.names import file_name_of
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance
from proteinlm.errors import InputError

KEYS = {"none": "representations", "mean": "mean_representations", "cls": "bos_representations"}
"""What `esm-extract` calls an embedding, by pooling."""

PROVENANCE_FILE = "provenance.json"


class EsmPt(OutputFormat):
    """A folder `OUT`."""

    name = "esm-pt"
    folds_case = True

    def check(self, settings: EmbedSettings) -> None:
        """`esm-extract` knows no maximum."""
        if settings.pooling == "max" and "embeddings" in settings.include:
            raise InputError("esm-pt has no place for --pooling max; use mean, cls or none, or an .h5 output")

    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """The folder."""
        return [out]

    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins."""
        folder = assembly.folder / "folder"
        folder.mkdir()
        for protein in proteins:
            name = assembly.names.claim(file_name_of(protein.entry.header))
            # Into memory first: a file would carry its own name inside, which is not the protein's.
            buffer = io.BytesIO()
            torch.save(_dictionary(protein, assembly.settings), buffer)
            (folder / f"{name}.pt").write_bytes(buffer.getvalue())
        (folder / PROVENANCE_FILE).write_text(assembly.provenance_text + "\n", encoding="utf-8")
        return [(folder, assembly.out)]

    def provenance(self, path: Path) -> Provenance | None:
        """From `provenance.json`."""
        try:
            return as_provenance((path / PROVENANCE_FILE).read_text(encoding="utf-8"))
        except OSError:
            return None

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Label and representation of every file, in the order of file names; several layers are stacked."""
        for file in sorted(path.glob("*.pt")):
            values = torch.load(file, map_location="cpu", weights_only=True)
            found = next((values[key] for key in KEYS.values() if key in values), None)
            if found is None:
                raise InputError(f"{str(file)!r} holds no representations; give a folder that `plm embed` wrote")
            layers = [as_array(found[layer]) for layer in found]
            yield values["label"], layers[0] if len(layers) == 1 else np.stack(layers)


def _dictionary(protein: Stored, settings: EmbedSettings) -> dict[str, Any]:
    """What one file holds."""
    values: dict[str, Any] = {"label": protein.entry.header}
    if "embeddings" in settings.include:
        embedding = protein.tensors["embeddings"]
        layers = embedding.unbind(0) if len(settings.layers) > 1 else (embedding,)
        values[KEYS[settings.pooling]] = {n: x.clone() for n, x in zip(settings.layers, layers, strict=True)}
    for what in ("contacts", "logits"):
        if what in settings.include:
            values[what] = protein.tensors[what].clone()
    for what, count, usual in (("windows", protein.entry.windows, 1), ("cropped", protein.entry.cropped, 0)):
        if count != usual:
            values[what] = count
    return values
