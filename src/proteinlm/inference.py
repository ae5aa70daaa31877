"""The one loop that runs a model without training it.

In: a prepared model (`Runner`) and queries, each a row number and a residue string. Out: one `Answer` per query, on
the CPU, indexed by residue. Queries are sorted by length and packed to a token budget; proteins longer than the model's
positions are cut into overlapping windows and stitched; a batch that does not fit in memory is halved and tried again.
"""

import ctypes
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.sequences.batch import PackedBatch

Precision = Literal["auto", "fp32", "bf16"]
Long = Literal["window", "error", "crop"]

TOKENS_PER_BATCH = 4096
"""Large enough for the matrix units, small enough for the cache; measured in docs/log.md."""
