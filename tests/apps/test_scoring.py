from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from polyhead_apps.scoring import WIDE, Scores


def scores(**changes: Any) -> Scores:
    values: dict[str, Any] = {
        "split": "test",
        "model": "gman",
        "metrics": {"mae": 2.0, "acc": 0.5},
        "baselines": {"last": {"mae": 3.0, "acc": 0.75}, "mean": {"mae": 2.0, "acc": math.nan}},
        "monitor": "mae",
        "directions": {"mae": "min", "acc": "max"},
    }
    return Scores(**{**values, **changes})


def test_models_are_rows_and_the_best_of_each_metric_is_marked() -> None:
    columns, rows, best = scores().table()
    assert columns == ["model", "mae", "acc"]
    assert [row[0] for row in rows] == ["gman", "last", "mean"]
    assert set(best) == {(0, 1), (2, 1), (1, 2)}


def test_many_metrics_become_rows() -> None:
    many = {f"mae@{step}": float(step) for step in range(WIDE + 1)}
    columns, rows, best = scores(metrics=many, baselines={"last": many}, directions=dict.fromkeys(many, "min")).table()
    assert columns == ["metric", "gman", "last"]
    assert [row[0] for row in rows] == list(many)
    assert set(best) == {(row, column) for row in range(len(many)) for column in (1, 2)}


def test_headline_picks_and_orders_what_the_table_shows() -> None:
    assert scores(headline=["acc", "mae", "other"]).table()[0] == ["model", "acc", "mae"]
    assert set(scores(headline=["acc"]).document()["metrics"]) == {"mae", "acc"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "On the test split gman has mae 2; the best baseline, mean, has 2."),
        ({"baselines": {}}, "On the test split gman has mae 2."),
        ({"baselines": {"last": {"mae": math.nan}}}, "On the test split gman has mae 2."),
        ({"monitor": "acc"}, "On the test split gman has acc 0.5; the best baseline, last, has 0.75."),
        ({"monitor": "loss"}, "On the test split gman has mae 2; the best baseline, mean, has 2."),
        ({"metrics": {}}, "There are no metrics."),
    ],
)
def test_the_sentence_names_the_best_baseline(changes: dict[str, Any], sentence: str) -> None:
    assert scores(**changes).sentence() == sentence


def test_documents_hold_no_nan() -> None:
    document = scores(metrics={"mae": math.inf}).document()
    assert document["metrics"] == {"mae": None}
    assert document["baselines"]["mean"] == {"mae": 2.0, "acc": None}


def test_tasks_say_what_is_better_and_what_is_shown(
    line_fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import polyhead_fake.task

    monkeypatch.setattr(polyhead_fake.task.LineTask, "directions", {"rmse": "max"}, raising=False)
    monkeypatch.setattr(polyhead_fake.task.LineTask, "headline", ["rmse"], raising=False)
    monkeypatch.setattr("polyhead_apps.console.Console.color", True)
    said = line_fit("fit", "--data", "toy-lines", "--steps", 2, "--threads", 1)
    assert said.code == 0, said.err
    columns, model, mean, first, _ = said.out.splitlines()
    assert columns.split() == ["model", "rmse"]
    assert "\x1b[1m" in mean
    assert "\x1b[1m" not in model + first
