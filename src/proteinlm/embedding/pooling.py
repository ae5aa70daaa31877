"""From a model's answers to what is stored: residues pooled, layers stacked, numbers cast and checked.

In: records and a prepared model. Out: for every record one `Stored` or one `Refused`, in the order in which batches
finish; both carry the record's index and id, and callers place them by these.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proteinlm.embedding.settings import EmbedSettings, Pooling
from proteinlm.inference import Answer, Failure, Query, Runner, forward_all
from proteinlm.sequences.fasta import Record, Refused


@dataclass(frozen=True)
class Entry:
    """One protein of an output.

    Attributes:
        index: its number among all records of the input, from 0, refused ones included.
        id: the header up to the first white space. header: the whole header line.
        length: residues L of the record.
        windows: how many windows were run; 1 is the whole protein at once.
        cropped: residues at the end that were not run.
    """

    index: int
    id: str
    header: str
    length: int
    windows: int = 1
    cropped: int = 0


@dataclass
class Stored:
    """What is kept of one protein: content name -> tensor in the storage format.

    Shapes: embeddings (D,), or (L, D) with pooling none, each with a leading axis of layers where several were asked
    for; logits (L, V); contacts (L, L).
    """

    entry: Entry
    tensors: dict[str, Tensor]


def embed_records(runner: Runner, records: Sequence[Record], settings: EmbedSettings) -> Iterator[Stored | Refused]:
    """Run records through the model and keep what `settings` names.

    Args:
        runner: a prepared model.
        records: all of them are held while this runs.
        settings: with resolved layers.

    Yields:
        one item per record, longest first: what is stored, or why the record could not be embedded.
    """
    by_row = {record.index: record for record in records}
    assert len(by_row) == len(records), "indices are unique"
    queries = [Query(record.index, record.residues) for record in records]
    for answer in forward_all(runner, queries, settings.want()):
        record = by_row.pop(answer.row)
        if isinstance(answer, Failure):
            yield _refused(record, answer.reason)
            continue
        tensors = _tensors(answer, settings)
        problem = _problem(tensors, settings)
        if problem is not None:
            yield _refused(record, problem)
        else:
            entry = Entry(record.index, record.id, record.header, len(record.residues), answer.windows, answer.cropped)
            yield Stored(entry, {name: _owned(tensor, settings.dtype) for name, tensor in tensors.items()})
    assert not by_row, f"{len(by_row)} records came back without an answer"


def pool(residues_LD: Tensor, first_D: Tensor | None, pooling: Pooling) -> Tensor:
    """One layer of one protein, pooled over its residues (BOS and EOS are not among them).

    Args:
        residues_LD: fp32 residue vectors, shape (L, D).
        first_D: the BOS vector, shape (D,); needed for cls.
        pooling: "none" returns all residue vectors.

    Returns:
        shape (D,), or (L, D) for "none".

    >>> pool(torch.tensor([[1.0, 2.0], [3.0, 0.0]]), None, "mean")
    tensor([2., 1.])
    """
    if pooling == "mean":
        return residues_LD.mean(0)
    if pooling == "max":
        return residues_LD.amax(0)
    if pooling == "cls":
        assert first_D is not None, "settings were checked against the model"
        return first_D
    return residues_LD


def _tensors(answer: Answer, settings: EmbedSettings) -> dict[str, Tensor]:
    """The fp32 tensors that `settings.include` names."""
    tensors: dict[str, Tensor] = {}
    if "embeddings" in settings.include:
        pooled = [pool(answer.hidden[n].float(), answer.first.get(n), settings.pooling) for n in settings.layers]
        tensors["embeddings"] = pooled[0] if len(pooled) == 1 else torch.stack(pooled)
    if "logits" in settings.include:
        assert answer.logits is not None, "logits were wanted"
        tensors["logits"] = answer.logits
    if "contacts" in settings.include:
        assert answer.contacts is not None, "contacts were wanted"
        tensors["contacts"] = answer.contacts
    return tensors


def _problem(tensors: dict[str, Tensor], settings: EmbedSettings) -> str | None:
    """Why tensors cannot be stored: not finite, or beyond the range of the storage format. None where they can.

    Contacts are left out: they lie in 0..1, and are NaN where no window held both residues. In logits, -infinity is
    what a model says of a token that it never predicts (UniRep's padding), and every storage format holds it.
    """
    limit = torch.finfo(settings.dtype).max
    for name, tensor in tensors.items():
        if name == "contacts":
            continue
        magnitude = tensor.abs()
        if name == "logits":
            magnitude = magnitude.masked_fill(tensor == float("-inf"), 0.0)
        largest = magnitude.amax().item()
        if not largest < float("inf"):
            return f"{name} are not finite (infinity or NaN came out of the model); use --precision fp32"
        if largest > limit:
            return f"{name} reach {largest:.6g}, beyond the {limit:.6g} of {settings.storage}; use --storage fp32"
    return None


def _owned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A contiguous copy of its own in `dtype`, so that the batch it was cut from can be freed."""
    return tensor.to(dtype, copy=True).contiguous()


def _refused(record: Record, reason: str) -> Refused:
    return Refused(record.index, record.id, record.header, reason)
