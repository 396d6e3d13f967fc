"""Checkpoints of a training run: safetensors and JSON, a digest of every file, whole or not there, resumed exactly.

``checkpoints/step-1200/`` holds ``model.safetensors``, ``optimizer.safetensors``, ``averaged.safetensors`` (with
averaged weights), ``random.safetensors`` (the random states of every process), ``state.json`` and, written last,
``manifest.json``.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polyhead.artifacts import (
    atomic_folder,
    json_bytes,
    load_tensors,
    manifest_problems,
    read_json,
    remove_leftovers,
    save_tensors,
    write_manifest,
)
from polyhead.errors import CheckpointError
from polyhead_apps import distributed
from polyhead_apps.config import flatten
from polyhead_apps.console import Console
from polyhead_apps.optim import AveragedWeights

__all__ = ["Best", "Checkpoints", "Training"]

FORMAT = 1
_NAME = re.compile(r"step-(\d{1,18})")


class Best(NamedTuple):
    """The best validation so far."""

    step: int
    value: float


@dataclass
class Training:
    """What changes during a run, and what a checkpoint therefore holds besides the random states."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    averaged: AveragedWeights | None
    scaler: Any
    """The gradient scaler of fp16, else None."""
    device: torch.device
    step: int = 0
    best: Best | None = None
    waited: int = 0
    """Validations since the best one."""


class Checkpoints:
    """The checkpoints of one run."""

    def __init__(self, folder: Path, *, identity: Mapping[str, Any], keep: int) -> None:
        """Name the folder; nothing is read or written yet.

        Args:
            folder: ``checkpoints`` of the run's folder.
            identity: JSON values that have to be the same when the run is resumed: settings, data, model.
            keep: checkpoints kept besides the best one.
        """
        self.folder, self.identity, self.keep = folder, identity, keep

    def names(self) -> list[str]:
        """Return the names of the checkpoints, the newest last."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()]
        return sorted(names, key=_step_of)

    def choose(self, resume: str) -> str | None:
        """Return the checkpoint that ``--resume`` means, after comparing it with its digests.

        Args:
            resume: "last" or a name such as "step-800".

        Returns:
            None if the last one is asked for and there is none: the run was stopped before it had written any.

        Raises:
            CheckpointError: there is no such checkpoint, or it is damaged; names the last good one.
        """
        names = self.names()
        if resume == "last" and not names:
            return None
        name = names[-1] if resume == "last" else resume
        if name not in names:
            there = ", ".join(names) or "none"
            raise CheckpointError(f'No checkpoint "{resume}" in {self.folder}: there is {there}. Or: --resume last.')
        if problem := self._problem(name):
            good = (other for other in reversed(names) if other != name and not self._problem(other))
            last = next(good, None)
            mend = f"Last good: {last} (--resume {last})." if last else "No good one is left: fit again."
            raise CheckpointError(f"Checkpoint {name} is damaged: {problem}. {mend}")
        return name

    def write(self, training: Training, *, log_position: int) -> None:
        """Write a checkpoint of this moment and remove what is no longer kept. All processes have to call this.

        Raises:
            StorageError: the disk is full or the folder cannot be written; the checkpoints before stay.
        """
        files = {
            "model": _whole(training.model.state_dict().items()),
            "optimizer": _whole(_optimizer_tensors(training)),
            "random": {
                f"{rank}/{name}": tensor
                for rank, state in enumerate(distributed.gather_objects(random_state(training.device)))
                for name, tensor in state.items()
            },
        }
        if training.averaged is not None:
            files["averaged"] = _whole(training.averaged.tensors.items())
        state = {
            "format": FORMAT,
            "step": training.step,
            "best": training.best._asdict() if training.best else None,
            "waited": training.waited,
            "log_position": log_position,
            "processes": distributed.world(),
            "scaler": training.scaler.state_dict() if training.scaler else None,
            "identity": self.identity,
        }

        def write_files() -> None:
            with atomic_folder(self.folder / f"step-{training.step}", replace=True) as folder:
                for name, tensors in files.items():
                    save_tensors(folder / f"{name}.safetensors", tensors)
                (folder / "state.json").write_bytes(json_bytes(state))
                write_manifest(folder)
            self._prune()

        distributed.on_main(write_files)

    def read(self, name: str, training: Training, console: Console) -> int:
        """Bring everything back to the moment of a checkpoint; return the log's length then, in bytes.

        All processes have to call this. Later checkpoints, which the run will write again, are removed.

        Raises:
            CheckpointError: the checkpoint is damaged, or of another run: model, settings or data differ.
        """
        folder = self.folder / name
        state = read_json(folder / "state.json")
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"Checkpoint {name} has format {state.get('format')}, this version reads {FORMAT}. Fit again."
            )
        self._compare(name, state["identity"])
        self.read_weights(name, training, averaged=False)
        _restore_optimizer(training, load_tensors(folder / "optimizer.safetensors"))
        if training.averaged is not None:
            _copy(load_tensors(folder / "averaged.safetensors"), training.averaged.tensors)
        if training.scaler is not None:
            training.scaler.load_state_dict(state["scaler"])
        training.step, training.waited = state["step"], state["waited"]
        training.best = Best(**state["best"]) if state["best"] else None
        if state["processes"] == distributed.world():
            mine = f"{distributed.rank()}/"
            states = load_tensors(folder / "random.safetensors")
            own = {key.removeprefix(mine): value for key, value in states.items() if key.startswith(mine)}
            restore_random(own, training.device)
        else:
            console.line(
                f"Checkpoint {name} was made by {state['processes']} processes and goes on in {distributed.world()}: "
                f"its random states are not used."
            )
        later = [other for other in self.names() if _step_of(other) > training.step]
        if later:
            console.line(f"Removed {', '.join(later)}: later than {name}, from which the run goes on.")
            distributed.on_main(lambda: self._remove(later))
        distributed.on_main(self._prune)  # a kill may have come between a checkpoint and this
        return int(state["log_position"])

    def read_weights(self, name: str, training: Training, *, averaged: bool = True) -> None:
        """Give the model the weights of a checkpoint, the averaged ones where there are any.

        Raises:
            CheckpointError: the checkpoint is damaged, or tensors differ in name or shape.
        """
        tensors = load_tensors(self.folder / name / "model.safetensors")
        own = training.model.state_dict()
        if differences := list(_tensor_differences(tensors, own)):
            shown = "; ".join(differences[:10]) + (f"; and {len(differences) - 10} more" if differences[10:] else "")
            raise CheckpointError(f"Checkpoint {name} holds another model: {shown}.")
        _copy(tensors, own)
        if averaged and training.averaged is not None:
            _copy(load_tensors(self.folder / name / "averaged.safetensors"), training.averaged.live)

    def clean(self) -> None:
        """Remove what killed writers left. Only the owner of the run's lock may call this."""
        if self.folder.is_dir():
            remove_leftovers(self.folder)

    def _problem(self, name: str) -> str:
        try:
            return "; ".join(manifest_problems(self.folder / name))
        except CheckpointError:
            return "manifest.json is missing or not readable"

    def _compare(self, name: str, made: Mapping[str, Any]) -> None:
        stored, own = flatten(made), flatten(self.identity)
        keys = [key for key in {**stored, **own} if stored.get(key) != own.get(key)]
        if "data.fingerprint" in keys:
            raise CheckpointError(
                f"Checkpoint {name} was made on other data (fingerprint {stored.get('data.fingerprint')}, now "
                f"{own['data.fingerprint']}). Bring those data back, or fit a new run."
            )
        if keys:
            shown = "; ".join(f"{key} = {stored.get(key)}, now {own.get(key)}" for key in keys[:10])
            raise CheckpointError(
                f"Checkpoint {name} was made with other settings: {shown}. Set them back, or fit a new run."
            )

    def _prune(self) -> None:
        """Keep the newest, and the best as each of them knows it: resuming an older one must find its best."""
        names = self.names()
        kept = names[-self.keep :]
        for name in list(kept):
            with suppress(CheckpointError):  # a damaged one is refused when it is asked for, not here
                if best := read_json(self.folder / name / "state.json")["best"]:
                    kept.append(f"step-{best['step']}")
        self._remove(name for name in names if name not in kept)

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            # Renamed first, or a kill in between would leave what looks like a damaged checkpoint.
            gone = (self.folder / name).rename(self.folder / f".{name}.tmp-removed")
            shutil.rmtree(gone)


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


