"""Pretraining: a recipe, a corpus and an objective become a model.

A recipe (`recipe`) states the run; `loop` is the only loop that trains; `optimisers` holds update rules and schedules;
an engine (`engine`) says on which processes it runs; `records` writes what happened.
"""
