"""SIGKILL at random moments: every resumed run ends with exactly the weights, metrics and log of an undisturbed one."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
import torch.utils.tensorboard
from tests.parts.cases import CASES

from polyhead_apps import checkpoints, logs
from polyhead_apps.config import TrainSettings
from polyhead_apps.console import Console
from polyhead_apps.recipe import FitResult, fit

# Imported here for the children, which are forks: each of their many lives should take no longer than its steps.
assert accelerate
assert torch.utils.tensorboard

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")

SETTINGS = {
    "epochs": 2.5,
    "batch_size": 4,
    "accumulate": 2,
    "lr": 0.01,
    "schedule": "cosine",
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "validate_epochs": 0.5,
    "keep": 1,
    "log_steps": 1,
}
# One of the checkpoints' own: the loader's workers remove folders too.
SHUTIL = SimpleNamespace(rmtree=shutil.rmtree)
# A moment to die, and the function that is about to run then.
MOMENTS = {
    "step": (checkpoints.AveragedWeights, "update"),
    "validation": (logs.RunLog, "validation"),
    "log line": (logs.RunLog, "training"),
    "first file": (checkpoints, "save_tensors"),
    "manifest": (checkpoints, "write_manifest"),
    "checkpoint done": (checkpoints.Checkpoints, "_prune"),
    "old one renamed": (SHUTIL, "rmtree"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("case", CASES)
def test_killed_runs_end_like_undisturbed_ones(case: str, workers: int, tmp_path: Path) -> None:
    if case == "gman":
        pytest.importorskip("polyhead_traffic", reason="the traffic plugin is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert live(whole, case, workers, None) == 0
    chance = random.Random(f"{case} {workers}")
    deaths = []
    while (code := live(killed, case, workers, chance.randint(1, 25))) == -signal.SIGKILL:
        deaths.append((killed / "death").read_text())
        assert len(deaths) < 100, "the run does not get on"
    assert code == 0
    assert len(set(deaths)) >= 3, f"died too alike to show much: {deaths}"

    # Exactly: not one bit, not one character.
    expected, got = (torch.load(folder / "result.pt", weights_only=True) for folder in (whole, killed))
    torch.testing.assert_close(got["weights"], expected["weights"], rtol=0, atol=0)
    assert got["figures"] == expected["figures"]
    assert (killed / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    names = {path.name for path in (killed / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "checkpoints").iterdir()}


def live(folder: Path, case: str, workers: int, moments: int | None) -> int:
    """Fit in a process of its own, which has torch imported already; it kills itself after so many moments."""
    process = multiprocessing.get_context("fork").Process(target=_live, args=(folder, case, workers, moments))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _live(folder: Path, case: str, workers: int, moments: int | None) -> None:
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    left = iter(range(moments)) if moments is not None else None

    def at(moment: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def dangerous(*args: Any, **kwargs: Any) -> Any:
            if left is not None and next(left, None) is None:
                (folder / "death").write_text(moment)
                os.kill(os.getpid(), signal.SIGKILL)
            return run(*args, **kwargs)

        return dangerous

    checkpoints.shutil = SHUTIL  # type: ignore[assignment]
    for moment, (owner, name) in MOMENTS.items():
        setattr(owner, name, at(moment, getattr(owner, name)))
    made = CASES[case](dropout=0.2)
    result: FitResult = fit(
        made.model,
        made.task,
        train=made.train,
        validation=made.validation,
        settings=TrainSettings.model_validate({**SETTINGS, "workers": workers, "accumulate": 1 + (case != "plain")}),
        seed=0,
        folder=folder,
        resume="last",
        console=Console(quiet=True),
    )
    figures = repr((result.steps, result.best_metric, result.stopped, result.history))
    torch.save({"weights": result.model.state_dict(), "figures": figures}, folder / "result.pt")
