"""Speed of a training step against a plain `transformers` loop, at equal losses.

    python benchmarks/train.py                  shapes 8m, 35m and default; about 10 minutes on two cores
    python benchmarks/train.py --shapes tiny    seconds, to see that everything works

In: nothing but installed packages. Out: tokens per second and ratios, and one JSON file per machine in `results/`.
Everyone starts from the same weights and sees the same masked proteins, 16 per step in file order; a speed counts only
if the first loss agrees. The peers pad to the longest protein of a step, as a plain loop does.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
sys.path[:0] = [str(HERE), str(SOURCE)]

import machine  # noqa: E402
import numpy as np  # noqa: E402
from workload import SHAPES, Shape, floor, proteins  # noqa: E402

PER_STEP = 16
LEARNING_RATE = 4e-4
SUBJECTS = {
    "hf-fp32": "transformers, fp32",
    "hf-bf16": "transformers, bf16 autocast",
    "ours-fp32": "proteinlm, fp32",
    "ours-bf16": "proteinlm, bf16",
}
TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}
"""Relative difference of the first loss from that of `transformers` in fp32."""
REQUIRED = {
    "8m": {"hf-fp32": 2.5, "hf-bf16": 2.0},
    "35m": {"hf-fp32": 2.5, "hf-bf16": 2.0},
    "default": {"hf-fp32": 5.0},
}
TRAINED = {**SHAPES, "default": Shape(9, 128, 4, proteins=0, inner=1024, reach=8)}
"""The shapes of `embed.py`, and that of the default model. Its convolutions begin as the identity, so that losses agree
with those of the peers, who have none; they are 0.7 % of its parameters."""


def examples(count: int) -> Iterator[tuple[list[str], np.ndarray]]:
    """The proteins of each step, and a key for the masks of each."""
    everything = proteins(count * PER_STEP)
    for step in range(count):
        rows = range(step * PER_STEP, (step + 1) * PER_STEP)
        yield [everything[row] for row in rows], np.array(rows, np.uint64)


def ours(folder: Path, precision: str) -> Callable[[list[str], np.ndarray], float]:
    """One step of our own trainer's parts; returns the mean loss."""
    import torch

    from proteinlm import checkpoints
    from proteinlm.inference import keep_freed_memory
    from proteinlm.objectives.masked import MaskedLanguageModel, Masking
    from proteinlm.sequences.batch import PackedBatch
    from proteinlm.training.optimisers import build_optimisers
    from proteinlm.training.recipe import Optimiser

    keep_freed_memory()
    model = checkpoints.load(folder / "native.safetensors").model.train()
    objective = MaskedLanguageModel(model.alphabet, Masking())
    optimisers = build_optimisers(model, Optimiser(learning_rate=LEARNING_RATE))

    def step(sequences: list[str], keys: np.ndarray) -> float:
        order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
        encoded = [model.alphabet.encode(sequences[row]) for row in order]
        batch = PackedBatch.pack(encoded, order, len(model.alphabet.prefix), len(model.alphabet.suffix))
        example = objective.prepare(batch, keys[order])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = objective.loss(model, example)
        (loss.sum / loss.count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return loss.sum.item() / loss.count

    return step


def theirs(folder: Path, precision: str) -> Callable[[list[str], np.ndarray], float]:
    """One step of a plain loop around `EsmForMaskedLM`; returns the mean loss."""
    import torch
    from transformers import EsmForMaskedLM

    from proteinlm.objectives.masked import MaskedLanguageModel, Masking
    from proteinlm.sequences.alphabet import ESM1B
    from proteinlm.sequences.batch import PackedBatch

    model = EsmForMaskedLM.from_pretrained(folder / "hf").float().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    objective = MaskedLanguageModel(ESM1B, Masking())
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step(sequences: list[str], keys: np.ndarray) -> float:
        ids, labels = [], []
        for residues, key in zip(sequences, keys, strict=True):
            example = objective.prepare(PackedBatch.pack([ESM1B.encode(residues)], None, 1, 1), key[None])
            target = torch.full_like(example.batch.tokens_T, -100)
            target[example.places_M] = example.targets_M
            ids.append(example.batch.tokens_T)
            labels.append(target)
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=ESM1B.pad)
        wanted = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(input_ids=padded, attention_mask=padded.ne(ESM1B.pad).long(), labels=wanted).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        return float(loss)

    return step


