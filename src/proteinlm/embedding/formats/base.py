"""What every output format is: where its files stand, what it can hold, how it is written and read.

In: proteins in the order of the input, one at a time. Out: finished files under temporary names, with the names they
are to get. Writers hold one protein, or one group of bounded size, in memory.
"""

import abc
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proteinlm.embedding.names import UniqueNames, file_name_of
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance
from proteinlm.errors import InputError

Move = tuple[Path, Path]
"""Where a finished file or folder is, and where it belongs."""

PROVENANCE_FILE = "provenance.json"
"""In the folder of a `FolderFormat`."""


@dataclass(frozen=True)
class Assembly:
    """What a writer needs to know.

    Attributes:
        folder: a folder to write in, on the file system of the output.
        out: the output as the user named it.
        settings: what is kept of each protein.
        provenance: goes into every file.
        names: hands out keys or file names.
    """

    folder: Path
    out: Path
    settings: EmbedSettings
    provenance: Provenance
    names: UniqueNames

    @property
    def provenance_text(self) -> str:
        """The provenance as JSON, the same bytes for the same values."""
        return as_text(self.provenance)


class OutputFormat(abc.ABC):
    """A format. Subclasses are final and hold no state.

    Attributes:
        name: what `--format` calls it. suffixes: endings of OUT that choose it.
        folds_case: names become file names, which some file systems tell apart by more than case only.
    """

    name: str
    suffixes: tuple[str, ...] = ()
    folds_case: bool = False

    @abc.abstractmethod
    def check(self, settings: EmbedSettings) -> None:
        """Raise `InputError` if the format cannot hold what `settings` names."""

    @abc.abstractmethod
    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """The files or folders whose presence says that an output is there; the last to appear comes last."""

    @abc.abstractmethod
    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins; what is to be moved last comes last."""

    @abc.abstractmethod
    def provenance(self, path: Path) -> Provenance | None:
        """The provenance in one of `files`; None where it has none that we wrote."""

    @abc.abstractmethod
    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Id and array of every protein in an output of this format."""


class FolderFormat(OutputFormat):
    """A format that is a folder `OUT` with a file or two for each protein, and the provenance in a file of its own."""

    folds_case = True

    @abc.abstractmethod
    def write_protein(self, path: Path, protein: Stored, assembly: Assembly) -> None:
        """Write one protein; `path` is its file without the ending."""

    def files(self, out: Path, settings: EmbedSettings) -> list[Path]:
        """The folder."""
        return [out]

    def write(self, proteins: Iterator[Stored], assembly: Assembly) -> list[Move]:
        """Write all proteins, each under its header made safe."""
        folder = assembly.folder / "folder"
        folder.mkdir()
        for protein in proteins:
            self.write_protein(folder / assembly.names.claim(file_name_of(protein.entry.header)), protein, assembly)
        (folder / PROVENANCE_FILE).write_text(assembly.provenance_text + "\n", encoding="utf-8")
        return [(folder, assembly.out)]

    def provenance(self, path: Path) -> Provenance | None:
        """From `provenance.json`."""
        try:
            return as_provenance((path / PROVENANCE_FILE).read_text(encoding="utf-8"))
        except OSError:
            return None


def content_files(out: Path, settings: EmbedSettings) -> dict[str, Path]:
    """The file of each content, the one the user named last: embeddings, or else the first thing included.

    >>> files = content_files(Path("x.h5"), EmbedSettings(include=("embeddings", "logits")))
    >>> {what: path.name for what, path in files.items()}
    {'logits': 'x.logits.h5', 'embeddings': 'x.h5'}
    """
    main = "embeddings" if "embeddings" in settings.include else settings.include[0]
    others: dict[str, Path] = {
        what: out.with_name(f"{out.stem}.{what}{out.suffix}") for what in settings.include if what != main
    }
    return {**others, main: out}


def no_bfloat16(settings: EmbedSettings, format_name: str) -> None:
    """Raise `InputError` for bf16 storage in a format that has no such numbers."""
    if settings.storage == "bf16":
        raise InputError(f"{format_name} has no bfloat16 numbers; use --storage fp16 or fp32, or a .safetensors output")


def as_text(provenance: Provenance) -> str:
    """Provenance as JSON.

    >>> as_text({"b": 1, "a": 2})
    '{"a": 2, "b": 1}'
    """
    return json.dumps(provenance, sort_keys=True)


def as_provenance(text: str | bytes | None) -> Provenance | None:
    """What `as_text` wrote; None for anything else."""
    try:
        values = json.loads(text or "")
    except ValueError:
        return None
    return values if isinstance(values, dict) else None
