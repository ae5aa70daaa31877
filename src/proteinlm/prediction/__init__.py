"""Predictions for a biologist's own proteins: secondary structure, location, membrane and contacts, with probabilities.

`training` fits the heads on labelled sets and measures them; `bundle` keeps them in a folder, bound to the model that
they were fitted on; `predicting` turns a model's answers into calibrated probabilities; `tables`, `text` and `figure`
write them down; `job` is `plm predict` from beginning to end.
"""
