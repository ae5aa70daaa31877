"""The two classifications of protein domains, SCOP and CATH, and their levels.

In: a code such as `c.2.1.3` (SCOP: class, fold, superfamily, family) or `3.40.50.720` (CATH: class, architecture,
topology, homologous superfamily). Out: the part of it that names a level. CATH's topology is its fold.
"""

import re

from proteinlm.errors import InputError

SCOP_LEVELS = {"class": 1, "fold": 2, "superfamily": 3, "family": 4}
CATH_LEVELS = {"class": 1, "architecture": 2, "fold": 3, "superfamily": 4}

_SCOP = re.compile(r"[a-l](\.\d+){3}")
_CATH = re.compile(r"\d+(\.\d+){3}")


def scop_level(sccs: str, level: str) -> str:
    """The part of a SCOP code that names `class`, `fold`, `superfamily` or `family`.

    >>> scop_level("c.2.1.3", "superfamily")
    'c.2.1'
    """
    return _part(sccs, level, SCOP_LEVELS)


def cath_level(cath: str, level: str) -> str:
    """The part of a CATH code that names `class`, `architecture`, `fold` (topology) or `superfamily`.

    >>> cath_level("3.40.50.720", "fold")
    '3.40.50'
    """
    return _part(cath, level, CATH_LEVELS)


def is_scop(code: str) -> bool:
    """Whether this is a full SCOP code.

    >>> is_scop("c.2.1.3"), is_scop("3.40.50.720")
    (True, False)
    """
    return _SCOP.fullmatch(code) is not None


def is_cath(code: str) -> bool:
    """Whether this is a full CATH code, down to the homologous superfamily."""
    return _CATH.fullmatch(code) is not None


def _part(code: str, level: str, levels: dict[str, int]) -> str:
    if level not in levels:
        raise InputError(f"level {level!r} is unknown; there are {', '.join(levels)}")
    return ".".join(code.split(".")[: levels[level]])
