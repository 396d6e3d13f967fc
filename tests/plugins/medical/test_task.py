"""The task: loss, threshold, figures, growth; and the app from end to end."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.testing import check_task
from polyhead_medical.grids import Grid
from polyhead_medical.growth import growth
from polyhead_medical.losses import one_hot_of_share, shrink, soft_dice
from polyhead_medical.metrics import TumorMetric, measure
from polyhead_medical.mirror import MirrorData
from polyhead_medical.raidionics import overlap
from polyhead_medical.scans import ScanData
from polyhead_medical.settings import ScanSettings, TumorPredictSettings, TumorTaskSettings
from polyhead_medical.task import THRESHOLDS, TumorTask, scores_at

FEW = ScanSettings(train_cases=6, validation_cases=4, test_cases=4)
TINY = {"filters": [4, 8]}


def task(**settings: Any) -> TumorTask:
    return TumorTask.prepare(MirrorData(FEW), TumorTaskSettings(**settings), seed=0)


def test_the_task_keeps_the_rules() -> None:
    task_class: Any = TumorTask
    check_task(
        task_class,
        MirrorData(FEW),
        settings=TumorTaskSettings(smallest_voxels=0),
        predict_settings=TumorPredictSettings(files=("seg", "prob", "csv", "png")),
        model="daunet",
        config={"filters": [4, 8], "attention_dropout": 0.0},
    )


def test_the_loss_learns_from_nothing_but_background() -> None:
    logits = torch.full((1, 2, 4, 4, 4), -20.0)
    logits[:, 0] = 20.0
    logits.requires_grad_()
    share = torch.zeros(1, 4, 4, 4)
    share[0, 1:3, 1:3, 1:3] = 1
    loss = soft_dice(logits.double().softmax(1), one_hot_of_share(share).double())
    loss.sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.abs().sum()) > 0


def test_small_lesions_keep_their_share_at_coarse_heads() -> None:
    share = torch.zeros(1, 8, 8, 8)
    share[0, 3, 3, 3] = 1
    coarse = shrink(shrink(one_hot_of_share(share)))
    assert coarse.shape == (1, 2, 2, 2, 2)
    assert float(coarse[:, 1].sum()) == pytest.approx(1 / 64)
    torch.testing.assert_close(coarse.sum(1), torch.ones(1, 2, 2, 2))


def test_a_slab_model_slides_over_the_volume() -> None:
    slabs = task(slab=8)
    model = slabs.build_model("unet", TINY).eval()
    batch = MirrorData(FEW).source("train").fetch([0, 1], seed=0, epoch=0)
    assert slabs.predict(model, batch).shape == (2, 32, 32, 32)
    assert all(math.isfinite(float(ratio.total.detach())) for ratio in slabs.loss(model, batch).values())


def test_the_threshold_is_chosen_on_validation_and_kept() -> None:
    chosen = task().calibrate(task().build_model("unet", TINY), MirrorData(FEW))
    assert chosen.threshold in THRESHOLDS
    assert TumorTask.restore(chosen.state()) == chosen


def test_scores_are_those_of_the_masks_and_the_volume_can_choose() -> None:
    rng = np.random.default_rng(0)
    truth, grid = rng.random((6, 7, 8)) < 0.3, Grid.whole((6, 7, 8), np.diag([1.0, 2.0, 1.0, 1]))
    probability = np.clip(truth * 0.4 + rng.random(truth.shape) * 0.6, 0, 1)
    for score in scores_at(probability, truth, grid):
        found = probability >= score.threshold
        assert score.dice == pytest.approx(overlap(found, truth).dice)
        assert score.found_ml == pytest.approx(found.sum() * 0.002)
    chosen = task(threshold_for="volume").calibrate(task().build_model("unet", TINY), MirrorData(FEW))
    assert chosen.threshold in THRESHOLDS


def test_what_does_not_fit_is_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.classes is 3, but the data ask for 2. Leave it out"):
        task().build_model("unet", {"classes": 3})
    with pytest.raises(ConfigError, match=r"data.size is 32 × 32 × 32: with 7 levels .* multiples of 64"):
        task().build_model("unet", {"filters": [2] * 7})
    with pytest.raises(ConfigError, match=r"task.slab is 6: with 3 levels .* multiples of 4"):
        task(slab=6).build_model("unet", {"filters": [2, 2, 2]})
    with pytest.raises(CheckpointError, match="does not fit this version: thresholds"):
        TumorTask.restore({**task().state(), "thresholds": 1})
    two = TumorTask(channels=("t1c", "flair"), size=(16, 16, 16))
    with pytest.raises(DataError, match=r"heads has the channels scan; the model was fitted on t1c, flair"):
        two.check(ScanData(folder, ScanSettings(size=(16, 16, 16))))


def test_figures_of_patients_with_and_without_a_tumour() -> None:
    grid = Grid.whole((10, 10, 10), np.diag([2.0, 2.0, 2.0, 1]))
    truth = torch.zeros(10, 10, 10, dtype=torch.uint8)
    truth[2:6, 2:6, 2:6] = 1
    seen = truth.float().clone()
    seen[2, 2:6, 2:6] = 0
    nothing = torch.zeros_like(truth)
    metric = TumorMetric(0.5, smallest=0, surfaces=True)
    metric.update([seen, seen, nothing.float()], {"label": [truth, nothing, nothing], "grid": [grid] * 3})
    figures = metric.compute()
    dice = 2 * 48 / (48 + 64)
    assert figures["dice"] == pytest.approx(dice / 3)
    assert figures["dice_monai"] == pytest.approx(dice)
    assert figures["volume_error"] == pytest.approx(25.0)
    assert figures["volume_bias_ml"] == pytest.approx(-16 * 8 / 1000)
    assert figures["false_ml"] == pytest.approx(48 * 8 / 1000 / 2)
    assert figures["patient_recall"] == pytest.approx(1, abs=1e-5)
    assert figures["patient_precision"] == pytest.approx(0.5, abs=1e-5)
    assert figures["hd95_mm"] == pytest.approx(2.0)
    assert TumorMetric(0.5, smallest=0).compute() == {}


def test_surfaces_are_measured_in_mm() -> None:
    grid = Grid.whole((20, 20, 20), np.diag([1.0, 1.0, 3.0, 1]))
    truth = np.zeros((20, 20, 20), dtype=bool)
    truth[5:10, 5:10, 5:10] = True
    found = np.roll(truth, 2, axis=2)
    assert measure(found, truth, grid, surfaces=True).hd95_mm == pytest.approx(6.0)


def test_thirds_of_volume_are_told_from_nine_patients_on() -> None:
    grid = Grid.whole((12, 12, 12), np.eye(4))
    metric = TumorMetric(0.5, smallest=0)
    for size in range(2, 11):
        truth = torch.zeros(12, 12, 12, dtype=torch.uint8)
        truth[:size, :size, :size] = 1
        seen = truth.float() * (size > 4)
        metric.update(seen[None], {"label": [truth], "grid": [grid]})
    figures = metric.compute()
    assert [figures[f"recall_{name}"] for name in ("small", "middle", "large")] == [0.0, 1.0, 1.0]


def test_growth_in_words() -> None:
    assert growth(0.04, 3).sentence() == "growth: 0.04 ml before, 3.00 ml now. Below 0.05 ml before, no rate is given."
    assert growth(4, 4.4).sentence() == "growth: 4.00 ml before, 4.40 ml now, +10.0 % (stable)."
    shrunk = growth(4, 2, days=100)
    assert shrunk.doubling_days == pytest.approx(-100)
    assert "halving in 100 days" in shrunk.sentence()
    assert growth(4, 0, days=100).doubling_days is None
