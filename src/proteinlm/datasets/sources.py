"""Where every labelled set lies, where it comes from, what may be done with it and how to get it.

In: the folder that the caller gives (or the environment variable PROTEINLM_DATA) and the key of a set. Out: the path of
its file, or one line that says which file is missing and how to get it. No path is built in.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from proteinlm.errors import InputError

VARIABLE = "PROTEINLM_DATA"
"""The environment variable that names the folder where no `--data` is given."""

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One set of labelled data.

    Attributes:
        key: how it is called here. path: its file within the data folder; a folder for the DMS assays.
        holds: what is in it, in a few words. origin: who made it. licence: what may be done with it.
        redistribute: whether the licence lets others pass it on.
        how: how to get it.
    """

    key: str
    path: str
    holds: str
    origin: str
    licence: str
    redistribute: bool
    how: str


_FLIP = "https://github.com/J-SNACKKB/FLIP"
_PROMOD3 = "`apt download promod3-data` (Debian), the structure database of ProMod3"

_TABLE = (
    Source(
        "held_out",
        "pretrain/valid_public.fasta.gz",
        "670 proteins of 50-1,022 residues, none near a training sequence",
        "UniProt (Swiss-Prot 2014_01) by way of Debian's metastudent-data",
        "CC BY 4.0",
        True,
        "`plm corpus split`, which holds out clusters of your own sequences; any FASTA file under that name will do",
    ),
    Source(
        "netsurfp",
        "secondary_structure/netsurfp_train_val.tsv.gz",
        "9,712 training and 1,080 validation chains with ss3, ss8 and mask",
        "NetSurfP-2.0 (Klausen et al. 2019) by way of FLIP",
        "AFL-3.0",
        True,
        f"{_FLIP}, splits/secondary_structure; or the .npz files of https://services.healthtech.dtu.dk, "
        "which `published.read_netsurfp_npz` reads",
    ),
    Source(
        "cb513",
        "secondary_structure/CB513.tsv.gz",
        "511 test chains with ss3, ss8 and mask",
        "Cuff and Barton 1999 by way of PS4",
        "CC0",
        True,
        "https://github.com/omarperacha/ps4-dataset; or CB513.npz of NetSurfP-2.0, which "
        "`published.read_netsurfp_npz` reads",
    ),
    Source(
        "scop",
        "remote_homology/scop_domains.tsv.gz",
        "2,225 domains with SCOP classification",
        "SCOP 1.75 and SCOPe 2.01",
        "labels from repositories without a licence",
        False,
        "the 40 % set of https://scop.berkeley.edu/astral, which `published.read_astral` reads (it holds more domains)",
    ),
    Source(
        "cath",
        "remote_homology/cath_chains.tsv.gz",
        "4,908 chains that are one CATH domain each",
        "CATH 4.3",
        "CC BY 4.0",
        True,
        "https://www.cathdb.info, the domain list and the S35 sequences",
    ),
    Source(
        "chains",
        "structures/pdb_chains.tsv.gz",
        "17,347 chains with ss8, 30 % clusters, CATH, SCOP and EC",
        "PDB by way of promod3-data",
        "Apache-2.0; PDB CC0",
        True,
        f"{_PROMOD3}; or your own PDB and mmCIF files, which `structures.read_structure` reads",
    ),
    Source(
        "coordinates",
        "structures/cb_coords.npz",
        "C-beta coordinates of 11,032 chains",
        "PDB by way of promod3-data",
        "Apache-2.0; PDB CC0",
        True,
        f"{_PROMOD3}; or your own PDB and mmCIF files, which `structures.read_structure` reads",
    ),
    Source(
        "deeploc",
        "deeploc/deeploc_train_val.tsv.gz",
        "8,758 training and 1,678 validation proteins with location and membrane label",
        "DeepLoc 1.0 (Almagro Armenteros et al. 2017)",
        "none stated",
        False,
        "deeploc_data.fasta of https://services.healthtech.dtu.dk/services/DeepLoc-1.0, which "
        "`published.read_deeploc_fasta` reads",
    ),
    Source(
        "conservation",
        "conservation/conservation.tsv.gz",
        "9,947 chains with a conservation class 1-9 for each residue",
        "ConSurf-DB by way of FLIP",
        "AFL-3.0",
        True,
        f"{_FLIP}, splits/conservation",
    ),
    Source(
        "dms",
        "dms",
        "8 deep mutational scans: index.tsv, wildtypes.fasta and a table for each",
        "METL, DeepSequence, FLIP and nn4dms repositories",
        "MIT and AFL-3.0",
        True,
        "https://github.com/gitter-lab/metl-pub, https://github.com/debbiemarkslab/DeepSequence, "
        f"{_FLIP} (gb1) and https://github.com/gitter-lab/nn4dms; or ProteinGym's CSV files, which "
        "`published.read_proteingym` reads",
    ),
    Source(
        "orthobench",
        "orthobench/refogs.tsv.gz",
        "1,108 proteins of 45 orthogroups in 12 animals",
        "Open OrthoBench",
        "none stated",
        False,
        "https://github.com/davidemms/Open_Orthobench",
    ),
    Source(
        "kingdom",
        "kingdom_ec/kingdom.tsv.gz",
        "11,372 proteins with kingdom, some with EC number",
        "UniProt by way of Prokka, PSORTb and DeepLoc",
        "CC BY 4.0",
        True,
        "https://github.com/tseemann/prokka, the folder db",
    ),
    Source(
        "swissprot_ec",
        "kingdom_ec/swissprot_ec.tsv.gz",
        "EC numbers of 113,146 Swiss-Prot entries",
        "Gene Ontology cross references of UniProt",
        "CC BY 4.0",
        True,
        "https://www.uniprot.org, reviewed entries with the column EC number",
    ),
    Source(
        "chain_alignments",
        "msa/pdb_swissprot_a3m.tar.xz",
        "428 a3m alignments of chains that have coordinates",
        "searched in Swiss-Prot for this collection",
        "CC BY 4.0",
        True,
        "search the sequences of pdb_chains.tsv.gz in Swiss-Prot with MMseqs2 or HHblits, an a3m for each",
    ),
    Source(
        "balifam",
        "msa/balifam_100_1000.tar.xz",
        "40 families: unaligned homologs, and BAliBASE reference alignments",
        "balifam (R. Edgar)",
        "CC0",
        True,
        "https://github.com/rcedgar/balifam",
    ),
    Source(
        "pfam",
        "msa/pfam_ardca.tar.xz",
        "alignments of PF00014 and PF13354 with residue distances",
        "ArDCA's test data",
        "MIT",
        True,
        "https://github.com/pagnani/ArDCA.jl; or any family of https://www.ebi.ac.uk/interpro in Stockholm format, "
        "which `alignments.read_stockholm` reads",
    ),
    Source(
        "example_alignments",
        "msa/a3m_examples.tar.xz",
        "12 a3m and a2m alignments",
        "repositories of ESM, DeepSequence, EVE and others",
        "MIT",
        True,
        "https://github.com/facebookresearch/esm (examples/data) and https://github.com/debbiemarkslab/DeepSequence",
    ),
)

