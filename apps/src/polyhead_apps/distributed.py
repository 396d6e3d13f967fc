"""The process group, for one process and for several alike, over Accelerate."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from polyhead.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.utils import FullyShardedDataParallelPlugin

__all__ = [
    "copy_whole",
    "gather_objects",
    "join_group",
    "on_main",
    "rank",
    "sharding",
    "share_buffers",
    "start",
    "sum_over_processes",
    "whole",
    "world",
    "wrap",
]

Result = TypeVar("Result")
_PRECISIONS = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}


def start(precision: str, device: str = "auto", model: nn.Module | None = None) -> Accelerator:
    """Return an Accelerator for this process; it joins the others that torchrun started.

    Parameters are shared by DDP, or sharded by FSDP where ``ACCELERATE_USE_FSDP`` is true: every block that the model
    keeps in a ``ModuleList`` is gathered for itself, and the rest together.

    Args:
        precision: "float32", "bf16" or "fp16".
        device: "auto" (this process's GPU if there is one), "cpu", or a device such as "cuda:1" if it is alone.
        model: what will be trained, for FSDP.

    Raises:
        ConfigError: the precision or FSDP is not to be had on this device.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if cpu and precision == "fp16":
        raise ConfigError("train.precision is fp16, which needs a GPU: set it to bf16 or float32.")
    if cpu and sharded:
        raise ConfigError("Strategy fsdp needs GPUs: use --strategy ddp on the CPU.")
    # Accelerate keeps one state per process and refuses to change it; a process may well fit twice.
    AcceleratorState._reset_state()
    if not dist.is_initialized():
        PartialState._reset_state()
    if device not in ("auto", "cpu") and not _launched():
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    try:
        return Accelerator(
            mixed_precision=_PRECISIONS[precision],
            cpu=cpu,
            # The recipe counts micro-batches and divides itself, whatever the environment says.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            fsdp_plugin=sharding(model) if sharded and model is not None else None,
            # Buffers are shared once a step, see `share_buffers`; so that a loss may run its model several times.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    finally:
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)


def wrap(accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
    """Place a model on its device and wrap it and its optimiser."""
    with warnings.catch_warnings():
        # torch 2.14 renamed the option; Accelerate 1.15 knows the old name.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return accelerator.prepare(model, optimizer)


def sharding(model: nn.Module) -> FullyShardedDataParallelPlugin:
    """Return how FSDP shards a model: by the blocks of its lists, and the rest as one."""
    from accelerate.utils import FullyShardedDataParallelPlugin

    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = [block for blocks in lists for block in blocks if not isinstance(block, nn.ModuleList | nn.ModuleDict)]
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=sorted({type(block).__name__ for block in blocks}),
        cpu_ram_efficient_loading=False,
    )


def _launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join_group() -> None:
    """Join the other processes, if torchrun started any and this has not been done."""
    if _launched() and not dist.is_initialized():
        start("float32")


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number; 0 is the main one."""
    return dist.get_rank() if dist.is_initialized() else 0


def sum_over_processes(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes; no gradient."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(own: Any) -> list[Any]:
    """Return one picklable object of every process, in the order of their ranks."""
    if world() == 1:
        return [own]
    gathered: list[Any] = [None] * world()
    dist.all_gather_object(gathered, own)
    return gathered


def on_main(function: Callable[[], Result]) -> Result:
    """Call a function in the main process and return its result in all; its exception is raised in all."""
    if world() == 1:
        return function()
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the main one, such as running statistics of a layer that reduces nothing."""
    buffers = list(model.buffers()) if world() > 1 else []
    # A dict keeps the order, which has to be the same in all processes.
    for kind in dict.fromkeys((buffer.dtype, buffer.device) for buffer in buffers):
        alike = [buffer for buffer in buffers if (buffer.dtype, buffer.device) == kind]
        flat = torch.cat([buffer.reshape(-1) for buffer in alike])
        dist.broadcast(flat, src=0)
        for buffer, part in zip(alike, flat.split([buffer.numel() for buffer in alike]), strict=True):
            buffer.copy_(part.view(buffer.shape))


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, put together if it is sharded (all processes have to call this)."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


@torch.no_grad()
def copy_whole(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded (all processes have to call this)."""
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)
