"""Objectives: what a model is trained to do. Each turns a batch into an example, and an example into a loss.

`masked` is masked language modelling; `perplexity` scores a model by it over whole proteins.
"""
