"""The labelled sets as published: every count that is told of them, and what they are known to get wrong."""

from collections import Counter

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import shared_data

from proteinlm.cli.data import data
from proteinlm.datasets.alignments import read_balifam, read_chain_alignments, read_example_alignments, read_pfam
from proteinlm.datasets.annotations import read_enzymes, read_kingdoms, read_orthologs
from proteinlm.datasets.chains import read_chains, read_coordinates
from proteinlm.datasets.conservation import read_conservation
from proteinlm.datasets.domains import EXCLUDED_FOLDS, read_cath, read_scop, without_excluded_folds
from proteinlm.datasets.localisation import TWO_LOCATIONS, for_q2, for_q10, localisation_splits, read_deeploc
from proteinlm.datasets.secondary_structure import disagreement, read_cb513, read_netsurfp, secondary_structure_splits
from proteinlm.datasets.sources import missing
from proteinlm.datasets.variants import read_assays


def test_every_set_is_where_it_is_said_to_be() -> None:
    assert missing(shared_data()) == {}


def test_secondary_structure() -> None:
    folder = shared_data()
    netsurfp, cb513 = read_netsurfp(folder), read_cb513(folder)
    assert Counter(chain.split for chain in netsurfp) == {"train": 9712, "val": 1080}
    assert len(cb513) == 511 and len({chain.residues for chain in cb513}) == 432
    assert sum(int(chain.counted.sum()) for chain in cb513) == 83_427
    assert disagreement(netsurfp) == (5_417, 1_724_025) and disagreement(cb513)[0] == 0
    splits = secondary_structure_splits(folder)
    sizes = [len(part) for part in (splits.train, splits.validation, splits.test, splits.removed)]
    assert sizes == [9711, 1079, 511, 2], "two of NetSurfP's chains are in CB513, letter by letter"
    # A residue of a chain that stands in CB513 several times counts once: the masks do not overlap.
    counted: dict[str, np.ndarray] = {}
    for chain in cb513:
        counted[chain.residues] = counted.get(chain.residues, 0) + chain.counted.astype(int)
    assert max(times.max() for times in counted.values()) == 1


def test_domains() -> None:
    folder = shared_data()
    scop, cath = read_scop(folder), read_cath(folder)
    assert len(scop) == 2_225 and len(cath) == 4_908
    kept = without_excluded_folds(scop)
    assert len(kept) == 2_103 and not {domain.fold for domain in kept} & EXCLUDED_FOLDS
    assert len({domain.fold for domain in scop}) == 340
    assert len({domain.superfamily for domain in cath}) == 1_168


def test_chains() -> None:
    folder = shared_data()
    chains = read_chains(folder)
    assert len(chains) == 17_347
    assert sum(chain.cath is not None for chain in chains) == 5_132
    assert sum(chain.scop_sccs is not None for chain in chains) == 1_215
    assert all(len(chain.residues) < 30 for chain in chains if chain.cluster is None)
    coordinates = read_coordinates(folder, chains)
    assert len(coordinates) == 11_032 and len(coordinates.stored) == 2_020_010
    with_coordinates = [chain for chain in chains if chain.id in coordinates]
    assert len(with_coordinates) == 11_032
    assert {len(chain.residues) for chain in with_coordinates} <= set(range(40, 401))
    # Neighbours along the chain are 3-8 Å apart at C-beta in any structure: the scale is right.
    for chain in with_coordinates[::1000]:
        steps = np.linalg.norm(np.diff(coordinates.of(chain.id), axis=0), axis=1)
        assert 4.5 < np.median(steps) < 6.5, chain.id


def test_localisation() -> None:
    folder = shared_data()
    proteins = read_deeploc(folder)
    assert Counter(protein.split for protein in proteins) == {"train": 8_758, "val": 1_678}
    assert sum(protein.location == TWO_LOCATIONS and protein.split == "val" for protein in proteins) == 23
    splits = localisation_splits(folder)
    assert [len(part) for part in (splits.train, splits.test, splits.removed)] == [8_751, 1_678, 7]
    assert (len(for_q10(splits.test)), len(for_q2(splits.test)), len(for_q2(splits.train))) == (1_655, 1_021, 8_730)
    assert not any(protein.membrane_is_weak for protein in splits.test)


def test_assays() -> None:
    assays = {assay.name: assay for assay in read_assays(shared_data())}
    sizes = {name: (len(assay.wild_type), len(assay), len(assay.scores)) for name, assay in assays.items()}
    assert sizes == {
        "metl_avgfp": (237, 51_714, 1),
        "metl_pab1": (75, 37_710, 1),
        "metl_tem-1": (286, 12_374, 1),
        "metl_ube4b": (102, 88_375, 1),
        "BLAT_ECOLX_Ranganathan2015": (286, 4_997, 6),
        "PABP_YEAST_Fields2013_singles": (577, 1_188, 2),
        "gb1_Wu2016_4site": (56, 149_360, 1),
        "nn4dms_bgl3": (501, 26_653, 1),
    }
    assert {name: int(assay.has_stop().sum()) for name, assay in assays.items() if assay.has_stop().any()} == {
        "nn4dms_bgl3": 916
    }
    assert sum(int(np.isnan(values).sum()) for assay in assays.values() for values in assay.scores.values()) == 19


def test_alignments() -> None:
    folder = shared_data()
    chains = {chain.id: chain for chain in read_chains(folder)}
    found = read_chain_alignments(folder, chains.values())
    assert len(found) == 428 and set(found) <= set(read_coordinates(folder).rows)
    # Two of them have 15 rows, the query included; all others 16 and more.
    assert Counter(len(alignment) < 16 for alignment in found.values()) == {False: 426, True: 2}
    families = read_balifam(folder)
    assert len(families) == 40 and all(len(family.homologs) >= 100 for family in families)
    assert len(read_balifam(folder, 1000)) == 39
    shapes = {family.id: (len(family.alignment), family.alignment.num_columns) for family in read_pfam(folder)}
    assert shapes == {"PF00014": (13_600, 53), "PF13354": (7_515, 202)}
    examples = read_example_alignments(folder)
    assert len(examples) == 12 and examples["1a3a_1_A.a3m"].num_columns == 145
    assert examples["ube4b.a2m"].num_columns == 102


def test_other_labels() -> None:
    folder = shared_data()
    assert Counter(chain.split for chain in read_conservation(folder)) == {"train": 9_392, "val": 555}
    orthologs = read_orthologs(folder)
    assert len(orthologs) == 1_108 and len({protein.group for protein in orthologs}) == 45
    assert len({protein.species for protein in orthologs}) == 12
    kingdoms = read_kingdoms(folder)
    assert len(kingdoms) == 11_372 and sum(protein.enzyme_class is not None for protein in kingdoms) == 2_258
    assert len(read_enzymes(folder)) == 113_146


@pytest.mark.slow
def test_data_command_counts_every_set() -> None:
    result = CliRunner().invoke(data, ["--data", str(shared_data()), "--check"], catch_exceptions=False)
    assert result.exit_code == 0 and len(result.output.splitlines()) == 17
    for figure in (
        "2,760,553 residues",
        "144,011 residues, 83,427 of them count; 432 sequences",
        "372,371 variants",
        "2,103 without the excluded folds",
        "2,020,010 residues",
    ):
        assert figure in result.output, figure
