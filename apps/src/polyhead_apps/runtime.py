"""The process a verb runs in: its rank, seeds, threads and device."""

from __future__ import annotations

import os
import random
import re
from typing import TYPE_CHECKING

from polyhead_apps.config import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["parse_duration", "pick_device", "prepare_process", "rank", "world_size"]

_SECONDS = {"": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def rank() -> int:
    """Return this process's number among those that torchrun started; 0 if it is alone."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes that torchrun started; 1 if this one is alone."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def prepare_process(seed: int, threads: int | None) -> None:
    """Seed Python, NumPy and torch, and set the number of CPU threads.

    On a GPU, cuDNN and cuBLAS are told to choose deterministic algorithms.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import numpy as np
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def pick_device(name: str) -> torch.device:
    """Return the device that ``--device`` means; "auto" is this process's GPU if there is one, else the CPU.

    The choice is also given to Accelerate, which places the model in ``fit``.

    Raises:
        UsageError: no such device here.
    """
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = f"cuda:{local}" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    elif name == "cuda" and world_size() > 1:
        name = f"cuda:{local}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: no such device. Write auto, cpu, cuda, cuda:1 or mps.") from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        count = f" ({torch.cuda.device_count()} GPUs seen)" if device.type == "cuda" else ""
        raise UsageError(f"--device {name}: not available on this machine{count}. Try --device cpu.")
    return device


def parse_duration(text: str | None) -> float | None:
    """Return the seconds of a time such as ``90``, ``90s``, ``20min`` or ``1.5h``; None stays None.

    >>> [parse_duration(t) for t in ("90", "90s", "20min", "1.5h", None)]
    [90.0, 90.0, 1200.0, 5400.0, None]

    Raises:
        UsageError: the text is no time.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _SECONDS or float(match[1]) == 0:
        raise UsageError(f"--time-limit {text}: write a time such as 90s, 20min or 1.5h.")
    return float(match[1]) * _SECONDS[match[2]]