SOURCES: dict[str, Source] = {source.key: source for source in _TABLE}
"""Every set by its key."""


def data_folder(given: str | Path | None = None) -> Path:
    """The folder with the labelled sets: `given`, else what PROTEINLM_DATA names.

    Args:
        given: what the user gave as `--data`, or None.

    Raises:
        InputError: neither is given, or it is no folder.
    """
    named = given or os.environ.get(VARIABLE)
    if not named:
        raise InputError(f"no data folder is given; use --data FOLDER or set {VARIABLE}")
    folder = Path(named)
    if not folder.is_dir():
        raise InputError(f"the data folder {str(folder)!r} is not a folder; use --data FOLDER or set {VARIABLE}")
    return folder


def locate(folder: str | Path | None, key: str) -> Path:
    """The path of a set within the data folder.

    Args:
        folder: as `data_folder` takes it. key: a key of `SOURCES`.

    Raises:
        InputError: the file is missing; the message names it and says how to get it. Or there is no such folder.

    >>> import tempfile
    >>> locate(tempfile.mkdtemp(), "cb513")
    Traceback (most recent call last):
    ...
    proteinlm.errors.InputError: CB513 is missing
    """
    source = SOURCES[key]
    path = data_folder(folder) / source.path
    if not path.exists():
        raise InputError(
            f"missing file: {source.path} in {str(path.parents[source.path.count('/')])!r} "
            f"({source.holds}); get it from {source.how}"
        )
    return path


def missing(folder: str | Path | None, keys: tuple[str, ...] = tuple(SOURCES)) -> dict[str, str]:
    """The sets that are not in the folder: key to the line that says which file and how to get it."""
    lines = {}
    for key in keys:
        try:
            locate(folder, key)
        except InputError as error:
            lines[key] = str(error)
    return lines


def digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder in the order of their names, in hexadecimal."""
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
    found = hashlib.sha256()
    for file in files:
        if path.is_dir():
            found.update(file.name.encode("utf-8") + b"\0")
        with file.open("rb") as handle:
            while block := handle.read(BLOCK_BYTES):
                found.update(block)
    return found.hexdigest()
