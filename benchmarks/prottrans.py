"""Speed of embedding with ProtT5- and ProtBert-shaped encoders against `transformers`, at equal outputs.

    python benchmarks/prottrans.py                          t5-100m and bert-100m; about 10 minutes on two cores
    python benchmarks/prottrans.py --shapes t5-tiny --quick  seconds, to see that everything works

In: nothing but installed packages. Out: one table, and one JSON file per version and machine in `results/`. Everyone
has the same random weights and proteins; `transformers` runs as it is at its best, in bf16, in batches of similar
length, with sdpa and with eager attention. A speed counts only at equal vectors. Each turn is a process of its own.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
sys.path[:0] = [str(HERE), str(SOURCE)]

import compare  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
import worker  # noqa: E402
from embed import Plan, say  # noqa: E402
from peers import Embed, by_length  # noqa: E402
from subjects import BF16_COSINE, OURS, SAME_MODEL, ours  # noqa: E402
from workload import proteins  # noqa: E402

from proteinlm import __version__  # noqa: E402

REFERENCE = "hf-fp32"
RIVALS = ("hf-sdpa", "hf-eager")
TITLES = {
    REFERENCE: "transformers, fp32 (the vectors to agree with)",
    OURS: "proteinlm, bf16",
    "hf-sdpa": "transformers, sorted, bf16, sdpa",
    "hf-eager": "transformers, sorted, bf16, eager",
}
REQUIRED = 1.5
"""Times the best of `transformers`: as its users run it, and, more than was asked, with the allocator tuned."""


@dataclass(frozen=True)
class Shape:
    """What is measured.

    Args:
        architecture: ours. peer: the class of `transformers`. config: of ours. proteins: in a pass.
    """

    architecture: str
    peer: str
    config: dict[str, int | bool]
    proteins: int


_T5, _BERT = ("t5-encoder", "T5EncoderModel"), ("bert", "BertModel")
SHAPES: dict[str, Shape] = {
    "t5-100m": Shape(
        *_T5, {"num_layers": 14, "width": 384, "num_heads": 12, "head_width": 128, "inner": 6144}, proteins=40
    ),
    "bert-100m": Shape(
        *_BERT, {"num_layers": 14, "width": 768, "num_heads": 12, "inner": 3072, "max_positions": 2048}, proteins=40
    ),
    "t5-tiny": Shape(*_T5, {"num_layers": 2, "width": 32, "num_heads": 4, "head_width": 16, "inner": 64}, proteins=12),
    "bert-tiny": Shape(
        *_BERT, {"num_layers": 2, "width": 32, "num_heads": 4, "inner": 64, "max_positions": 2048}, proteins=12
    ),
}
"""ProtT5's proportions (attention four times as wide as the model, heads of 128, feed-forward 16 times) and ProtBert's
(heads of 64, feed-forward four times), at about 100 M parameters inside the layers."""


def prepare(folder: Path, shape: Shape) -> int:
    """One random model in our layout and in that of `transformers`; norms and biases are drawn, too. Its parameters."""
    import torch

    from proteinlm.checkpoints import export
    from proteinlm.models import ARCHITECTURES

    torch.manual_seed(0)
    architecture = ARCHITECTURES[shape.architecture]
    model = architecture.model(architecture.config(**shape.config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
            elif "norm" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    export(model, folder / "native.safetensors", "native")
    export(model, folder / "hf", "hf")
    return sum(parameter.numel() for parameter in model.parameters())


def transformers_at_its_best(folder: Path, shape: Shape, attention: str, dtype: str) -> Embed:
    """Sorted by length, padded within the token budget, one mean vector per protein."""
    import torch
    import transformers

    from proteinlm.models import ARCHITECTURES, on_meta

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    more = {"add_pooling_layer": False} if shape.peer == "BertModel" else {}
    model = getattr(transformers, shape.peer).from_pretrained(folder / "hf", attn_implementation=attention, **more)
    # T5 would keep a part in fp32 where the type is given above.
    model = model.to(getattr(torch, dtype)).eval()
    architecture = ARCHITECTURES[shape.architecture]
    alphabet = on_meta(shape.architecture, architecture.config(**shape.config)).alphabet

    def embed(sequences: list[str]) -> np.ndarray:
        vectors: dict[int, np.ndarray] = {}
        for rows in by_length(sequences):
            encoded = [torch.from_numpy(alphabet.encode(sequences[row])) for row in rows]
            ids = torch.nn.utils.rnn.pad_sequence(encoded, batch_first=True, padding_value=alphabet.pad)
            lengths = torch.tensor([len(one) for one in encoded])
            mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
            with torch.inference_mode():
                hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float().numpy()
            first = len(alphabet.prefix)
            for at, row in enumerate(rows):
                vectors[row] = hidden[at, first : first + len(sequences[row])].mean(0)
        return np.stack([vectors[row] for row in range(len(sequences))])

    return embed


def load(subject: str, folder: Path, shape: Shape) -> Embed:
    """A contestant, ready to embed."""
    if subject == OURS:
        return ours("bf16")(folder, int(shape.config["num_layers"]))
    attention, dtype = {REFERENCE: ("sdpa", "float32")}.get(subject, (subject.removeprefix("hf-"), "bfloat16"))
    return transformers_at_its_best(folder, shape, attention, dtype)


def turn(folder: Path, name: str, subject: str, count: int, passes: int) -> dict[str, Any]:
    """In a process of its own: one pass to warm up, then timed ones; the vectors go into a file."""
    import torch

    torch.set_num_threads(worker.THREADS)
    run, sequences = load(subject, folder, SHAPES[name]), proteins(count)
    seconds, own, others = [], [], []
    for _ in range(1 + passes):
        busy, mine, began = worker.busy_seconds(), worker.own_seconds(), time.perf_counter()
        vectors = run(sequences)
        seconds.append(time.perf_counter() - began)
        own.append(worker.own_seconds() - mine)
        others.append(max(0.0, (worker.busy_seconds() - busy - own[-1]) / seconds[-1]))
    np.save(folder / f"{subject}.npy", vectors)
    timed = slice(1 if passes else 0, None)
    return {
        "pass_seconds": seconds[timed],
        "core_seconds": own[timed],
        "cores_of_others": others[timed],
        "peak_mib": worker.peak_mib(),
    }


def run_process(arguments: list[str], environment: dict[str, str]) -> Any:
    """This program as a measuring process; what it found."""
    command = [sys.executable, str(Path(__file__).resolve()), "--process", *arguments]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if outcome.returncode:
        raise SystemExit((outcome.stderr.strip().splitlines() or [f"exit status {outcome.returncode}"])[-1])
    return json.loads(outcome.stdout.strip().splitlines()[-1])


def measure(name: str, plan: Plan) -> dict[str, Any]:
    """Everyone on one shape; `compare.UnequalOutputs` where one did not compute the same."""
    folder, count = plan.folder / name, plan.proteins or SHAPES[name].proteins
    folder.mkdir()
    say(f"{name}: weights")
    parameters = run_process(["prepare", str(folder), name], plan.environment())
    run_process(["turn", str(folder), name, REFERENCE, str(count), "0"], plan.environment())
    one = [(OURS, "as run"), *((rival, column) for rival in RIVALS for column in ("as run", "tuned"))]
    entries: dict[str, Any] = {}
    for number in range(plan.rounds):
        for subject, column in one if number % 2 == 0 else one[::-1]:
            command = ["turn", str(folder), name, subject, str(count), str(plan.passes)]
            found = run_process(command, plan.environment(tuned=column == "tuned"))
            say(f"{name}: {TITLES[subject]}, {column}: {min(found['pass_seconds']):.2f} s")
            known = entries.setdefault(subject, {"columns": {}})["columns"].setdefault(column, {})
            for key, value in found.items():
                known[key] = max(known.get(key, 0.0), value) if key == "peak_mib" else [*known.get(key, []), *value]
    reference = np.load(folder / f"{REFERENCE}.npy")
    for subject, entry in entries.items():
        must = BF16_COSINE if subject == OURS else SAME_MODEL
        agreement = compare.check(subject, reference, np.load(folder / f"{subject}.npy"), must)
        entry["agreement"] = dataclasses.asdict(agreement)
    lengths = [len(residues) for residues in proteins(count)]
    return {
        "config": SHAPES[name].config,
        "parameters": parameters,
        "proteins": count,
        "residues": sum(lengths),
        "threads": plan.threads,
        "subjects": entries,
    }


def best(result: dict[str, Any], subject: str, column: str = "as run", key: str = "pass_seconds") -> float:
    """The least of a contestant's passes."""
    return float(min(result["subjects"][subject]["columns"][column][key]))


