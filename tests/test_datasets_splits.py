"""Folds hold relatives together, are balanced and repeatable; the check finds what is planted."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from conftest import shared_data

from proteinlm.datasets.chains import PdbChain, read_chains
from proteinlm.datasets.splits import check_folds, level_key, linked_groups, split_folds, structural_folds
from proteinlm.errors import InputError


def random_keys(count: int, seed: int) -> list[list[str]]:
    """Records with none, one or two of many keys."""
    generator = np.random.default_rng(seed)
    return [[f"k{generator.integers(count)}" for _ in range(generator.integers(0, 3))] for _ in range(count)]


def test_groups_against_a_search_through_the_graph() -> None:
    for seed in range(5):
        keys = random_keys(300, seed)
        of_key = defaultdict(list)
        for record, names in enumerate(keys):
            for name in names:
                of_key[name].append(record)
        expected = [-1] * len(keys)
        for record in range(len(keys)):
            if expected[record] >= 0:
                continue
            number, waiting = max(expected) + 1, [record]
            while waiting:
                here = waiting.pop()
                if expected[here] < 0:
                    expected[here] = number
                    waiting += [other for name in keys[here] for other in of_key[name]]
        assert linked_groups(keys).tolist() == expected
    assert linked_groups([]).tolist() == []


def test_folds_share_nothing_and_are_balanced() -> None:
    keys = [[f"family {number // 3}"] for number in range(1000)]
    folds = split_folds(keys, 5, seed=1)
    assert folds.sizes().sum() == 1000 and folds.sizes().max() - folds.sizes().min() <= 3
    for fold in range(5):
        test = {keys[record][0] for record in np.flatnonzero(folds.test(fold))}
        train = {keys[record][0] for record in np.flatnonzero(folds.train(fold))}
        assert test and train and not test & train
        assert (folds.test(fold) ^ folds.train(fold)).all()
    assert (split_folds(keys, 5, seed=1).of_record == folds.of_record).all()
    assert (split_folds(keys, 5, seed=2).of_record != folds.of_record).any()


def test_weights_are_what_is_balanced() -> None:
    keys = [[str(number)] for number in range(101)]
    lengths = [1000.0] + [10.0] * 100
    folds = split_folds(keys, 2, weights=lengths)
    assert np.bincount(folds.of_record, lengths).tolist() == [1000, 1000]
    assert sorted(folds.sizes().tolist()) == [1, 100]


def test_every_fold_gets_the_largest_group_at_some_seed() -> None:
    keys = [["large"]] * 10 + [[str(number)] for number in range(40)]
    assert Counter(int(split_folds(keys, 5, seed).of_record[0]) for seed in range(40)).keys() == set(range(5))


def test_splits_that_cannot_be_made() -> None:
    with pytest.raises(InputError, match="3 records are 2 groups of relatives, too few for 3 folds"):
        split_folds([["a"], ["a"], ["b"]], 3)
    with pytest.raises(InputError, match="1 folds are no split"):
        split_folds([["a"], ["b"]], 1)
    with pytest.raises(InputError, match="no full SCOP code"):
        level_key("c.2", "fold")
    with pytest.raises(InputError, match="level 'tribe' is unknown"):
        level_key("c.2.1.3", "tribe")
    with pytest.raises(InputError, match="level 'family' is unknown"):
        level_key("3.40.50.720", "family")


def test_the_check_finds_a_planted_leak() -> None:
    keys = [[f"family {number // 3}"] for number in range(300)]
    folds = split_folds(keys, 5).of_record.copy()
    check_folds(folds, keys)
    folds[150] = (folds[150] + 1) % 5
    with pytest.raises(InputError, match=r"'family 50' is in fold \d \(record 151\) and in fold \d \(record 152\)"):
        check_folds(folds, keys)


@pytest.mark.parametrize("level", ["family", "superfamily", "fold"])
def test_no_fold_superfamily_or_family_on_both_sides(level: str) -> None:
    chains: list[PdbChain] = [chain for chain in read_chains(shared_data()) if chain.scop_sccs or chain.cath]
    assert len(chains) == 5_570
    folds = structural_folds(chains, level)
    assert folds.sizes().max() - folds.sizes().min() <= 1, "groups are small enough for equal folds"
    compared = 0
    for fold in range(5):
        sides = [
            {key for record in np.flatnonzero(side) for key in chains[record].keys(level)}
            for side in (folds.test(fold), folds.train(fold))
        ]
        assert not sides[0] & sides[1]
        compared += len(sides[0])
    assert compared > 3_000
