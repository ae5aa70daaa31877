"""The phases of a run: short stretches first and long ones later, say, with weights and optimiser state carried over.

In: what a recipe says of its beginning, and its `[[phase]]` entries. Out: stages without gaps, each with everything
that may differ between them, and the span over which the learning rate runs through its schedule.

Source: papers.md 6.2 (ProtBert, ProtAlbert and ProtElectra: 512 residues, then 1,024 or 2,048, in smaller batches).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Phase:
    """From some step on a run goes on otherwise; what is not said stays as it was in the phase before.

    Args:
        after: steps that come before it.
        crop: longest stretch in residues. tokens: of one step, all processes together.
        learning_rate: its peak.
        warmup: the schedule begins anew, with so many steps from 0 to the peak, and ends with the phase, or with the
            last one that says nothing of it; without it the schedule goes on as if there were no new phase.
    """

    after: int
    crop: int | None = None
    tokens: int | None = None
    learning_rate: float | None = None
    warmup: int | None = None


@dataclass(frozen=True)
class Stage:
    """Steps in which nothing changes.

    Args:
        start, end: first step from 0, and the one behind the last.
        crop, tokens, learning_rate: as for `Phase`.
        warmup: of the schedule that this stage is in. schedule_start, schedule_end: steps that the schedule spans.
    """

    start: int
    end: int
    crop: int
    tokens: int
    learning_rate: float
    warmup: int
    schedule_start: int
    schedule_end: int


def stages(first: Stage, phases: Sequence[Phase]) -> tuple[Stage, ...]:
    """All stages of a run.

    Args:
        first: the run as it would be without phases. phases: in order of `after`, each within the run.

    >>> first = Stage(0, 10, 510, 4096, 1e-3, 2, 0, 10)
    >>> for stage in stages(first, [Phase(after=6, crop=2046, warmup=1)]):
    ...     print(stage.start, stage.end, stage.crop, stage.tokens, stage.schedule_start, stage.schedule_end)
    0 6 510 4096 0 6
    6 10 2046 4096 6 10
    """
    found = [first]
    for phase in phases:
        before = found[-1]
        stage = replace(
            before,
            start=phase.after,
            crop=phase.crop or before.crop,
            tokens=phase.tokens or before.tokens,
            learning_rate=phase.learning_rate or before.learning_rate,
        )
        found[-1] = replace(before, end=phase.after)
        if phase.warmup is not None:
            found = [_ending(one, before.schedule_start, phase.after) for one in found]
            stage = replace(stage, warmup=phase.warmup, schedule_start=phase.after)
        found.append(stage)
    return tuple(found)


def _ending(stage: Stage, schedule_start: int, end: int) -> Stage:
    """A stage of the schedule that began at `schedule_start` with the end of it known; any other as it is."""
    return replace(stage, schedule_end=end) if stage.schedule_start == schedule_start else stage
