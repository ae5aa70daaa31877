"""The table of contestants: who is measured, in which precision, and how equal to the original its vectors must be."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peers
from peers import Embed

FP32_COSINE = 0.999999
BF16_COSINE = 0.9999
SAME_MODEL = 0.99
"""Peers that round more than our limits allow are measured too, and marked; below this it is not the same model."""


@dataclass(frozen=True)
class Subject:
    """A contestant.

    Args:
        title: as the table prints it. load: from a folder and the number of layers to what is timed.
        must: every protein's cosine to the fp32 reference must exceed this, or the run stops.
        equal: every protein's cosine must exceed this to count as equal; below it, the row is marked.
        ours: sets the allocator itself, so it is run once, the way users run it.
        compiled: has our compiled attention kernel in its cache folder.
    """

    title: str
    load: Callable[[Path, int], Embed]
    must: float
    equal: float
    ours: bool = False
    compiled: bool = False


def ours(precision: str, attention: str | None = None, compiled: bool = False) -> Callable[[Path, int], Embed]:
    """Loads our own program: precision, attention kernel by name, and whether the compiled one must be there."""

    def load(folder: Path, num_layers: int) -> Embed:
        from proteinlm import checkpoints
        from proteinlm.inference import DTYPES, Answer, Query, Runner, RunOptions, forward_all
        from proteinlm.models import native
        from proteinlm.models.base import Want

        built = native.library(DTYPES[precision]) is not None
        assert built == compiled, "the cache folder says which attention is measured"
        options = RunOptions(precision=precision, device="cpu", attention=attention)
        runner = Runner(checkpoints.load(folder / "native.safetensors").model, options)

        def embed(sequences: list[str]) -> np.ndarray:
            vectors: dict[int, np.ndarray] = {}
            queries = [Query(row, residues) for row, residues in enumerate(sequences)]
            for answer in forward_all(runner, queries, Want(layers=(num_layers,))):
                assert isinstance(answer, Answer), "no protein is refused here"
                vectors[answer.row] = answer.hidden[num_layers].mean(0).numpy()
            return np.stack([vectors[row] for row in range(len(sequences))])

        return embed

    return load


OURS, COMPILED, REFERENCE = "ours-bf16", "ours-compiled", "fair-esm"
OURS_FP32, COMPILED_FP32 = "ours-fp32", "ours-fp32-compiled"
BEST_TRANSFORMERS = ("hf-sdpa", "hf-eager")

SUBJECTS: dict[str, Subject] = {
    REFERENCE: Subject("fair-esm 2.0.0, fp32", peers.fair_esm, FP32_COSINE, FP32_COSINE),
    OURS: Subject("proteinlm, bf16", ours("bf16"), BF16_COSINE, BF16_COSINE, ours=True),
    "hf-naive": Subject("transformers, naive, fp32", peers.transformers_naive, FP32_COSINE, FP32_COSINE),
    COMPILED: Subject(
        "proteinlm, bf16, compiled attention",
        ours("bf16", compiled=True),
        BF16_COSINE,
        BF16_COSINE,
        ours=True,
        compiled=True,
    ),
    "hf-sdpa": Subject("transformers, sorted, bf16, sdpa", peers.transformers_sdpa, SAME_MODEL, BF16_COSINE),
    OURS_FP32: Subject("proteinlm, fp32", ours("fp32"), FP32_COSINE, FP32_COSINE, ours=True),
    COMPILED_FP32: Subject(
        "proteinlm, fp32, compiled attention",
        ours("fp32", compiled=True),
        FP32_COSINE,
        FP32_COSINE,
        ours=True,
        compiled=True,
    ),
    "hf-eager": Subject("transformers, sorted, bf16, eager", peers.transformers_eager, SAME_MODEL, BF16_COSINE),
    "ours-sdpa": Subject("proteinlm, bf16, sdpa attention", ours("bf16", "sdpa"), BF16_COSINE, BF16_COSINE, ours=True),
    "openvino": Subject("OpenVINO, sorted, bf16", peers.openvino, SAME_MODEL, BF16_COSINE),
    "esm-cpp": Subject("esm.cpp, int8", peers.esm_cpp, SAME_MODEL, BF16_COSINE),
}
"""Contestants by name, in the order in which they are run; ours stand between the others."""
