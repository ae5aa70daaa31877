"""Finished parts into the output: completeness is proven first, then everything is written in the order of the input.

In: a work folder. Out: the output's files, `OUT.refused.tsv` if any record was refused, and a `Summary`. The files are
written inside the work folder and moved at the end, the one whose presence means "finished" last; then the work folder
is removed. A kill in between leaves parts from which the next run writes the same files again.
"""

import csv
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from proteinlm.embedding.formats import FORMATS, choose_format
from proteinlm.embedding.formats.base import Assembly, Move
from proteinlm.embedding.names import UniqueNames
from proteinlm.embedding.parts import Line, PartsFolder, Shard, locked, told_as_input_error
from proteinlm.embedding.plan import Plan
from proteinlm.embedding.pooling import Stored
from proteinlm.embedding.settings import EmbedSettings, Provenance, differences
from proteinlm.errors import InputError
from proteinlm.sequences.fasta import Refused

REFUSED_COLUMNS = ("index", "id", "position", "letter", "reason")

SHOWN = 20
"""Numbers of missing blocks named in a message."""


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        records: items of the input. embedded, refused: what became of them; their sum is `records`.
        refused_file: the list of refused records, or None where there are none.
        renamed: proteins whose name was taken by another, stored under a name with a number.
        windowed, cropped: proteins longer than the model's positions, by what was done.
        normalised: how many records had lower case, a final stop or gaps.
        already: the output was there, made by the same run, and nothing was done.
    """

    records: int
    embedded: int
    refused: int
    refused_file: Path | None
    renamed: int
    windowed: int
    cropped: int
    normalised: Mapping[str, int]
    already: bool = False

    def closing_line(self) -> str:
        """The line that reconciles what came in with what came out."""
        listed = f" (listed in {self.refused_file})" if self.refused_file is not None else ""
        return f"{self.records} in, {self.embedded} embedded, {self.refused} refused{listed}"

    def notes(self) -> list[str]:
        """Lines on what was changed or treated in a special way; empty where nothing was."""
        counts = {f"{name} normalised": count for name, count in self.normalised.items()}
        counts["longer than the model's positions, run in windows"] = self.windowed
        counts["longer than the model's positions, cropped"] = self.cropped
        counts["ids stored under another name (taken by an earlier record)"] = self.renamed
        told = [f"{count} {what}" for what, count in counts.items() if count]
        return [f"records: {'; '.join(told)}"] if told else []


def refused_file_of(out: Path) -> Path:
    """Where the refused records of an output are listed."""
    return out.with_name(out.name + ".refused.tsv")


def merge(out: Path) -> Summary:
    """Write an output whose shards are all finished.

    Args:
        out: the output that the shards named.

    Raises:
        InputError: there is no work folder, blocks are missing, or another process is at work.
    """
    path = PartsFolder.beside(out)
    if not path.exists() and (merged := _merged_before(out)) is not None:
        return merged
    folder = PartsFolder.existing(path)
    with locked(folder.path / "merge.lock"):
        if (found := finished_before(out, folder.provenance)) is not None:
            folder.remove()
            return found
        return assemble(out, folder, folder.finished())


def _merged_before(out: Path) -> Summary | None:
    """The summary of an output that is finished and has no work folder any more; None where there is no such output."""
    for output in FORMATS.values():
        if not output.suffixes or out.suffix.lower() in output.suffixes:
            path = output.files(out, EmbedSettings())[-1]
            if path.exists() and "counts" in (there := output.provenance(path) or {}):
                return _summary(out, there["counts"], renamed=0, already=True)
    return None


def assemble(out: Path, folder: PartsFolder, lines: dict[int, Line]) -> Summary:
    """Prove that a work folder is complete and write its output.

    Args:
        out: the output. folder: its work folder. lines: the finished parts, verified against their digests.

    Raises:
        InputError: blocks are missing, or the output cannot be written.
    """
    prove_complete(folder, lines)
    plan, settings = folder.plan, EmbedSettings.from_provenance(folder.provenance)
    output = FORMATS[folder.provenance["output_format"]]
    inside = folder.path / "assembly"
    with told_as_input_error(out):
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        with UniqueNames(inside / "names", output.folds_case) as names:
            provenance = {**folder.provenance, "counts": _counts(plan, lines)}
            assembly = Assembly(inside, out, settings, provenance, names)
            listed = _RefusedList(inside / "refused.tsv")
            moves = output.write(_proteins(folder, lines, listed), assembly)
            _move(moves, listed, refused_file_of(out))
            renamed = names.renamed
    folder.remove()
    return _summary(out, provenance["counts"], renamed)


def prove_complete(folder: PartsFolder, lines: dict[int, Line]) -> None:
    """Raise `InputError` unless every block of the plan is there and the sums are those of the scan.

    Args:
        folder: the work folder. lines: its finished parts, verified against their digests.
    """
    plan = folder.plan
    missing = [block.number for block in plan.blocks if block.number not in lines]
    if missing:
        shown = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
        raise InputError(
            f"{len(missing)} of {len(plan.blocks)} blocks are missing in {str(folder.path)!r} ({shown}); "
            f"{_remedy(folder, missing)}"
        )
    for block in plan.blocks:
        line = lines[block.number]
        reconciled = line.records + line.refused == block.count and line.refused >= block.refused
        if not reconciled or (line.refused == block.refused and line.residues != block.residues):
            raise InputError(
                f"block {block.number} in {str(folder.path)!r} does not agree with the input: {line.records} records, "
                f"{line.refused} refused, {line.residues} residues, where the input has {block.count} with "
                f"{block.refused} refused and {block.residues} residues; remove {line.file} and run again"
            )


def finished_before(out: Path, provenance: Provenance) -> Summary | None:
    """The summary of an output that the same run has finished before; None where there is no such file.

    Raises:
        InputError: a file is there that this run did not make.
    """
    output = FORMATS[provenance["output_format"]]
    settings = EmbedSettings.from_provenance(provenance)
    *others, last = output.files(out, settings)
    for path in (last, *others):
        if not path.exists() or (path.is_dir() and not any(path.iterdir())):
            continue
        there = output.provenance(path)
        counts = (there or {}).get("counts")
        if there is None or counts is None:
            raise InputError(
                f"{str(path)!r} is there already and is not ours to replace; choose another -o or remove it"
            )
        if found := differences({name: there[name] for name in there if name != "counts"}, provenance):
            raise InputError(
                f"{str(path)!r} is there already, made by another run: {'; '.join(found)}; "
                "choose another -o or remove it"
            )
        if path == last:
            return _summary(out, counts, renamed=0, already=True)
    return None


def check_output(out: Path, format_name: str | None, settings: EmbedSettings) -> str:
    """The name of the format of `out`, which can hold what `settings` names.

    Raises:
        InputError: it cannot, or `out` is a folder where a file is to be, or the other way round.
    """
    if out.name in ("", ".."):
        raise InputError(f"{str(out)!r} is no name for an output; name a file or a new folder")
    output = choose_format(out, format_name)
    output.check(settings)
    if out.is_dir() and output.suffixes:
        raise InputError(f"{str(out)!r} is a folder; name a file for format {output.name}")
    return output.name


class _RefusedList:
    """Writes the refused records as they pass, and remembers how many there were."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed in close
        self._writer = csv.writer(self._file, delimiter="\t", lineterminator="\n")
        self._writer.writerow(REFUSED_COLUMNS)

    def add(self, item: Refused) -> None:
        """Write one line; what is not known is left empty."""
        position = "" if item.position is None else item.position
        self._writer.writerow([item.index, item.id, position, item.letter or "", item.reason])
        self.count += 1

    def close(self) -> None:
        """No more will come."""
        self._file.close()


