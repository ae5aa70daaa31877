"""Corpora: sequences to train on, on disk, memory-mapped.

A FASTA file becomes a store once (`build`); everything after that reads the store (`store`), in whatever order, without
holding it in memory. Held-out stores are made by whole clusters (`split`) and proven not to leak (`leaks`).
"""
