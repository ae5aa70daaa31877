"""Tasks: what the papers ask of a model, each as questions, collected replies and scored results.

`base` is the contract. `TASKS` is the explicit table; a new task is one file here and one line in it. A task never
calls a model: `evaluation` does.
"""

from proteinlm.tasks.base import Entry, Published, Question, Reply, Result, Task, TaskOptions, TwoRoundTask, Wanted

__all__ = [
    "TASKS",
    "Entry",
    "Published",
    "Question",
    "Reply",
    "Result",
    "Task",
    "TaskOptions",
    "TwoRoundTask",
    "Wanted",
]

TASKS: dict[str, Entry] = {}
"""Tasks by the name that `plm evaluate --tasks` takes, in the order of the report."""
