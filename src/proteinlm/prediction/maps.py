"""Contacts from attention maps by a fitted regression: kept as a linear head, and put to work in a model.

In: the weight of every map, a bias and a temperature. Out: calibrated contact probabilities. In models that fold maps
into contacts as they arise (the ESM family) the weights become the contact head of a twin that shares every other
weight, so that no map is kept; with other models the maps of a protein are asked for and summed up here.
"""

import copy

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from proteinlm.heads.contact import ContactRegression
from proteinlm.heads.linear import LinearProbe
from proteinlm.heads.store import FittedHead
from proteinlm.inference import Answer, Runner
from proteinlm.models.base import ProteinModel
from proteinlm.models.contacts import ContactHead
from proteinlm.models.esm import Esm1, Esm1b, Esm2
from proteinlm.tasks.contacts import weighted_map

TASK = "contact"
CLASSES = ["no contact", "contact"]


def as_probe(found: ContactRegression) -> LinearProbe:
    """A regression on maps as a linear head on what a pair has in each of them: logits of no contact (0) and contact.

    >>> found = ContactRegression(torch.tensor([2.0, 0.0]), -1.0, 20, 100, 5, 3, 0.0)
    >>> as_probe(found).logits(np.array([[1.0, 9.0]], np.float32)).tolist()
    [[0.0, 1.0]]
    """
    weight_M = found.weight_M.numpy()
    weight_MK = np.stack([np.zeros_like(weight_M), weight_M], axis=1)
    bias_K, count = np.array([0.0, found.bias], np.float32), len(weight_M)
    told = {name: getattr(found, name) for name in ("proteins", "pairs", "contacts", "passes", "gradient")}
    record = {"features": "attention maps, symmetrised, average product corrected", **told}
    return LinearProbe(weight_MK, bias_K, np.zeros(count, np.float32), np.ones(count, np.float32), record)


def pair_logits(maps_NHLL: Tensor, weight_M: Tensor, bias: float) -> Float[Tensor, "L L"]:
    """Contact logits of a protein from all its maps; those of weight 0 are not looked at.

    >>> pair_logits(torch.rand(2, 3, 5, 5), torch.zeros(6), -1.0)[0, 0].item()
    -1.0
    """
    maps_MLL = maps_NHLL.flatten(0, 1).float().numpy()
    return torch.from_numpy(weighted_map(maps_MLL, weight_M)) + bias


class ContactReader:
    """Calibrated contact probabilities from a model's answers.

    Args:
        runner: the model, made ready; it is left as it is. fitted: a head made by `as_probe`.

    Attributes:
        runner: what to run instead. attentions: whether attention maps are to be asked of it, else contacts.
    """

    def __init__(self, runner: Runner, fitted: FittedHead) -> None:
        assert isinstance(fitted.head, LinearProbe), "contacts are a regression on maps"
        temperature = fitted.temperatures.get(TASK, 1.0)
        self.weight_M = torch.from_numpy(fitted.head.weight_DK[:, 1] / temperature).float()
        self.bias = float(fitted.head.bias_K[1]) / temperature
        model = runner.model
        self.attentions = not isinstance(model, Esm1 | Esm1b | Esm2)
        self.runner = runner if self.attentions else copy.copy(runner)
        if isinstance(model, Esm1 | Esm1b | Esm2):
            self.runner.model = with_contact_head(model, self.weight_M, self.bias)

    def probabilities(self, answer: Answer) -> Float[np.ndarray, "L L"] | None:
        """Of every pair; NaN where no window held both residues. None where maps of several windows do not join."""
        if answer.contacts is not None:
            return answer.contacts.numpy()
        assert answer.attentions is not None, "attention maps were asked for"
        if answer.windows > 1:
            return None
        return torch.sigmoid(pair_logits(answer.attentions, self.weight_M, self.bias)).numpy()


def with_contact_head(model: Esm1 | Esm1b | Esm2, weight_M: Tensor, bias: float) -> ProteinModel:
    """A twin of a model: every weight is shared but those of the contact head, which are these."""
    heads = model.config.num_heads
    # A module that is about to lose what it draws: the caller's generator is left alone.
    with torch.random.fork_rng(devices=[]):
        head = ContactHead(model.num_layers, heads)
    with torch.no_grad():
        head.weight.copy_(weight_M.view(model.num_layers, heads))
        head.bias.fill_(bias)
    twin = copy.copy(model)
    # A copy of a module shares its table of parts; the twin needs a table of its own to have another part in it.
    twin._modules = dict(model._modules)
    twin.contact_head = head.requires_grad_(False).to(next(model.parameters()).device)
    twin.has_contacts = True
    return twin
