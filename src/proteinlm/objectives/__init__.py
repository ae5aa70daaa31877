"""Objectives: what a model is trained to do. Each turns a batch into an example, and an example into a loss.

`masked` is masked language modelling; `perplexity` scores a model over whole proteins. `OBJECTIVES` is the table that a
recipe's section [objective] chooses from: a new objective is one file in this package and one line there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proteinlm.objectives.base import Objective
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.sequences.alphabet import Alphabet

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "ObjectiveKind"]

ObjectiveConfig = Masking
"""Any objective's configuration; each objective has a class of its own."""


@dataclass(frozen=True)
class ObjectiveKind:
    """What a recipe names.

    Args:
        config: class of the configuration.
        objective: makes the objective from a model's alphabet and a configuration.
    """

    config: type
    objective: Callable[[Alphabet, Any], Objective[Any]]


OBJECTIVES: dict[str, ObjectiveKind] = {
    "masked": ObjectiveKind(Masking, MaskedLanguageModel),
}
"""Objectives by the name that recipes and checkpoints carry. Which of them train a model, its architecture says."""
