"""COCO's figures equal those of pycocotools; token figures are what they say."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from polyhead_detection.metrics import FIGURES, CocoMetric, ObjectsFound, TokenMetric, coco_figures
from polyhead_detection.pictures import Category

NAMES = ("a", "b", "c")


def _oracle(ids: list[int], truth: Any, found: Any) -> list[float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known, results = COCO(), COCO()
    images = [{"id": image, "height": 480, "width": 640} for image in ids]
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)]
    known.dataset = {"images": images, "categories": categories, "annotations": []}
    results.dataset = {"images": images, "categories": categories, "annotations": []}
    for image, rows, answers in zip(ids, truth, found, strict=True):
        for row in rows:
            entry = {"bbox": row[:4].tolist(), "area": float(row[4]), "iscrowd": int(row[5])}
            number = len(known.dataset["annotations"]) + 1
            known.dataset["annotations"].append(
                {"id": number, "image_id": image, "category_id": int(row[6]) + 1, **entry}
            )
        for row in answers:
            number = len(results.dataset["annotations"]) + 1
            entry = {"bbox": row[:4].tolist(), "area": float(row[2] * row[3]), "iscrowd": 0, "score": float(row[4])}
            results.dataset["annotations"].append(
                {"id": number, "image_id": image, "category_id": int(row[5]) + 1, **entry}
            )
    with contextlib.redirect_stdout(io.StringIO()):
        known.createIndex()
        results.createIndex()
        evaluation = COCOeval(known, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


def _draw(seed: int, pictures: int) -> tuple[list[int], list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Draw truth with crowds and empty pictures, and answers near it and elsewhere, many with equal scores."""
    generator = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(pictures):
        count = int(generator.integers(0, 7)) * int(generator.random() < 0.8)
        boxes = np.concatenate([generator.uniform(0, 300, (count, 2)), 2 ** generator.uniform(2, 8, (count, 2))], 1)
        crowd = generator.random(count) < 0.2
        area = boxes[:, 2] * boxes[:, 3] * generator.choice([1.0, 0.7], count)
        labels = generator.integers(0, 3, count)
        truth.append(np.column_stack([boxes, area, crowd, labels]).reshape(-1, 7))
        near = boxes[generator.integers(0, count, 2 * count)] if count else np.zeros((0, 4))
        near = near * generator.normal(1, 0.1, near.shape)
        far = np.concatenate([generator.uniform(0, 300, (5, 2)), generator.uniform(5, 200, (5, 2))], 1)
        answers = np.concatenate([near, far])
        answers[:, 2:] = np.maximum(answers[:, 2:], 1)
        scores = np.sort(generator.integers(1, 8, len(answers)) / 8)[::-1]
        found.append(np.column_stack([answers, scores, generator.integers(0, 3, len(answers))]))
    return list(range(1, pictures + 1)), truth, found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12))
def test_k_the_twelve_figures_are_those_of_pycocotools(seed: int, pictures: int) -> None:
    ids, truth, found = _draw(seed, pictures)
    ours = coco_figures(ids, [(480, 640)] * pictures, truth, found, NAMES)
    theirs = _oracle(ids, truth, found)
    for name, value in zip(FIGURES, theirs, strict=True):
        assert ours[name] == pytest.approx(value, abs=1e-6), name
    per_class = [ours[f"ap_{name}"] for name in NAMES if ours[f"ap_{name}"] > -1]
    if per_class:
        assert np.mean(per_class) == pytest.approx(ours["ap"], abs=1e-6)


def test_nothing_found_and_nothing_there() -> None:
    empty, nothing = np.zeros((0, 7)), np.zeros((0, 6))
    box = np.array([[10, 10, 20, 20, 400, 0, 1.0]])
    assert coco_figures([1], [(64, 64)], [box], [nothing], NAMES)["ap"] == 0
    assert set(coco_figures([1], [(64, 64)], [empty], [nothing], NAMES).values()) == {-1.0}
    perfect = np.array([[10, 10, 20, 20, 0.9, 1.0]])
    figures = coco_figures([1], [(64, 64)], [box], [perfect], NAMES)
    assert figures["ap"] == figures["ap_b"] == figures["ar100"] == pytest.approx(1.0)
    assert figures["ap_a"] == -1


def _batch(ids: list[int], truth: Any, found: Any) -> tuple[ObjectsFound, dict[str, Any]]:
    corners = [np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1) for rows in found]
    prediction = ObjectsFound(
        [torch.from_numpy(rows[:, 4]) for rows in found],
        [torch.from_numpy(rows[:, 5].astype(np.int64)) for rows in found],
        [torch.from_numpy(rows) for rows in corners],
        torch.tensor([[3.0, 4.0, 10.0, 40.0, 7.5]] * len(ids)),
    )
    sizes = torch.tensor([[480, 640]] * len(ids))
    return prediction, {
        "image_id": torch.tensor(ids),
        "original_size": sizes,
        "truth": [torch.from_numpy(t) for t in truth],
    }


def test_processes_merge_and_a_picture_that_two_have_counts_once() -> None:
    ids, truth, found = _draw(5, 8)
    categories = [Category(number, name) for number, name in enumerate(NAMES)]
    whole, parts = CocoMetric(categories), [CocoMetric(categories), CocoMetric(categories)]
    whole.update(*_batch(ids, truth, found))
    parts[0].update(*_batch(ids[:5], truth[:5], found[:5]))
    parts[1].update(*_batch(ids[4:], truth[4:], found[4:]))
    parts[0].merge([part.state() for part in parts])
    assert parts[0].compute() == pytest.approx(whole.compute())


def test_tokens_are_counted_over_all_pictures() -> None:
    ids, truth, found = _draw(5, 2)
    metric = TokenMetric([Category(number, name) for number, name in enumerate(NAMES)])
    metric.update(*_batch(ids, truth, found))
    other = TokenMetric(metric._coco.categories)
    other.merge([metric.state()])
    figures = other.compute()
    assert (figures["token_recall"], figures["token_share"], figures["encoder_mmac"]) == (0.75, 0.25, 7.5)
    assert list(figures)[: len(FIGURES)] == list(FIGURES)
