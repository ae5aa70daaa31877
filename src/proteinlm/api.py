"""The Python front door: `proteinlm.load(name).embed(sequences)`.

In: sequences as strings, as (id, residues) pairs, or a FASTA file. Out: one `Embedded` or `Prediction` per sequence, in
their order, lazily and in constant memory. It is the same plan, loop and pooling as `plm embed`, without files.
"""

import copy
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from proteinlm.checkpoints import Checkpoint
from proteinlm.checkpoints import load as load_checkpoint
from proteinlm.embedding.plan import LEAST_RESIDUES, Filling, block_size, describe_refused
from proteinlm.embedding.pooling import Stored, embed_records
from proteinlm.embedding.settings import Content, EmbedSettings, Pooling
from proteinlm.errors import InputError
from proteinlm.inference import Long, Precision, Runner, RunOptions
from proteinlm.prediction.bundle import choose, load_bundle
from proteinlm.prediction.predicting import Prediction, Predictor
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.fasta import Record, Refused, clean, read_fasta
from proteinlm.variants.changes import Variants, all_substitutions
from proteinlm.variants.run import VariantScores, score_variants

Sequences = str | Path | Iterable[str] | Iterable[tuple[str, str]]
"""What `embed` takes: the path of a FASTA file, or residue strings, or (id, residues) pairs."""


@dataclass(frozen=True)
class Embedded:
    """One sequence with what was asked for, in float32.

    Attributes:
        id: as given; the number of the sequence where none was given. index: its number, from 0.
        embedding: (D,), or (L, D) with pooling none, each with an axis of layers in front where there are several.
        logits: (L, V). contacts: (L, L). What was not asked for is None.
        windows: how many windows were run; 1 is the whole sequence at once.
        cropped: residues at the end that were not run.
    """

    id: str
    index: int
    embedding: np.ndarray | None
    logits: np.ndarray | None = None
    contacts: np.ndarray | None = None
    windows: int = 1
    cropped: int = 0


