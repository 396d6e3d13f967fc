"""The task: conformance, losses without positives, decoding, windows merged, figures, files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyhead.errors import CheckpointError, ConfigError, DataError, NonFiniteError
from polyhead.testing import check_model, check_plugin
from polyhead_actions.baselines import Threshold
from polyhead_actions.bmn import BMN
from polyhead_actions.decoding import Decoder, Found
from polyhead_actions.formats import open_videos
from polyhead_actions.generated import made, open_generated
from polyhead_actions.metrics import DetectionMetric
from polyhead_actions.settings import DetectTaskSettings, PredictSettings, VideoSettings
from polyhead_actions.task import DetectTask
from polyhead_actions.writing import subtitles

TINY: dict[str, Any] = {"hidden": 8, "base": 8, "reduced": 8, "hidden_3d": 8, "hidden_2d": 8, "samples": 4}


@pytest.fixture(scope="module")
def made_up() -> Any:
    return open_generated(None, VideoSettings(train_videos=12, test_videos=6, durations=8))


def _task(data: Any, **settings: Any) -> DetectTask:
    return DetectTask.prepare(data, DetectTaskSettings(**settings), seed=0)


@pytest.mark.slow
def test_the_plugin_conforms() -> None:
    assert check_plugin("actions")


@pytest.mark.parametrize(
    "options", [{}, {"attention": "none"}, {"attention": "se+csa"}, {"variant": "paper"}, {"source": "F"}]
)
def test_the_model_conforms(options: dict[str, Any]) -> None:
    def inputs(model: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
        features = torch.randn(3, 6, 12, generator=generator)
        return {"features": features, "mask": torch.arange(12) < torch.tensor([[12], [7], [10]])}

    config = {**TINY, "channels": 6, "length": 12, "durations": 9, "classes": 2, **options}
    unused = ["reduce.*"] if options.get("variant") == "paper" else []
    assert check_model("bmn", inputs, config=config, unused=unused)


@pytest.mark.parametrize("attention", ["none", "csa", "se"])
def test_padding_changes_no_valid_output(attention: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {**TINY, "channels": 6, "durations": 9, "classes": 2, "attention": attention}
    short, long = (BMN(BMN.Config(length=length, **sizes)).double().eval() for length in (12, 17))
    long.load_state_dict(short.state_dict())
    features = torch.randn(2, 6, 12).double()
    padded = torch.cat([features, torch.randn(2, 6, 5).double()], -1)
    mask = torch.arange(17).expand(2, -1) < 12
    want, got = short(features), long(padded, mask)
    valid = short.valid_cells(torch.ones(2, 12, dtype=torch.bool)).unsqueeze(1)
    assert torch.allclose(got.start[:, :12], want.start, atol=1e-9)
    assert torch.allclose(got.end[:, :12], want.end, atol=1e-9)
    assert torch.allclose(got.conf[..., :12] * valid, want.conf * valid, atol=1e-6)
    assert torch.allclose(got.classes[..., :12], want.classes, atol=1e-9)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"durations": 200}, "durations is 200, longer than the length of 100"),
        ({"hidden": 30}, "hidden is 30, not a multiple of groups, which is 4"),
        ({"base": 0}, "base is 0, at least 1 is needed"),
        ({"classes": -1}, "classes is -1; 0 makes proposals without classes"),
        ({"map_axes": "start-end", "durations": 50}, 'map_axes "start-end" needs durations = length, not 50 and 100'),
    ],
)
def test_refused_configs(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BMN(BMN.Config(**config))
    assert message in str(caught.value)


def test_refused_tensors_and_releases() -> None:
    model = BMN(BMN.Config(channels=6, length=12, durations=9, **TINY))
    with pytest.raises(ValueError, match=r"BMN takes features \(B, 6, 12\), channels and steps, not \(1, 5, 12\)"):
        model(torch.zeros(1, 5, 12))
    with pytest.raises(ValueError, match=r"The mask has shape \(1, 9\), not \(1, 12\)"):
        model(torch.zeros(1, 6, 12), torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"mean has shape \(5,\), the features have 6 channels"):
        model.set_data(torch.zeros(5), torch.ones(5))
    with pytest.raises(ConfigError, match='BMN has no release "mmaction"'):
        BMN.Config.release("mmaction")


def test_the_made_up_videos_are_a_function_of_seed_and_index() -> None:
    first, again = made(3, 0, 5), made(3, 0, 5)
    assert (first[0] == again[0]).all()
    assert not (first[0] == made(4, 0, 5)[0]).all()
    features, actions, label = zip(*(made(0, 0, index) for index in range(400)), strict=True)
    assert set(label) == set(range(8))
    widths = np.concatenate(actions) @ np.array([-1, 1])
    assert (widths.min(), widths.max()) == (3, 10)
    context = np.mean([f[:, 8 * k + 4 : 8 * k + 8].mean() for f, k in zip(features, label, strict=True)])
    burst = np.mean([f[int(a[0, 0]) : int(a[0, 1]), 8 * k : 8 * k + 4].mean() for f, a, k in zip(features, actions, label, strict=True)])  # fmt: skip  # noqa: E501
    assert context == pytest.approx(0.4, abs=0.03)
    assert burst == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("form", ["balanced", "released"])
def test_the_loss_without_any_action_is_finite(made_up: Any, form: str) -> None:
    task = _task(made_up, loss=form)
    model = task.build_model("bmn", TINY)
    batch = dict(made_up.source("train").fetch([0, 1], seed=0, epoch=0))
    batch["labels"] = torch.full_like(batch["labels"], -1)
    terms = task.loss(model, batch)
    total = torch.stack([term.total / term.count.clamp(min=1) for term in terms.values()]).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    counts = task.counts(batch)
    assert {name: int(count) for name, count in counts.items()} == {n: int(t.count) for n, t in terms.items()}


@pytest.mark.parametrize("form", ["balanced", "released"])
def test_the_loss_of_no_sequence_is_zero(made_up: Any, form: str) -> None:
    task = _task(made_up, loss=form)
    model = task.build_model("bmn", TINY)
    batch = {name: tensor[:0] for name, tensor in made_up.source("train").fetch([0], seed=0, epoch=0).items()}
    terms = task.loss(model, batch)
    assert all(float(term.total.detach()) == 0 == int(term.count) for term in terms.values())
    torch.stack([term.total for term in terms.values()]).sum().backward()


def test_the_balanced_loss_is_the_released_one(made_up: Any) -> None:
    """Half the mean over positives and half that over negatives, each of start, end and match."""
    balanced, released = (_task(made_up, loss=form) for form in ("balanced", "released"))
    model = balanced.build_model("bmn", TINY)
    batch = made_up.source("train").fetch(range(8), seed=0, epoch=0)
    means = {name: float((t.total / t.count).detach()) for name, t in balanced.loss(model, batch).items()}
    want = {name: float((t.total / t.count).detach()) for name, t in released.loss(model, batch).items()}
    assert sum(means[f"{part}_{side}"] for part in ("start", "end") for side in ("yes", "no")) == pytest.approx(
        want["boundary"], rel=1e-4
    )
    assert means["match_yes"] + means["match_no"] == pytest.approx(want["match"], rel=1e-4)
    assert means["class"] == pytest.approx(want["class"])


def _found(segments: Any, scores: Any) -> Found:
    count = len(scores)
    return Found(
        np.array(segments, dtype=float), np.array(scores), np.zeros((count, 1), dtype=int), np.ones((count, 1))
    )


def test_windows_are_merged_once_more() -> None:
    parts = [_found([[0, 10], [30, 40]], [0.9, 0.5]), _found([[0.5, 10], [60, 70]], [0.8, 0.7])]
    merged = Decoder().merge(parts, 100.0)
    assert merged.segments.tolist() == [[0, 10], [60, 70], [30, 40], [0.5, 10]]
    assert merged.scores[-1] < 0.1
    assert Decoder().merge(parts[:1], 100.0) is parts[0]


def test_given_class_scores_replace_the_heads(made_up: Any) -> None:
    task = _task(made_up)
    model = task.build_model("bmn", TINY).eval()
    batch = dict(made_up.source("test").fetch([0, 1], seed=0, epoch=0))
    with torch.no_grad():
        maps = task.predict(model, batch)
    scores = torch.zeros(2, 8, dtype=torch.float64)
    scores[:, 3], scores[:, 6] = 0.7, 0.2
    found = task.decoder(maps, {**batch, "class_scores": scores})
    assert found[0].labels[0].tolist() == [3, 6]
    assert found[0].weights[0].tolist() == [0.7, 0.2]
    # Without classes each proposal is of the only one.
    found = task.decoder({**maps, "classes": torch.zeros(2, 0, 32)}, batch)
    assert found[0].labels.shape[1] == 1


def test_perfect_detections_have_perfect_figures(made_up: Any) -> None:
    metric = DetectionMetric(Decoder())
    source = made_up.source("test")
    batch = source.fetch(range(len(source)), seed=0, epoch=0)
    scores = torch.where(batch["truth_labels"] >= 0, 1.0, -1.0)
    metric.update({"segments": batch["truth"], "scores": scores, "labels": batch["truth_labels"]}, batch)
    figures = metric.compute()
    assert figures["mAP"] == figures["AP@0.7"] == figures["AR@100"] == 100
    empty = DetectionMetric(Decoder(), "thumos").compute()
    assert empty["mAP"] == empty["AUC"] == 0
    assert "mAP@0.3" in empty


def test_state_of_another_version(made_up: Any) -> None:
    task = _task(made_up)
    assert DetectTask.restore(json.loads(json.dumps(task.state()))).state() == task.state()
    with pytest.raises(CheckpointError, match=r"does not fit this version: colour"):
        DetectTask.restore({**task.state(), "colour": 1})


def test_what_the_data_determine_cannot_be_set(made_up: Any) -> None:
    with pytest.raises(ConfigError, match=r"model.length is 7, but the data have 32. Leave it out."):
        _task(made_up).build_model("bmn", {"length": 7})


def _videos(path: Path, **settings: Any) -> Any:
    return open_videos(path, VideoSettings(**{"length": 16, **settings}))


def test_data_that_do_not_fit_the_model(folder: Callable[..., Path]) -> None:
    path = folder(meta={"fps": 10, "stride": 5, "backbone": "tsn"})
    task = _task(_videos(path))
    (path / "feats" / "features.json").write_text('{"fps": 10, "stride": 5, "backbone": "i3d"}')
    with pytest.raises(DataError, match=r"of videos have backbone i3d, the model was fitted with tsn"):
        task.check(_videos(path))
    (path / "feats" / "features.json").write_text('{"fps": 20, "stride": 10, "backbone": "tsn"}')
    with pytest.raises(DataError, match=r"have fps 20.0, the model was fitted with 10.0"):
        task.check(_videos(path))
    (path / "feats" / "features.json").write_text('{"fps": 10, "stride": 5, "backbone": "tsn"}')
    with pytest.raises(DataError, match=r"has length 12, the model was fitted with 16. Use --length 16"):
        task.check(_videos(path, length=12))
    content = json.loads((path / "annotations.json").read_text())
    content["database"]["clip0"]["annotations"][0]["label"] = "sing"
    (path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'has 1 classes that the model does not know \("sing"\)'):
        task.check(_videos(path))
    for file in (path / "feats").glob("*.npy"):
        np.save(file, np.zeros((40, 5)))
    with pytest.raises(DataError, match=r"has features of 5 channels, the model was fitted on 3"):
        task.check(_videos(path))


def test_no_action_to_learn_from(folder: Callable[..., Path]) -> None:
    path = folder()
    content = json.loads((path / "annotations.json").read_text())
    for video in content["database"].values():
        if video["subset"] == "training":
            video["annotations"] = []
    (path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"none of the 8 training videos has an action. Annotate some."):
        _task(_videos(path))


def test_the_threshold_finds_the_raised_channel(folder: Callable[..., Path]) -> None:
    path = folder()
    content = json.loads((path / "annotations.json").read_text())
    for number, video in enumerate(content["database"].values()):
        if number % 2:
            video["annotations"] = []
    (path / "annotations.json").write_text(json.dumps(content))
    data = _videos(path)
    source = data.source("train")
    batch = source.fetch(range(len(source)), seed=0, epoch=0)
    threshold = Threshold.fit({name: tensor.numpy() for name, tensor in batch.items()})
    assert threshold.choice.channel == 0
    metric = DetectionMetric(Decoder())
    metric.update(threshold(batch), batch)
    assert metric.compute()["AP@0.5"] > 90


def test_files_of_predictions(folder: Callable[..., Path], tmp_path: Path) -> None:
    data = _videos(folder())
    task = _task(data)
    model = task.build_model("bmn", TINY).eval()
    out = tmp_path / "out"
    out.mkdir()
    files = task.write_predictions(model, data, out, PredictSettings(split="test", pictures=2))
    document = json.loads((out / "results.json").read_text())
    assert set(document) == {"version", "results", "external_data"}
    assert len(document["results"]) == 5
    best = document["results"]["clip10"][0]
    assert set(best) == {"label", "score", "segment"}
    assert 0 <= best["segment"][0] < best["segment"][1] <= 20
    with (out / "detections.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0]["video"] == "clip9"
    assert {row["label"] for row in rows} <= {"wave", "jump"}
    assert len([file for file in files if file.suffix == ".png"]) == 2
    assert "-->" in (out / "subtitles" / "clip9.srt").read_text()
    with torch.no_grad():
        dict(model.named_parameters())["map_out.bias"].fill_(float("nan"))
    with pytest.raises(NonFiniteError, match='The detections in "clip9" are not finite'):
        task.write_predictions(model, data, out, PredictSettings(split="test", files="json"))


def test_subtitles_say_what_is_sure_once() -> None:
    found = _found([[5.0, 9.0], [5.5, 9.0], [61.0, 62.25], [70, 71]], [0.8, 0.7, 0.5, 0.1])
    text = subtitles(found, ("wave",), 0.3)
    assert text == (
        "1\n00:00:05,000 --> 00:00:09,000\nwave (100 %)\n\n2\n00:01:01,000 --> 00:01:02,250\nwave (62 %)\n\n"
    )
    assert subtitles(_found(np.zeros((0, 2)), []), ("wave",), 0.3) == ""
