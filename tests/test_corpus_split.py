"""Hold-outs are whole clusters, stay where they are, and leak nothing: each against the plain way."""

import random
from pathlib import Path

import pytest
from corpus_tools import built, clusters, sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from proteinlm.corpora import columns, leaks
from proteinlm.corpora.build import BuildOptions
from proteinlm.corpora.leaks import Part, contained, leaks_between
from proteinlm.corpora.split import SplitOptions, exclude, is_held_out, split
from proteinlm.corpora.statistics import fates
from proteinlm.corpora.store import Store
from proteinlm.errors import InputError

HEADER = BuildOptions(clusters="header")
TEXT = st.text("MKA", min_size=1, max_size=30)


def family(generator: random.Random, number: int, size: int) -> list[tuple[str, str]]:
    """A cluster of random sequences: (header, residues)."""
    return [
        (f"p{number}.{member} p{number}.0", "".join(generator.choices("ACDEFGHIKLMNPQRSTVWY", k=30)))
        for member in range(size)
    ]


def corpus(folder: Path, num_clusters: int = 400) -> Store:
    generator = random.Random(3)
    records = [record for number in range(num_clusters) for record in family(generator, number, 1 + number % 4)]
    generator.shuffle(records)
    return built(folder / "store", HEADER, *records)


def open_sides(folder: Path) -> tuple[Store, Store]:
    return Store.open(folder / "train"), Store.open(folder / "heldout")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(TEXT, min_size=1, max_size=12, unique=True),
    st.lists(TEXT, min_size=1, max_size=12, unique=True),
    st.sampled_from([3, 1 << 20]),
)
def test_contained_against_the_plain_way(
    tmp_path_factory: pytest.TempPathFactory, inner: list[str], outer: list[str], limit: int
) -> None:
    folder = tmp_path_factory.mktemp("leaks")
    one = built(folder / "one", None, *((f"i{number}", text) for number, text in enumerate(inner)))
    two = built(folder / "two", None, *((f"o{number}", text) for number, text in enumerate(outer)))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SEEDS", "PAIRS"):
            patch.setattr(leaks, name, limit)
        patch.setattr(columns, "BLOCK_RESIDUES", 10 * limit)
        found = sorted(contained(Part(one), Part(two), every=True))
        some = {pair[0] for pair in contained(Part(one), Part(two))}
    plain = [(i, o) for i, text in enumerate(inner) for o, other in enumerate(outer) if text in other]
    assert found == plain
    assert some == {pair[0] for pair in plain}


def test_long_sequences_are_compared_in_full(tmp_path: Path) -> None:
    """Head and tail agree, the middle does not."""
    head, tail = "MKTAYIAKQRQI", "SFVKSHFSRQLE"
    one = built(tmp_path / "one", None, ("same", head + "GGG" + tail), ("other", head + "GAG" + tail))
    two = built(tmp_path / "two", None, ("outer", "WW" + head + "GGG" + tail + "WW"), ("cut", head + "GGG" + tail[:-1]))
    assert list(contained(Part(one), Part(two))) == [(0, 0)]


def test_whole_clusters_and_nothing_lost(tmp_path: Path) -> None:
    store = corpus(tmp_path)
    split(store.path, tmp_path / "out", SplitOptions(fraction=0.25, seed=1))
    train, heldout = open_sides(tmp_path / "out")
    assert train.manifest.left_out == heldout.manifest.left_out == 0, "random sequences of 30 do not contain each other"
    assert sequences(train) | sequences(heldout) == sequences(store)
    assert len(train) + len(heldout) == len(store)
    whole = {cluster[0]: sorted(cluster) for cluster in clusters(store)}
    found = clusters(train) + clusters(heldout)
    assert len(found) == 400 and {cluster[0]: sorted(cluster) for cluster in found} == whole
    # 400 draws with probability 0.25 have a standard deviation of 8.7.
    assert 100 - 4 * 8.7 < heldout.num_clusters < 100 + 4 * 8.7
    assert train.manifest.without_representative == heldout.manifest.without_representative == 0
    assert heldout.manifest.split == {"side": "heldout", "fraction": 0.25, "seed": 1}
    assert train.verify() and list(leaks_between(train, heldout)) == []


