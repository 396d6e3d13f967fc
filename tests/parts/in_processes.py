"""What `test_two_processes` runs under torchrun, and in its own process for comparison: ``in_processes.py OUT``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.state import AcceleratorState, DistributedType, PartialState
from tests.parts.cases import Case, batch_norm, gman, in_float64, plain
from tests.parts.training import Numbers
from torch import nn

from polyhead.errors import PolyheadError
from polyhead_apps import distributed
from polyhead_apps.config import TrainSettings
from polyhead_apps.console import Console
from polyhead_apps.recipe import FitResult, evaluate, fit, predictor

SETTINGS = {"batch_size": 4, "lr": 0.01, "log_steps": 1, "validate_epochs": 2, "clip_norm": 5.0}


class Setup(NamedTuple):
    """What is trained, and how."""

    case: Callable[[], Case]
    steps: int
    accumulate: int


# Gradients of a bias before batch norm are rounding and nothing else, and Adam makes full steps of them: in float32
# any two ways to add up drift apart, which says nothing about the recipe. So these are compared in float64.
SETUPS = {
    "plain": Setup(plain, 50, 1),
    "batch norm": Setup(lambda: in_float64(batch_norm()), 50, 1),
    "batch norm, accumulated": Setup(lambda: in_float64(batch_norm()), 50, 2),
    "gman": Setup(lambda: in_float64(gman()), 50, 1),
    "gman, accumulated": Setup(lambda: in_float64(gman()), 14, 2),
}


def train(case: Case, folder: Path, *, resume: str | None = None, limit: float | None = None, **more: Any) -> FitResult:
    return fit(
        case.model,
        case.task,
        train=case.train,
        validation=case.validation,
        settings=TrainSettings.model_validate({**SETTINGS, **more}),
        seed=0,
        folder=folder,
        resume=resume,
        time_limit=limit,
        console=Console(quiet=True),
        device="cpu",
    )


def curves(out: Path) -> dict[str, Any]:
    """Train every case; the curves and weights have to be those of any number of processes."""
    found: dict[str, Any] = {}
    for name, setup in SETUPS.items():
        case = setup.case()
        result = train(case, out / name, steps=setup.steps, accumulate=setup.accumulate)
        predict = predictor(result.model, case.task)
        figures = evaluate(predict, case.task, case.train, batch_size=5, seed=0, console=Console(quiet=True))
        found[name] = {
            "history": list(result.history),
            "weights": {key: value.flatten().tolist() for key, value in result.model.state_dict().items()},
            "best": result.best_metric,
            "figures": figures,
        }
    return found


class Spoilt(Numbers):
    """One sample has a NaN, so that only one process sees it."""

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> dict[str, Any]:
        batch = super().fetch(indices, seed=seed, epoch=epoch)
        batch["x"][batch["index"] == 7] = float("nan")
        return batch


class Plain(nn.Module):
    """A model whose batch norm reduces nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1), nn.Flatten(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def together(out: Path) -> dict[str, Any]:
    """Try what only several processes can get wrong; returns what every process saw."""
    # Stopped and resumed: exactly the undisturbed run, dropout of each process included.
    noisy: dict[str, Any] = {"steps": 12}
    whole = train(plain(dropout=0.3), out / "whole", **noisy)
    train(plain(dropout=0.3), out / "stopped", limit=0.0, **noisy)
    resumed = train(plain(dropout=0.3), out / "stopped", resume="last", **noisy)
    same = all(
        torch.equal(a, b)
        for a, b in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )

    spoilt = plain()._replace(train=Spoilt(21))
    damaged = out / "stopped" / "checkpoints" / "step-12" / "model.safetensors"
    if distributed.rank() == 0:
        damaged.write_bytes(damaged.read_bytes()[:-1])
    local = train(plain()._replace(model=Plain(), train=Numbers(20)), out / "local", **noisy)
    own = {
        "resumed": same and resumed.history == whole.history,
        "sharded": sharded(out),
        "nan": message(lambda: train(spoilt, out / "nan", steps=6)),
        "damaged": message(lambda: train(plain(), out / "stopped", resume="last", **noisy)),
        "buffers": [buffer.tolist() for buffer in local.model.buffers()],
    }
    return {"seen": distributed.gather_objects(own)}


def sharded(out: Path) -> dict[str, Any]:
    """Train with FSDP, stopped and resumed; return how far the weights are from those of DDP."""
    given: dict[str, Any] = {"steps": 7, "accumulate": 2, "ema_decay": 0.9}
    expected = train(in_float64(gman()), out / "shared", **given).model.state_dict()
    real = distributed.start

    def start(precision: str, device: str, model: nn.Module) -> Any:
        # torch can shard on the CPU; Accelerate would not.
        accelerator = real(precision, device)
        for state in (AcceleratorState._shared_state, PartialState._shared_state):
            state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = distributed.sharding(model)
        return accelerator

    distributed.start = start  # type: ignore[assignment]
    try:
        train(in_float64(gman()), out / "sharded", limit=0.0, **given)
        result = train(in_float64(gman()), out / "sharded", resume="last", **given)
    finally:
        distributed.start = real
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
    got = result.model.state_dict()
    return {
        "away": max(float((got[name] - value).abs().max()) for name, value in expected.items()),
        "plain": all(type(value) is nn.Parameter for value in result.model.parameters()),
    }


def message(call: Callable[[], object]) -> str:
    try:
        call()
    except PolyheadError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def main() -> None:
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    found = {**curves(out), **together(out)}
    if distributed.rank() == 0:
        (out / "found.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