def _proteins(folder: PartsFolder, lines: dict[int, Line], listed: _RefusedList) -> Iterator[Stored]:
    """Every protein in the order of the input; the refused ones go to the list on the way."""
    for block in folder.plan.blocks:
        stored, refused = folder.read(lines[block.number])
        indices = sorted([item.entry.index for item in stored] + [item.index for item in refused])
        assert indices == list(range(block.first, block.first + block.count)), "each record of a block is there once"
        for item in refused:
            listed.add(item)
        yield from stored
    listed.close()


def _move(moves: list[Move], listed: _RefusedList, refused_file: Path) -> None:
    """Put the finished files where they belong; the last one says that the output is there."""
    if listed.count:
        listed.path.replace(refused_file)
    else:
        refused_file.unlink(missing_ok=True)
    for temporary, final in moves:
        temporary.replace(final)


def _counts(plan: Plan, lines: dict[int, Line]) -> dict[str, int | dict[str, int]]:
    """What became of the records, for the output's provenance."""
    totals: Counter[str] = Counter()
    for line in lines.values():
        totals.update({name: getattr(line, name) for name in ("records", "residues", "refused", "windowed", "cropped")})
    return {
        "records": plan.records,
        "embedded": totals["records"],
        "refused": totals["refused"],
        "residues": totals["residues"],
        "windowed": totals["windowed"],
        "cropped": totals["cropped"],
        "normalised": dict(plan.normalised),
    }


def _summary(out: Path, counts: dict, renamed: int, already: bool = False) -> Summary:
    return Summary(
        records=counts["records"],
        embedded=counts["embedded"],
        refused=counts["refused"],
        refused_file=refused_file_of(out) if counts["refused"] else None,
        renamed=renamed,
        windowed=counts["windowed"],
        cropped=counts["cropped"],
        normalised=counts["normalised"],
        already=already,
    )


def _remedy(folder: PartsFolder, missing: list[int]) -> str:
    """What to run so that the missing blocks get done."""
    counts = {int(name.removesuffix(".jsonl").rpartition("-of-")[2]) for name in folder.manifests() if "-of-" in name}
    if len(counts) != 1:
        return "run the command that began the work again"
    count = counts.pop()
    owed = [number for number in range(1, count + 1) if any(Shard(number, count).owns(block) for block in missing)]
    return f"run again with {' and '.join(f'--shard {number}/{count}' for number in owed[:SHOWN])}"
