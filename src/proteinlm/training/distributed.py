"""Runs on many processes that torchrun started: every one with the whole model, or each with a part of it.

In: the environment that torchrun sets. Out: two engines. `DistributedEngine` keeps a copy of the model in each process
and writes the same file as a single process does. `ShardedEngine` (FSDP2) cuts every weight, its gradient and its
optimiser state over the processes; its checkpoint is a folder of safetensors, a file from each process, which
`torch.distributed.checkpoint` puts together again for any number of processes. Neither writes a pickle.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from proteinlm.checkpoints.files import read_torch, to_disk
from proteinlm.errors import InputError
from proteinlm.models.base import ProteinModel
from proteinlm.training.engine import (
    SHARDS,
    STATE,
    Accept,
    Engine,
    Rest,
    State,
    Trainee,
    could_not_save,
    holds_whole,
    read_whole,
    write_torch,
    write_whole,
)

_UNFINISHED = ".shards.tmp"
"""A checkpoint in shards while it is written. All processes know the name; one run at a time uses a folder."""

_KEPT: list[object] = []
"""Groups that were closed, which stay in memory until the program ends. A model under DistributedDataParallel may live
longer than its group (in a traceback, say). If it were the last to let go of the group, it would wait for a thread of
the group while it keeps the interpreter's lock, which that thread needs: both would wait for ever."""

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class TorchrunEngine(Engine):
    """What both engines share: one of the processes that torchrun started, and how it speaks with the others.

    Args:
        device: kind of device; with "cuda", the process takes the GPU of its local rank.

    Raises:
        InputError: there are fewer GPUs than processes on this machine.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type == "cuda":
            local = int(os.environ["LOCAL_RANK"])
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"process {local + 1} of this machine finds {torch.cuda.device_count()} GPUs; start as many "
                    "processes as there are GPUs"
                )
            device = torch.device("cuda", local)
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        self.device, self.rank, self.world = device, dist.get_rank(), dist.get_world_size()
        # Both wrappers average gradients over processes.
        self.gradient_scale = float(self.world)

    def total(self, values: Sequence[float]) -> list[float]:
        """See `Engine.total`."""
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return sums.tolist()

    def close(self) -> None:
        """See `Engine.close`."""
        _KEPT.append(dist.group.WORLD)
        dist.destroy_process_group()

    def alone(self, work: Callable[[], str]) -> str:
        """Let rank 0 work while the others wait; its answer, or its `InputError`, on all of them."""
        told: list[tuple[bool, str]] = [(False, "")]
        if not self.rank:
            try:
                told = [(True, work())]
            except InputError as error:
                told = [(False, str(error))]
        dist.broadcast_object_list(told, device=self.device)
        well, text = told[0]
        if not well:
            raise InputError(text)
        return text


class DistributedEngine(TorchrunEngine):
    """Every process has the whole model (DistributedDataParallel); gradients are averaged after the last part."""

    def wrap(self, trainee: Trainee) -> nn.Module:
        """See `Engine.wrap`."""
        return DistributedDataParallel(trainee.to(self.device), gradient_as_bucket_view=True)

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """See `Engine.accumulating`."""
        assert isinstance(wrapped, DistributedDataParallel)
        return contextlib.nullcontext() if last else wrapped.no_sync()

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """See `Engine.clip`."""
        return nn.utils.clip_grad_norm_(parameters, limit).item()

    def save(self, path: Path, state: State, rest: Rest) -> None:
        """See `Engine.save`."""

        def work() -> str:
            write_whole(path, state, rest)
            return ""

        self.alone(work)

    def saved(self, path: Path) -> bool:
        """See `Engine.saved`."""
        return self.alone(lambda: "yes" if holds_whole(path) else "") == "yes"

    def load(self, path: Path, state: State, accept: Accept) -> Rest:
        """See `Engine.load`."""
        return read_whole(path, state, accept)

    def weights(self, model: ProteinModel) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


class ShardedEngine(TorchrunEngine):
    """Every weight is cut over the processes (FSDP2) and put together layer by layer when it is needed."""

    def wrap(self, trainee: Trainee) -> nn.Module:
        """See `Engine.wrap`. Layers move to the device one by one, each already cut."""
        mesh = init_device_mesh(self.device.type, (self.world,))
        for stack in trainee.modules():
            if isinstance(stack, nn.ModuleList):
                for layer in stack:
                    fully_shard(layer, mesh=mesh)
        # The default would leave the root's weights whole after a pass without gradient, and the average reads them.
        fully_shard(trainee, mesh=mesh, reshard_after_forward=True)
        return trainee

    def accumulating(self, wrapped: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """See `Engine.accumulating`. Gradients meet after every part: whole ones would need the memory of a model."""
        return contextlib.nullcontext()

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> float:
        """See `Engine.clip`."""
        parameters = list(parameters)
        norm = nn.utils.get_total_norm([one.grad for one in parameters if one.grad is not None])
        whole = norm.full_tensor() if isinstance(norm, DTensor) else norm
        nn.utils.clip_grads_with_norm_(parameters, limit, whole)
        return whole.item()

    def save(self, path: Path, state: State, rest: Rest) -> None:
        """See `Engine.save`. Every process writes what it holds; rank 0 gives the folder its name when all is there."""
        unfinished = path / _UNFINISHED

        def prepare() -> str:
            try:
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir(parents=True)
            except OSError as error:
                raise could_not_save(path, error) from error
            return ""

        self.alone(prepare)
        writer = checkpoint.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
        try:
            checkpoint.save(_tensors(state), storage_writer=writer)
        except CheckpointException as failed:
            shutil.rmtree(unfinished, ignore_errors=True)
            first = next(iter(failed.failures.values()))[0]
            if not isinstance(first, OSError):
                raise
            raise could_not_save(path, first) from failed
        self.alone(lambda: _commit(path, rest))

    def saved(self, path: Path) -> bool:
        """See `Engine.saved`."""
        return self.alone(lambda: _newest(path)) != ""

    def load(self, path: Path, state: State, accept: Accept) -> Rest:
        """See `Engine.load`."""
        folder = path / self.alone(lambda: _newest(path))
        values = read_torch(folder / STATE)
        for name, size in values["files"].items():
            file = folder / name
            if not file.exists() or file.stat().st_size != size:
                raise InputError(
                    f"{str(file)!r} does not have the {size} bytes that were written; every process must see the whole "
                    "folder, as on a shared disk"
                )
        rest: Rest = values["rest"]
        accept(rest)
        tensors = _tensors(state)
        checkpoint.load(tensors, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)))
        set_model_state_dict(state.model, _below("model.", tensors))
        for number, optimiser in enumerate(state.optimisers):
            filled: dict[str, Any] = dict(get_optimizer_state_dict(state.model, optimiser, options=_FLAT))
            filled.update(_below(f"optimiser{number}.", tensors))
            set_optimizer_state_dict(state.model, optimiser, filled, options=_FLAT)
        return rest

    def weights(self, model: ProteinModel) -> dict[str, Tensor]:
        """See `Engine.weights`."""
        return _only_tensors(get_model_state_dict(model, options=_WHOLE))


def _tensors(state: State) -> dict[str, Tensor]:
    """Every tensor of a run under a name of its own. Optimisers without a state get an empty one."""
    tensors = {f"model.{name}": tensor for name, tensor in _only_tensors(get_model_state_dict(state.model)).items()}
    for number, optimiser in enumerate(state.optimisers):
        # What else an optimiser keeps (rates, betas) comes from the recipe, or anew in every step.
        values = _only_tensors(get_optimizer_state_dict(state.model, optimiser, options=_FLAT))
        tensors.update({f"optimiser{number}.{name}": tensor for name, tensor in values.items()})
    for name, tensor in (state.average or {}).items():
        tensors[f"average.{name}"] = tensor
    return tensors


def _only_tensors(values: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _commit(path: Path, rest: Rest) -> str:
    """Give a checkpoint that is all there its name, then remove older ones; a kill leaves the old or the new one."""
    unfinished = path / _UNFINISHED
    newest = _newest(path)
    name = f"{SHARDS}{int(newest.removeprefix(SHARDS) or 0) + 1:06d}"
    try:
        files = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
        write_torch({"rest": rest, "files": files}, unfinished / STATE)
        for file in unfinished.iterdir():
            to_disk(file)
        os.replace(unfinished, path / name)
        to_disk(path)
        for older in path.glob(f"{SHARDS}*"):
            if older.name != name:
                shutil.rmtree(older)
    except OSError as error:
        raise could_not_save(path, error) from error
    return name


def _newest(path: Path) -> str:
    """Name of the newest checkpoint in shards; empty where there is none.

    Raises:
        InputError: there is a checkpoint of the other engines.
    """
    if (path / STATE).exists():
        raise InputError(
            f"{str(path)!r} was written with run.engine = single or ddp; go on with one of them, or choose another "
            "folder"
        )
    return max((folder.name for folder in path.glob(f"{SHARDS}*")), default="")
