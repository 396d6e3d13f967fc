"""A sensor that was added after training: refused with the reason, and the way on from the old weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from polyhead_apps.shell import main
from polyhead_traffic.app import app

WINDOWS = ("--history", "4", "--horizon", "3", "--preset", "tiny", "--steps", "2", "--set", "task.embedding=laplacian")


def _write(path: Path, sensors: int) -> str:
    rng = np.random.default_rng(0)
    hours = np.arange(9 * 24)
    values = 50 + 15 * np.cos(2 * np.pi * hours / 24)[:, None] + rng.normal(0, 2, (len(hours), 6))
    lines = ["timestamp," + ",".join(f"n{i}" for i in range(sensors))]
    for hour, row in zip(hours, values, strict=True):
        stamp = np.datetime64("2024-03-04T00:00") + np.timedelta64(int(hour), "h")
        lines.append(",".join([str(stamp), *(f"{value:.1f}" for value in row[:sensors])]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_a_new_sensor_needs_a_fit_that_may_start_from_the_old_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    old, new = _write(tmp_path / "five.csv", 5), _write(tmp_path / "six.csv", 6)
    assert main(app, ["fit", "--data", old, *WINDOWS, "--out", "first", "-q"]) == 0
    capsys.readouterr()

    for verb in ("predict", "evaluate", "fill"):
        assert main(app, [verb, "--model", "first", "--data", new]) == 1
        said = capsys.readouterr().err.splitlines()[-1]
        assert 'six has 1 that the model does not know ("n5")' in said
        assert "where a sensor stands in the network was learned together with the others" in said
        assert said.endswith("Fit on these data. `fit --init-from RUN` starts from the weights of this model.")

    assert main(app, ["fit", "--data", new, "--init-from", "first", *WINDOWS, "--out", "second"]) == 0
    said = capsys.readouterr().err
    taken, of = said.split("weights: ")[1].split(" tensors")[0].split(" of ")
    assert int(taken) > 0.9 * int(of)
    assert "spatial_embedding" in said.split("weights not loaded: ")[1].splitlines()[0]
    assert json.loads((tmp_path / "second" / "metrics.json").read_text())["metrics"]["mae"] > 0
