"""The papers' tables, run again: ours beside theirs, with intervals, and which of their orderings hold.

`table1` is Table 1 of Rives et al.: language models compared by ECE. `prottrans` has the architectures of Elnaggar et
al. trained on equal tokens and compared by what a linear probe reads off them.
"""
