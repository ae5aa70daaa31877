"""What the tests of prediction share: a data folder whose labels can be read off the residues; heads of any model."""

from pathlib import Path

import numpy as np
import torch
from datasets_tools import write_table
from evaluation_tools import write_structures
from forked import Death, await_death

from proteinlm.checkpoints import Checkpoint
from proteinlm.datasets.localisation import LOCATIONS
from proteinlm.datasets.secondary_structure import SS3, SS3_OF_SS8, SS8
from proteinlm.embedding.progress import Silent
from proteinlm.heads.contact import ContactRegression
from proteinlm.heads.layers import Head
from proteinlm.heads.network import CnnConfig, FnnConfig, PooledFnn, ResidueCnn, build
from proteinlm.heads.store import Features, FittedHead
from proteinlm.models.base import ProteinModel
from proteinlm.prediction import predicting
from proteinlm.prediction.bundle import HEADS, BundleCard, save_bundle
from proteinlm.prediction.job import PredictJob, predict_file
from proteinlm.prediction.maps import CLASSES, TASK, as_probe

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
STATE_OF = {letter: SS8[number % len(SS8)] for number, letter in enumerate(LETTERS)}
"""The eight-state label that is planted on each residue."""

MARKER = dict(zip(LOCATIONS, LETTERS, strict=False))
"""The residue that is common in proteins of a location."""

MEMBRANE_MARKER, WRONG = "W", 0.2
"""Membrane proteins are full of this one; so many membrane labels are wrong, so that nobody can be surer than that."""


def chain(random: np.random.Generator, length: int = 40) -> str:
    return "".join(random.choice(list(LETTERS), size=length))


def states8(residues: str) -> str:
    return "".join(STATE_OF[letter] for letter in residues)


def localised(random: np.random.Generator, location: str, membrane: bool) -> str:
    """Forty residues, half of them the markers of a location, a quarter that of the membrane."""
    residues = list(chain(random, 10)) + [MARKER[location]] * 20 + [MEMBRANE_MARKER if membrane else "Y"] * 10
    return "".join(random.permutation(residues))


def write_data(folder: Path) -> None:
    """NetSurfP-2.0, CB513, DeepLoc and chains, small and made up."""
    random = np.random.default_rng(11)
    columns = "chain split sequence ss3 mask ss8"
    for key, splits in (("netsurfp", {"train": 150, "val": 20}), ("cb513", {"CB513": 15})):
        rows = []
        for split, count in splits.items():
            for number in range(count):
                residues = chain(random)
                ss8 = states8(residues)
                ss3 = "".join(SS3_OF_SS8[state] for state in ss8)
                rows.append((f"{split}{number}", split, residues, ss3, "0" + "1" * (len(residues) - 1), ss8))
        write_table(folder, key, columns, rows)
    rows = []
    for split, count in (("train", 700), ("val", 300)):
        for number in range(count):
            location, membrane = LOCATIONS[number % len(LOCATIONS)], bool(random.integers(2))
            residues = localised(random, location, membrane)
            told = membrane != (random.random() < WRONG)
            rows.append((f"{split}{number}", split, location, "M" if told else "S", "made up", residues))
    write_table(folder, "deeploc", "accession split location membrane sequence_source sequence", rows)
    write_structures(folder)


def random_heads(checkpoint: Checkpoint, folder: Path, seed: int = 0) -> Path:
    """Heads with random weights for a model, with contacts if it has attention maps; the folder."""
    model = checkpoint.model
    heads = {}
    kinds: list[tuple[str, dict[str, list[str]], bool]] = [
        ("secondary-structure", {"q8": list(SS8), "q3": list(SS3)}, False),
        ("localisation", {"q10": list(LOCATIONS)}, True),
        ("membrane", {"q2": ["soluble", "membrane"]}, True),
    ]
    for name, classes, pooled in kinds:
        outputs = {task: len(names) for task, names in classes.items()}
        head: Head
        if pooled:
            head = build(PooledFnn, FnnConfig(model.width, outputs), seed)
        else:
            head = build(ResidueCnn, CnnConfig(model.width, outputs), seed)
        features = Features(checkpoint.name, checkpoint.digest, model.num_layers, model.width, pooled)
        heads[name] = FittedHead(head, features, classes, {task: 0.5 for task in classes})
    if model.has_attentions:
        heads["contacts"] = contact_head(checkpoint, seed)
    card = BundleCard(
        checkpoint.name, checkpoint.digest, model.num_layers, model.width, {}, {}, {}, seed, quick=False, software={}
    )
    save_bundle(folder, heads, card, "A card.\n")
    assert set(heads) <= set(HEADS)
    return folder


def predict_until(job: PredictJob, block: int, death: Death | None) -> None:
    """Run a job in blocks of so many records, to be killed at that moment."""
    torch.set_num_threads(1)
    predicting.BLOCK_RECORDS = block
    if death is not None:
        await_death(death)
    predict_file(job, Silent(), lambda text: None)


def maps_of(model: ProteinModel) -> int:
    return model.config.num_layers * model.config.num_heads  # type: ignore[no-any-return, union-attr]


def contact_head(checkpoint: Checkpoint, seed: int = 0) -> FittedHead:
    """A regression with random weights, a quarter of them 0."""
    weight_M = torch.randn(maps_of(checkpoint.model), generator=torch.Generator().manual_seed(seed)) * 20
    weight_M[::4] = 0
    probe = as_probe(ContactRegression(weight_M, -1.0, 20, 1000, 30, 5, 0.0))
    features = Features(checkpoint.name, checkpoint.digest, checkpoint.model.num_layers, len(weight_M))
    return FittedHead(probe, features, {TASK: CLASSES}, {TASK: 1.5}, probe.record)
