"""The demo of `object-detect`: the shell's comparison of encoders, and what they cost beside it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from polyhead.artifacts import read_json
from polyhead_apps.app import App
from polyhead_apps.console import Console
from polyhead_apps.options import Given
from polyhead_apps.runs import RUNS
from polyhead_apps.verbs.demo import demo as compare_arms

__all__ = ["demo"]

TIMED = 16
"""Test pictures that are detected in at once when the encoder is timed."""


def demo(app: App, given: Given, console: Console, *, out: Path | None = None, **options: Any) -> None:
    """Do what the shell's demo does, then say what each encoder computes and how long it takes."""
    folder = out or RUNS / app.name / f"{datetime.now():%Y%m%d-%H%M%S}-comparison"
    compare_arms(replace(app, demo=replace(app.demo, function="")), given, console, out=folder, **options)
    if not options.get("data"):
        for line in encoder_lines(folder):
            console.line(line)


def encoder_lines(folder: Path) -> list[str]:
    """Return what the encoder of each arm costs for a test picture, by the first run of each arm in ``folder``."""
    lines = []
    for name, figures in encoder_costs(folder).items():
        lines.append(
            f"encoder of {name}: {figures['encoder_mmac']:.1f} MMAC and {figures['encoder_ms']:.2f} "
            f"ms a picture; scoring its tokens: {figures['scoring_mmac']:.1f} and {figures['scoring_ms']:.2f} ms"
        )
    return lines


def encoder_costs(folder: Path) -> dict[str, dict[str, float]]:
    """Return counted work and measured time a picture, by arm."""
    from polyhead.models import from_pretrained
    from polyhead_detection.costs import encoder_macs, encoder_seconds
    from polyhead_detection.digits import DigitData
    from polyhead_detection.settings import PictureSettings

    batch = DigitData(PictureSettings()).source("test").fetch(range(TIMED), seed=0, epoch=0)
    costs = {}
    for arm in read_json(folder / "comparison.json")["arms"]:
        model: Any = from_pretrained(Path(arm["runs"][0]["run"]) / "model")
        tokens = model(batch["image"][:1]).token_mask.shape[1]
        macs = encoder_macs(model.config, tokens)
        encoder, selector = encoder_seconds(model, batch["image"])
        costs[arm["name"]] = {
            "encoder_mmac": macs.total / 1e6,
            "scoring_mmac": macs.scoring / 1e6,
            "encoder_ms": 1e3 * encoder / TIMED,
            "scoring_ms": 1e3 * selector / TIMED,
        }
    return costs
