"""From an order of sequences to packed batches of a fixed number of tokens, cut for any number of processes.

In: a store, an order, an alphabet and a position. Out: the batch that starts there. The batch of a step is defined
for all processes together and then dealt out, so that the step is the same whatever their number, and the whole state
of the stream is one number: the next position.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64

from proteinlm.corpora.sampling import Order, below, follow, key_of
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch

_CROP, _RANDOM = 3, 4
"""What a key is for, so that numbers drawn for one purpose tell nothing about another."""


@dataclass(frozen=True)
class Crop:
    """A stretch of one sequence, at one position of the stream."""

    position: int
    sequence: int
    start: int
    length: int
    tokens: int


@dataclass(frozen=True)
class Part:
    """What one process works on at a time.

    Attributes:
        batch: packed tokens; `row_B` holds positions in the stream.
        keys_B: a random key of each sequence, uint64, from which an objective draws.
    """

    batch: PackedBatch
    keys_B: UInt64[np.ndarray, "B"]


@dataclass(frozen=True)
class Stream:
    """Packed batches from a corpus.

    Args:
        order: which sequence comes when.
        alphabet: of the model; every letter of the corpus must have a place in it.
        tokens: most tokens in the batch of a step, all processes together, BOS and EOS included.
        crop: longest stretch in residues; of a longer sequence a random stretch of that length is taken, and BOS and
            EOS are put on it as on any other (fair-esm issue 299).

    Raises:
        InputError: the token budget is smaller than one stretch, or the corpus holds a letter that the alphabet lacks.
    """

    order: Order
    alphabet: Alphabet
    tokens: int
    crop: int

    def __post_init__(self) -> None:
        longest = self.crop + self._ends
        if self.tokens < longest:
            raise InputError(
                f"a batch of {self.tokens} tokens does not hold one stretch of {longest}; raise tokens or lower crop"
            )
        missing = set(self.order.store.manifest.letters) - set(self.alphabet.letters())
        if missing:
            raise InputError(
                f"{str(self.order.store.path)!r} holds the letters {' '.join(sorted(missing))}, which alphabet "
                f"{self.alphabet.name} lacks; build the store without them"
            )

    @property
    def _ends(self) -> int:
        return len(self.alphabet.prefix) + len(self.alphabet.suffix)

    def check_world(self, world: int) -> None:
        """Make sure that every batch has a stretch for each of `world` processes, so that none is left without work.

        Raises:
            InputError: a batch of the longest stretches has fewer.
        """
        longest = self.crop + self._ends
        if self.tokens // longest < world:
            raise InputError(
                f"a batch of {self.tokens} tokens may hold only {self.tokens // longest} stretches of {longest}, and "
                f"there are {world} processes; raise batch.tokens to {world * longest}, lower data.crop, or start fewer"
            )

    def draw(self, position: int) -> tuple[list[Crop], int]:
        """The stretches of the batch that starts at `position`, and where the next batch starts."""
        crops: list[Crop] = []
        room, longest = self.tokens, self.crop + self._ends
        while True:
            # At least one more stretch fits; ask for as many as surely do, so that none is drawn in vain.
            positions = np.arange(position, position + max(1, room // longest))
            sequences = self.order.sequences(positions)
            lengths = np.minimum(self.order.store.lengths[sequences], self.crop)
            starts = self._starts(positions, sequences)
            for at in range(len(positions)):
                tokens = int(lengths[at]) + self._ends
                if tokens > room:
                    return crops, position
                crops.append(Crop(position, int(sequences[at]), int(starts[at]), int(lengths[at]), tokens))
                room -= tokens
                position += 1

    def _starts(self, positions: Int[np.ndarray, "N"], sequences: Int[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
        """Where each stretch starts in its sequence."""
        spare = np.maximum(self.order.store.lengths[sequences] - self.crop, 0)
        return below(follow(key_of(self.order.seed, _CROP), positions.astype(np.uint64)), spare + 1)

    def parts(self, crops: list[Crop], rank: int, world: int, most_tokens: int) -> list[Part]:
        """The share of process `rank` of `world` in a batch, in parts of about `most_tokens` at most.

        Stretches are dealt out from the longest on, each to the part with the fewest tokens so far: parts are of
        nearly equal size, every process has equally many, and no stretch is in two.
        There are never more parts than stretches, so that none is empty; `check_world` says whether that can be.

        Args:
            crops: a batch, from `draw`. rank, world: which process of how many. most_tokens: room of a process.
        """
        total = sum(crop.tokens for crop in crops)
        each = min(-(-total // (world * most_tokens)), len(crops) // world)
        bins: list[list[Crop]] = [[] for _ in range(world * each)]
        loads = [(0, number) for number in range(len(bins))]
        for crop in sorted(crops, key=lambda crop: (-crop.tokens, crop.position)):
            load, number = heapq.heappop(loads)
            bins[number].append(crop)
            heapq.heappush(loads, (load + crop.tokens, number))
        return [self._pack(chosen) for chosen in bins[rank::world]]

    def _pack(self, crops: list[Crop]) -> Part:
        store, alphabet = self.order.store, self.alphabet
        encoded = [
            alphabet.encode(
                store.letters(crop.sequence, crop.start, crop.start + crop.length).tobytes().decode("ascii")
            )
            for crop in crops
        ]
        positions = [crop.position for crop in crops]
        keys_B = follow(key_of(self.order.seed, _RANDOM), np.array(positions, np.uint64))
        cut = [b for b, crop in enumerate(crops) if crop.start + crop.length < store.lengths[crop.sequence]]
        return Part(PackedBatch.pack(encoded, positions, len(alphabet.prefix), len(alphabet.suffix), cut), keys_B)
