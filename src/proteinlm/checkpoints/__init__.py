"""Checkpoints: from a name, a file or a folder to a model, and back into every layout that others read.

`load` takes a published name, an alias, a Hugging Face id or a path; what a path holds decides how it is read. `save`
writes our own layout, `export` those of fair-esm, Hugging Face and UniRep. `build` makes a model of a published shape
with random weights, `untrained` forgets the weights of a model. `table` lists the published models and where their
weights lie on this machine.
"""

from proteinlm.checkpoints.catalogue import Row, table, weights_folder
from proteinlm.checkpoints.contents import digest_of
from proteinlm.checkpoints.loading import LAYOUTS, Checkpoint, build, export, load, save, untrained

__all__ = [
    "LAYOUTS",
    "Checkpoint",
    "Row",
    "build",
    "digest_of",
    "export",
    "load",
    "save",
    "table",
    "untrained",
    "weights_folder",
]
