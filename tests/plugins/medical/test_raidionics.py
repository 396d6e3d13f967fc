"""Figures of `raidionicsval` and MONAI against recorded ones and against the libraries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from polyhead_medical.raidionics import Score, best_threshold, components, objectwise, overlap, patientwise


@pytest.fixture
def golden(shared: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = shared / "golden" / "daunet"
    return json.loads((folder / "case_metrics.json").read_text()), load_file(folder / "case_metrics_masks.safetensors")


def test_masks_score_as_recorded(golden: tuple[dict[str, Any], dict[str, Any]]) -> None:
    about, masks = golden
    assert len(about["cases"]) > 5
    for name, case in about["cases"].items():
        truth, found = (masks[f"inputs/{name}/{what}"] > 0 for what in ("ground_truth", "prediction"))
        mine = overlap(found, truth)
        assert mine._asdict() == pytest.approx({key: case[key] for key in mine._fields}, abs=1e-9), name
        for smallest in (50, 10, 0):
            theirs = case[f"objectwise_min{smallest}"]
            objects = objectwise(found, truth, smallest=smallest)
            assert (objects.truth, objects.found) == (theirs["n_gt"], theirs["n_pred"]), (name, smallest)
            if name != "random_noise":  # among hundreds of specks several assignments are equally good
                pairs = sorted(theirs["pairs"])
                assert [list(pair) for pair in sorted(objects.pairs)] == [pytest.approx(p, abs=1e-9) for p in pairs], (
                    name
                )
            values = (objects.recall, objects.precision, objects.f1)
            assert values == pytest.approx(theirs["values_recall_precision_f1"], abs=1e-9), (name, smallest)


def test_patients_score_as_recorded(golden: tuple[dict[str, Any], dict[str, Any]]) -> None:
    about, _ = golden
    columns = about["score_table"]["columns"]
    rows = [dict(zip(columns, row, strict=True)) for row in about["score_table"]["rows"]]
    for key, folds in about["patientwise"].items():
        condition, threshold, least, volume = (
            key.replace("thr", "").replace("overlap", "").replace("vol", "").split("_")
        )
        for fold, theirs in enumerate(folds):
            scores = [
                Score(row["Threshold"], row["PiW Dice"], row["GT volume (ml)"], row["Detection volume (ml)"])
                for row in rows
                if row["Fold"] == fold and row["Threshold"] == float(threshold)
            ]
            mine = patientwise(scores, overlap=float(least), condition=condition, smallest_ml=float(volume))
            assert tuple(mine) == pytest.approx(theirs, abs=1e-9), (key, fold)
    patients: dict[str, list[Score]] = {}
    for row in rows:
        score = Score(row["Threshold"], row["PiW Dice"], row["GT volume (ml)"], row["Detection volume (ml)"])
        patients.setdefault(row["Patient"], []).append(score)
    best = about["best_threshold"]["all"]
    assert best_threshold(patients) == (best["best_overlap"], best["best_threshold"])


def test_an_empty_pair_is_0_here_and_left_out_by_monai() -> None:
    from monai.metrics.meandice import DiceMetric

    empty = np.zeros((4, 4, 4), dtype=bool)
    assert overlap(empty, empty).dice == 0.0
    metric = DiceMetric(include_background=True, ignore_empty=True, reduction="none")
    dice: Any = metric(torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4))
    assert dice.isnan().all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.05, 0.6))
def test_dice_is_monais_where_there_is_a_tumour(seed: int, share: float) -> None:
    from monai.metrics.meandice import compute_dice

    rng = np.random.default_rng(seed)
    found, truth = (rng.random((5, 6, 7)) < share for _ in range(2))
    truth[2, 2, 2] = True
    a, b = (torch.from_numpy(mask)[None, None].float() for mask in (found, truth))
    assert overlap(found, truth).dice == pytest.approx(float(compute_dice(a, b)), abs=1e-6)


def test_small_components_are_dropped_and_the_others_numbered_anew() -> None:
    mask = np.zeros((9, 3, 3), dtype=bool)
    mask[0, 0, 0] = mask[2:4] = mask[6:] = True
    parts, count = components(mask, 10)
    assert count == 2
    assert parts[0, 0, 0] == 0
    assert set(np.unique(parts[2:4])) == {1}
    assert set(np.unique(parts[6:])) == {2}
