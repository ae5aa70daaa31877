"""A contact head for a checkpoint: fitted on 20 chains of known structure, and saved with it.

In: a model with attention, PDB chains with coordinates. Out: a checkpoint with the same weights and a contact head,
from which `plm contacts`, `--include contacts` and the task `contacts-head` read. Source: papers.md 8.1.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from proteinlm.checkpoints import Checkpoint, digest_of, load, save
from proteinlm.checkpoints.contents import Contents, architecture_of, assemble, weights_of
from proteinlm.errors import InputError
from proteinlm.heads.contact import ContactRegression, ContactRows, contact_rows, fit_contact_rows
from proteinlm.inference import Failure, Query, Runner, RunOptions, forward_all
from proteinlm.models.base import ProteinModel, Want
from proteinlm.models.esm import Esm1, Esm1b, Esm2
from proteinlm.tasks.base import LACKING
from proteinlm.tasks.contacts import DrawnChains, draw_chains


@dataclass(frozen=True)
class FitJob:
    """What to fit, and on what.

    Args:
        model: name or path. out: the new file. data: folder of the data sets. seed: of the choice of chains.
        run: how the model is run. download: fetch the weights if they are not on this machine.
    """

    model: str
    out: Path
    data: Path
    seed: int = 0
    run: RunOptions = field(default_factory=RunOptions)
    download: bool = False


def fit_contact_head(job: FitJob) -> tuple[ContactRegression, str]:
    """Fit a contact head, put it in place of what the checkpoint had, and save all in our own layout.

    Returns:
        what was fitted, and the digest of the new checkpoint.

    Raises:
        InputError: the output is there already, the model has no attention or no place for a contact head, data are
            missing, or there are too few chains that it can take at once.
    """
    if job.out.exists():
        raise InputError(f"{str(job.out)!r} is there already; choose another -o or remove it")
    fitted = _fitted(job)
    # The runner laid the weights out for speed, so that they are read once more.
    checkpoint = load(job.model)
    model = with_fitted_head(checkpoint.model, fitted)
    save(model, job.out, checkpoint.name, checkpoint.licence)
    return fitted, digest_of(model)


def _fitted(job: FitJob) -> ContactRegression:
    """The regression; model and maps are let go of."""
    checkpoint = load(job.model, job.download)
    require_place(checkpoint)
    drawn = draw_chains(job.data, job.seed, 0, checkpoint.model.max_residues)
    return fit_contact_rows(attention_rows(Runner(checkpoint.model, job.run), drawn))


def require_place(checkpoint: Checkpoint) -> None:
    """Refuse a model that has no attention maps, or whose files have no place for a contact head."""
    if not checkpoint.model.has_attentions:
        raise InputError(
            f"{checkpoint.name} cannot have a contact head: {LACKING['attentions']}; `plm evaluate --tasks "
            "contacts-linear` reads contacts from its vectors"
        )
    if not isinstance(checkpoint.model, Esm1 | Esm1b | Esm2):
        raise InputError(
            f"{checkpoint.name} is {architecture_of(checkpoint.model)[0]}, whose files have no place for a contact "
            "head (esm1, esm1b and esm2 have); `plm evaluate --tasks contacts-attention` fits and tests one"
        )


def attention_rows(runner: Runner, drawn: DrawnChains) -> list[ContactRows]:
    """The pairs of every training chain, in their order; the maps are let go of one by one."""
    queries = [Query(row, chain.residues) for row, chain in enumerate(drawn.train)]
    rows: dict[int, ContactRows] = {}
    for answer in forward_all(runner, queries, Want(attentions=True)):
        chain = drawn.train[answer.row]
        if isinstance(answer, Failure):
            raise InputError(f"chain {chain.id}: {answer.reason}")
        assert answer.attentions is not None, "attention maps were wanted"
        rows[answer.row] = contact_rows(answer.attentions.flatten(0, 1), drawn.coordinates.contacts(chain.id))
    return [rows[row] for row in sorted(rows)]


def with_fitted_head(model: ProteinModel, fitted: ContactRegression) -> ProteinModel:
    """A model with the same weights and a fitted contact head; the weights are shared, not copied.

    Args:
        model: of the ESM family, not prepared for inference. fitted: on its attention maps.
    """
    assert isinstance(model, Esm1 | Esm1b | Esm2), "`require_place` was asked"
    config = dataclasses.replace(model.config, contact_head=True)
    tensors = {name: tensor for name, tensor in weights_of(model).items() if not name.startswith("contact_head.")}
    tensors["contact_head.weight"] = fitted.weight_M.view(config.num_layers, config.num_heads)
    tensors["contact_head.bias"] = fitted.weight_M.new_tensor([fitted.bias])
    return assemble(Contents(architecture_of(model)[0], config, tensors, "the fitted contact head"))[0]
