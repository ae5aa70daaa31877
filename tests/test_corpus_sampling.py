"""The order of sequences and the batches cut from it: permutations, uniform draws, nothing twice, nothing left out."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from corpus_tools import built

from proteinlm.corpora.build import BuildOptions
from proteinlm.corpora.sampling import MODES, Order, Shuffle, below, follow, key_of, mix, uniform
from proteinlm.corpora.store import Store
from proteinlm.corpora.stream import Crop, Stream
from proteinlm.errors import InputError
from proteinlm.sequences.alphabet import ESM1B, STANDARD, UNIREP

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 100, 255, 256, 257, 1000, 1023, 1024, 1025, 4097, 65537)


def chi_square(counts: np.ndarray, expected: np.ndarray | float) -> float:
    """How many standard deviations chi-square lies above its mean, for as many cells as there are counts."""
    degrees = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


FAR = 5.0
"""Standard deviations: a right draw comes as far once in 10^5 (chi-square has a heavier tail than the normal). Nothing
here is random from run to run, so that a test passes always or never."""


def proteins(count: int, cluster_sizes: tuple[int, ...]) -> list[tuple[str, str]]:
    """(header, residues): distinct sequences; cluster sizes come in turn; lengths from 3 to 80."""
    random = np.random.default_rng(0)
    names: list[str] = []
    while len(names) < count:
        cluster = len(names)
        names += [f"c{cluster}"] * cluster_sizes[len(set(names)) % len(cluster_sizes)]
    lengths = random.integers(3, 81, count)
    return [
        (f"p{number} {names[number]}", "".join(random.choice(list(STANDARD), length)))
        for number, length in enumerate(lengths)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """300 proteins in clusters of 1, 2, 3 and 6."""
    path = tmp_path_factory.mktemp("corpus") / "store"
    return built(path, BuildOptions(clusters="header", min_length=1), *proteins(300, (1, 2, 3, 6)))


# --- hashes ---------------------------------------------------------------------------------------------------------


def test_mix_is_the_published_finaliser() -> None:
    """splitmix64 seeded with 1234567 gives these numbers (the reference implementation's test vector)."""
    state, numbers = 1234567, []
    for _ in range(5):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        numbers.append(int(mix(np.uint64(state))))
    assert numbers == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821,
    ]  # fmt: skip


def test_keys_differ() -> None:
    keys = {int(key_of(*parts)) for parts in [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**64 - 1,)]}
    assert len(keys) == 8
    many = follow(key_of(3), np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(many)) == 100_000


@pytest.mark.parametrize("limit", [2, 3, 10, 20, 1000])
def test_below_is_uniform(limit: int) -> None:
    drawn = below(follow(key_of(7), np.arange(200_000, dtype=np.uint64)), limit)
    assert drawn.min() == 0 and drawn.max() == limit - 1
    assert abs(chi_square(np.bincount(drawn, minlength=limit), 200_000 / limit)) < FAR


def test_neighbouring_keys_tell_nothing_about_each_other() -> None:
    numbers = uniform(follow(key_of(0, 3), np.arange(100_001, dtype=np.uint64)))
    pairs = np.floor(numbers[:-1] * 10).astype(int) * 10 + np.floor(numbers[1:] * 10).astype(int)
    assert abs(chi_square(np.bincount(pairs, minlength=100), 1000.0)) < FAR


# --- shuffling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_shuffle_is_a_permutation(size: int) -> None:
    for key in range(3):
        assert np.array_equal(np.sort(Shuffle(size, key)(np.arange(size))), np.arange(size))


