"""Objectives: what a model is trained to do. Each turns a batch into an example, and an example into a loss.

`masked` is masked language modelling, `denoising` T5's; `autoregressive` predicts the next token, `permutation`
residues in any order; `replaced` trains ELECTRA's pair; `perplexity` scores a model over whole proteins. `OBJECTIVES`
is the table that a recipe's section [objective] chooses from: a new objective is one file in this package and one line
there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from proteinlm.objectives.autoregressive import AutoregressiveModel, NextToken
from proteinlm.objectives.base import Objective
from proteinlm.objectives.denoising import Denoising, DenoisingModel
from proteinlm.objectives.masked import MaskedLanguageModel, Masking
from proteinlm.objectives.permutation import PermutationModel, Permuting
from proteinlm.objectives.replaced import ReplacedTokens, Replacing
from proteinlm.sequences.alphabet import Alphabet

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "ObjectiveKind"]

ObjectiveConfig = Masking | Denoising | NextToken | Permuting | Replacing
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
    "autoregressive": ObjectiveKind(NextToken, AutoregressiveModel),
    "denoising": ObjectiveKind(Denoising, DenoisingModel),
    "masked": ObjectiveKind(Masking, MaskedLanguageModel),
    "permutation": ObjectiveKind(Permuting, PermutationModel),
    "replaced": ObjectiveKind(Replacing, ReplacedTokens),
}
"""Objectives by the name that recipes and checkpoints carry. Which of them train a model, its architecture says."""
