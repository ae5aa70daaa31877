"""What the tests of figures share: a small data folder for every figure, and a model with room for its chains."""

import csv
import gzip
from pathlib import Path

import numpy as np
import torch
from datasets_tools import write_archive, write_coordinates, write_table
from embedding_tools import RESIDUES
from evaluation_tools import protein

from proteinlm import checkpoints
from proteinlm.datasets.chains import COLUMNS
from proteinlm.datasets.sources import SOURCES
from proteinlm.models.base import ProteinModel
from proteinlm.models.esm import Esm2, Esm2Config

CHAINS, GENES, SPECIES = 28, 6, 5


def small_model(contact_head: bool = True) -> ProteinModel:
    """ESM-2 with random weights and room for 128 residues."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = Esm2Config(2, 16, 2, 64, max_residues=128, contact_head=contact_head)
        return Esm2(config)


def save_small(folder: Path, contact_head: bool = True) -> str:
    path = folder / f"small{'' if contact_head else '-bare'}.safetensors"
    checkpoints.save(small_model(contact_head), path)
    return str(path)


def write_everything(folder: Path) -> Path:
    """The sets of all figures."""
    write_orthologs(folder)
    write_labelled(folder)
    write_family(folder)
    write_chains(folder)
    return folder


def write_orthologs(folder: Path) -> None:
    places = [(gene, where) for gene in range(GENES) for where in range(SPECIES)]
    rows = [
        (f"G{gene}", f"Genus_{where}", f"p{number}", protein(30 + gene, number))
        for number, (gene, where) in enumerate(places)
    ]
    write_table(folder, "orthobench", "refog species id sequence", rows)


def write_labelled(folder: Path) -> None:
    codes = [f"{letter}.{fold}.1.1" for letter in "abcd" for fold in range(1, 6)]
    rows = [(f"d{n}", code, "made up", "", "1.0", protein(25, n)) for n, code in enumerate(codes)]
    write_table(folder, "scop", "sid sccs source tape_split cov_of_domain sequence", rows)
    kinds = [(kingdom, f"{1 + n % 3}.1.1.1") for kingdom in ("Archaea", "Bacteria", "Viruses") for n in range(6)]
    rows = [(f"k{n}", *kind, "made up", protein(28, 100 + n)) for n, kind in enumerate(kinds)]
    write_table(folder, "kingdom", "id kingdom ec source sequence", rows)
    rows = [(f"m{n}", "val", "Cytoplasm", "MSms"[n % 4], "made up", protein(27, 200 + n)) for n in range(24)]
    write_table(folder, "deeploc", "accession split location membrane sequence_source sequence", rows)


def write_family(folder: Path) -> None:
    random, members = np.random.default_rng(0), {}
    for name in ("PF00014", "PF13354"):
        typical = random.choice(list(RESIDUES), size=20)
        rows = [
            "".join(np.where(random.random(20) < 0.5, typical, random.choice(list(RESIDUES), 20))) for _ in range(8)
        ]
        fasta = "".join(f">{number}\n{row}\n" for number, row in enumerate(rows))
        members |= {f"pfam/{name}_x.fasta.gz": gzip.compress(fasta.encode()), f"pfam/{name}_struct.dat": "1 2 0.5 7\n"}
    write_archive(folder / SOURCES["pfam"].path, members)


def write_chains(folder: Path) -> None:
    """Chains of 60 to 87 residues, each of a cluster and a CATH fold of its own, curled up at random."""
    random, rows, points = np.random.default_rng(1), [], {}
    for number in range(CHAINS):
        name, length = f"{1000 + number}_A", 60 + number
        states = "".join(np.repeat(random.choice(list("HEC"), size=length // 5 + 1), 5))[:length]
        values = {
            "chain": name,
            "start": "1",
            "length": str(length),
            "cluster30": name,
            "cath": f"1.10.{number + 1}.10",
            "sequence": protein(length, 300 + number),
            "ss8": states,
        }
        rows.append(tuple(values.get(column, "") for column in COLUMNS))
        points[name] = np.cumsum(random.normal(scale=2.2, size=(length, 3)), axis=0)
    write_table(folder, "chains", " ".join(COLUMNS), rows)
    write_coordinates(folder, points)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
