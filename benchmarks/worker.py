"""One measurement in a process of its own, so that nobody inherits a warm allocator or another's memory.

In: a command and its arguments. Out: one line of JSON on standard output, and the vectors in a file. `embed.py` starts
it; run alone it is of little use.

    python worker.py prepare FOLDER SIZE                  the same random weights in every layout
    python worker.py embed FOLDER SIZE SUBJECT COUNT PASSES VECTORS.npy
    python worker.py ten FOLDER SIZE OUT                  fair-esm from start to ten stored vectors
    python worker.py rates SIZE                           what this machine can do at most
    python worker.py compile                              our compiled attention kernel, into the cache folder
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from subjects import REFERENCE, SUBJECTS
from workload import SHAPES, proteins

THREADS = int(os.environ.get("OMP_NUM_THREADS", "2"))


def prepare(folder: Path, size: str) -> dict[str, Any]:
    """Write one random ESM-2 in our layout, in fair-esm's and in Hugging Face's.

    Norms and biases are drawn too: a new model has ones and zeros there, and would not show that one was lost.
    """
    import torch

    from proteinlm.checkpoints import export
    from proteinlm.models.esm import Esm2, Esm2Config

    shape = SHAPES[size]
    torch.manual_seed(0)
    model = Esm2(Esm2Config(shape.num_layers, shape.width, shape.num_heads, shape.inner)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
            elif "norm" in name:
                parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    export(model, folder / "native.safetensors", "native")
    export(model, folder / "esm2_random.pt", "fair-esm")
    export(model, folder / "hf", "hf")
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def peak_mib() -> float:
    """Largest resident memory of this process since it started its program, in MiB.

    Not `getrusage`: on Linux that starts from the memory of the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def busy_seconds() -> float:
    """Core seconds that the whole machine has been busy, or lost to other virtual machines; 0 where unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Core seconds of this process; finer than the ticks of `os.times`."""
    return time.process_time()


def embed(folder: Path, size: str, subject: str, count: int, passes: int, vectors_file: Path) -> dict[str, Any]:
    """Load a contestant, run one pass to warm up, then time the others."""
    import torch

    torch.set_num_threads(THREADS)
    sequences = proteins(count)
    began = time.perf_counter()
    run = SUBJECTS[subject].load(folder, SHAPES[size].num_layers)
    loaded = time.perf_counter() - began
    seconds, others = [], []
    for _ in range(1 + passes):
        machine, own, began = busy_seconds(), own_seconds(), time.perf_counter()
        vectors = run(sequences)
        seconds.append(time.perf_counter() - began)
        others.append(max(0.0, (busy_seconds() - machine - own_seconds() + own) / seconds[-1]))
    np.save(vectors_file, vectors)
    return {
        "load_seconds": loaded,
        "first_pass_seconds": seconds[0],
        "pass_seconds": seconds[1:],
        "cores_of_others": others[1:],
        "peak_mib": peak_mib(),
    }


def ten(folder: Path, size: str, out: Path) -> dict[str, Any]:
    """fair-esm: load, embed ten proteins, store each as its extract script does."""
    import torch

    torch.set_num_threads(THREADS)
    num_layers = SHAPES[size].num_layers
    vectors = SUBJECTS[REFERENCE].load(folder, num_layers)(proteins(10))
    out.mkdir(parents=True, exist_ok=True)
    for i, vector in enumerate(vectors):
        torch.save({"label": str(i), "mean_representations": {num_layers: torch.from_numpy(vector)}}, out / f"{i}.pt")
    return {"proteins": len(vectors), "peak_mib": peak_mib()}


def compile_attention() -> dict[str, Any]:
    """Build the optional kernel where this process's cache folder is."""
    from proteinlm.models import native

    return {precision: path.name for precision, path in native.build().items()}


def rates(size: str) -> dict[str, Any]:
    import machine

    return machine.rates(SHAPES[size].width, THREADS)


def main(arguments: list[str]) -> None:
    """Run one command and print what it found."""
    command, *rest = arguments
    if command == "prepare":
        found = prepare(Path(rest[0]), rest[1])
    elif command == "embed":
        found = embed(Path(rest[0]), rest[1], rest[2], int(rest[3]), int(rest[4]), Path(rest[5]))
    elif command == "ten":
        found = ten(Path(rest[0]), rest[1], Path(rest[2]))
    elif command == "rates":
        found = rates(rest[0])
    elif command == "compile":
        found = compile_attention()
    else:
        raise SystemExit(f"unknown command {command!r}")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
