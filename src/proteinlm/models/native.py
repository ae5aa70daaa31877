"""The optional compiled attention kernel: built once from `attention.c` with the machine's own C compiler, on request.

In: nothing but the C source beside this file. Out: a shared library in the user's cache folder, named after the source
and the processor, which `attention` then prefers on this machine. Nothing is compiled unless `build` is called
(`plm accelerate`), and without the library every model runs on PyTorch alone.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from proteinlm.errors import InputError

SOURCE = Path(__file__).with_name("attention.c")
MOST_CHANNELS = 64
"""Widest head the kernel holds in registers; every published ESM model has 64 or fewer."""


class _Strided(ctypes.Structure):
    """`Tensor` of attention.c: where the data lies and how far it is to the next head and the next token."""

    _fields_ = (("data", ctypes.c_void_p), ("head_stride", ctypes.c_int64), ("token_stride", ctypes.c_int64))

    @classmethod
    def of(cls, x_HTC: Tensor) -> "_Strided":
        return cls(x_HTC.data_ptr(), x_HTC.stride(0), x_HTC.stride(1))


def library_path() -> Path:
    """Where the library for this source and this processor lies, or would lie."""
    capabilities = torch.cpu.get_capabilities()
    what = SOURCE.read_bytes() + str(capabilities.get("cpu_name")).encode()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "proteinlm" / f"attention-{hashlib.sha256(what).hexdigest()[:16]}.so"


def build() -> Path:
    """Compile the kernel for this machine.

    Returns:
        the library's path; it is used from the next start of a program on.

    Raises:
        InputError: the processor has no AVX-512 bf16, or there is no C compiler, or it fails.
    """
    if not torch.cpu.get_capabilities().get("avx512_bf16"):
        raise InputError("this processor has no AVX-512 bf16 instructions; PyTorch's own kernels are used instead")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise InputError("no C compiler found (looked for $CC, cc, gcc, clang); install one, for example gcc")
    path = library_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", "-o", str(made), str(SOURCE)]
        try:
            outcome = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"the C compiler {compiler!r} cannot be run ({error.strerror}); set $CC to one") from error
        if outcome.returncode:
            last = (outcome.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{compiler} could not compile {SOURCE.name}: {last}")
        made.replace(path)
    library.cache_clear()
    return path


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel, or None where it has not been built on this machine."""
    path = library_path()
    return ctypes.CDLL(str(path)) if path.exists() else None


def attend(query_HTC: Tensor, key_HTC: Tensor, value_HTC: Tensor, starts: tuple[int, ...]) -> Tensor:
    """softmax(q k^T) v within each sequence, on the thread that calls.

    Args:
        query_HTC, key_HTC, value_HTC: bf16 on the CPU, shape (H, T, C), channels side by side, C even and at most 64.
        starts: B + 1 offsets of the sequences.

    Returns:
        bf16, shape (T, H, C).

    Raises:
        InputError: the kernel has not been built here.
    """
    compiled = library()
    if compiled is None:
        raise InputError("the compiled attention kernel is not built on this machine; run `plm accelerate`")
    num_heads, num_tokens, channels = query_HTC.shape
    tensors = (query_HTC, key_HTC, value_HTC)
    assert all(x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.stride(2) == 1 for x in tensors)
    assert channels % 2 == 0 and channels <= MOST_CHANNELS
    output_THC = torch.empty(num_tokens, num_heads, channels, dtype=torch.bfloat16)
    offsets = (ctypes.c_int64 * len(starts))(*starts)
    status = compiled.attend(
        *(ctypes.byref(_Strided.of(x)) for x in tensors),
        ctypes.c_void_p(output_THC.data_ptr()),
        offsets,
        *(ctypes.c_int64(size) for size in (len(starts) - 1, num_heads, channels)),
    )
    if status:
        raise MemoryError("no memory for the work space of the attention kernel")
    return output_THC
