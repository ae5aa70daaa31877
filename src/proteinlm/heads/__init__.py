"""What is fitted on frozen representations: linear probes, small networks, contact predictors, and their calibration.

In: arrays of features with labels, residue by residue or protein by protein; nothing here knows a model, a data set or
a task. Out: a head that answers with probabilities, and that is saved with the digest of the model it was fitted on.
"""
