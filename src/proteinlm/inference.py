"""The one loop that runs a model without training it.

In: a prepared model (`Runner`) and queries, each a row number, a residue string and what of it is masked. Out: one
`Answer` per query, on the CPU, indexed by residue. Queries are sorted by length and packed to a token budget; proteins
longer than the model's positions are cut into overlapping windows and stitched; a batch that does not fit in memory is
halved and tried again.
"""

import ctypes
import itertools
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.models import native
from proteinlm.models.attention import KERNELS
from proteinlm.models.base import Output, ProteinModel, Want
from proteinlm.sequences.alphabet import Alphabet
from proteinlm.sequences.batch import PackedBatch

Precision = Literal["auto", "fp32", "bf16"]
Long = Literal["window", "error", "crop"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

TOKENS_PER_BATCH = 4096
"""Large enough for the matrix units, small enough for the cache; measured in docs/log.md."""

TOKENS_WITH_MAPS = 512
"""Token budget of a batch whose attention maps are kept: 660 maps (ESM-2 650M) over 512 tokens are 0.7 GB."""

MOST_LANES = 8
"""Batches run side by side on a CPU; more would mostly cost memory."""

OVERLAP = 4
"""Neighbouring windows share at least 1/4 of their residues, so a residue is an eighth of a window from any cut."""


@dataclass(frozen=True)
class Query:
    """A protein to run.

    Args:
        row: the caller's number for it. residues: upper case, in the model's alphabet.
        masked: positions from 0 at which the model sees its mask token instead of the residue.
    """

    row: int
    residues: str
    masked: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunOptions:
    """How to run.

    Args:
        precision: "fp32" is exact; "bf16" multiplies in bfloat16; "auto" takes bf16 where the hardware has it.
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        tokens_per_batch: token budget of a batch; a longer protein makes a batch of its own.
        long: proteins longer than the model's positions are cut into windows, answered with a failure, or cropped.
        attention: attention kernel by name (`models.attention.KERNELS`), which then runs or raises; None chooses.
    """

    precision: Precision = "auto"
    device: str = "auto"
    tokens_per_batch: int = TOKENS_PER_BATCH
    long: Long = "window"
    attention: str | None = None


@dataclass
class Answer:
    """What the model said of one protein, in fp32 on the CPU.

    Attributes:
        row: the query's number.
        hidden: layer -> residue vectors, shape (L, D).
        first: layer -> the BOS vector, shape (D,); empty for models without BOS. Over windows: their mean.
        logits: shape (L, V), or None.
        first_logits: logits at the BOS token, shape (V,), or None; over windows: those of the first.
        contacts: probabilities, shape (L, L), or None. NaN where no window held both residues.
        attentions: shape (N, H, L, L), or None; without BOS and EOS, NaN where no window held both residues.
        windows: how many windows were run; 1 is the whole protein at once.
        cropped: residues at the end that were not run (`long="crop"`).
    """

    row: int
    hidden: dict[int, Float[Tensor, "L D"]] = field(default_factory=dict)
    first: dict[int, Float[Tensor, "D"]] = field(default_factory=dict)
    logits: Float[Tensor, "L V"] | None = None
    first_logits: Float[Tensor, "V"] | None = None
    contacts: Float[Tensor, "L L"] | None = None
    attentions: Float[Tensor, "N H L L"] | None = None
    windows: int = 1
    cropped: int = 0


@dataclass(frozen=True)
class Failure:
    """A protein that could not be run, and why."""

    row: int
    reason: str


def choose_device(name: str) -> torch.device:
    """The device that `name` stands for; "auto" is CUDA where there is one.

    Raises:
        InputError: the device is not there; nothing falls back in silence.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is unknown; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name} is not there ({torch.cuda.device_count()} CUDA devices); use --device cpu")
    return device


def choose_precision(name: Precision, device: torch.device, model: ProteinModel) -> tuple[Literal["fp32", "bf16"], str]:
    """The precision that `name` stands for with this model on `device`, and the reason in words."""
    if name != "auto":
        return name, "as asked"
    if torch.bfloat16 not in model.precisions:
        return "fp32", "this model is run in fp32 only, since rounding would accumulate"
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_bf16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    if has_bf16:
        return "bf16", f"this {device.type.upper()} multiplies in bf16; --precision fp32 is exact"
    return "fp32", f"this {device.type.upper()} has no bf16 units"


def choose_attention(
    options: RunOptions, device: torch.device, precision: Literal["fp32", "bf16"], model: ProteinModel
) -> str:
    """What computes attention, for the header and the provenance of a run.

    Returns:
        the kernel asked for by name; else "auto", or "auto, compiled" where the compiled kernel may be chosen.

    Raises:
        InputError: the kernel asked for is unknown, or does not run with this model, device and precision.
    """
    name, where = options.attention, (device.type, precision)
    if name is None:
        has_kernels = model.has_attentions and model.takes_kernels
        built = native.library(DTYPES[precision]) is not None
        may_be_compiled = device.type == "cpu" and has_kernels and built
        return "auto, compiled" if may_be_compiled else "auto"
    if name not in KERNELS:
        raise InputError(f"attention kernel {name!r} is unknown; choose one of {', '.join(KERNELS)}")
    if not model.has_attentions:
        raise InputError(f"attention kernel {name!r} was asked for, but this model has no attention")
    if not model.takes_kernels:
        raise InputError(
            f"attention kernel {name!r} was asked for, but relative attention (XLNet, Transformer-XL) is computed "
            "in one way only; leave it out"
        )
    needed = {"compiled": ("cpu", precision), "varlen": ("cuda", "bf16")}.get(name, where)
    if where != needed:
        raise InputError(
            f"attention kernel {name!r} runs on {' in '.join(needed)} only, and this run is on {' in '.join(where)}; "
            f"name another, or --device {needed[0]} --precision {needed[1]}"
        )
    if name == "compiled" and native.library(DTYPES[precision]) is None:
        raise InputError("the compiled attention kernel is not built on this machine; run `plm accelerate`")
    return name


def keep_freed_memory() -> None:
    """Ask glibc to keep freed activations on the heap instead of returning their pages after every layer.

    Fresh pages cost more than the arithmetic of small models; elsewhere than on glibc this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # numbers of glibc's malloc.h
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
        mallopt(top_pad, 1 << 28)


def return_freed_memory() -> None:
    """Give the system back what `keep_freed_memory` has kept; elsewhere than on glibc this does nothing.

    Kept memory of many sizes crumbles: a process that trains for hours would otherwise come to several times what it
    uses at any moment.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


class Runner:
    """A model made ready on a device. The model is changed in place and can no longer be trained or saved.

    Args:
        model: any `ProteinModel`. options: how to run.

    Attributes:
        device, precision, precision_reason: what was chosen, and why.
        halvings: how often a batch had to be halved for memory.

    >>> from proteinlm.models.esm import Esm2, Esm2Config
    >>> model = Esm2(Esm2Config(num_layers=1, width=8, num_heads=2, inner=16))
    >>> runner = Runner(model, RunOptions(precision="fp32", device="cpu"))
    >>> answers = forward_all(runner, [Query(7, "MKTV")], Want(layers=(1,)))
    >>> [(answer.row, answer.hidden[1].shape) for answer in answers]
    [(7, torch.Size([4, 8]))]
    """

    def __init__(self, model: ProteinModel, options: RunOptions) -> None:
        self.options = options
        self.device = choose_device(options.device)
        self.precision, self.precision_reason = choose_precision(options.precision, self.device, model)
        choose_attention(options, self.device, self.precision, model)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(self.device).prepare(DTYPES[self.precision])
        self.model.attention_kernel = options.attention
        self.halvings = 0

    def forward(self, batch: PackedBatch, want: Want) -> Output:
        """Run one batch; the outputs are on the CPU in fp32."""
        with torch.inference_mode():
            output = self.model(batch.to(self.device), want)
        output.hidden = {layer: x_TD.float().cpu() for layer, x_TD in output.hidden.items()}
        output.logits_TV = None if output.logits_TV is None else output.logits_TV.float().cpu()
        output.contacts = [contacts_LL.float().cpu() for contacts_LL in output.contacts]
        output.attentions = [maps_NHLL.float().cpu() for maps_NHLL in output.attentions]
        return output


@dataclass(frozen=True)
class Piece:
    """A stretch of a protein that fits the model: the query, where it starts, its residues, and what it answers for.

    `owned` is the range of residues whose vectors are taken from this piece.
    """

    query: Query
    start: int
    residues: str
    owned: tuple[int, int]

    def encode(self, alphabet: Alphabet) -> np.ndarray:
        """Token ids with BOS, EOS and the masks of the query, int64.

        >>> from proteinlm.sequences.alphabet import ESM1B
        >>> cut(Query(0, "MKTV", masked=(1,)), None)[0].encode(ESM1B).tolist()
        [0, 20, 32, 11, 7, 2]
        """
        ids = alphabet.encode(self.residues)
        inside = [at - self.start for at in self.query.masked if 0 <= at - self.start < len(self.residues)]
        if inside:
            assert alphabet.mask is not None, "forward_all has refused masks that the model has no token for"
            ids[np.array(inside) + len(alphabet.prefix)] = alphabet.mask
        return ids


def cut(query: Query, window: int | None) -> list[Piece]:
    """Cut a protein into evenly spread, overlapping windows; a residue belongs to the window it stands deepest in.

    Args:
        query: the protein, L residues. window: longest piece; None for models without a limit.

    >>> [(piece.start, piece.owned) for piece in cut(Query(0, "A" * 15), 10)]
    [(0, (0, 7)), (5, (7, 15))]
    """
    length = len(query.residues)
    if window is None or length <= window:
        return [Piece(query, 0, query.residues, (0, length))]
    stride = window - window // OVERLAP
    count = 1 + -(-(length - window) // stride)
    starts = [k * (length - window) // (count - 1) for k in range(count)]
    borders = [0, *((a + window + b) // 2 for a, b in itertools.pairwise(starts)), length]
    return [
        Piece(query, start, query.residues[start : start + window], (low, high))
        for start, (low, high) in zip(starts, itertools.pairwise(borders), strict=True)
    ]


def plan(
    queries: Iterable[Query], runner: Runner, most_tokens: int | None = None
) -> tuple[list[list[Piece]], list[Failure], dict[int, int]]:
    """Batches of pieces, longest first; proteins refused for length; residues cropped.

    The token budget is that of the runner's options, or `most_tokens` if that is less.
    """
    limit, options = runner.model.max_residues, runner.options
    pieces: list[Piece] = []
    failures: list[Failure] = []
    cropped: dict[int, int] = {}
    for query in queries:
        excess = len(query.residues) - limit if limit is not None else 0
        if excess > 0 and options.long == "error":
            reason = f"{len(query.residues)} residues exceed the {limit} of this model; use --long window or crop"
            failures.append(Failure(query.row, reason))
            continue
        if excess > 0 and options.long == "crop":
            cropped[query.row] = excess
            end = len(query.residues) - excess
            query = Query(query.row, query.residues[:end], tuple(at for at in query.masked if at < end))
        pieces.extend(cut(query, limit))
    pieces.sort(key=lambda piece: (-len(piece.residues), piece.query.row, piece.start))
    budget = min(options.tokens_per_batch, most_tokens or options.tokens_per_batch)
    return _pack(pieces, budget, runner), failures, cropped


def _pack(pieces: list[Piece], budget: int, runner: Runner) -> list[list[Piece]]:
    """Consecutive pieces together, within the token budget, in equal shares.

    The number of batches is rounded up to what keeps every lane busy (`_lanes`), and a piece goes to the batch in whose
    share of all tokens its middle lies, so that no lane waits for the last batch of another.
    """
    around = len(runner.model.alphabet.prefix) + len(runner.model.alphabet.suffix)
    total = sum(len(piece.residues) + around for piece in pieces)
    lanes = _lanes(runner)
    share = total / (-(-max(total, 1) // (budget * lanes)) * lanes)
    batches: list[list[Piece]] = []
    filled, before = budget, 0
    for piece in pieces:
        tokens = len(piece.residues) + around
        if filled + tokens > budget or before + tokens / 2 > share * len(batches):
            batches.append([])
            filled = 0
        batches[-1].append(piece)
        filled, before = filled + tokens, before + tokens
    return batches


def forward_all(runner: Runner, queries: Iterable[Query], want: Want) -> Iterator[Answer | Failure]:
    """Run every query once.

    Args:
        runner: a prepared model. queries: proteins; all of them are held while this runs.
        want: what to return. Attention maps come in batches of at most `TOKENS_WITH_MAPS` tokens.

    Yields:
        one `Answer` or `Failure` per query, longest first; `row` says whose it is.

    Raises:
        InputError: the model cannot give what is wanted, or has no mask token and a query has masks.
    """
    runner.model.check(want)
    batches, failures, cropped = plan(_maskable(queries, runner), runner, TOKENS_WITH_MAPS if want.attentions else None)
    yield from failures
    open_answers: dict[int, _Stitcher] = {}
    for piece, answer in _run_all(runner, batches, want):
        row = piece.query.row
        stitcher = open_answers.setdefault(row, _Stitcher(piece.query))
        stitcher.add(piece, answer)
        if stitcher.complete():
            del open_answers[row]
            yield _finished(stitcher, cropped.get(row, 0))


def _maskable(queries: Iterable[Query], runner: Runner) -> Iterator[Query]:
    """The queries, if the model has a token for their masks."""
    alphabet = runner.model.alphabet
    for query in queries:
        if query.masked and alphabet.mask is None:
            raise InputError(f"alphabet {alphabet.name} has no mask token; ask this model without masks")
        yield query


def _finished(stitcher: "_Stitcher", cropped: int) -> Answer | Failure:
    """The windows joined; the contact map of a very long protein may be the one thing that does not fit."""
    try:
        return stitcher.finish(cropped)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        return _too_large(stitcher.query)


PieceAnswer = tuple[Piece, Answer | Failure]


def _lanes(runner: Runner) -> int:
    """Batches that run at the same time."""
    return min(torch.get_num_threads(), MOST_LANES) if runner.device.type == "cpu" else 1


def _run_all(runner: Runner, batches: list[list[Piece]], want: Want) -> Iterator[PieceAnswer]:
    """Run batches in order. On a CPU several run side by side, each on its share of the cores.

    One core working through one batch keeps its data in its own cache and waits for nobody; sharing every small
    operation between the cores is slower. With fewer batches than lanes all cores share each batch instead.
    """
    threads, lanes = torch.get_num_threads(), _lanes(runner)
    if lanes == 1 or len(batches) < lanes:
        for batch in batches:
            yield from _run(runner, batch, want)
        return
    ahead: deque[Future[list[PieceAnswer]]] = deque()
    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(threads // lanes,)) as pool:
            for batch in batches:
                ahead.append(pool.submit(_run_to_list, runner, batch, want))
                if len(ahead) > lanes:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
    finally:
        torch.set_num_threads(threads)


def _run_to_list(runner: Runner, pieces: list[Piece], want: Want) -> list[PieceAnswer]:
    return list(_run(runner, pieces, want))


def _run(runner: Runner, pieces: list[Piece], want: Want) -> Iterator[PieceAnswer]:
    """Run one batch; where memory runs out, run its halves. A piece that fails alone is a `Failure`."""
    alphabet = runner.model.alphabet
    batch = PackedBatch.pack(
        [piece.encode(alphabet) for piece in pieces],
        rows=[piece.query.row for piece in pieces],
        prefix=len(alphabet.prefix),
        suffix=len(alphabet.suffix),
    )
    try:
        output = runner.forward(batch, want)
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        output = None
    if output is not None:
        for b, piece in enumerate(pieces):
            yield piece, _answer(batch, b, output)
    elif len(pieces) == 1:
        yield pieces[0], _too_large(pieces[0].query)
    else:
        runner.halvings += 1
        middle = len(pieces) // 2
        yield from _run(runner, pieces[:middle], want)
        yield from _run(runner, pieces[middle:], want)


def _out_of_memory(error: Exception) -> bool:
    """Whether an exception of PyTorch says that memory ran out (the CPU allocator has no class of its own)."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _too_large(query: Query) -> Failure:
    return Failure(query.row, f"out of memory on its {len(query.residues)} residues alone; use a smaller model")


def _answer(batch: PackedBatch, b: int, output: Output) -> Answer:
    """Cut the residues of sequence `b` out of a batch's output."""
    residues, start = batch.residues(b), batch.starts[b]
    inner = slice(batch.prefix, batch.starts[b + 1] - start - batch.suffix)
    return Answer(
        row=batch.row_B[b],
        hidden={layer: x_TD[residues] for layer, x_TD in output.hidden.items()},
        first={layer: x_TD[start] for layer, x_TD in output.hidden.items()} if batch.prefix else {},
        logits=None if output.logits_TV is None else output.logits_TV[residues],
        first_logits=None if output.logits_TV is None or not batch.prefix else output.logits_TV[start],
        contacts=output.contacts[b] if output.contacts else None,
        attentions=output.attentions[b][:, :, inner, inner] if output.attentions else None,
    )


class _Stitcher:
    """Collects the windows of one protein and joins them into one answer."""

    def __init__(self, query: Query) -> None:
        self.query = query
        self.parts: list[tuple[Piece, Answer]] = []
        self.failure: Failure | None = None
        self.seen = 0

    def add(self, piece: Piece, answer: Answer | Failure) -> None:
        self.seen += piece.owned[1] - piece.owned[0]
        if isinstance(answer, Failure):
            self.failure = answer
        else:
            self.parts.append((piece, answer))

    def complete(self) -> bool:
        return self.seen == len(self.query.residues)

    def finish(self, cropped: int) -> Answer | Failure:
        if self.failure is not None:
            return self.failure
        self.parts.sort(key=lambda part: part[0].start)
        _, head = self.parts[0]
        answer = head if len(self.parts) == 1 else self._join(head)
        answer.cropped = cropped
        return answer

    def _join(self, head: Answer) -> Answer:
        """Residue vectors from the window that owns the residue; BOS vectors averaged; pairs by their midpoint."""
        answers = [answer for _, answer in self.parts]
        owned = [slice(piece.owned[0] - piece.start, piece.owned[1] - piece.start) for piece, _ in self.parts]
        logits = [answer.logits[own] for answer, own in zip(answers, owned, strict=True) if answer.logits is not None]
        return Answer(
            row=head.row,
            hidden={
                layer: torch.cat([answer.hidden[layer][own] for answer, own in zip(answers, owned, strict=True)])
                for layer in head.hidden
            },
            first={layer: torch.stack([answer.first[layer] for answer in answers]).mean(0) for layer in head.first},
            logits=torch.cat(logits) if logits else None,
            first_logits=head.first_logits,
            contacts=self._join_pairs([answer.contacts for answer in answers]),
            attentions=self._join_pairs([answer.attentions for answer in answers]),
            windows=len(self.parts),
        )

    def _join_pairs(self, maps: list[Tensor | None]) -> Float[Tensor, "... L L"] | None:
        """Each pair from the window that owns its midpoint, the one in which the pair stands deepest."""
        length, first = len(self.query.residues), maps[0]
        if first is None:
            return None
        whole = torch.full((*first.shape[:-2], length, length), float("nan"))
        for (piece, _), window in zip(self.parts, maps, strict=True):
            assert window is not None, "every window was run with the same wants"
            index = torch.arange(piece.start, piece.start + len(piece.residues))
            twice_midpoint = index[:, None] + index[None, :]
            mine = (twice_midpoint >= 2 * piece.owned[0]) & (twice_midpoint < 2 * piece.owned[1])
            block = whole[..., index[0] : index[-1] + 1, index[0] : index[-1] + 1]
            block[..., mine] = window[..., mine]
        return whole
