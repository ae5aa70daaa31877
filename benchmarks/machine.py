"""What this machine is, and what it can do at most: matrix products, exponentials, copies.

In: nothing, or the width of a model. Out: plain dictionaries for the table and the JSON files.
"""

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from workload import TOKENS_PER_BATCH

PACKAGES = ("torch", "numpy", "fair-esm", "transformers", "openvino", "esm-cpp")


def _field(file: str, name: str) -> str:
    path = Path(file)
    found = re.search(rf"^{name}\s*:\s*(.*)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else ""


def describe() -> dict[str, Any]:
    """Processor, cores, memory, system and package versions."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    cpu = _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    family, model = _field("/proc/cpuinfo", "cpu family"), _field("/proc/cpuinfo", "model")
    memory = _field("/proc/meminfo", "MemTotal").removesuffix("kB").strip()
    flags = _field("/proc/cpuinfo", "flags").split()
    return {
        "processor": cpu + (f" (family {family}, model {model})" if family else ""),
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20, 1) if memory else None,
        "bf16": [flag for flag in ("avx512_bf16", "amx_bf16") if flag in flags],
        "system": f"{platform.system()} {platform.release()}, {' '.join(platform.libc_ver())}".strip(", "),
        "python": platform.python_version(),
        "packages": versions,
    }


def slug(description: dict[str, Any]) -> str:
    """A file name for this machine."""
    return re.sub(r"[^a-z0-9]+", "-", f"{description['processor']} {description['cores']} cores".lower()).strip("-")


def _per_second(amount: float, work: Callable[[], object], seconds: float = 0.6) -> float:
    """The best rate of `work`, which does `amount` of something, over runs that fill `seconds`."""
    best, spent = float("inf"), -1.0
    for _ in range(3):
        work()
    while spent < seconds:
        began = time.perf_counter()
        work()
        took = time.perf_counter() - began
        best, spent = min(best, took), max(spent, 0.0) + took
    return amount / best


def _side_by_side(amount: float, make: Callable[[], Callable[[], object]], lanes: int) -> float:
    """Sum of the rates of `lanes` threads that each work alone, as our batches do."""
    import torch

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            works = [make() for _ in range(lanes)]
            return sum(pool.map(lambda work: _per_second(amount, work), works))
    finally:
        torch.set_num_threads(threads)


def rates(width: int, threads: int) -> dict[str, Any]:
    """Measure the ceilings.

    Args:
        width: of the model; the product is its first feed-forward layer, (4096, width) x (width, 4 width).
        threads: cores to use.

    Returns:
        bf16 and fp32 products in FLOP/s (oneDNN, weights prepacked, the better of all cores on one product and a
        product per core), base-2 exponentials of bf16 numbers in cache per second, and bytes copied per second.
    """
    import torch

    torch.set_num_threads(threads)

    def product(dtype: torch.dtype) -> Callable[[], object]:
        x = torch.randn(TOKENS_PER_BATCH, width).to(dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(4 * width, width).to(dtype))
        bias = torch.zeros(4 * width, dtype=dtype)
        return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    def exponentials() -> Callable[[], object]:
        x, y = torch.rand(2**19).bfloat16(), torch.empty(2**19, dtype=torch.bfloat16)
        return lambda: torch.exp2(x, out=y)

    def copies() -> Callable[[], object]:
        x, y = torch.zeros(2**26), torch.zeros(2**26)
        return lambda: y.copy_(x)

    flops = 2.0 * TOKENS_PER_BATCH * width * 4 * width
    found: dict[str, Any] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with torch.inference_mode():
            together = _per_second(flops, product(dtype))
            apart = _side_by_side(flops, lambda dtype=dtype: product(dtype), threads)
        found[f"{name}_flops_per_second"] = max(together, apart)
    found["exponentials_per_second"] = _side_by_side(2**19, exponentials, threads)
    found["bytes_per_second"] = _side_by_side(2.0 * 4 * 2**26, copies, threads)
    return found