def test_shuffle_of_a_large_corpus() -> None:
    """Positions of a corpus of 250 million are shuffled one by one; 100,000 of them are distinct and in range."""
    size = 250_000_000
    drawn = Shuffle(size, 5)(np.arange(size - 100_000, size))
    assert len(np.unique(drawn)) == 100_000 and drawn.min() >= 0 and drawn.max() < size
    assert abs(chi_square(np.bincount(drawn * 50 // size, minlength=50), 2000.0)) < FAR


@pytest.mark.parametrize("size", [2, 3, 5, 20])
def test_every_item_is_as_likely_at_every_position(size: int) -> None:
    """Over 1,000 keys; the rows and columns of the table add up, which leaves (size - 1)^2 degrees of freedom."""
    keys = 1000
    table = np.zeros((size, size))
    for key in range(keys):
        table[np.arange(size), Shuffle(size, int(key_of(key)))(np.arange(size))] += 1
    expected, degrees = keys / size, (size - 1) ** 2
    assert ((table - expected) ** 2 / expected).sum() < degrees + FAR * np.sqrt(2 * degrees) + FAR


def test_neighbours_do_not_stay_neighbours() -> None:
    """In a random order of n, two that follow each other were neighbours before with probability 2 / n."""
    size, keys = 1000, 200
    steps = [np.abs(np.diff(Shuffle(size, int(key_of(key, 1)))(np.arange(size)))) for key in range(keys)]
    together = int((np.concatenate(steps) == 1).sum())
    assert abs(together - 2 * keys) < FAR * np.sqrt(2 * keys)


# --- the order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_visits_each_unit_once(store: Store, mode: str) -> None:
    order = Order(store, mode, seed=3)
    cluster_of = np.empty(len(store), int)
    for cluster, (start, end) in enumerate(pairwise(store.cluster_starts)):
        cluster_of[store.members[start:end]] = cluster
    epochs = [order.sequences(np.arange(order.size * epoch, order.size * (epoch + 1))) for epoch in range(3)]
    for drawn in epochs:
        units = drawn if mode == "all" else cluster_of[drawn]
        assert np.array_equal(np.sort(units), np.arange(order.units))
        if mode == "representatives":
            assert set(drawn) == set(store.members[store.cluster_starts[:-1]])
    assert not np.array_equal(epochs[0], epochs[1])
    other = Order(store, mode, seed=4).sequences(np.arange(order.size))
    assert not np.array_equal(epochs[0], other)


def test_clusters_and_members_are_uniform(store: Store) -> None:
    """A cluster at any place of an epoch, whatever its size; then each of its members: 300 epochs."""
    order, epochs = Order(store, "clusters", seed=1), 300
    drawn = order.sequences(np.arange(order.size * epochs))
    counts = np.bincount(drawn, minlength=len(store))
    compared = 0
    for start, end in pairwise(store.cluster_starts.tolist()):
        members = store.members[start:end]
        assert counts[members].sum() == epochs, "once in every epoch"
        if len(members) > 1:
            assert abs(chi_square(counts[members], epochs / len(members))) < FAR
            compared += 1
    assert compared >= 70
    first = order.sequences(np.arange(epochs) * order.size)
    cluster_of = {int(one): cluster for cluster, (start, end) in enumerate(pairwise(store.cluster_starts.tolist()))
                  for one in store.members[start:end]}  # fmt: skip
    clusters = np.bincount([cluster_of[int(one)] for one in first], minlength=order.units)
    assert abs(chi_square(clusters, epochs / order.units)) < FAR


@pytest.mark.parametrize("mode", MODES)
def test_fractions_are_exact_and_nested(store: Store, mode: str) -> None:
    """A fraction has as many units as it says, the same in every epoch, and contains every smaller one."""
    before: set[int] = set()
    unit_of = np.arange(len(store))
    if mode != "all":
        for cluster, (start, end) in enumerate(pairwise(store.cluster_starts)):
            unit_of[store.members[start:end]] = cluster
    for fraction in (0.01, 0.1, 0.5, 1.0):
        order = Order(store, mode, fraction, seed=2)
        assert order.size == round(order.units * fraction)
        epochs = [set(unit_of[order.sequences(np.arange(order.size) + order.size * e)].tolist()) for e in range(3)]
        assert epochs[0] == epochs[1] == epochs[2]
        assert len(epochs[0]) == order.size and before <= epochs[0]
        before = epochs[0]
    assert len(before) == Order(store, mode).units


def test_a_fraction_depends_on_the_seed(store: Store) -> None:
    halves = [frozenset(Order(store, "all", 0.5, seed).sequences(np.arange(150)).tolist()) for seed in range(10)]
    assert len(set(halves)) == 10
    counts = np.bincount([one for half in halves for one in half], minlength=len(store))
    assert abs(counts.mean() - 5) < 1e-9 and counts.std() < 2.5


def test_positions_are_drawn_one_by_one_or_together(store: Store) -> None:
    """The sequence at a position does not depend on what else is asked for: stopping loses nothing."""
    for mode in MODES:
        order = Order(store, mode, seed=8)
        positions = np.arange(order.size * 2 - 40, order.size * 2 + 40)
        together = order.sequences(positions)
        alone = np.concatenate([order.sequences(np.array([position])) for position in positions])
        assert np.array_equal(together, alone)
        assert np.array_equal(order.sequences(positions[::-1]), together[::-1])


def test_bad_orders(tmp_path: Path, store: Store) -> None:
    loose = built(tmp_path / "loose", BuildOptions(min_length=1), ("a", "MKT"), ("b", "MKV"))
    with pytest.raises(InputError, match=r"needs clusters, which .* does not have; build the store with --clusters"):
        Order(loose, "clusters")
    assert Order(loose, "all").size == 2
    with pytest.raises(InputError, match="sampling 'cluster' is unknown; choose one of all, representatives, clusters"):
        Order(store, "cluster")  # type: ignore[arg-type]
    for fraction in (0.0, -0.5, 1.5):
        with pytest.raises(InputError, match=f"fraction is {fraction}; give a number above 0, up to 1"):
            Order(store, "all", fraction)
    with pytest.raises(InputError, match=r"fraction 0\.001 of 300 leaves nothing; raise it"):
        Order(store, "all", 0.001)


# --- batches --------------------------------------------------------------------------------------------------------


def stream_of(store: Store, tokens: int = 500, crop: int = 40) -> Stream:
    return Stream(Order(store, "all", seed=5), ESM1B, tokens, crop)


def draws(stream: Stream, number: int) -> list[list[Crop]]:
    """The first batches of a stream."""
    found, position = [], 0
    for _ in range(number):
        crops, position = stream.draw(position)
        found.append(crops)
    return found


@pytest.mark.parametrize(("tokens", "crop"), [(42, 40), (100, 40), (500, 40), (500, 80), (3000, 1022)])
def test_batches_are_full_and_never_too_full(store: Store, tokens: int, crop: int) -> None:
    """Positions follow each other without a gap; the next stretch would not have fitted."""
    batches = draws(stream_of(store, tokens, crop), 30)
    flat = [one for batch in batches for one in batch]
    assert [one.position for one in flat] == list(range(len(flat)))
    order = Order(store, "all", seed=5)
    for batch, after in pairwise(batches):
        total = sum(one.tokens for one in batch)
        assert total <= tokens < total + after[0].tokens
    for one in flat:
        assert one.sequence == order.sequences(np.array([one.position]))[0]
        length = int(store.lengths[one.sequence])
        assert one.length == min(length, crop) and one.tokens == one.length + 2
        assert 0 <= one.start <= length - one.length
    assert len(flat) >= 30


def test_a_batch_depends_on_its_position_alone(store: Store) -> None:
    stream = stream_of(store)
    position = 0
    for _ in range(20):
        crops, after = stream.draw(position)
        again, _ = stream_of(store).draw(position)
        assert crops == again
        position = after


def test_crops_are_uniform(tmp_path: Path) -> None:
    """A protein of 50 residues cut to 20: each of 31 places, 200 times on average; one of 21: both places."""
    whole = built(tmp_path / "long", BuildOptions(min_length=1), ("a", "ACDEFGHIKL" * 5), ("b", STANDARD + "A"))
    stream = Stream(Order(whole, "all"), ESM1B, 22 * 124, 20)
    starts: dict[int, list[int]] = {0: [], 1: []}
    for batch in draws(stream, 100):
        for crop in batch:
            starts[crop.sequence].append(crop.start)
    assert len(starts[0]) == len(starts[1]) == 31 * 200
    assert abs(chi_square(np.bincount(starts[0], minlength=31), 200.0)) < FAR
    assert abs(chi_square(np.bincount(starts[1], minlength=2), 3100.0)) < FAR


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("most_tokens", [60, 200, 10_000])
def test_processes_share_a_batch_out(store: Store, world: int, most_tokens: int) -> None:
    """Each stretch is with one process, every process has as many parts as the others, and none of them is empty."""
    stream = stream_of(store)
    stream.check_world(world)
    for crops in draws(stream, 12):
        parts = [stream.parts(crops, rank, world, most_tokens) for rank in range(world)]
        assert len({len(mine) for mine in parts}) == 1
        assert all(len(part.batch) for mine in parts for part in mine)
        seen = Counter(row for mine in parts for part in mine for row in part.batch.row_B)
        assert seen == Counter(crop.position for crop in crops)
        sizes = [len(part.batch.tokens_T) for mine in parts for part in mine]
        total, longest = sum(sizes), max(crop.tokens for crop in crops)
        assert total == sum(crop.tokens for crop in crops) <= stream.tokens
        # Longest first, each to the emptiest: no part exceeds its fair share by more than one stretch.
        assert max(sizes) <= total / len(sizes) + longest
        if len(crops) >= world * -(-total // (world * most_tokens)):
            assert total / len(sizes) <= most_tokens


def test_what_a_process_gets_is_what_the_crops_say(store: Store) -> None:
    """Letters, BOS and EOS of every stretch, and a key of its own that no number of processes changes."""
    stream = stream_of(store)
    keys: dict[int, int] = {}
    compared = cut = 0
    for world in (1, 3):
        for crops in draws(stream, 5):
            by_position = {crop.position: crop for crop in crops}
            for rank in range(world):
                for part in stream.parts(crops, rank, world, 150):
                    for b, (row, key) in enumerate(zip(part.batch.row_B, part.keys_B.tolist(), strict=True)):
                        crop = by_position[row]
                        letters = store.letters(crop.sequence, crop.start, crop.start + crop.length).tobytes().decode()
                        assert part.batch.tokens_T[part.batch.tokens(b)].tolist() == ESM1B.encode(letters).tolist()
                        goes_on = not store.letters(crop.sequence).tobytes().decode().endswith(letters)
                        assert (b in part.batch.cut) == goes_on
                        assert keys.setdefault(row, key) == key
                        compared, cut = compared + 1, cut + goes_on
    assert compared == 2 * len(keys) > 60 and 10 < cut < compared - 10
    assert len(set(keys.values())) == len(keys)


def test_a_sequence_has_another_key_in_every_epoch(store: Store) -> None:
    """Masks must not repeat: a sequence that comes again has a new key."""
    stream = stream_of(store)
    found: dict[int, list[int]] = {}
    for crops in draws(stream, 60):
        (part,) = stream.parts(crops, 0, 1, 10_000)
        sequence_at = {crop.position: crop.sequence for crop in crops}
        for row, key in zip(part.batch.row_B, part.keys_B.tolist(), strict=True):
            found.setdefault(sequence_at[row], []).append(key)
    assert sum(len(keys) > 1 for keys in found.values()) > 200
    assert all(len(set(keys)) == len(keys) for keys in found.values())


def test_streams_that_cannot_be(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a batch of 41 tokens does not hold one stretch of 42; raise tokens or lower"):
        stream_of(store, tokens=41)
    with pytest.raises(InputError, match="500 tokens may hold only 11 stretches of 42, and there are 12 processes"):
        stream_of(store).check_world(12)
    odd = built(tmp_path / "odd", BuildOptions(min_length=1), ("a", "MKTB"))
    assert Stream(Order(odd, "all"), UNIREP, 100, 10), "UniRep reads B as X"
