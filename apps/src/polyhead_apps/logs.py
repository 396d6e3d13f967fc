"""What a run writes down as it goes: ``log.jsonl``, which is resumed exactly, and TensorBoard's event files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polyhead.errors import CheckpointError, StorageError

__all__ = ["RunLog", "read_log"]


class RunLog:
    """Writes the log of one run.

    ``log.jsonl`` holds figures that a repeated run gives again, so no times: those go to TensorBoard alone. Training
    lines have ``step, epoch, loss, lr, grad_norm`` and, where there are several terms, ``loss/TERM``; validation lines
    have ``step, epoch, validation``. What is not finite is null.
    """

    def __init__(self, folder: Path, *, position: int = 0, step: int = 0) -> None:
        """Open the log behind what a checkpoint has seen of it; the rest is cut off.

        Args:
            folder: the run's folder.
            position: length of the log at the checkpoint, in bytes; 0 starts a log.
            step: the checkpoint's step; TensorBoard hides what comes after it.

        Raises:
            CheckpointError: the log is shorter than the checkpoint says.
            StorageError: the folder cannot be written.
        """
        path = folder / "log.jsonl"
        length = path.stat().st_size if path.is_file() else 0
        if length < position:
            raise CheckpointError(
                f"{path} has {length} bytes where the checkpoint of step {step} saw {position}: lines are lost. "
                f"Bring the file back, or fit a new run."
            )
        try:
            self._file = open(path, "ab")  # noqa: SIM115 - closed by close()
            self._file.truncate(position)
            self._file.seek(position)
        except OSError as error:
            raise StorageError(f"Cannot write {path}: {error.strerror}. Choose a folder that you may write.") from error
        # Takes seconds to import, and only the main process writes.
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if position else None)

    def training(self, step: int, epoch: float, figures: Mapping[str, float], times: Mapping[str, float]) -> None:
        """Write a training line; ``times`` go to TensorBoard alone."""
        self._line({"step": step, "epoch": epoch, **figures})
        for name, value in {**figures, **times}.items():
            self._events.add_scalar(f"train/{name}", value, step)

    def validation(self, step: int, epoch: float, figures: Mapping[str, float]) -> None:
        """Write a validation line."""
        self._line({"step": step, "epoch": epoch, "validation": dict(figures)})
        for name, value in figures.items():
            self._events.add_scalar(f"validation/{name}", value, step)

    def position(self) -> int:
        """Bring the log to the disk and return its length in bytes: what a checkpoint holds of it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()
        return self._file.tell()

    def close(self) -> None:
        """Close both."""
        self._file.close()
        self._events.close()

    def _line(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(_finite(record), allow_nan=False).encode() + b"\n")
        self._file.flush()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's ``log.jsonl``; a last line that a kill cut short is left out."""
    path = folder / "log.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