def lines(name: str, result: dict[str, Any]) -> list[str]:
    """The block of one shape."""
    mine = best(result, OURS)
    text = [
        f"{name}: {result['parameters']:,} parameters, {result['proteins']} proteins of {result['residues']:,} "
        f"residues, {result['threads']} threads",
        f"  {'':<36}{'residues/s':>11}{'times':>8}{'core s':>8}{'MiB':>8}  least cosine to fp32",
    ]
    for subject, entry in result["subjects"].items():
        for column, found in entry["columns"].items():
            seconds, cores = min(found["pass_seconds"]), min(found["core_seconds"])
            title = TITLES[subject] + ("" if column == "as run" else ", tuned")
            text.append(
                f"  {title:<41}{result['residues'] / seconds:>6,.0f}{seconds / mine:>8.2f}{cores:>8.2f}"
                f"{found['peak_mib']:>8,.0f}  {entry['agreement']['least_cosine']:.7f}"
            )
    for column in ("as run", "tuned"):
        time, cores = (
            min(best(result, rival, column, key) for rival in RIVALS) / best(result, OURS, key=key)
            for key in ("pass_seconds", "core_seconds")
        )
        verdict = f"{REQUIRED} is due: {'PASS' if time >= REQUIRED else 'MISS'}"
        text.append(f"  time of the best transformers {column} / ours: {time:.2f} ({cores:.2f} in core s); {verdict}")
    return text


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of ProtT5- and ProtBert-shaped encoders, at equal outputs.")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["t5-100m", "bert-100m"])
    parser.add_argument("--quick", action="store_true", help="few proteins, one round; proves nothing about speed")
    parser.add_argument("--proteins", type=int, help="proteins per pass instead of the number of each shape")
    parser.add_argument("--rounds", type=int, default=2, help="turns of everyone; the best pass of all counts")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file; else that of this machine (none with --quick)")
    parser.add_argument("--process", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, store, print."""
    options = parse(arguments)
    if options.process:
        command, folder, name, *rest = options.process
        known = {"prepare": lambda: prepare(Path(folder), SHAPES[name])}
        known["turn"] = lambda: turn(Path(folder), name, rest[0], int(rest[1]), int(rest[2]))  # type: ignore[assignment]
        print(json.dumps(known[command]()))
        return
    about = machine.describe()
    with tempfile.TemporaryDirectory() as temporary:
        plan = Plan(
            folder=Path(temporary),
            subjects=(),
            threads=options.threads,
            proteins=options.proteins or (6 if options.quick else None),
            rounds=1 if options.quick else options.rounds,
            passes=1 if options.quick else 2,
        )
        shapes = {name: measure(name, plan) for name in options.shapes}
    path = options.output or HERE / "results" / f"prottrans-{machine.slug(about)}.json"
    if options.output or not options.quick:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"version": __version__, "machine": about, "shapes": shapes}, indent=1) + "\n")
    print(f"proteinlm {__version__} on {about['processor']}, {about['cores']} cores")
    for name, result in shapes.items():
        print("\n".join(lines(name, result)))


if __name__ == "__main__":
    main()
