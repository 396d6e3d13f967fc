"""The task: conformance, and what it says to data and settings that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.testing import check_task
from polyhead_gaze.formats import open_files
from polyhead_gaze.searchers import SearcherData
from polyhead_gaze.settings import DisplaySettings, PredictSettings, ScanpathTaskSettings
from polyhead_gaze.task import ScanpathTask

TASK: Any = ScanpathTask
TINY = {"dim": 24, "heads": 2, "depth": 1, "decoder_depth": 1, "ff_dim": 48, "dropout": 0.0}


@pytest.fixture
def data() -> SearcherData:
    return SearcherData(DisplaySettings(displays=16, test_displays=3))


@pytest.mark.parametrize("location", ["given", "hidden"])
def test_conformance(data: SearcherData, location: str) -> None:
    settings = ScanpathTaskSettings.model_validate({"target_location": location, "samples": 3})
    predict = PredictSettings(samples=4, files=("scanpaths", "areas", "picture"))
    check_task(TASK, data, settings=settings, model="oat", config=TINY, predict_settings=predict)


def test_conformance_on_files(shelf: Path) -> None:
    recorded = open_files(shelf, DisplaySettings())
    settings, predict = ScanpathTaskSettings(samples=3), PredictSettings(samples=4)
    check_task(TASK, recorded, settings=settings, model="oat", config=TINY, predict_settings=predict)


def _task(data: Any, **settings: Any) -> ScanpathTask:
    return ScanpathTask.prepare(data, ScanpathTaskSettings(**settings), seed=0)


def test_the_loss_is_minus_the_log_of_the_viewers_choices(data: SearcherData) -> None:
    task = _task(data, samples=2)
    torch.manual_seed(0)
    model = task.build_model("oat", TINY).eval()
    batch = data.source("test").fetch([0, 1], seed=0, epoch=0)
    inputs = {name: batch[name] for name in ("place", "objects", "target", "start", "fixations", "appearance")}
    with torch.no_grad():
        chances = model(**inputs).log_softmax(-1)
        terms = task.loss(model, batch)["nll"]
        prediction = task.predict(model, batch)
    expected = []
    for row, path in enumerate(batch["fixations"]):
        slots = [*path[path >= 0].tolist(), chances.shape[-1] - 1]
        expected.append(-sum(float(chances[row, step, slot]) for step, slot in enumerate(slots)))
    assert float(terms.total) == pytest.approx(sum(expected), rel=1e-5)
    assert int(terms.count) == int((batch["fixations"] >= 0).sum()) + 2
    assert prediction["nll"].tolist() == pytest.approx(expected, rel=1e-5)


def test_an_empty_batch_has_no_loss(data: SearcherData) -> None:
    task = _task(data)
    terms = task.loss(task.build_model("oat", TINY), data.source("train").fetch([], seed=0, epoch=0))
    assert (terms["nll"].total.item(), terms["nll"].count.item()) == (0, 0)


def test_hidden_targets_need_looks(shelf: Path) -> None:
    recorded = open_files(shelf, DisplaySettings())
    with pytest.raises(ConfigError, match=r"only their places are known: nothing would tell what is searched for"):
        _task(recorded, target_location="hidden")


def test_what_the_data_determine(data: SearcherData) -> None:
    with pytest.raises(ConfigError, match=r"model.features is 5, and with these data and settings it is 8"):
        _task(data).build_model("oat", {"features": 5})
    blind: Any = _task(data, appearance=False).build_model("oat", TINY)
    assert blind.config.appearance == "none"
    with pytest.raises(CheckpointError, match=r"does not fit this version: .*samples"):
        ScanpathTask.restore({name: value for name, value in _task(data).state().items() if name != "samples"})


def test_data_that_do_not_fit(data: SearcherData, shelf: Path) -> None:
    recorded = open_files(shelf, DisplaySettings())
    with pytest.raises(DataError, match=r"fitted with features of objects, and study has none\. Use data of the same"):
        _task(data).check(recorded)
    _task(data, appearance=False).check(recorded)
    task = _task(data)
    data.features = 9
    with pytest.raises(
        DataError, match=r"simulated-searchers has 9 features of an object; the model was fitted with 8"
    ):
        task.check(data)
    recorded.cells = 40
    with pytest.raises(DataError, match=r"study has displays of 40 object spacings; the model was fitted for up to 16"):
        _task(data, appearance=False).check(recorded)


def test_public_weights_need_a_backbone(data: SearcherData) -> None:
    with pytest.raises(ConfigError, match=r"task.pretrained is on, and there is no backbone of crops to begin with"):
        _task(data, pretrained=True).build_model("oat", TINY)
