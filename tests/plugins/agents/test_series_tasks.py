"""The tasks events, classify and forecast."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.testing import check_task
from polyhead_agents.app import app
from polyhead_agents.classify_task import ClassifyMetric, ClassifyTask
from polyhead_agents.event_data import EventData, open_hawkes
from polyhead_agents.event_task import EventMetric, EventTask
from polyhead_agents.forecast_task import ForecastMetric, ForecastTask
from polyhead_agents.series_data import open_made_up_tones
from polyhead_agents.settings import EventSettings, SeriesSettings, TableSettings
from polyhead_agents.table_data import open_made_up_load
from polyhead_apps import run


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        run(app, arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.mark.parametrize("task", ["events", "classify", "forecast"])
def test_the_registered_tasks_conform(task: str) -> None:
    assert check_task(f"agents/{task}")


@pytest.mark.parametrize(
    ("task", "made"), [("events", "next-events.csv"), ("classify", "classes.csv"), ("forecast", "forecast.csv")]
)
def test_quick_demos(task: str, made: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--quick", "--threads", "1", "--set", "train.steps=2", "--set", "train.epochs=1")
    assert call("demo", "--task", task, *quick, "--out", str(tmp_path / "made")) == 0
    out = capsys.readouterr().out
    for text in ("aaren", "transformer", "no claim", "Generated data"):
        assert text in out
    run_folder = tmp_path / "made" / "aaren-seed-0"
    assert (run_folder / "predictions" / made).stat().st_size > 20
    assert call("evaluate", "--task", task, "--model", str(run_folder), "--json", "--threads", "1") == 0
    assert json.loads(capsys.readouterr().out)["metrics"]


def test_accuracy_and_cross_entropy_are_those_of_the_definition() -> None:
    metric = ClassifyMetric()
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    metric.update(logits, {"label": torch.tensor([1, 1])})
    figures = metric.compute()
    assert figures["accuracy"] == 50
    assert figures["cross_entropy"] == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_errors_are_those_of_standardised_readings() -> None:
    metric = ForecastMetric([2.0, 4.0])
    y = torch.tensor([[[1.0, 4.0]], [[2.0, 0.0]]])
    metric.update(torch.zeros(2, 1, 2), {"y": y})
    assert metric.compute() == {"mse": (0.25 + 1 + 1 + 0) / 4, "mae": (0.5 + 1 + 1 + 0) / 4}


def test_errors_of_intervals_do_not_cancel() -> None:
    mask = torch.tensor([[True, True, False]])
    metric = EventMetric()
    metric.update(
        {
            "interval": torch.tensor([[1.0, 5.0, 9.0]]),
            "kind": torch.tensor([[0, 1, 0]]),
            "log_density": torch.tensor([[-1.0, -2.0, -9.0]]),
            "log_kind": torch.tensor([[-0.5, -0.5, -9.0]]),
            "log_survival": torch.tensor([-4.0]),
        },
        {"intervals": torch.tensor([[2.0, 4.0, 1.0]]), "marks": torch.tensor([[0, 0, 0]]), "mask": mask},
    )
    assert metric.compute() == {"nll": 4.0, "rmse": 1.0, "accuracy": 50.0}


def test_the_poisson_baseline_is_the_poisson_process() -> None:
    data = EventData(
        [np.array([1.0, 3.0]), *[np.array([2.0])] * 4],
        [np.array([0, 0]), *[np.array([0])] * 4],
        np.full(5, 2.0),
        1,
        "",
        "",
        "",
    )
    task = EventTask.prepare(data, None, seed=0)
    batch = data.source("test").fetch([0], seed=0, epoch=0)
    metric = task.metric()
    metric.update(task.baselines(data)["Poisson"](batch), batch)
    assert metric.compute()["nll"] == pytest.approx(math.log(2) + 1 + 1)


def test_what_the_data_determine_is_not_set_and_other_data_are_refused() -> None:
    tones = open_made_up_tones(None, SeriesSettings())
    classify = ClassifyTask.prepare(tones, None, seed=0)
    with pytest.raises(ConfigError, match=r"model\.classes is 3, but the data have 6\. Leave it out"):
        classify.build_model("series-classifier", {"classes": 3})
    with pytest.raises(DataError, match=r"the model knows 4, 6 and 30\. Fit again"):
        ClassifyTask(4, 30, tones.classes, (0.0,) * 4, (1.0,) * 4).check(tones)
    load = open_made_up_load(None, TableSettings())
    with pytest.raises(DataError, match=r"history 96, but the model was fitted with 48\. Fit again"):
        ForecastTask(load.channels, 48, 96, (1.0, 1.0)).check(load)
    events = open_hawkes(None, EventSettings())
    with pytest.raises(DataError, match=r"hawkes has 2 kinds of events, the model knows 1\. Fit again"):
        EventTask(1, 1.0, 0.0, 1.0).check(events)
    for cls, name in ((ClassifyTask, "classify"), (ForecastTask, "forecast"), (EventTask, "events")):
        with pytest.raises(
            CheckpointError, match=rf"state of the task {name} does not fit this version: .*Fit the model again"
        ):
            cls.restore({})


def test_forecasts_go_on_behind_the_last_row(tmp_path: Path) -> None:
    load = open_made_up_load(None, TableSettings(history=24, horizon=3))
    task = ForecastTask.prepare(load, None, seed=0)
    model = task.build_model("series-forecaster", {"dim": 8, "depth": 1, "heads": 1, "ff_dim": 8}).eval()
    (file,) = task.write_predictions(model, load, tmp_path, None)
    rows = file.read_text().splitlines()
    last = load.start + (len(load.values) - 1) * load.step
    assert rows[0] == "date,load,price"
    assert [row.split(",")[0] for row in rows[1:]] == [(last + n * load.step).isoformat(sep=" ") for n in (1, 2, 3)]
