"""The plan: one pass over the FASTA file that identifies it, counts it, and cuts it into blocks.

In: a file, an alphabet and a `BlockSize`. Out: a `Plan`, a pure function of the three. A block is a run of consecutive
records, refused ones included; it is the unit of work, of resuming and of sharding, and small enough that its outputs
fit in memory whatever the size of the file.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from proteinlm.embedding.settings import EmbedSettings
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.fasta import Record, Refused, read_fasta, scan_fasta

BLOCK_RECORDS = 4096
"""Records in a block at most; enough for batches of nearly equal lengths."""

BLOCK_BYTES = 1 << 28
"""Bytes of outputs in a block at most, unless one protein alone has more."""

LEAST_RESIDUES, MOST_RESIDUES = 1 << 17, 1 << 20
"""Residues in a block: at least 32 batches of the default size, so that sorting by length pays."""

BLOCK_WORK = 1 << 44
"""Parameters x residues of a block, between the two limits above: a few minutes on two cores, which is what a killed
run can lose."""


@dataclass(frozen=True)
class BlockSize:
    """When a block is full; whatever is reached first.

    Args:
        records: records, refused ones included.
        residues: residues of the records that can be used.
        protein_bytes, residue_bytes, pair_bytes: outputs per protein, per residue and per pair of residues; their
            sum stays below `BLOCK_BYTES`.
    """

    records: int = BLOCK_RECORDS
    residues: int = MOST_RESIDUES
    protein_bytes: int = 0
    residue_bytes: int = 0
    pair_bytes: int = 0

    def bytes_of(self, length: int) -> int:
        """Output bytes of a protein of `length` residues.

        >>> BlockSize(protein_bytes=100, pair_bytes=4).bytes_of(10)
        500
        """
        return self.protein_bytes + self.residue_bytes * length + self.pair_bytes * length * length


@dataclass(frozen=True)
class Block:
    """Records `first` to `first + count - 1` of the file; `refused` of them cannot be used.

    `residues` counts those of the others.
    """

    number: int
    first: int
    count: int
    refused: int
    residues: int


@dataclass(frozen=True)
class Plan:
    """What there is to do.

    Attributes:
        digest: SHA-256 of the input as stored.
        records, refused, residues, longest: counts of the whole file; `residues` and `longest` of usable records.
        normalised: how many records had lower case, a final stop or gaps.
        blocks: in file order; every record is in exactly one.
        first_refused: one line on the first record that cannot be used, or None.
    """

    digest: str
    records: int
    refused: int
    residues: int
    longest: int
    normalised: Mapping[str, int]
    blocks: tuple[Block, ...]
    first_refused: str | None

    def described(self) -> dict[str, Any]:
        """As JSON values; `from_described` reads them."""
        values = {**vars(self), "normalised": dict(self.normalised)}
        return {**values, "blocks": [[b.number, b.first, b.count, b.refused, b.residues] for b in self.blocks]}

    @classmethod
    def from_described(cls, values: dict[str, Any]) -> "Plan":
        """The plan that `described` wrote."""
        return cls(**{**values, "blocks": tuple(Block(*block) for block in values["blocks"])})


@dataclass
class Filling:
    """What the block that is being filled holds so far.

    Args:
        size: when it is full.
    """

    size: BlockSize
    count: int = 0
    refused: int = 0
    residues: int = 0
    bytes: int = 0

    def takes(self, item: Record | Refused) -> bool:
        """Whether there is room for one more; an empty block takes anything."""
        if self.count == 0 or isinstance(item, Refused):
            return self.count < self.size.records
        length = len(item.residues)
        return (
            self.count < self.size.records
            and self.residues + length <= self.size.residues
            and self.bytes + self.size.bytes_of(length) <= BLOCK_BYTES
        )

    def add(self, item: Record | Refused) -> None:
        """Count one more."""
        self.count += 1
        if isinstance(item, Refused):
            self.refused += 1
        else:
            self.residues += len(item.residues)
            self.bytes += self.size.bytes_of(len(item.residues))


@dataclass
class _Cutter:
    """Cuts a file into blocks as its items pass by."""

    size: BlockSize
    blocks: list[Block] = field(default_factory=list)
    first_refused: str | None = None

    def __post_init__(self) -> None:
        self.filling = Filling(self.size)
        self.first = 0

    def __call__(self, item: Record | Refused) -> None:
        if not self.filling.takes(item):
            self.close()
        self.filling.add(item)
        if isinstance(item, Refused) and self.first_refused is None:
            self.first_refused = describe_refused(item)

    def close(self) -> None:
        """End the block; the next item opens another."""
        full = self.filling
        if full.count:
            self.blocks.append(Block(len(self.blocks), self.first, full.count, full.refused, full.residues))
        self.first += full.count
        self.filling = Filling(self.size)


def block_size(model: ProteinModel, settings: EmbedSettings, records: int = BLOCK_RECORDS) -> BlockSize:
    """How large a block may be for a model and what is kept of it.

    Args:
        model: its width and number of parameters count.
        settings: with resolved layers.
        records: records in a block at most.
    """
    number = settings.dtype.itemsize
    vectors = number * model.width * len(settings.layers) if "embeddings" in settings.include else 0
    logits = number * len(model.alphabet) if "logits" in settings.include else 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return BlockSize(
        records=records,
        residues=min(max(BLOCK_WORK // max(parameters, 1), LEAST_RESIDUES), MOST_RESIDUES),
        protein_bytes=vectors if settings.per_protein else 0,
        residue_bytes=logits + (0 if settings.per_protein else vectors),
        pair_bytes=number if "contacts" in settings.include else 0,
    )


def make_plan(source: Path, alphabet: Alphabet, size: BlockSize) -> Plan:
    """Scan a FASTA file once and cut it into blocks.

    Raises:
        InputError: the file cannot be read or has no record.
    """
    cutter = _Cutter(size)
    summary = scan_fasta(source, alphabet, cutter)
    cutter.close()
    plan = Plan(
        digest=summary.digest,
        records=summary.records,
        refused=summary.refused,
        residues=summary.residues,
        longest=summary.longest,
        normalised=dict(sorted(summary.normalised.items())),
        blocks=tuple(cutter.blocks),
        first_refused=cutter.first_refused,
    )
    assert sum(block.count for block in plan.blocks) == plan.records, "every record is in one block"
    assert sum(block.residues for block in plan.blocks) == plan.residues, "and so is every residue"
    return plan


def read_blocks(
    source: Path, alphabet: Alphabet, plan: Plan, wanted: set[int]
) -> Iterator[tuple[Block, list[Record], list[Refused]]]:
    """The wanted blocks of a planned file, one at a time, in file order.

    Raises:
        InputError: the file is not the one that was planned.
    """
    items = read_fasta(source, alphabet)
    for block in plan.blocks[: max(wanted, default=-1) + 1]:
        if block.number not in wanted:
            for _ in islice(items, block.count):
                pass
            continue
        taken = list(islice(items, block.count))
        records = [item for item in taken if isinstance(item, Record)]
        refused = [item for item in taken if isinstance(item, Refused)]
        found = (len(taken), len(refused), sum(len(record.residues) for record in records))
        if found != (block.count, block.refused, block.residues):
            raise InputError(
                f"{str(source)!r} changed while it was being read; run again on a file that stays as it is"
            )
        yield block, records, refused


def describe_refused(item: Refused) -> str:
    """One line that names a refused record.

    >>> describe_refused(Refused(3, "a", "a x", "the sequence is empty"))
    "record 4 ('a'): the sequence is empty"
    """
    return f"record {item.index + 1} ({item.id!r}): {item.reason}"
