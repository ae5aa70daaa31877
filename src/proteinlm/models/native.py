"""The optional compiled attention kernel: built from `attention.c` with the machine's own C compiler, on request.

In: nothing but the C source beside this file. Out: a shared library for each precision in the user's cache folder,
named after the source and the processor, which `attention` then prefers on this machine. Nothing is compiled unless
`build` is called (`plm accelerate`), and without the libraries every model runs on PyTorch alone.
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

PRECISIONS = {
    torch.float32: ("fp32", "avx512_f", ()),
    torch.bfloat16: ("bf16", "avx512_bf16", ("-DBF16",)),
}
"""Each precision of the kernel: its name, what PyTorch calls the instructions it needs, and how it is compiled."""


class _Strided(ctypes.Structure):
    """`Tensor` of attention.c: where the data lies and how far it is to the next head and the next token."""

    _fields_ = (("data", ctypes.c_void_p), ("head_stride", ctypes.c_int64), ("token_stride", ctypes.c_int64))

    @classmethod
    def of(cls, x_HTC: Tensor) -> "_Strided":
        return cls(x_HTC.data_ptr(), x_HTC.stride(0), x_HTC.stride(1))


def library_path(precision: torch.dtype) -> Path:
    """Where the library for this source, this precision and this processor lies, or would lie.

    The processor is told by its instructions too: nodes that share a home folder may share a name and not those.
    """
    capabilities = torch.cpu.get_capabilities()
    processor = [capabilities.get("cpu_name"), *sorted(name for name, there in capabilities.items() if there is True)]
    digest = hashlib.sha256(SOURCE.read_bytes() + repr(processor).encode()).hexdigest()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "proteinlm" / f"attention-{PRECISIONS[precision][0]}-{digest[:16]}.so"


def build() -> dict[str, Path]:
    """Compile the kernel for this machine, in every precision for which the processor has the instructions.

    Returns:
        name of the precision -> the library's path; they are used from the next start of a program on.

    Raises:
        InputError: the processor has no AVX-512, or there is no C compiler, or it fails.
    """
    capabilities = torch.cpu.get_capabilities()
    able = [precision for precision, (_, needed, _) in PRECISIONS.items() if capabilities.get(needed)]
    if not able:
        raise InputError("this processor has no AVX-512 instructions; PyTorch's own kernels are used instead")
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise InputError("no C compiler found (looked for $CC, cc, gcc, clang); install one, for example gcc")
    built = {PRECISIONS[precision][0]: _compile(compiler, precision) for precision in able}
    library.cache_clear()
    return built


def _compile(compiler: str, precision: torch.dtype) -> Path:
    """One library, written whole or not at all."""
    path = library_path(precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        options = ("-O3", "-march=native", *PRECISIONS[precision][2], "-shared", "-fPIC")
        try:
            outcome = subprocess.run(
                [compiler, *options, "-o", str(made), str(SOURCE)], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise InputError(f"the C compiler {compiler!r} cannot be run ({error.strerror}); set $CC to one") from error
        if outcome.returncode:
            last = (outcome.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"{compiler} could not compile {SOURCE.name}: {last}")
        made.replace(path)
    return path


@functools.cache
def library(precision: torch.dtype) -> ctypes.CDLL | None:
    """The compiled kernel for a precision, or None where there is none on this machine."""
    path = library_path(precision) if precision in PRECISIONS else None
    return ctypes.CDLL(str(path)) if path is not None and path.exists() else None


def attend(
    heads: tuple[Tensor, Tensor, Tensor], starts: tuple[int, ...], turns_TF: Tensor | None, scale: float
) -> Tensor:
    """Softmax of scores that count in powers of two, times v, within each sequence, on the thread that calls.

    Args:
        heads: queries, keys and values on the CPU, of one precision in `PRECISIONS`, shape (H, T, C), channels side by
            side, C even and at most 64.
        starts: B + 1 offsets of the sequences.
        turns_TF: complex64, shape (T, C / 2), by which channel pairs of queries and keys are turned; or None.
        scale: of the queries.

    Returns:
        of the same precision, shape (T, H, C).

    Raises:
        InputError: the kernel has not been built here.
    """
    precision = heads[0].dtype
    compiled = library(precision)
    if compiled is None:
        raise InputError("the compiled attention kernel is not built on this machine; run `plm accelerate`")
    num_heads, num_tokens, channels = heads[0].shape
    assert all(x.dtype == precision and x.device.type == "cpu" and x.stride(2) == 1 for x in heads)
    assert channels % 2 == 0 and channels <= MOST_CHANNELS
    if turns_TF is not None:
        turns_TF = turns_TF.contiguous()
        assert turns_TF.shape == (num_tokens, channels // 2) and turns_TF.dtype == torch.complex64
    output_THC = torch.empty(num_tokens, num_heads, channels, dtype=precision)
    status = compiled.attend(
        *(ctypes.byref(_Strided.of(x)) for x in heads),
        None if turns_TF is None else ctypes.c_void_p(turns_TF.data_ptr()),
        ctypes.c_float(scale),
        ctypes.c_void_p(output_THC.data_ptr()),
        (ctypes.c_int64 * len(starts))(*starts),
        *(ctypes.c_int64(size) for size in (len(starts) - 1, num_heads, channels)),
    )
    if status:
        raise MemoryError("no memory for the work space of the attention kernel")
    return output_THC
