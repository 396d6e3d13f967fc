"""The layouts that people have, read alike; and what is wrong with a file said in one sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from polyhead.errors import DataError
from polyhead.testing import check_dataset
from polyhead_detection.digits import draw_scene
from polyhead_detection.formats import open_pictures
from polyhead_detection.pictures import PictureData
from polyhead_detection.settings import PictureSettings

SMALL = PictureSettings(short_side=64, long_side=64)
Change = Callable[[dict[str, Any]], None]


def _open(path: Path, **values: Any) -> PictureData:
    opened: PictureData = open_pictures(path, PictureSettings(**{**SMALL.model_dump(), **values}))
    return opened


def test_coco_keeps_ids_areas_and_empty_pictures(coco: Path) -> None:
    data = _open(coco)
    assert data.categories is not None
    assert data.categories[0] == (3, "digit 0")
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [12, 4, 4]
    scene = draw_scene("train", 0, 0)
    item = data.splits["train"][0]
    assert np.array_equal(item.boxes, scene.boxes)
    assert np.array_equal(item.labels, scene.labels)
    assert np.allclose(item.area, scene.boxes[:, 2] * scene.boxes[:, 3] * 0.8)
    assert not len(data.splits["test"][-1].labels)
    summary = data.summary()
    assert summary["pictures without a box"] == 1
    assert summary["split"] == "test is validation: there is no other"
    assert check_dataset(data)


def test_one_json_is_cut_into_three(coco: Path) -> None:
    data = _open(coco / "train.json")
    assert [len(data.splits[split]) for split in ("train", "validation", "test")] == [10, 1, 1]
    again = _open(coco / "train.json")
    assert data.fingerprint() == again.fingerprint()


def test_the_layout_of_coco_itself(coco: Path, tmp_path: Path) -> None:
    root = tmp_path / "coco2017"
    (root / "annotations").mkdir(parents=True)
    for split, folder in (("train", "train2017"), ("val", "val2017")):
        (root / "annotations" / f"instances_{folder}.json").write_bytes((coco / f"{split}.json").read_bytes())
        (root / folder).symlink_to(coco / "images")
    assert len(_open(root).splits["train"]) == 12


def test_crowds_are_measured_and_not_learned_from(coco: Path) -> None:
    document = json.loads((coco / "train.json").read_text())
    for row in document["annotations"]:
        row["iscrowd"] = int(row["image_id"] == 1)
    (coco / "train.json").write_text(json.dumps(document))
    data = _open(coco, flip=False)
    batch = data.source("train").fetch([0, 1], seed=0, epoch=0)
    assert len(batch["boxes"][0]) == 0
    assert bool(batch["truth"][0][:, 5].all())
    assert len(batch["boxes"][1]) == len(batch["truth"][1])


def test_training_pictures_are_mirrored_cropped_and_resized_as_seed_epoch_and_index_say(coco: Path) -> None:
    source = _open(coco, train_sides=(48, 80), long_side=96, crop=True).source("train")
    seen = set()
    for epoch in range(6):
        batch = source.fetch([3], seed=1, epoch=epoch)
        again = source.fetch([3], seed=1, epoch=epoch)
        assert torch.equal(batch["image"][0], again["image"][0])
        boxes = batch["boxes"][0]
        assert bool(((boxes[:, :2] - boxes[:, 2:] / 2 > -1e-5) & (boxes[:, :2] + boxes[:, 2:] / 2 < 1 + 1e-5)).all())
        seen.add((tuple(batch["image"][0].shape), float(boxes.sum())))
    assert len(seen) > 2


def test_mirroring_moves_boxes_with_their_pixels(coco: Path) -> None:
    data = _open(coco)
    plain = _open(coco, flip=False).source("train").fetch([0], seed=0, epoch=0)
    for epoch in range(20):
        batch = data.source("train").fetch([0], seed=0, epoch=epoch)
        if not torch.equal(batch["image"][0], plain["image"][0]):
            assert torch.equal(batch["image"][0].flip(-1), plain["image"][0])
            assert torch.allclose(1 - batch["boxes"][0][:, 0], plain["boxes"][0][:, 0])
            return
    pytest.fail("twenty epochs without a mirrored picture")


def _yolo(root: Path, coco: Path) -> Path:
    for split, (first, last) in {"train": (0, 12), "val": (12, 16)}.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "labels" / split).mkdir(parents=True)
        for index in range(first, last):
            name = f"{index:03d}"
            (root / "images" / split / f"{name}.png").symlink_to(coco / "images" / f"{name}.png")
            scene = draw_scene("train", 0, index)
            lines = [
                f"{label} {(x + w / 2) / 64} {(y + h / 2) / 64} {w / 64} {h / 64}"
                for label, (x, y, w, h) in zip(scene.labels.tolist(), scene.boxes.tolist(), strict=True)
            ]
            (root / "labels" / split / f"{name}.txt").write_text("\n".join(lines))
    names = "\n".join(f"  {digit}: digit {digit}" for digit in range(10))
    (root / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: ../images/val\nnames:\n{names}\n")
    return root


def test_yolo_gives_what_coco_gives(coco: Path, tmp_path: Path) -> None:
    root = _yolo(tmp_path / "yolo", coco)
    ours, theirs = _open(root), _open(coco)
    for mine, other in zip(ours.splits["train"], theirs.splits["train"], strict=True):
        assert np.allclose(mine.boxes, other.boxes)
        assert np.array_equal(mine.labels, other.labels)
    assert ours.categories is not None
    assert ours.categories[1] == (2, "digit 1")
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("".join(f"digit {digit}\n" for digit in range(10)))
    assert len(_open(root).splits["validation"]) == 4


def _voc(root: Path, coco: Path) -> Path:
    (root / "Annotations").mkdir(parents=True)
    (root / "JPEGImages").symlink_to(coco / "images")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for index in range(16):
        scene = draw_scene("train", 0, index)
        objects = "".join(
            f"<object><name>digit {label}</name><difficult>{int(index == 15)}</difficult><bndbox><xmin>{x + 1}</xmin>"
            f"<ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
            for label, (x, y, w, h) in zip(scene.labels.tolist(), scene.boxes.tolist(), strict=True)
        )
        (root / "Annotations" / f"{index:03d}.xml").write_text(f"<annotation>{objects}</annotation>")
    for split, own in {"train": range(12), "val": range(12, 16)}.items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{index:03d}\n" for index in own))
    return root


def test_voc_gives_what_coco_gives(coco: Path, tmp_path: Path) -> None:
    root = _voc(tmp_path / "voc", coco)
    ours, theirs = _open(root), _open(coco)
    for mine, other in zip(ours.splits["train"], theirs.splits["train"], strict=True):
        assert np.allclose(mine.boxes, other.boxes)
    assert bool(ours.splits["test"][-1].crowd.all())
    assert [item.path.name for item in ours.splits["validation"]] == [f"{index:03d}.png" for index in range(12, 16)]


def _first(document: dict[str, Any], **values: Any) -> None:
    document["annotations"][0].update(values)


BROKEN: dict[str, tuple[Change, str]] = {
    "outside": (
        lambda d: _first(d, bbox=[50, 50, 40, 10]),
        r"reaches out of the picture \(64 × 64\).*--bad-boxes clip",
    ),
    "no size": (lambda d: _first(d, bbox=[5, 5, 0, 10]), r"the box \[5, 5, 0, 10\] .* has no size"),
    "negative": (lambda d: _first(d, bbox=[5, 5, -3, 10]), "has no size"),
    "three numbers": (lambda d: _first(d, bbox=[1, 2, 3]), r"has the bbox \[1, 2, 3\]"),
    "text": (lambda d: _first(d, bbox="all"), "has the bbox all"),
    "unknown category": (
        lambda d: _first(d, category_id=77),
        "annotation 1 has category_id 77, which is not in categories",
    ),
    "unknown image": (lambda d: _first(d, image_id=99), "annotation 1 is of image 99, which is not in images"),
    "no categories": (lambda d: d.update(categories=[]), "has no categories"),
    "twice": (lambda d: d["categories"].append({"id": 3, "name": "other"}), 'two categories have the id "3"'),
    "same name": (lambda d: d["categories"].append({"id": 99, "name": "digit 1"}), 'have the name "digit 1"'),
    "no images": (lambda d: d.update(images=[], annotations=[]), "has no images"),
    "size": (lambda d: d["images"][0].pop("width"), "image 1: .* needs id, file_name, height and width"),
    "same id": (lambda d: d["images"][1].update(id=1), "two images have the id 1"),
    "way out": (lambda d: d["images"][0].update(file_name="../../etc/a.png"), "leads out of the folder"),
    "missing": (
        lambda d: d["images"][0].update(file_name="0000.png"),
        "1 of its 12 pictures are not in .* such as 0000",
    ),
    "lists": (lambda d: d.pop("annotations"), "is no COCO JSON: it needs the lists images, annotations and categories"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_coco_json_is_said(case: str, coco: Path) -> None:
    change, message = BROKEN[case]
    document = json.loads((coco / "train.json").read_text())
    change(document)
    (coco / "train.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"(?s)train.json.*{message}"):
        _open(coco)


def test_bad_boxes_can_be_clipped_and_dropped(coco: Path) -> None:
    document = json.loads((coco / "train.json").read_text())
    own = [row for row in document["annotations"] if row["image_id"] == 1]
    own[0]["bbox"], own[1]["bbox"] = [50, 50, 40, 10], [5, 5, 0, 10]
    (coco / "train.json").write_text(json.dumps(document))
    data = _open(coco, bad_boxes="clip")
    assert data.splits["train"][0].boxes[0].tolist() == [50, 50, 14, 10]
    assert len(data.splits["train"][0].boxes) == len(own) - 1
    assert {key: data.summary()[key] for key in ("boxes clipped", "boxes dropped")} == {
        "boxes clipped": 1,
        "boxes dropped": 1,
    }


def test_many_problems_are_counted(coco: Path) -> None:
    document = json.loads((coco / "train.json").read_text())
    for row in document["annotations"]:
        row["category_id"] = 1000
    (coco / "train.json").write_text(json.dumps(document))
    more = len(document["annotations"]) - 10
    with pytest.raises(DataError, match=f"and {more} more. Correct the annotations"):
        _open(coco)


def test_without_any_annotation_there_is_nothing_to_learn(coco: Path) -> None:
    document = json.loads((coco / "train.json").read_text())
    document["annotations"] = []
    (coco / "train.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="no box in its 12 training pictures: there is nothing to learn"):
        _open(coco).source("train")


def test_a_picture_of_another_size_is_named_when_it_is_read(coco: Path) -> None:
    Image.new("L", (32, 20)).save(coco / "images" / "000.png")
    with pytest.raises(DataError, match=r"000\.png has 20 × 32 pixels and its annotations say 64 × 64"):
        _open(coco).source("train").fetch([0], seed=0, epoch=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 0.5 0.5 0.2", "five numbers are needed"),
        ("11 0.5 0.5 0.2 0.2", "there are 10 classes"),
        ("1.5 0.5 0.5 0.2 0.2", "there are 10 classes"),
        ("cat 0.5 0.5 0.2 0.2", "five numbers are needed"),
        ("0 0.9 0.5 0.8 0.2", "reaches out of the picture"),
        ("0 0.5 0.5 0 0.2", "has no size"),
    ],
)
def test_what_is_wrong_with_yolo_labels_is_said(text: str, message: str, coco: Path, tmp_path: Path) -> None:
    root = _yolo(tmp_path / "yolo", coco)
    (root / "labels" / "train" / "000.txt").write_text(text)
    with pytest.raises(DataError, match=rf"000\.txt, line 1.*{message}"):
        _open(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images/train", "needs names"),
        ("names: [a]", "names no folders"),
        ("names: [a]\ntrain: pictures", "the folder pictures .train. is not there"),
        ("names: {1: a, 2: b}\ntrain: images/train", "count them from 0"),
        ("names: !!python/object:os.system [x]", "is not readable"),
        ("names: [a]\ntrain: [images/train]", "give one folder of pictures"),
    ],
)
def test_what_is_wrong_with_a_data_yaml_is_said(text: str, message: str, coco: Path, tmp_path: Path) -> None:
    root = _yolo(tmp_path / "yolo", coco)
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=f"data.yaml.*{message}"):
        _open(root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", "is no XML"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]><annotation/>", "declares entities"),
        ("<annotation><object><name>a</name></object></annotation>", "object 1 needs a name and a bndbox"),
    ],
)
def test_what_is_wrong_with_an_xml_is_said(text: str, message: str, coco: Path, tmp_path: Path) -> None:
    root = _voc(tmp_path / "voc", coco)
    (root / "Annotations" / "000.xml").write_text(text)
    with pytest.raises(DataError, match=f"000.xml.*{message}"):
        _open(root)


def test_what_is_no_picture_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.txt is no picture, video, COCO JSON or data\.yaml"):
        _open(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="holds no picture"):
        _open(tmp_path)
    with pytest.raises(DataError, match="is not there"):
        _open(tmp_path / "none")
    (tmp_path / "results.json").write_text(json.dumps([{"image_id": 1, "score": 0.5}]))
    with pytest.raises(DataError, match="is a list of results, not of annotations"):
        _open(tmp_path / "results.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DataError, match=r"broken\.json is no JSON"):
        _open(tmp_path / "broken.json")


def test_plain_pictures_are_for_predicting_only(coco: Path) -> None:
    data = _open(coco / "images")
    assert data.categories is None
    assert len(data.splits["test"]) == 16
    with pytest.raises(DataError, match="holds pictures without annotations: predict takes them"):
        data.source("train")
    item, image = next(data.pictures("test"))
    assert item.file_name == "000.png"
    assert tuple(image.shape) == (3, 64, 64)