def _whole(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Put sharded tensors together, in which all processes take part; only the main one needs the others."""
    main = distributed.rank() == 0
    return {name: distributed.whole(tensor) for name, tensor in tensors if main or isinstance(tensor, DTensor)}


def _copy(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        distributed.copy_whole(target, values[name])


def _tensor_differences(there: Mapping[str, Tensor], here: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted({*there, *here}):
        if name not in here:
            yield f'"{name}" is not in this model'
        elif name not in there:
            yield f'"{name}" is missing there'
        elif there[name].shape != here[name].shape:
            yield f'"{name}" is {tuple(there[name].shape)} there and {tuple(here[name].shape)} here'


def _optimizer_tensors(training: Training) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in training.model.named_parameters():
        for key, value in training.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                yield f"{name}/{key}", value


def _restore_optimizer(training: Training, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(training.model.named_parameters())
    for name, value in tensors.items():
        owner, _, key = name.rpartition("/")
        parameter = parameters[owner]
        if key == "step":  # a counter, which torch keeps on the CPU
            training.optimizer.state[parameter][key] = value
            continue
        training.optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False)
        distributed.copy_whole(training.optimizer.state[parameter][key], value)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of all global generators of this process: Python's, NumPy's, torch's and the device's."""
    _, words, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
        "numpy_position": torch.tensor([position, has_gauss], dtype=torch.int64),
        "numpy_gauss": torch.tensor([cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(*_device_argument(device))
    return state


def restore_random(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Set the states that `random_state` returned."""
    gauss = state["python_gauss"].tolist()
    random.setstate((3, tuple(state["python"].tolist()), gauss[0] if gauss else None))
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    torch.set_rng_state(state["torch"])
    if device.type != "cpu":
        torch.get_device_module(device).set_rng_state(state["device"], *_device_argument(device))


def _device_argument(device: torch.device) -> tuple[torch.device, ...]:
    """Return what the generator functions of a device take: torch.mps knows one device and takes nothing."""
    return () if device.type == "mps" else (device,)
