"""The evaluators: equal to OpenTAD's on odd data, exact on perfect predictions, and equal to a plain double loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead_actions.evaluation import Table, average_precisions, average_recall, without_duplicates


@pytest.fixture(scope="module")
def case(shared: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((shared / "golden" / "csa" / "case_evaluator.json").read_text())
    return found


def _tables(case: dict[str, Any], without: tuple[str, ...] = ()) -> tuple[Table, Table, dict[str, int]]:
    names: dict[str, int] = {}
    labels: dict[str, int] = {}
    truth, found = [], []
    for name, video in case["ground_truth"]["database"].items():
        if video["subset"] != "validation":
            continue
        for annotation in video["annotations"]:
            label = labels.setdefault(annotation["label"], len(labels))
            truth.append((names.setdefault(name, len(names)), *annotation["segment"], label, 1.0))
    for name, predictions in case["predictions"]["results"].items():
        for row in predictions if name not in without else ():
            label = labels.get(row["label"], -1)
            found.append((names.setdefault(name, len(names)), *row["segment"], label, row["score"]))
    return without_duplicates(Table.make(truth)), Table.make(found), labels


@pytest.mark.parametrize("name", ["mAP_03_07", "mAP_05_095"])
def test_map_equals_opentads(case: dict[str, Any], name: str) -> None:
    results = case.get("results", case)
    key = name if name in results else next(k for k in results if k.startswith("mAP") and k != "mAP_05_095")
    want = results[key]
    truth, found, labels = _tables(case)
    precisions = average_precisions(truth, found, want["tiou"])
    mean = np.mean(list(precisions.values()), axis=0)
    assert mean.mean() == pytest.approx(want["average_mAP"], abs=1e-9)
    for value, level in zip(mean, want["tiou"], strict=True):
        assert value == pytest.approx(want[f"mAP@{level}"], abs=1e-9)
    for label, values in want.get("per_class", {}).items():
        assert precisions[labels[label]] == pytest.approx(values, abs=1e-9)


def test_average_recall_equals_opentads(case: dict[str, Any]) -> None:
    results = case.get("results", case)
    want = results["AR"]
    truth, found, _ = _tables(case, without=tuple(want["excluded_predictions"]))
    recall = average_recall(truth, found, want["tiou"], most=want["max_avg_nr_proposals"])
    assert np.abs(recall.recall - np.array(want["recall"])).max() < 1e-9
    assert recall.per_video == pytest.approx(want["proposals_per_video"], abs=1e-9)
    assert recall.area == pytest.approx(want["AUC"], abs=1e-9)
    for number in (1, 5, 10, 20):
        assert recall.at(number) == pytest.approx(want[f"AR@{number}"], abs=1e-9)


def test_perfect_predictions() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for video in range(20):
        for action in range(int(rng.integers(1, 4))):
            start = 10 * action + rng.random()
            rows.append((video, start, start + 1 + 5 * rng.random(), int(rng.integers(3)), rng.random()))
    truth = Table.make(rows)
    levels = np.linspace(0.5, 0.95, 10)
    for values in average_precisions(truth, truth, levels.tolist()).values():
        assert values == pytest.approx(np.ones(10))
    recall = average_recall(truth, truth, levels.tolist())
    assert recall.at(100) == 1.0
    one = Table.make([(video, 1.0, 2.0, 0, 0.5) for video in range(5)])
    assert average_recall(one, one, levels.tolist()).area == pytest.approx(0.99)


def _plain(truth: Table, found: Table, level: float) -> float:
    """Return AP by the evaluator's loops."""
    order = np.argsort(-found.scores, kind="stable")
    locked, hits = set(), []
    for row in order:
        best, hit = -1.0, None
        for action in np.flatnonzero(truth.videos == found.videos[row]):
            (a, b), (c, d) = found.segments[row], truth.segments[action]
            overlap = max(0.0, min(b, d) - max(a, c))
            iou = overlap / ((b - a) + (d - c) - overlap)
            if iou >= level and iou > best and action not in locked:
                best, hit = iou, action
        if hit is not None:
            locked.add(hit)
        hits.append(hit is not None)
    true = np.cumsum(hits)
    precision, recall = true / np.arange(1, len(hits) + 1), true / len(truth.scores)
    area, last = 0.0, 0.0
    for i in range(len(hits)):
        if recall[i] != last:
            area += (recall[i] - last) * precision[i:].max()
            last = recall[i]
    return area


@pytest.mark.parametrize("seed", range(3))
def test_map_equals_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def table(rows: int) -> Table:
        start = rng.random(rows) * 20
        segments = np.stack([start, start + 1 + 6 * rng.random(rows)], 1)
        return Table(rng.integers(0, 6, rows), segments, np.zeros(rows, dtype=np.int64), rng.random(rows))

    truth, found = table(25), table(200)
    levels = (0.3, 0.5, 0.7)
    got = average_precisions(truth, found, levels)[0]
    assert got == pytest.approx([_plain(truth, found, level) for level in levels])


def test_nothing_found_and_nothing_to_find() -> None:
    truth, nothing = Table.make([(0, 0.0, 1.0, 0, 1.0)]), Table.make([])
    assert average_precisions(truth, nothing, (0.5,))[0].tolist() == [0.0]
    assert average_precisions(nothing, truth, (0.5,)) == {}
    assert average_recall(truth, nothing, (0.5,)).at(1) == 0
    assert average_recall(nothing, truth, (0.5,)).at(1) == 0
    assert average_recall(truth, truth._replace(videos=truth.videos + 1), (0.5,)).at(1) == 0
