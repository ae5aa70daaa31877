"""Domains for remote homology: SCOP with the paper's fold exclusions, and CATH.

In: the data folder. Out: domains with their place in the classification. Both sets hold domains that are a whole chain
only, not the full ASTRAL sets of the papers; figures from them are not comparable without saying so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from proteinlm.datasets.hierarchy import cath_level, is_cath, is_scop, scop_level
from proteinlm.datasets.sources import locate
from proteinlm.datasets.tables import Row, read_records

EXCLUDED_FOLDS = frozenset(
    ("c.2", "c.3", "c.4", "c.5", "c.27", "c.28", "c.30", "c.31", "b.66", "b.67", "b.68", "b.69", "b.70")
)
"""Folds left out of remote homology: Rossmann-like and beta-propellers, whose members are related across folds (Rives
et al. 2021, Table 2; papers.md 3.1)."""

TAPE_SPLITS = ("", "training", "validation", "test_family", "test_superfamily", "test_fold")


@dataclass(frozen=True)
class ScopDomain:
    """A domain of SCOP.

    Attributes:
        id: SCOP's sid. sccs: class.fold.superfamily.family. residues: L letters. source: where the sequence is from.
        tape_split: TAPE's split for remote homology, or None. coverage: share of the domain that the sequence covers.
    """

    id: str
    sccs: str
    residues: str
    source: str
    tape_split: str | None
    coverage: float

    @property
    def fold(self) -> str:
        """Such as `c.2`."""
        return scop_level(self.sccs, "fold")

    @property
    def superfamily(self) -> str:
        """Such as `c.2.1`."""
        return scop_level(self.sccs, "superfamily")

    @property
    def family(self) -> str:
        """Such as `c.2.1.3`."""
        return self.sccs


@dataclass(frozen=True)
class CathDomain:
    """A chain that is one domain of CATH.

    Attributes:
        id: CATH's domain. cath: class.architecture.topology.superfamily. residues: L letters.
        cluster: representative of its cluster at 30 % identity, which stands for its family.
        coverage: share of the domain's range that the sequence covers.
    """

    id: str
    cath: str
    residues: str
    cluster: str
    coverage: float

    @property
    def fold(self) -> str:
        """The topology, such as `3.40.50`."""
        return cath_level(self.cath, "fold")

    @property
    def superfamily(self) -> str:
        """The homologous superfamily, such as `3.40.50.720`."""
        return self.cath

    @property
    def family(self) -> str:
        """The 30 % cluster within the superfamily: CATH names no families as SCOP does."""
        return f"{self.cath}/{self.cluster}"


def read_scop(folder: str | Path | None) -> tuple[ScopDomain, ...]:
    """All 2,225 SCOP domains; `without_excluded_folds` gives the paper's choice.

    Args:
        folder: the data folder; None for what PROTEINLM_DATA names.

    Raises:
        InputError: the file is missing or has a row that cannot be used.
    """
    return read_records(
        locate(folder, "scop"), ("sid", "sccs", "source", "tape_split", "cov_of_domain", "sequence"), _scop_domain
    )


def without_excluded_folds(domains: Iterable[ScopDomain]) -> tuple[ScopDomain, ...]:
    """The domains whose fold is not in `EXCLUDED_FOLDS`."""
    return tuple(domain for domain in domains if domain.fold not in EXCLUDED_FOLDS)


def read_cath(folder: str | Path | None) -> tuple[CathDomain, ...]:
    """The 4,908 CATH domains.

    Raises:
        InputError: the file is missing or has a row that cannot be used.
    """
    return read_records(
        locate(folder, "cath"), ("domain", "cath", "cluster30", "cov_of_domain_range", "sequence"), _cath_domain
    )


def _scop_domain(row: Row) -> ScopDomain:
    sccs = row.text("sccs")
    if not is_scop(sccs):
        raise row.fail(f"sccs is {sccs!r}; it must be class.fold.superfamily.family, such as c.2.1.3")
    return ScopDomain(
        id=row.text("sid"),
        sccs=sccs,
        residues=row.residues(),
        source=row.text("source"),
        tape_split=row.one_of("tape_split", TAPE_SPLITS) or None,
        coverage=row.number("cov_of_domain"),
    )


def _cath_domain(row: Row) -> CathDomain:
    cath = row.text("cath")
    if not is_cath(cath):
        raise row.fail(f"cath is {cath!r}; it must be class.architecture.topology.superfamily, such as 3.40.50.720")
    return CathDomain(
        id=row.text("domain"),
        cath=cath,
        residues=row.residues(),
        cluster=row.text("cluster30"),
        coverage=row.number("cov_of_domain_range"),
    )
