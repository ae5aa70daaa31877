"""The machine between tasks and a model: every distinct question is answered once, by the one inference loop.

In: the questions of all tasks. Out: replies, streamed, each to every task that asked. Questions are distinct by their
residues and masks; what different tasks want of one protein is computed in one pass. Memory holds the questions, a few
batches, and what the tasks keep; vectors that tasks want kept lie in a `FeatureStore`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from proteinlm.checkpoints import Checkpoint
from proteinlm.embedding.progress import Progress
from proteinlm.errors import InputError
from proteinlm.evaluation.cache import Features, FeatureStore, Storage, StoreKey, protein_key
from proteinlm.inference import Answer, Failure, Query, Runner, forward_all
from proteinlm.models.base import ProteinModel, Want
from proteinlm.tasks.base import Ability, ModelFacts, Question, Reply, Wanted
from proteinlm.variants.run import letter_log_probabilities

Asked = tuple[str, int, Question]
"""A task's name, the number of its question, and the question."""


@dataclass
class Protein:
    """A distinct question: residues and masks, and everybody who asked."""

    residues: str
    masked: tuple[int, ...]
    key: str
    asked: list[Asked] = field(default_factory=list)


@dataclass(frozen=True)
class Unanswered:
    """A question that the model could not be asked, and why."""

    reason: str


def facts_of(checkpoint: Checkpoint) -> ModelFacts:
    """What tasks may know of a model."""
    model = checkpoint.model
    logits = model.has_logits and (not model.logits_ahead or bool(model.alphabet.prefix))
    able: dict[Ability, bool] = {
        "residues": model.width > 0,
        "logits": logits,
        "mask": model.alphabet.mask is not None,
        "attentions": model.has_attentions,
        "contacts": model.has_contacts,
    }
    abilities = frozenset(ability for ability, has in able.items() if has)
    digest, limit = checkpoint.digest, model.max_residues
    return ModelFacts(checkpoint.name, digest, model.num_layers, model.width, abilities, limit)


def layer_number(wanted: Wanted, model: ProteinModel) -> int:
    """The layer that is wanted, counted from 0.

    Raises:
        InputError: the model has no such layer.
    """
    layer = wanted.layer + model.num_layers + 1 if wanted.layer < 0 else wanted.layer
    model.check(Want(layers=(layer,)))
    return layer


