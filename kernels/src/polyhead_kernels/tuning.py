"""Try a program's configurations on the device at hand, when asked to, and remember which one is fastest.

Off unless POLYHEAD_AUTOTUNE=1: the shipped order is used then. Results are kept in memory and on disk by device, dtype,
variant and source. No length is in the key, so a new length never tunes again.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polyhead.errors import KernelError
from polyhead.manifest import resolve
from polyhead.ops.call import name_of
from polyhead.ops.commands.cache import load, store

if TYPE_CHECKING:
    from polyhead_kernels.programs import Config, Constant, Program

__all__ = ["order", "wanted"]

_REPEATS = 7
_known: dict[str, int] = {}


def wanted() -> bool:
    """Return whether programs are to be tuned on this device."""
    return os.environ.get("POLYHEAD_AUTOTUNE", "0") == "1"


def order(
    program: Program,
    like: Tensor,
    variant: Mapping[str, Constant],
    choices: Sequence[Config],
    arguments: Mapping[str, Any],
    run: Callable[[Config, Mapping[str, Any]], bool],
) -> list[Config]:
    """Return configurations, the fastest one first; the rest keep their order.

    Args:
        program: what they belong to.
        like: a tensor of the call's dtype on the call's device.
        variant: the constants that the call decides.
        choices: the configurations.
        arguments: of the launch. Each try gets copies of the tensors, since a program may add to what it finds.
        run: launches a configuration with arguments; False if it does not fit the device.
    """
    digest = _digest(program, like, variant, choices)
    if digest not in _known:
        kept = load("tuning", digest)
        if not isinstance(kept, int) or not 0 <= kept < len(choices):
            times = [_time(run, config, arguments, like.device) for config in choices]
            if min(times) == float("inf"):
                raise KernelError(f"No shipped configuration of {program.operator}.{program.name} fits {like.device}.")
            kept = times.index(min(times))
            store("tuning", digest, kept)
        _known[digest] = kept
    best = _known[digest]
    return [choices[best], *choices[:best], *choices[best + 1 :]]


def _time(
    run: Callable[[Config, Mapping[str, Any]], bool], config: Config, arguments: Mapping[str, Any], device: torch.device
) -> float:
    """Return the median time of a configuration in milliseconds; infinity if it does not fit."""
    copies = {name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()}
    if not run(config, copies):  # compiles
        return float("inf")
    times = []
    for _ in range(_REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(torch.cuda.current_stream(device))
        run(config, copies)
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def _digest(program: Program, like: Tensor, variant: Mapping[str, Constant], choices: Sequence[Config]) -> str:
    facts = [
        program.operator,
        program.name,
        resolve(program.function).cache_key,
        name_of(like.dtype),
        sorted((name, str(value)) for name, value in variant.items()),
        [(sorted(c.constants.items()), c.warps, c.stages) for c in choices],
        torch.cuda.get_device_name(like.device),
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