def measure(folder: Path, subject: str, steps: int, threads: int) -> dict[str, Any]:
    """In a process of its own: one step to warm up, then `steps` timed ones."""
    import torch

    torch.set_num_threads(threads)
    name, precision = subject.split("-")
    step = (ours if name == "ours" else theirs)(folder, precision)
    losses, seconds, tokens = [], [], []
    for sequences, keys in examples(1 + steps):
        began = time.perf_counter()
        losses.append(step(sequences, keys))
        seconds.append(time.perf_counter() - began)
        tokens.append(sum(len(residues) + 2 for residues in sequences))
    speeds = [count / took for count, took in zip(tokens[1:], seconds[1:], strict=True)]
    return {"losses": losses, "tokens_per_second": float(np.median(speeds)), "all": speeds}


def prepare(folder: Path, shape: str) -> None:
    """The same random weights in both layouts; what we have besides begins as the identity."""
    import torch

    from proteinlm.checkpoints import export
    from proteinlm.models.esm import Esm2, Esm2Config

    size = TRAINED[shape]
    torch.manual_seed(0)
    config = Esm2Config(size.num_layers, size.width, size.num_heads, size.inner)
    plain = Esm2(config)
    export(plain, folder / "hf", "hf")
    model = Esm2(dataclasses.replace(config, reach=size.reach))
    model.load_state_dict(plain.state_dict(), strict=size.reach is None)
    export(model, folder / "native.safetensors", "native")


def worker(arguments: list[str], threads: int) -> dict[str, Any]:
    """Start this file again in a fresh process and read its last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, __file__, "--worker", *arguments, "--threads", str(threads)]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise SystemExit((outcome.stderr.strip().splitlines() or ["no message"])[-1])
    found: dict[str, Any] = json.loads(outcome.stdout.strip().splitlines()[-1])
    return found


def measure_shape(shape: str, steps: int, threads: int) -> dict[str, Any]:
    """Everyone on one shape; stops where a first loss is another."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare(folder, shape)
        found: dict[str, Any] = {"subjects": {}}
        for subject in SUBJECTS:
            found["subjects"][subject] = worker([temporary, subject, str(steps)], threads)
            print(f"{shape}: {SUBJECTS[subject]}", file=sys.stderr, flush=True)
    reference = found["subjects"]["hf-fp32"]["losses"][0]
    for subject, entry in found["subjects"].items():
        difference = abs(entry["losses"][0] / reference - 1)
        if difference > TOLERANCE[subject.split("-")[1]]:
            raise SystemExit(f"{shape}: the first loss of {subject} is {entry['losses'][0]}, not {reference}")
    lengths = [len(residues) for residues in proteins((1 + steps) * PER_STEP)]
    tokens = sum(length + 2 for length in lengths)
    rate = machine.rates(TRAINED[shape].width, threads)["bf16_flops_per_second"]
    found["floor_tokens_per_second"] = tokens / (3 * floor(TRAINED[shape], lengths).flops / rate)
    return found


def show(shape: str, found: dict[str, Any]) -> None:
    """Print the table of one shape."""
    print(f"\n{shape}: {TRAINED[shape].num_layers} layers x {TRAINED[shape].width}, {TRAINED[shape].num_heads} heads")
    speeds = {subject: entry["tokens_per_second"] for subject, entry in found["subjects"].items()}
    for subject, speed in speeds.items():
        print(f"  {SUBJECTS[subject]:30}{speed:10,.0f} tokens/s{speed / speeds['hf-fp32']:7.2f} x")
    share = speeds["ours-bf16"] / found["floor_tokens_per_second"]
    print(f"  ours in bf16 reaches {share:.0%} of the floor (3 x forward products at the measured bf16 rate)")
    for peer, limit in REQUIRED.get(shape, {}).items():
        ratio = speeds["ours-bf16"] / speeds[peer]
        print(f"  {'PASS' if ratio >= limit else 'MISS'}  {ratio:.2f} x {SUBJECTS[peer]} (required {limit} x)")


def main(arguments: list[str] | None = None) -> None:
    """Measure, store, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=TRAINED, default=["8m", "35m", "default"])
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; else that of this machine")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        folder, subject, steps = options.worker
        print(json.dumps(measure(Path(folder), subject, int(steps), options.threads)))
        return
    about = machine.describe()
    path = options.output or HERE / "results" / f"train-{machine.slug(about)}.json"
    whole: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"shapes": {}}
    whole["machine"] = about
    for shape in options.shapes:
        whole["shapes"][shape] = measure_shape(shape, options.steps, options.threads)
        path.write_text(json.dumps(whole, indent=1) + "\n")
        show(shape, whole["shapes"][shape])


if __name__ == "__main__":
    main()
