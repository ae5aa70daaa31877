"""Contact maps as NumPy archives: one `.npz` with an array per protein, or a folder with one file per protein.

In: proteins with contacts. Out: probabilities of shape (L, L) under the protein's id. The provenance is the archive's
comment, or `provenance.json` in the folder. A folder can have a picture beside every file, which needs matplotlib, an
optional extra.
"""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from proteinlm.embedding.formats.base import Assembly, FolderFormat, Move, OutputFormat, as_provenance
from proteinlm.embedding.names import LONGEST_MEMBER_NAME, key_of, shortened
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance
from proteinlm.errors import InputError


class Npz(OutputFormat):
    """`OUT.npz`; `numpy.load` gives the arrays by id."""

    name = "npz"
    suffixes = (".npz",)

    def check(self, settings: EmbedSettings) -> None:
        """Contacts only."""
        _contacts_only(settings)

    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """One file."""
        return [out]

    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins."""
        path = assembly.folder / assembly.out.name
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for protein in proteins:
                name = assembly.names.claim(_key(protein))
                _add_array(archive, name, protein.tensors["contacts"].numpy())
            archive.comment = assembly.provenance_text.encode()
        return [(path, assembly.out)]

    def provenance(self, path: Path) -> Provenance | None:
        """From the archive's comment."""
        try:
            with zipfile.ZipFile(path) as archive:
                return as_provenance(archive.comment)
        except (OSError, zipfile.BadZipFile):
            return None

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Key and array of every protein."""
        try:
            archive = np.load(path, allow_pickle=False)
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise InputError(f"{str(path)!r} cannot be read as .npz ({error}); give a whole file") from error
        with archive:
            for name in archive.files:
                yield name, archive[name]


class NpzFolder(FolderFormat):
    """A folder `OUT` with `<header>.npz` for each protein, and `<header>.png` where pictures are asked for."""

    name = "npz-folder"

    def check(self, settings: EmbedSettings) -> None:
        """Contacts only; pictures need matplotlib."""
        _contacts_only(settings)

    def write_protein(self, path: Path, protein: Stored, assembly: Assembly) -> None:
        """`path.npz`, and `path.png` where pictures are asked for."""
        contacts_LL = protein.tensors["contacts"].numpy()
        with zipfile.ZipFile(path.with_name(f"{path.name}.npz"), "w", zipfile.ZIP_DEFLATED) as archive:
            _add_array(archive, _key(protein), contacts_LL)
        if assembly.provenance.get("pictures"):
            draw_contacts(contacts_LL, protein.entry.id, path.with_name(f"{path.name}.png"))

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Key and array of every protein, in the order of file names."""
        for file in sorted(path.glob("*.npz")):
            yield from Npz().read(file)


def draw_contacts(contacts_LL: np.ndarray, title: str, path: Path) -> None:
    """A heat map of contact probabilities, residues counted from 1.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_pictures()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    length = len(contacts_LL)
    extent = (0.5, length + 0.5, length + 0.5, 0.5)
    image = axes.imshow(contacts_LL, vmin=0, vmax=1, cmap="Blues", extent=extent, interpolation="nearest")
    axes.set(title=title, xlabel="residue", ylabel="residue")
    figure.colorbar(image, label="contact probability")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def check_pictures() -> None:
    """Raise `InputError` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401 - only to see that it is there
    except ImportError as error:
        raise InputError("pictures need matplotlib; `pip install 'proteinlm[plot]'`, or leave out --png") from error


def _contacts_only(settings: EmbedSettings) -> None:
    if settings.include != ("contacts",):
        raise InputError(".npz holds contact maps (`plm contacts`); for embeddings and logits use an .h5 output")


def _key(protein: Stored) -> str:
    return shortened(key_of(protein.entry.id), LONGEST_MEMBER_NAME)


def _add_array(archive: zipfile.ZipFile, name: str, array: np.ndarray) -> None:
    """One array; an entry without a date, so that the same maps make the same bytes."""
    entry = zipfile.ZipInfo(f"{name}.npy")
    entry.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(entry, "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
