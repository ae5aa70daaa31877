"""The work folder `OUT.parts`: what is finished survives a kill, and only what belongs together is put together.

In: finished blocks. Out: the same, read back in order. The folder holds `run.json` (provenance and plan), one
safetensors file per block (vectors; entries and refusals as JSON in its metadata) and manifests, one line for each
part with its SHA-256. Parts appear by renaming, after they are on the disk; the manifest line comes last, so that a
part without a line is work that is done again. Each process writes its own manifest and nobody else's parts.
"""

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from proteinlm.embedding.plan import Block, Plan
from proteinlm.embedding.pooling import Entry, Stored
from proteinlm.embedding.settings import Provenance, differences
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import Refused

METADATA_KEY = "proteinlm"
"""The one key of a safetensors header's metadata; with several their order would vary from file to file."""


@dataclass(frozen=True)
class Line:
    """One line of a manifest: a finished part.

    Attributes:
        block: its number. file, sha256: its file in the folder.
        records, residues: embedded ones. refused: records that were not, for whatever reason.
        windowed: records cut into windows. cropped: records cropped.
    """

    block: int
    file: str
    sha256: str
    records: int
    residues: int
    refused: int
    windowed: int
    cropped: int


@dataclass(frozen=True)
class Shard:
    """Every `count`-th block, beginning with block `number` - 1.

    >>> Shard.parse("2/3"), Shard(2, 3).owns(4)
    (Shard(number=2, count=3), True)
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The shard that `i/n` names.

        Raises:
            InputError: the text is not of this form, or i is not in 1..n.
        """
        first, slash, second = text.partition("/")
        if not (slash and first.isascii() and first.isdigit() and second.isascii() and second.isdigit()):
            raise InputError(f"shard {text!r} is not of the form i/n, for example 2/10")
        if not 1 <= int(first) <= int(second):
            raise InputError(f"shard {text!r} is not one of 1/{second} to {second}/{second}")
        return cls(int(first), int(second))

    def owns(self, block: int) -> bool:
        """Whether the block is in this shard."""
        return block % self.count == self.number - 1

    @property
    def manifest(self) -> str:
        """File name of the manifest that this shard writes."""
        return "manifest.jsonl" if self.count == 1 else f"manifest-{self.number}-of-{self.count}.jsonl"


@contextmanager
def told_as_input_error(path: Path, doing: str = "written") -> Iterator[None]:
    """Turn what the operating system or a file library says of `path` into one line for the user."""
    try:
        yield
    except (OSError, SafetensorError, sqlite3.Error) as error:
        number = error.errno if isinstance(error, OSError) else None
        why = os.strerror(number) if number is not None else str(error).splitlines()[0]
        full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or any(
            said in str(error) for said in ("No space left", "disk is full")
        )
        remedy = "make room and run the same command again" if full else "choose another -o or mend what is named"
        raise InputError(f"{str(path)!r} cannot be {doing}: {why}; {remedy} (finished blocks are kept)") from error


