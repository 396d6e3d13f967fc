"""The task: terms of the loss in odd batches, categories, baselines, and files of predictions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from polyhead.errors import CheckpointError, ConfigError, DataError, NonFiniteError, ShapeError, UnknownNameError
from polyhead.plugins import find_model
from polyhead_detection.backbone import TimmBackbone
from polyhead_detection.boxes import generalised_iou, to_centres, to_corners
from polyhead_detection.digits import DigitData, draw_scene
from polyhead_detection.focus_detr import DINOConfig, FocusDETR, FocusDETRConfig
from polyhead_detection.losses import focal
from polyhead_detection.pictures import Category
from polyhead_detection.predicting import detect
from polyhead_detection.settings import DetectTaskSettings, PictureSettings
from polyhead_detection.task import DetectTask


@pytest.fixture(scope="module")
def data() -> DigitData:
    return DigitData(PictureSettings(scenes=8))


@pytest.fixture(scope="module")
def task(data: DigitData) -> DetectTask:
    return DetectTask.prepare(data, DetectTaskSettings(), seed=0)


@pytest.fixture
def model(task: DetectTask) -> Any:
    torch.manual_seed(0)
    return task.build_model("focus-detr", find_model("focus-detr")[1].presets["tiny"])


def _batch(data: DigitData, rows: int) -> dict[str, Any]:
    return dict(data.source("train").fetch(range(rows), seed=0, epoch=0))


@pytest.mark.parametrize("kind", ["boxes", "no boxes", "no rows"])
@pytest.mark.parametrize("name", ["focus-detr", "dino"])
def test_every_batch_has_the_same_terms_and_the_counts_that_are_announced(
    name: str, kind: str, data: DigitData, task: DetectTask
) -> None:
    model = task.build_model(name, find_model(name)[1].presets["tiny"]).train()
    batch = _batch(data, 2)
    if kind == "no boxes":
        batch["boxes"] = [each[:0] for each in batch["boxes"]]
        batch["labels"] = [each[:0] for each in batch["labels"]]
    if kind == "no rows":
        batch = {key: value[:0] for key, value in batch.items()}
    terms = task.loss(model, batch)
    counts = task.counts(batch)
    assert list(terms) == list(counts)
    assert all(float(terms[key].count) == float(counts[key]) for key in terms if float(terms[key].total.detach()))
    total = torch.stack([term.total / term.count.clamp(min=1) for term in terms.values()]).sum()
    total.backward()
    assert bool(torch.isfinite(total))
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_extreme_logits_have_finite_losses() -> None:
    logits = torch.tensor([-1e4, -90.0, 0.0, 90.0, 1e4], requires_grad=True)
    for target in (torch.zeros(5), torch.ones(5)):
        loss = focal(logits, target)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert bool(loss.isfinite().all())
        assert bool(gradient.isfinite().all())


def test_boxes_without_size_have_an_overlap_of_zero() -> None:
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert generalised_iou(point, point).tolist() == [0.0]
    box = torch.tensor([0.1, 0.2, 0.6, 0.9])
    assert torch.allclose(to_corners(to_centres(box)), box)
    assert generalised_iou(box, box).item() == pytest.approx(1)


def test_categories_are_compared_by_id_and_name(task: DetectTask, data: DigitData) -> None:
    task.check(data)

    class Other:
        name = "other"
        categories: Any = (Category(0, "0"), Category(7, "cat"))

    with pytest.raises(DataError, match=r"other has 2 categories and the model 10.*Only in the data: 7 cat"):
        task.check(Other())
    Other.categories = None
    task.check(Other())


def test_the_state_is_checked(task: DetectTask) -> None:
    assert DetectTask.restore(json.loads(json.dumps(task.state()))) == task
    with pytest.raises(CheckpointError, match="does not fit this version"):
        DetectTask.restore({"categories": []})


def test_the_data_determine_the_number_of_classes(task: DetectTask) -> None:
    with pytest.raises(ConfigError, match=r"model.classes is 3, but the data have 10 categories"):
        task.build_model("focus-detr", {"classes": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rho": 0.0}, "rho is 0.0 and cascade"),
        ({"cascade": (1.0,)}, "cascade has 1 shares and the encoder 6 layers: one for each"),
        ({"ranges": ((-1.0, 8.0),)}, "ranges has 1 pairs and there are 4 levels: one for each"),
        ({"dim": 20}, "dim is 20: it must be a multiple of 8 and of groups, 32"),
        ({"queries": 0}, "queries 0, decoder_layers 6: each is 1 or more"),
    ],
)
def test_configs_that_cannot_be_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FocusDETRConfig(**values)


def test_what_a_model_cannot_be_made_of_is_refused() -> None:
    with pytest.raises(UnknownNameError, match=r'release "12-epochs".*12-epoch'):
        FocusDETRConfig.release("12-epochs")
    with pytest.raises(ConfigError, match=r'timm does not have\. Did you mean "resnet50"'):
        TimmBackbone("resnet5o")
    with pytest.raises(ConfigError, match=r"has maps at the strides .*; 8, 16 and 32 are needed"):
        TimmBackbone("vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match="levels is 2 and the backbone gives 3 maps: have that many or more"):
        FocusDETR(DINOConfig(backbone="small", levels=2, ranges="release"))
    with pytest.raises(ConfigError, match="dim is 32 and heads is 5: dim must be a multiple of heads"):
        FocusDETR(DINOConfig(backbone="small", dim=32, heads=5, levels=3))
    assert FocusDETRConfig.release("36-epoch").temperature == 20


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
def test_any_timm_backbone_with_maps_at_8_16_and_32(name: str) -> None:
    config = DINOConfig(
        backbone=name, dim=16, groups=4, heads=2, ff_dim=16, encoder_layers=1, decoder_layers=1, queries=3, classes=2
    )
    torch.manual_seed(0)
    model = FocusDETR(config).eval()
    images = [torch.zeros(3, 50, 70, dtype=torch.uint8), torch.full((3, 64, 40), 200, dtype=torch.uint8)]
    with torch.no_grad():
        together, alone = model(images), model(images[:1])
    assert together.boxes.shape == (2, 3, 4)
    assert torch.allclose(together.logits[0], alone.logits[0], atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_images_of_other_shapes_are_refused(model: Any) -> None:
    with pytest.raises(ShapeError, match=r"An image has shape \(1, 8, 8\), expected \(3, H, W\)"):
        model([torch.zeros(1, 8, 8)])
    with pytest.raises(ShapeError, match=r"An image has shape \(3, 8, 8\), expected \(B, 3, H, W\)"):
        model(torch.zeros(3, 8, 8))
    with pytest.raises(ShapeError, match=r"sizes \[\(9, 8\)\] do not fit 1 images of \[\(8, 8\)\]"):
        model(torch.zeros(1, 3, 8, 8), [(9, 8)])


def test_a_tensor_is_taken_like_a_list(model: Any) -> None:
    image = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    model.eval()
    assert torch.allclose(model(image).logits, model(list(image)).logits, atol=1e-6)


def test_the_baseline_knows_nothing_of_the_picture(task: DetectTask, data: DigitData) -> None:
    predict = task.baselines(data)["usual boxes"]
    found = predict(data.source("test").fetch([0, 1], seed=0, epoch=0))
    assert torch.equal(found.boxes[0], found.boxes[1])
    assert len(found.scores[0]) == 50
    assert float(found.scores[0].sum()) == pytest.approx(1, abs=1e-5)
    assert bool((found.scores[0][:-1] >= found.scores[0][1:]).all())


def test_damaged_weights_are_named(task: DetectTask, model: Any) -> None:
    with torch.no_grad():
        model.class_heads[1].bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="scores or boxes are NaN or infinite"):
        detect(task, model.eval(), torch.zeros(3, 64, 64, dtype=torch.uint8), top=5, threshold=0)


def test_scenes_are_a_function_of_seed_and_index() -> None:
    first, again, other = draw_scene("train", 3, 5), draw_scene("train", 3, 5), draw_scene("train", 4, 5)
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    for index in range(200):
        scene = draw_scene("test", 0, index)
        assert 1 <= len(scene.boxes) <= 4
        corners = np.concatenate([scene.boxes[:, :2], scene.boxes[:, :2] + scene.boxes[:, 2:]], 1)
        assert corners.min() >= 0
        assert corners.max() <= 64
        assert bool((scene.boxes[:, 2:] >= 1).all())
        for a in range(len(corners)):
            for b in range(a):
                apart = (corners[a, :2] >= corners[b, 2:]) | (corners[b, :2] >= corners[a, 2:])
                assert bool(apart.any())


def test_two_pictures_of_one_name_keep_their_files_apart(
    task: DetectTask, model: Any, data: DigitData, tmp_path: Path
) -> None:
    from polyhead_detection.pictures import Item
    from polyhead_detection.settings import PredictSettings

    class Twice:
        def pictures(self, split: str) -> Any:
            for number in (1, 2):
                yield (
                    Item(Path("a.png"), number, (64, 64), name=f"{number}/a.png"),
                    torch.zeros(3, 64, 64, dtype=torch.uint8),
                )

    files = task.write_predictions(model.eval(), Twice(), tmp_path, PredictSettings(files=("voc", "results", "coco")))
    assert sorted(file.name for file in files) == ["a-2.xml", "a.xml", "detections.json", "results.json"]
