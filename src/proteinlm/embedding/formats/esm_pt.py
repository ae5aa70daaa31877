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

from proteinlm.embedding.formats.base import Assembly, FolderFormat
from proteinlm.embedding.formats.safetensors import as_array
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings
from proteinlm.errors import InputError

KEYS = {"none": "representations", "mean": "mean_representations", "cls": "bos_representations"}
"""What `esm-extract` calls an embedding, by pooling."""


class EsmPt(FolderFormat):
    """A folder `OUT`."""

    name = "esm-pt"

    def check(self, settings: EmbedSettings) -> None:
        """`esm-extract` knows no maximum."""
        if settings.pooling == "max" and "embeddings" in settings.include:
            raise InputError("esm-pt has no place for --pooling max; use mean, cls or none, or an .h5 output")

    def write_protein(self, path: Path, protein: Stored, assembly: Assembly) -> None:
        """`path.pt`."""
        # Into memory first: a file would carry its own name inside, which is not the protein's.
        buffer = io.BytesIO()
        torch.save(_dictionary(protein, assembly.settings), buffer)
        path.with_name(f"{path.name}.pt").write_bytes(buffer.getvalue())

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