class LanguageModel:
    """A loaded model, ready to run.

    Args:
        checkpoint: model and origin; the model is laid out for inference in place.
        device: "auto", "cpu", "cuda" or "cuda:N". precision: "auto", "fp32" or "bf16".

    Attributes:
        name, digest, licence: of the weights. num_layers: number of the last layer. width: channels D.
        precision: what was chosen, "fp32" or "bf16".
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "auto", precision: Precision = "auto") -> None:
        self.name = checkpoint.name
        self.digest = checkpoint.digest
        self.licence = checkpoint.licence
        self.num_layers = checkpoint.model.num_layers
        self.width = checkpoint.model.width
        self.alphabet = checkpoint.model.alphabet
        self._runner = Runner(checkpoint.model, RunOptions(device=device, precision=precision))
        self.precision = self._runner.precision

    def __repr__(self) -> str:
        return f"<LanguageModel {self.name}: {self.num_layers} layers, width {self.width}, {self.precision}>"

    def embed(
        self,
        sequences: Sequences,
        layers: Sequence[int] = (-1,),
        pooling: Pooling = "mean",
        include: Sequence[Content] = ("embeddings",),
        long: Long = "window",
    ) -> Iterator[Embedded]:
        """Embed sequences.

        Args:
            sequences: strings, (id, residues) pairs, or the path of a FASTA file; read as they are needed.
            layers: hidden states, 0 to `num_layers`, negative ones from the last.
            pooling: "mean" or "max" over residues, "cls", or "none" for a vector per residue.
            include: any of "embeddings", "logits", "contacts".
            long: sequences beyond the model's length: "window", "error" or "crop".

        Yields:
            one `Embedded` per sequence, in their order.

        Raises:
            InputError: a setting does not fit the model (at once), or a sequence cannot be embedded: its id, and the
                letter and its position if that is the reason (when its turn has come).

        >>> from proteinlm.models.esm import Esm2, Esm2Config
        >>> tiny = Esm2(Esm2Config(num_layers=1, width=8, num_heads=2, inner=16))
        >>> model = LanguageModel(Checkpoint(tiny, "tiny", "", "", ""), device="cpu")
        >>> [(protein.id, protein.embedding.shape) for protein in model.embed([("a", "MKTV"), ("b", "MK")])]
        [('a', (8,)), ('b', (8,))]
        """
        settings = EmbedSettings(tuple(layers), pooling, tuple(include)).resolved(self.num_layers)
        settings.check(self._runner.model)
        if long not in ("window", "error", "crop"):
            raise InputError(f"long {long!r} is unknown; use one of window, error, crop")
        runner = copy.copy(self._runner)
        runner.options = replace(runner.options, long=long)
        return _embed(runner, _records(sequences, self.alphabet), settings)

    def contacts(self, residues: str) -> np.ndarray:
        """Contact probabilities of one protein, float32, shape (L, L).

        Raises:
            InputError: the model has no contact head, or a letter is no residue.
        """
        (protein,) = self.embed([residues], include=("contacts",))
        assert protein.contacts is not None, "contacts were asked for"
        return protein.contacts

    def variants(self, residues: str, mutants: Iterable[str] | None = None, method: str = "auto") -> VariantScores:
        """How much more probable than a protein the model finds its variants, in nats.

        Args:
            residues: the wild type. mutants: like `A24G` or `A24G:K30R`; None for the 19 x L single substitutions.
            method: a key of `variants.scoring.METHODS`, which says what each is; "auto" is masked-marginals, or
                likelihood for models without a mask.

        Returns:
            `mutants`, `scores` (N,), and `matrix()` (L, 20) of the single substitutions.

        Raises:
            InputError: a variant does not fit, a letter is no residue, or the method is not for this model.

        >>> from proteinlm.models.esm import Esm2, Esm2Config
        >>> tiny = Esm2(Esm2Config(num_layers=1, width=8, num_heads=2, inner=16))
        >>> model = LanguageModel(Checkpoint(tiny, "tiny", "", "", ""), device="cpu")
        >>> found = model.variants("MKTV", ["K2R", "K2R:V4A"])
        >>> found.mutants, found.scores.shape, model.variants("MKTV").matrix().shape
        (('K2R', 'K2R:V4A'), (2,), (4, 20))
        """
        residues, _ = clean(residues, self.alphabet)
        wanted = all_substitutions(residues) if mutants is None else mutants
        return score_variants(self._runner, Variants.of(residues, wanted), method)

    def predict(self, sequences: Sequences, heads: str | Path | None = None) -> Iterator[Prediction]:
        """Secondary structure, location, membrane and contacts of proteins, as calibrated probabilities.

        Args:
            sequences: strings, (id, residues) pairs, or the path of a FASTA file; read as they are needed.
            heads: folder that `plm heads train` wrote for this model; None for the heads that come with the package.

        Yields:
            one `Prediction` per sequence, in their order.

        Raises:
            InputError: the heads are not there or belong to another model (at once), or a sequence cannot be used
                (when its turn has come).

        >>> from proteinlm.models.esm import Esm2, Esm2Config
        >>> tiny = Esm2(Esm2Config(num_layers=1, width=8, num_heads=2, inner=16))
        >>> LanguageModel(Checkpoint(tiny, "tiny", "", "", ""), device="cpu").predict(["MKTV"], heads="nowhere")
        Traceback (most recent call last):
        proteinlm.errors.InputError: 'nowhere' is no folder of heads: it has no heads.json; `plm heads train` makes one
        """
        _, folder = choose(self.name, None if heads is None else Path(heads))
        predictor = Predictor(self._runner, load_bundle(folder, self.digest))
        return _predictions(predictor, _records(sequences, self.alphabet))


def load(
    name_or_path: str | Path = "default",
    device: str = "auto",
    precision: Precision = "auto",
    download: bool = False,
) -> LanguageModel:
    """Load a model.

    Args:
        name_or_path: a published name or alias (`plm models`), a Hugging Face id, or a path. "default" is the model
            that comes with the package.
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        precision: "auto" (bf16 where the hardware has it), "fp32" (exact) or "bf16".
        download: fetch the weights from the Hugging Face hub if they are not on this machine.

    Raises:
        InputError: the name is unknown, the weights are not here or cannot be used, or the device is not there.

    >>> load("esm2-8n")
    Traceback (most recent call last):
    proteinlm.errors.InputError: there is no file, folder or model 'esm2-8n'; did you mean 'esm2-8m'?
    """
    return LanguageModel(load_checkpoint(name_or_path, download), device, precision)


def _embed(runner: Runner, records: Iterator[Record], settings: EmbedSettings) -> Iterator[Embedded]:
    """Block by block; within a block the sequences are sorted by length, then put back in their order."""
    size = replace(block_size(runner.model, settings), residues=LEAST_RESIDUES)
    block: list[Record] = []
    filling = Filling(size)
    for record in records:
        if not filling.takes(record):
            yield from _in_order(runner, block, settings)
            block, filling = [], Filling(size)
        block.append(record)
        filling.add(record)
    yield from _in_order(runner, block, settings)


def _in_order(runner: Runner, block: list[Record], settings: EmbedSettings) -> Iterator[Embedded]:
    done: dict[int, Stored] = {}
    for item in embed_records(runner, block, settings) if block else ():
        if isinstance(item, Refused):
            raise InputError(describe_refused(item))
        done[item.entry.index] = item
    for record in block:
        stored = done.pop(record.index)
        arrays = {name: tensor.numpy() for name, tensor in stored.tensors.items()}
        yield Embedded(
            id=record.id,
            index=record.index,
            embedding=arrays.get("embeddings"),
            logits=arrays.get("logits"),
            contacts=arrays.get("contacts"),
            windows=stored.entry.windows,
            cropped=stored.entry.cropped,
        )


def _predictions(predictor: Predictor, records: Iterator[Record]) -> Iterator[Prediction]:
    for block in predictor.blocks(records):
        for item in predictor.predict(block):
            if isinstance(item, Refused):
                raise InputError(describe_refused(item))
            yield item


def _records(sequences: Sequences, alphabet: Alphabet) -> Iterator[Record]:
    """The sequences as records; raises `InputError` at the first that cannot be used."""
    if isinstance(sequences, str | os.PathLike):
        name = str(sequences)
        if not set(name.upper()) - set(alphabet.letters()) and not os.path.exists(name):
            raise InputError(f"there is no FASTA file {name[:40]!r}; if it is a sequence, give a list: [sequence]")
        for item in read_fasta(Path(sequences), alphabet):
            if isinstance(item, Refused):
                raise InputError(describe_refused(item))
            yield item
        return
    for index, given in enumerate(sequences):
        identifier, residues = (str(index), given) if isinstance(given, str) else given
        try:
            residues, normalised = clean(residues, alphabet)
        except InputError as error:
            raise InputError(f"sequence {index + 1} ({identifier!r}): {error}") from error
        yield Record(index, identifier, identifier, residues, normalised)
