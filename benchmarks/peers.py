"""The other programs, each run the way its own users run it, on the same weights and for the same vectors.

In: the folder of one size (`worker.prepare`). Out: a function from residue strings to one mean vector per protein, in
the order of the strings. Packages are imported inside the loaders: one process measures one program.
"""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from workload import MOST_RESIDUES, TOKENS_PER_BATCH

Embed = Callable[[list[str]], np.ndarray]
"""N residue strings -> float32 array of shape (N, D)."""


def fair_esm(folder: Path, num_layers: int) -> Embed:
    """fair-esm's `extract.py`: batches by length within 4,096 tokens, fp32; its loop without the writing of files."""
    import esm
    import torch

    # Since PyTorch 2.6, fair-esm 2.0.0 reads its own files only if this class is allowed.
    torch.serialization.add_safe_globals([argparse.Namespace])
    model, alphabet = esm.pretrained.load_model_and_alphabet(str(folder / "esm2_random.pt"))
    model.eval()

    def embed(sequences: list[str]) -> np.ndarray:
        dataset = esm.FastaBatchedDataset([str(i) for i in range(len(sequences))], sequences)
        batches = dataset.get_batch_indices(TOKENS_PER_BATCH, extra_toks_per_seq=1)
        loader = torch.utils.data.DataLoader(
            dataset, collate_fn=alphabet.get_batch_converter(MOST_RESIDUES), batch_sampler=batches
        )
        vectors: dict[int, Any] = {}
        with torch.no_grad():
            for labels, strings, tokens in loader:
                output = model(tokens, repr_layers=[num_layers], return_contacts=False)
                hidden = output["representations"][num_layers]
                for i, label in enumerate(labels):
                    vectors[int(label)] = hidden[i, 1 : len(strings[i]) + 1].mean(0).clone()
        return torch.stack([vectors[i] for i in range(len(sequences))]).numpy()

    return embed


def in_file_order(sequences: list[str]) -> list[list[int]]:
    """Batches of eight, as they come."""
    return [list(range(i, min(i + 8, len(sequences)))) for i in range(0, len(sequences), 8)]


def by_length(sequences: list[str]) -> list[list[int]]:
    """Batches of similar length within the token budget, padding counted."""
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):
        longest = len(sequences[batches[-1][0]]) if batches[-1] else 0
        if (longest + 2) * (len(batches[-1]) + 1) > TOKENS_PER_BATCH:
            batches.append([])
        batches[-1].append(i)
    return batches


def _each(sequences: list[str], batches: Iterable[list[int]], run: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Run padded batches, `run` giving (B, L, D); mean over residues, BOS, EOS and padding left out."""
    vectors: dict[int, np.ndarray] = {}
    for batch in batches:
        hidden = run([sequences[i] for i in batch])
        for row, i in enumerate(batch):
            vectors[i] = hidden[row, 1 : len(sequences[i]) + 1].mean(0)
    return np.stack([vectors[i] for i in range(len(sequences))])


def _hugging_face(folder: Path, attention: str, dtype: str) -> tuple[Any, Any]:
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    model = transformers.EsmModel.from_pretrained(
        folder / "hf", add_pooling_layer=False, attn_implementation=attention, dtype=getattr(torch, dtype)
    )
    return tokenizer, model.eval()


def _transformers(folder: Path, attention: str, dtype: str, batches: Callable[[list[str]], list[list[int]]]) -> Embed:
    import torch

    tokenizer, model = _hugging_face(folder, attention, dtype)

    def run(strings: list[str]) -> np.ndarray:
        inputs = tokenizer(strings, padding=True, return_tensors="pt")
        with torch.inference_mode():
            return model(**inputs).last_hidden_state.float().numpy()

    return lambda sequences: _each(sequences, batches(sequences), run)


def transformers_naive(folder: Path, num_layers: int) -> Embed:
    """As most scripts use transformers: fp32, eight at a time in file order, its default attention."""
    return _transformers(folder, "sdpa", "float32", in_file_order)


def transformers_sdpa(folder: Path, num_layers: int) -> Embed:
    """As transformers is at its best: bf16, sorted by length, token budget, scaled_dot_product_attention."""
    return _transformers(folder, "sdpa", "bfloat16", by_length)


def transformers_eager(folder: Path, num_layers: int) -> Embed:
    """The same with plain matrix products for attention, in case they are faster."""
    return _transformers(folder, "eager", "bfloat16", by_length)


def openvino(folder: Path, num_layers: int) -> Embed:
    """OpenVINO: the transformers model converted, dynamic shapes, bf16, sorted by length, token budget."""
    import openvino as ov
    import torch

    tokenizer, model = _hugging_face(folder, "sdpa", "float32")

    class LastHidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    example = tokenizer(["MKTVRQG", "MKT"], padding=True, return_tensors="pt")
    converted = ov.convert_model(LastHidden().eval(), example_input=dict(example))
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": int(os.environ["OMP_NUM_THREADS"])}
    compiled = ov.compile_model(converted, "CPU", settings)

    def run(strings: list[str]) -> np.ndarray:
        inputs = tokenizer(strings, padding=True, return_tensors="np")
        return compiled({name: inputs[name] for name in ("input_ids", "attention_mask")})[0]

    return lambda sequences: _each(sequences, by_length(sequences), run)


def esm_cpp(folder: Path, num_layers: int) -> Embed:
    """esm.cpp in int8, one protein after the other: the only call of it that returns hidden states."""
    import esm_cpp

    model = esm_cpp.Model.load_from_safetensors(str(folder / "hf" / "model.safetensors"))
    model.quantize_weights()
    tokenizer = esm_cpp.Tokenizer()

    def embed(sequences: list[str]) -> np.ndarray:
        vectors = []
        for sequence in sequences:
            ids = np.asarray(tokenizer.encode(sequence, truncate=False), dtype=np.int32)
            _, hidden = model.forward_with_hidden_states(ids)
            vectors.append(hidden[num_layers][1 : len(sequence) + 1].mean(0))
        return np.stack(vectors)

    return embed
