"""The papers' tables, run again: ours beside theirs, with intervals, and which of their orderings hold.

`table1` is Table 1 of Rives et al.: language models compared by ECE.
"""
