"""Evaluation: tasks meet a model, and what came of it is written down, shown and compared.

`run.evaluate` takes a job and writes `results.json`: the tasks' questions go through `machine`, which answers each
distinct one once, with residue vectors that tasks want to keep in `cache`. `results` reads and writes that file, which
is all that `report.report` and `compare.compare` ever see.
"""
