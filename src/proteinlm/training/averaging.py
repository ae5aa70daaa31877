"""An exponential moving average of the weights, which is validated and kept in their place where the recipe says so.

In: a model after each update. Out: the model with the average in it, for as long as a block lasts. The average is a
tensor for each weight, split over processes where the weight is.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from proteinlm.models.base import ProteinModel


class Average:
    """average = decay average + (1 - decay) weights, after every update; the first update sets it.

    Args:
        model: its weights are read, and exchanged in `applied`. decay: from 0 (the last weights) to below 1.

    Attributes:
        tensors: the average, by the names of the model's parameters.

    >>> from proteinlm.models import build
    >>> model = build("unirep-64")
    >>> average = Average(model, decay=0.5)
    >>> with torch.no_grad():
    ...     for weight in model.parameters():
    ...         _ = weight.fill_(3.0)
    >>> average.update(first=True)
    >>> with torch.no_grad():
    ...     for weight in model.parameters():
    ...         _ = weight.fill_(5.0)
    >>> average.update(first=False)
    >>> with average.applied():
    ...     {float(weight.min()) for weight in model.parameters()}
    {4.0}
    >>> {float(weight.min()) for weight in model.parameters()}
    {5.0}
    """

    def __init__(self, model: ProteinModel, decay: float) -> None:
        self._model, self._decay = model, decay
        self.tensors = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def _weights(self) -> list[Tensor]:
        return [weight.detach() for weight in self._model.parameters()]

    def update(self, first: bool) -> None:
        """Take the present weights in."""
        share = 1.0 if first else 1 - self._decay
        torch._foreach_lerp_(list(self.tensors.values()), self._weights(), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model's weights are the average; afterwards they are what they were, to the bit."""
        before = [weight.clone() for weight in self._weights()]
        self._put(self.tensors.values())
        try:
            yield
        finally:
            self._put(before)

    def _put(self, tensors: Iterable[Tensor]) -> None:
        for weight, tensor in zip(self._weights(), tensors, strict=True):
            weight.copy_(tensor)