class PartsFolder:
    """The work folder of one output.

    Args:
        path: the folder. provenance, plan: what `run.json` says.
    """

    def __init__(self, path: Path, provenance: Provenance, plan: Plan) -> None:
        self.path = path
        self.provenance = provenance
        self.plan = plan

    @classmethod
    def beside(cls, out: Path) -> Path:
        """Where the work folder of an output is."""
        return out.with_name(out.name + ".parts")

    @classmethod
    def create_or_join(cls, path: Path, provenance: Provenance, plan: Plan) -> "PartsFolder":
        """Begin a work folder, or go on with one.

        Raises:
            InputError: the folder belongs to another model, setting, version or input.
        """
        if not (path / "run.json").exists():
            with told_as_input_error(path):
                path.mkdir(parents=True, exist_ok=True)
                text = json.dumps({"provenance": provenance, "plan": plan.described()}, indent=1)
                _write_text(path / "run.json", text)
        folder = cls.existing(path)
        if found := differences(folder.provenance, provenance):
            raise InputError(
                f"{str(path)!r} holds the unfinished work of another run: {'; '.join(found)}; "
                "repeat that run, choose another -o, or remove the folder"
            )
        assert folder.plan == plan, "a plan is a function of input and settings"
        return folder

    @classmethod
    def existing(cls, path: Path) -> "PartsFolder":
        """Open a work folder.

        Raises:
            InputError: there is none, or its `run.json` cannot be read.
        """
        try:
            run = json.loads((path / "run.json").read_text(encoding="utf-8"))
            return cls(path, run["provenance"], Plan.from_described(run["plan"]))
        except FileNotFoundError as error:
            raise InputError(
                f"there is no unfinished work in {str(path)!r}; `plm embed --shard i/n` begins it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{str(path / 'run.json')!r} cannot be read ({error}); remove the folder") from error

    def manifests(self) -> list[str]:
        """File names of the manifests that are there."""
        return sorted(path.name for path in self.path.glob("manifest*.jsonl"))

    def finished(self, among: Container[int] | None = None) -> dict[int, Line]:
        """The parts that are there and hold what their line says, by block.

        A line that a kill tore, or whose file is gone or altered, counts as not there. Reads every part once.

        Args:
            among: look at these blocks only; None for all.
        """
        found: dict[int, Line] = {}
        for name in self.manifests():
            for line in _lines(self.path / name):
                if (among is None or line.block in among) and line.block not in found and self._intact(line):
                    found[line.block] = line
        return dict(sorted(found.items()))

    def write(self, block: Block, stored: Iterable[Stored], refused: Iterable[Refused], shard: Shard) -> Line:
        """Keep a finished block: its file first, its manifest line after.

        Raises:
            InputError: the disk is full or the folder cannot be written.
        """
        kept = sorted(stored, key=lambda item: item.entry.index)
        failed = sorted(refused, key=lambda item: item.index)
        indices = sorted([item.entry.index for item in kept] + [item.index for item in failed])
        assert indices == list(range(block.first, block.first + block.count)), "a block holds each of its records once"
        name = f"block-{block.number:06d}.safetensors"
        told = {"entries": [vars(item.entry) for item in kept], "refused": [vars(item) for item in failed]}
        tensors = {f"{what}.{s.entry.index}": tensor for s in kept for what, tensor in s.tensors.items()}
        with told_as_input_error(self.path / name):
            temporary = self.path / f"{name}.unfinished"
            save_file(tensors, temporary, metadata={METADATA_KEY: json.dumps(told)})
            digest = sha256_of(temporary)
            _sync(temporary)
            temporary.replace(self.path / name)
            _sync(self.path)
            line = Line(
                block=block.number,
                file=name,
                sha256=digest,
                records=len(kept),
                residues=sum(item.entry.length for item in kept),
                refused=len(failed),
                windowed=sum(item.entry.windows > 1 for item in kept),
                cropped=sum(item.entry.cropped > 0 for item in kept),
            )
            _append(self.path / shard.manifest, json.dumps(asdict(line)))
        return line

    def read(self, line: Line) -> tuple[list[Stored], list[Refused]]:
        """A finished part; its tensors are read from the disk as they are used."""
        with told_as_input_error(self.path / line.file, "read"), safe_open(self.path / line.file, "pt") as file:
            told = json.loads(file.metadata()[METADATA_KEY])
            tensors: dict[int, dict[str, Any]] = {entry["index"]: {} for entry in told["entries"]}
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                what, _, index = key.rpartition(".")
                tensors[int(index)][what] = file.get_tensor(key)
        entries = [Entry(**entry) for entry in told["entries"]]
        return [Stored(entry, tensors[entry.index]) for entry in entries], [Refused(**item) for item in told["refused"]]

    def remove(self) -> None:
        """Remove the folder with all that is in it; the file that makes it a work folder goes last."""
        with told_as_input_error(self.path, "removed"):
            for path in self.path.iterdir():
                if path.name != "run.json":
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            shutil.rmtree(self.path)

    def _intact(self, line: Line) -> bool:
        path = self.path / line.file
        return path.is_file() and sha256_of(path) == line.sha256


@contextmanager
def locked(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold a lock file for as long as the block runs; a killed process lets go of its own.

    Args:
        path: the file. seconds: how long to wait for another holder.

    Raises:
        InputError: another process holds it, or the file system knows no locks.
    """
    from filelock import FileLock, Timeout

    try:
        lock = FileLock(path).acquire(timeout=seconds)
    except Timeout:
        raise InputError(
            f"another process is at work in {str(path.parent)!r} (it holds {path.name}); wait for it, or end it"
        ) from None
    except NotImplementedError as error:
        raise InputError(
            f"the file system of {str(path.parent)!r} has no file locks, which keep two runs apart; "
            "choose -o on another disk"
        ) from error
    with lock:
        yield


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _lines(manifest: Path) -> Iterator[Line]:
    """The lines of a manifest that are whole."""
    names = {field.name for field in fields(Line)}
    for text in manifest.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(text)
        except ValueError:
            continue
        if isinstance(values, dict) and values.keys() == names:
            yield Line(**values)


def _append(manifest: Path, text: str) -> None:
    """Add a line; a torn one before it, left by a kill, stays alone on its own."""
    with open(manifest, "a+b") as file:
        file.seek(0, os.SEEK_END)
        torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write(b"\n" * torn + text.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all, also where several machines write it at once."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and sys.platform == "win32":
        return  # Windows does not open folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
