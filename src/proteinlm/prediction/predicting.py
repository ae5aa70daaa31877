"""From a model's answer to what a biologist asks for: calibrated probabilities of one protein.

In: a prepared model, its heads, and records. Out: a `Prediction` for each, in their order, or a refusal. A head sees
one protein at a time, so that nothing depends on the neighbours beyond the rounding of the model itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from proteinlm.datasets.secondary_structure import SS3, SS8
from proteinlm.embedding.plan import LEAST_RESIDUES, BlockSize, Filling
from proteinlm.errors import InputError
from proteinlm.inference import Answer, Failure, Query, Runner, forward_all
from proteinlm.models.base import Want
from proteinlm.prediction.bundle import CONTACTS, LOCALISATION, MEMBRANE, SECONDARY_STRUCTURE, Bundle
from proteinlm.prediction.maps import ContactReader
from proteinlm.sequences.fasta import Record, Refused

LONG_RANGE = 24
"""Residues apart along the chain from which a contact is called long-range (papers.md 4.4)."""

CALLED = 0.5
"""Probability from which a contact is counted as predicted."""

BLOCK_RECORDS = 512
"""Records that are predicted together at most: what a killed run can lose, and what its first lines wait for."""


@dataclass(frozen=True)
class Prediction:
    """What the heads say of one protein; None where there is no such head. Probabilities are calibrated, fp64.

    Attributes:
        id: as given. index: number of its record, from 0. residues: L letters.
        q3: probabilities of helix, strand and other (`H`, `E`, `C`), (L, 3). q8: of `GHIBESTC`, (L, 8).
        location: name of a location -> probability, ten that sum to 1. membrane: probability of being in a membrane.
        contacts: of every pair of residues, (L, L); NaN where no window held both, and next to the diagonal they mean
            little. windows: stretches that the model read; 1 is the whole protein at once.
    """

    id: str
    index: int
    residues: str
    q3: Float[np.ndarray, "L 3"] | None = None
    q8: Float[np.ndarray, "L 8"] | None = None
    location: dict[str, float] | None = None
    membrane: float | None = None
    contacts: Float[np.ndarray, "L L"] | None = None
    windows: int = 1

    def states3(self) -> str:
        """The likeliest of H, E and C at every residue; empty without the head."""
        return "" if self.q3 is None else "".join(SS3[state] for state in self.q3.argmax(1))

    def states8(self) -> str:
        """The likeliest of GHIBESTC at every residue; empty without the head."""
        return "" if self.q8 is None else "".join(SS8[state] for state in self.q8.argmax(1))

    def long_range(self) -> int | None:
        """Long-range contacts with a probability of `CALLED` or more.

        >>> Prediction("a", 0, "M" * 26, contacts=np.full((26, 26), 0.5)).long_range()
        3
        """
        if self.contacts is None:
            return None
        # NaN, which no window knows, is not above anything.
        return int((np.triu(self.contacts, LONG_RANGE) >= CALLED).sum())


class Predictor:
    """A model with its heads.

    Args:
        runner: the model, made ready; left as it is. bundle: heads that belong to it.
    """

    def __init__(self, runner: Runner, bundle: Bundle) -> None:
        self.bundle, self.heads, self.layer = bundle, bundle.heads, bundle.card.layer
        self.maps = ContactReader(runner, self.heads[CONTACTS]) if CONTACTS in self.heads else None
        self.runner = self.maps.runner if self.maps is not None else runner
        vectors = set(self.heads) - {CONTACTS}
        self.want = Want(
            layers=(self.layer,) if vectors else (),
            contacts=self.maps is not None and not self.maps.attentions,
            attentions=self.maps is not None and self.maps.attentions,
        )
        self.runner.model.check(self.want)

    def blocks(self, items: Iterable[Record | Refused]) -> Iterator[list[Record | Refused]]:
        """Consecutive records, as many as are predicted together."""
        # An fp32 number for each pair, and three times as many in their table and their picture.
        pair_bytes = 16 if self.maps is not None else 0
        size = BlockSize(records=BLOCK_RECORDS, residues=LEAST_RESIDUES, residue_bytes=128, pair_bytes=pair_bytes)
        block, filling = list[Record | Refused](), Filling(size)
        for item in items:
            if not filling.takes(item):
                yield block
                block, filling = [], Filling(size)
            block.append(item)
            filling.add(item)
        if block:
            yield block

    def predict(self, block: Sequence[Record | Refused]) -> Iterator[Prediction | Refused]:
        """One block, in its order; a record that was refused, or cannot be run, comes out as a refusal."""
        records = {item.index: item for item in block if isinstance(item, Record)}
        queries = [Query(index, record.residues) for index, record in records.items()]
        done: dict[int, Prediction | Refused] = {}
        for answer in forward_all(self.runner, queries, self.want):
            record = records[answer.row]
            try:
                done[answer.row] = self._prediction(record, answer)
            except InputError as error:
                done[answer.row] = Refused(record.index, record.id, record.header, str(error))
        for item in block:
            yield done.pop(item.index) if isinstance(item, Record) else item
        assert not done, "every answer belongs to a record"

    def _prediction(self, record: Record, answer: Answer | Failure) -> Prediction:
        """The heads on one answer.

        Raises:
            InputError: the model could not be run on it, or gave numbers that are not finite.
        """
        if isinstance(answer, Failure):
            raise InputError(answer.reason)
        q3 = q8 = location = membrane = contacts = None
        if answer.hidden:
            x_LD = answer.hidden[self.layer]
            if not bool(torch.isfinite(x_LD).all()):
                raise InputError("vectors are not finite (infinity or NaN came out of the model); use --precision fp32")
            vectors_LD = x_LD.numpy()
            mean_1D = vectors_LD.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32)
            if fitted := self.heads.get(SECONDARY_STRUCTURE):
                (found,) = fitted.predict_proba([vectors_LD])
                q3, q8 = found["q3"], found["q8"]
            if fitted := self.heads.get(LOCALISATION):
                (found,) = fitted.predict_proba([mean_1D])
                names = fitted.classes["q10"]
                location = {name: float(p) for name, p in zip(names, found["q10"], strict=True)}
            if fitted := self.heads.get(MEMBRANE):
                (found,) = fitted.predict_proba([mean_1D])
                membrane = float(found["q2"][fitted.classes["q2"].index("membrane")])
        if self.maps is not None:
            contacts = self.maps.probabilities(answer)
        return Prediction(
            record.id, record.index, record.residues, q3, q8, location, membrane, contacts, answer.windows
        )
