"""A part of a labelled set to hold out, without close relatives of it on the other side.

In: sequences with classes. Out: which to hold out. Proteins that share a word of `WORD` residues are taken for
relatives, directly or through others, and stay together: networks that have seen a relative are surer than they will be
of new proteins, and a temperature fitted on such would believe them. Distant relatives share no words and are not
noticed.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

from proteinlm.datasets.splits import linked_groups
from proteinlm.errors import InputError

WORD = 8
"""Residues of a word. Two proteins of 500 residues share one by chance once in 20^8 / 500^2, some 100,000 pairs; at
70 % identity they share some twenty."""

ONE_IN = 4
"""So many words are looked at, always the same: those whose checksum is a multiple."""

LEAST_KINDS = 5
"""Different residues in a word: repeats of few are in proteins that have nothing else in common."""


def words(residues: str) -> list[str]:
    """The words of a protein that are looked at.

    >>> words("MKTAYIAKQRQISFVKSHFSRQ"), words("S" * 100)
    (['AYIAKQRQ', 'SFVKSHFS'], [])
    """
    text = residues.encode("ascii")
    starts = (at for at in range(len(text) - WORD + 1) if zlib.crc32(text[at : at + WORD]) % ONE_IN == 0)
    return [residues[at : at + WORD] for at in starts if len(set(text[at : at + WORD])) >= LEAST_KINDS]


def hold_out(
    sequences: Sequence[str], classes_N: np.ndarray, share: float, random: np.random.Generator
) -> Bool[np.ndarray, "N"]:
    """Whole groups of relatives, drawn at random until a share of each class is held out.

    Args:
        sequences: residues of each protein. classes_N: its class. share: of every class, rounded, at least one where
            there are two; less where the groups that are left are larger. random: of the draws.

    Raises:
        InputError: everything is related to everything.

    >>> proteins = ["MKTAYIAKQRQISFVK", "AAKTAYIAKQRQISFV", "GGHWHPSTRE"]
    >>> hold_out(proteins, np.zeros(3, int), 0.4, np.random.default_rng(0))
    array([False, False,  True])
    """
    groups_N = linked_groups([words(one) for one in sequences])
    counts_K = np.bincount(classes_N)
    room_K = np.maximum(np.round(share * counts_K).astype(int), np.minimum(1, counts_K - 1))
    out_N = np.zeros(len(classes_N), bool)
    members = np.split(np.argsort(groups_N, kind="stable"), np.cumsum(np.bincount(groups_N))[:-1])
    for group in random.permutation(len(members)):
        needed_K = np.bincount(classes_N[members[group]], minlength=len(room_K))
        if (needed_K <= room_K).all():
            room_K -= needed_K
            out_N[members[group]] = True
    if not out_N.any():
        raise InputError(
            f"{len(sequences)} proteins in {len(members)} groups of relatives: none is small enough to be held out for "
            "calibration; give more proteins that are not related"
        )
    return out_N
