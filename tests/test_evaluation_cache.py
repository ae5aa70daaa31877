"""Residue vectors on disk: what goes in comes out, a kill loses nothing that was listed, nothing is clipped."""

import threading
from pathlib import Path

import numpy as np
import pytest

from proteinlm.errors import InputError
from proteinlm.evaluation.cache import INDEX, FeatureStore, StoreKey, clear, protein_key

KEY = StoreKey("ab" * 32, layer=3, width=5, arithmetic="fp32")
LENGTHS = {"one": 4, "two": 7, "three": 2}


def vectors(name: str, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *name.encode()]).normal(size=(LENGTHS[name], 5)).astype(np.float32)


def filled(cache: Path, names: tuple[str, ...] = tuple(LENGTHS)) -> FeatureStore:
    store = FeatureStore(cache, KEY)
    assert store.reserve((name, LENGTHS[name]) for name in LENGTHS) == 13 * 5 * 2 + 3 * 5 * 4
    for name in names:
        store.put(name, vectors(name))
    return store


def check(store: FeatureStore, names: tuple[str, ...]) -> None:
    for name in names:
        found = store.get(name)
        np.testing.assert_array_equal(found.residues_LD, vectors(name).astype(np.float16))
        assert isinstance(found.residues_LD.base, np.memmap) or isinstance(found.residues_LD, np.memmap)
        # The mean is of the vectors before they were rounded.
        np.testing.assert_allclose(found.mean_D, vectors(name).mean(0, dtype=np.float64), rtol=1e-6)


def test_what_goes_in_comes_out(tmp_path: Path) -> None:
    store = filled(tmp_path)
    check(store, tuple(LENGTHS))
    store.close()
    again = FeatureStore(tmp_path, KEY)
    check(again, tuple(LENGTHS))
    assert again.reserve(LENGTHS.items()) == 0
    again.close()


def test_neighbours_lie_side_by_side(tmp_path: Path) -> None:
    """Proteins lie in the order in which room was made, whatever the order of answers."""
    store = FeatureStore(tmp_path, KEY)
    store.reserve(LENGTHS.items())
    for name in reversed(LENGTHS):
        store.put(name, vectors(name))
    stored = np.fromfile(store.folder / "residues-0000.bin", np.float16).reshape(-1, 5)
    np.testing.assert_array_equal(stored, np.concatenate([vectors(name) for name in LENGTHS]).astype(np.float16))
    store.close()


def test_what_was_not_finished_is_done_again(tmp_path: Path) -> None:
    filled(tmp_path, ("one", "three")).close()
    with open(tmp_path / KEY.folder / INDEX, "a", encoding="utf-8") as file:
        file.write('["two", 0, 4')  # cut short by a kill
    store = FeatureStore(tmp_path, KEY)
    assert "one" in store and "three" in store and "two" not in store
    assert store.reserve(LENGTHS.items()) == 7 * 5 * 2 + 5 * 4
    store.put("two", vectors("two"))
    store.close()
    again = FeatureStore(tmp_path, KEY)
    check(again, tuple(LENGTHS))
    again.close()


def test_what_is_there_is_not_written_again(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.put("one", vectors("one", seed=9))
    check(store, ("one",))
    store.close()


def test_values_beyond_fp16_are_refused(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY)
    store.reserve([("big", 1), ("nan", 1)])
    with pytest.raises(InputError, match=r"70000, which is beyond fp16.*--cache-precision fp32"):
        store.put("big", np.full((1, 5), 7e4, np.float32))
    with pytest.raises(InputError, match="nan, which is beyond fp16"):
        store.put("nan", np.full((1, 5), np.nan, np.float32))
    store.close()
    wide = FeatureStore(tmp_path, StoreKey("ab" * 32, 3, 5, "fp32", "fp32"))
    wide.reserve([("big", 1)])
    assert wide.put("big", np.full((1, 5), 7e4, np.float32)).residues_LD[0, 0] == np.float32(7e4)
    wide.close()


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, KEY)
    with pytest.raises(InputError, match=r"residue vectors need .* GB"):
        store.reserve([("huge", 10**15)])
    store.close()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    store = filled(tmp_path)
    raised: list[str] = []

    def other() -> None:
        try:
            FeatureStore(tmp_path, KEY)
        except InputError as error:
            raised.append(str(error))
        try:
            clear(tmp_path)
        except InputError as error:
            raised.append(str(error))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert len(raised) == 2 and all("in use by another run" in text for text in raised)
    store.close()


def test_stores_of_other_models_and_layers_are_apart(tmp_path: Path) -> None:
    keys = [
        KEY,
        StoreKey("cd" * 32, 3, 5, "fp32"),
        StoreKey("ab" * 32, 2, 5, "fp32"),
        StoreKey("ab" * 32, 3, 5, "bf16"),
    ]
    assert len({key.folder for key in keys}) == 4


def test_proteins_are_told_apart_by_masks() -> None:
    keys = {protein_key(*one) for one in (("MKT", ()), ("MKT", (1,)), ("MKT", (2,)), ("MKTV", ()))}
    assert len(keys) == 4


def test_clear_removes_stores_and_nothing_else(tmp_path: Path) -> None:
    filled(tmp_path).close()
    mine = tmp_path / "features-of-mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("precious")
    assert clear(tmp_path) > 0
    assert not (tmp_path / KEY.folder).exists() and (mine / "thesis.txt").read_text() == "precious"
    assert clear(tmp_path) == 0