def test_seed_decides_and_the_corpus_may_grow(tmp_path: Path) -> None:
    def held(name: str, store: Store, seed: int) -> set[str]:
        split(store.path, tmp_path / name, SplitOptions(fraction=0.25, seed=seed))
        return {cluster[0] for cluster in clusters(Store.open(tmp_path / name / "heldout"))}

    for name in ("small", "large"):
        (tmp_path / name).mkdir()
    small, large = corpus(tmp_path / "small", 200), corpus(tmp_path / "large", 400)
    first = held("a", small, 1)
    assert held("b", small, 1) == first and held("c", small, 2) != first
    assert {name for name in held("d", large, 1) if int(name[1:].split(".")[0]) < 200} == first


def test_leaks_are_left_out_of_their_own_side(tmp_path: Path) -> None:
    options = SplitOptions(fraction=0.5)
    held = next(f"h{number}" for number in range(99) if is_held_out(f"h{number}", options))
    kept = next(f"t{number}" for number in range(99) if not is_held_out(f"t{number}", options))
    records = [
        (f"{held} {held}", "MKTAYIAKQRQISFVKSHFSRQ"),
        (f"inner-h {held}", "WWWGGSGGWWWPP"),
        (f"{kept} {kept}", "AAWWWGGSGGWWWPPAA"),
        (f"inner-t {kept}", "AYIAKQRQISFVKS"),
        (f"short {kept}", "RQ"),
        (f"fine {kept}", "QR"),
    ]
    store = built(tmp_path / "store", HEADER, *records)
    split(store.path, tmp_path / "out", options)
    train, heldout = open_sides(tmp_path / "out")
    assert clusters(heldout) == [[held]] and clusters(train) == [[kept]]
    assert (heldout.manifest.left_out, train.manifest.left_out) == (1, 3)
    assert (heldout.manifest.records, train.manifest.records) == (2, 4)
    for side in (train, heldout):
        assert sum(fates(side.manifest).values()) == side.manifest.records
    listed = (train.path / "refused.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["inner-t", "short", "fine"]
    assert all(f"would leak {held}" in line for line in listed)
    assert list(leaks_between(train, heldout)) == []


def test_leaks_between_stores(tmp_path: Path) -> None:
    train = built(tmp_path / "t", None, ("a", "MKTAYIAKQRQISFVKSH"), ("b", "GGSG"), ("c", "LLLL"), ("same", "PPPP"))
    heldout = built(tmp_path / "h", None, ("x", "TAYIAKQRQISFVK"), ("y", "WGGSGW"), ("z", "LLLL"), ("same", "EEEE"))
    found = {(leak.train, leak.heldout, leak.how) for leak in leaks_between(train, heldout)}
    assert found == {
        ("same", "same", "same identifier"),
        ("a", "x", "heldout within train"),
        ("b", "y", "train within heldout"),
        ("c", "z", "heldout within train"),
        ("c", "z", "train within heldout"),
    }


@pytest.mark.parametrize("options", [None, HEADER])
def test_exclude(tmp_path: Path, options: BuildOptions | None) -> None:
    records = [("a a", "MKTAYIAKQR"), ("b a", "GGSG"), ("c c", "LLLL"), ("same c", "PPPP"), ("d c", "DDDD")]
    store = built(tmp_path / "t", options, *records)
    heldout = built(tmp_path / "h", None, ("x", "TAYIAK"), ("y", "WGGSGW"), ("same", "EEEE"))
    manifest = exclude(store.path, heldout.path, tmp_path / "out")
    left = Store.open(tmp_path / "out")
    assert sequences(left) == {"c": "LLLL", "d": "DDDD"} and manifest.left_out == 3 and manifest.records == 5
    assert clusters(left) == ([["c", "d"]] if options else []) and list(leaks_between(left, heldout)) == []
    partners = [line.split("leak ")[1].split(":")[0] for line in (left.path / "refused.tsv").read_text().splitlines()]
    assert partners == ["x", "y", "same"]


def test_what_cannot_be_split(tmp_path: Path) -> None:
    store = built(tmp_path / "flat", None, ("a", "MKT"), ("b", "GGS"))
    with pytest.raises(InputError, match="has no clusters"):
        split(store.path, tmp_path / "out")
    one = built(tmp_path / "one", HEADER, ("a a", "MKT"), ("b a", "GGS"))
    with pytest.raises(InputError, match=r"of 1 clusters would be held out"):
        split(one.path, tmp_path / "out")
    for fraction in (0.0, 1.0, -1.0, 10.0):
        with pytest.raises(InputError, match="between 0 and 1"):
            SplitOptions(fraction=fraction)
    assert not (tmp_path / "out").exists()