class Machine:
    """Answers questions.

    Args:
        digest: of the model. runner: the model, made ready.
        cache: folder for vectors that are kept. storage: their number format. progress: where to report.

    Attributes:
        passes: proteins that the model was run on. reused: proteins whose vectors were there from an earlier run.
    """

    def __init__(self, digest: str, runner: Runner, cache: Path, storage: Storage, progress: Progress) -> None:
        self.digest, self.runner, self.model = digest, runner, runner.model
        self.cache, self.storage, self.progress = cache, storage, progress
        self.stores: dict[int, FeatureStore] = {}
        self.passes = self.reused = 0

    def close(self) -> None:
        """Let others use the stores."""
        for store in self.stores.values():
            store.close()

    def answers(self, questions: Mapping[str, Sequence[Question]]) -> Iterator[tuple[str, int, Reply | Unanswered]]:
        """Ask the model everything, once.

        Args:
            questions: of each task by its name.

        Yields:
            task, number of its question, and the reply.
        """
        proteins = self._distinct(questions)
        self._reserve(proteins)
        groups: dict[Want, list[Protein]] = {}
        for protein in proteins:
            if (stored := self._stored(protein)) is not None:
                self.reused += 1
                yield from self._replies(protein, Answer(0), stored)
            else:
                groups.setdefault(self._want(protein), []).append(protein)
        self.progress.begin(sum(len(protein.residues) for group in groups.values() for protein in group))
        try:
            for want, group in groups.items():
                yield from self._run(want, group)
        finally:
            self.progress.end()

    def _distinct(self, questions: Mapping[str, Sequence[Question]]) -> list[Protein]:
        found: dict[tuple[str, tuple[int, ...]], Protein] = {}
        for task, asked in questions.items():
            for number, question in enumerate(asked):
                same = (question.residues, question.masked)
                if same not in found:
                    found[same] = Protein(*same, protein_key(*same))
                found[same].asked.append((task, number, question))
        return list(found.values())

    def _layer(self, question: Question) -> int:
        return layer_number(question.wanted, self.model)

    def _want(self, protein: Protein) -> Want:
        """One pass for all that is wanted of a protein."""
        wanted = [question.wanted for _, _, question in protein.asked]
        vectors = {self._layer(q) for _, _, q in protein.asked if q.wanted.mean or q.wanted.residues or q.wanted.kept}
        return Want(
            layers=tuple(sorted(vectors)),
            logits=any(one.log_probabilities for one in wanted),
            attentions=any(one.attentions for one in wanted),
            contacts=any(one.contacts for one in wanted),
        )

    def _reserve(self, proteins: Sequence[Protein]) -> None:
        """Room for all that is to be kept, in the order of the questions."""
        layers: dict[int, dict[str, int]] = {}
        for protein in proteins:
            for _, _, question in protein.asked:
                if question.wanted.kept:
                    layers.setdefault(self._layer(question), {})[protein.key] = len(protein.residues)
        for layer, lengths in layers.items():
            if layer not in self.stores:
                key = StoreKey(self.digest, layer, self.model.width, self.runner.precision, self.storage)
                self.stores[layer] = FeatureStore(self.cache, key)
            bytes_needed = self.stores[layer].reserve(lengths.items())
            residues = sum(lengths.values())
            self.progress.say(
                f"vectors  {residues:,} residues of layer {layer} in {self.storage}, {bytes_needed / 1e9:.2f} GB of "
                f"them new, in {self.stores[layer].folder}"
            )

    def _stored(self, protein: Protein) -> dict[int, Features] | None:
        """Vectors of a protein by layer, if all that is wanted of it is there from an earlier run."""
        found: dict[int, Features] = {}
        for _, _, question in protein.asked:
            wanted = question.wanted
            if wanted.residues or wanted.log_probabilities or wanted.contacts or wanted.attentions:
                return None
            layer = self._layer(question)
            if layer not in self.stores or protein.key not in self.stores[layer]:
                return None
            found[layer] = self.stores[layer].get(protein.key)
        return found

    def _run(self, want: Want, group: list[Protein]) -> Iterator[tuple[str, int, Reply | Unanswered]]:
        readable = []
        for row, protein in enumerate(group):
            try:
                self.model.alphabet.residue_ids(protein.residues)
            except InputError as error:
                yield from ((task, number, Unanswered(str(error))) for task, number, _ in protein.asked)
                continue
            readable.append(Query(row, protein.residues, protein.masked))
        for answer in forward_all(self.runner, readable, want):
            protein = group[answer.row]
            self.passes += 1
            if isinstance(answer, Failure):
                yield from ((task, number, Unanswered(answer.reason)) for task, number, _ in protein.asked)
            else:
                yield from self._replies(protein, answer, self._keep(protein, answer))
            self.progress.advance(len(protein.residues))

    def _keep(self, protein: Protein, answer: Answer) -> dict[int, Features]:
        """Vectors of an answer, kept where somebody wants that."""
        layers = {self._layer(question) for _, _, question in protein.asked if question.wanted.kept}
        return {layer: self.stores[layer].put(protein.key, answer.hidden[layer].numpy()) for layer in layers}

    def _replies(
        self, protein: Protein, answer: Answer, features: Mapping[int, Features]
    ) -> Iterator[tuple[str, int, Reply | Unanswered]]:
        log_probabilities = None if answer.logits is None else letter_log_probabilities(self.model, answer)
        for task, number, question in protein.asked:
            wanted = question.wanted
            reply = Reply(windows=answer.windows)
            if wanted.mean or wanted.residues or wanted.kept:
                reply = self._with_vectors(reply, question, answer, features)
            if wanted.log_probabilities:
                assert log_probabilities is not None, "logits were wanted of the model"
                places = slice(None) if question.places is None else np.array(question.places, np.int64)
                reply = replace(reply, log_probabilities=log_probabilities[places])
            if wanted.contacts and answer.contacts is not None:
                reply = replace(reply, contacts=answer.contacts.numpy())
            if wanted.attentions and answer.attentions is not None:
                reply = replace(reply, attentions=answer.attentions.numpy())
            yield task, number, reply

    def _with_vectors(
        self, reply: Reply, question: Question, answer: Answer, features: Mapping[int, Features]
    ) -> Reply:
        wanted, layer = question.wanted, self._layer(question)
        stored = features.get(layer)
        hidden = None if stored is not None and not wanted.residues else answer.hidden[layer].numpy()
        if hidden is None:
            assert stored is not None, "either the model was run or the vectors are there"
            mean_D = stored.mean_D
        else:
            mean_D = hidden.mean(axis=0, dtype=np.float64).astype(np.float32)
        return replace(
            reply,
            mean=mean_D if wanted.mean else None,
            residues=hidden if wanted.residues else None,
            kept=stored.residues_LD if wanted.kept and stored is not None else None,
        )
