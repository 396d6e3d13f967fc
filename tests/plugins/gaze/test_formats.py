"""Readers: what they make of files without fault."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.plugins.gaze.conftest import grid_boxes, write_csv

from polyhead.errors import MissingExtraError
from polyhead.testing import check_dataset
from polyhead_gaze.formats import open_files
from polyhead_gaze.formats.boxes import read_boxes
from polyhead_gaze.recorded import RecordedData
from polyhead_gaze.scores import behaviour, pack, sequence_score
from polyhead_gaze.settings import DisplaySettings


def _open(path: Path, **settings: Any) -> RecordedData:
    return open_files(path, DisplaySettings(**settings))


def test_fixations_beside_boxes(shelf: Path) -> None:
    data = _open(shelf)
    assert (len(data.displays), len(data.trials), data.appearance) == (12, 36, "none")
    assert data.displays[0].ids[:2] == ("o00", "o01")
    np.testing.assert_allclose(data.displays[0].place[-1], [2, 3])
    assert all(trial.path[-1] == trial.target for trial in data.trials)
    assert data.trials[0].durations[0] == 200
    sizes = {split: len(data.source(split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 27, "validation": 3, "test": 6}
    seen = {split: {trial.display for trial in data.source(split).trials()} for split in ("train", "test")}
    assert not seen["train"] & seen["test"]
    check_dataset(data)
    assert _open(shelf, split="trial").source("test").trials() != data.source("test").trials()
    assert _open(shelf / "fixations.csv", boxes=str(shelf / "boxes.csv")).fingerprint() == data.fingerprint()


def test_rows_are_sorted_by_order_and_one_display_needs_no_name(tmp_path: Path) -> None:
    write_csv(tmp_path / "boxes.csv", [{k: v for k, v in row.items() if k != "display"} for row in grid_boxes(1)])
    rows = [
        {"trial": 1, "order": 3, "x": 350, "y": 50, "target": "o03"},
        {"trial": 1, "order": 1, "x": 50, "y": 50, "target": "o03"},
        {"trial": 1, "order": 2, "x": 160, "y": 260, "target": "o03"},
    ]
    data = _open(write_csv(tmp_path / "gaze.csv", rows), longest_sd=0)
    assert data.trials[0].path == (0, 9, 3)


def test_off_all_objects_is_background_where_a_reach_is_given(tmp_path: Path) -> None:
    write_csv(tmp_path / "boxes.csv", grid_boxes(1))
    rows = [{"trial": 1, "x": x, "y": y, "target": "o00", "display": "d0"} for x, y in ((50, 50), (95, 50), (100, 100))]
    path = write_csv(tmp_path / "gaze.csv", rows)
    assert _open(path).trials[0].path == (0, 0, 0)
    near = _open(path, nearest_px=8)
    assert near.displays[0].ids[-1] == "background"
    assert near.trials[0].path == (0, 0, 12)


def test_the_smallest_of_overlapping_boxes_counts(tmp_path: Path) -> None:
    path = tmp_path / "nested.json"
    path.write_text(json.dumps({"boxes": [[0, 0, 100, 100], [20, 20, 60, 60]], "ids": ["page", "button"]}))
    data = _open(path)
    assert data.summary()["overlapping boxes"] == 1
    write_csv(tmp_path / "boxes.csv", _sides(data))
    gaze = [{"trial": 1, "x": x, "y": x, "target": "page"} for x in (30, 80)]
    read = _open(write_csv(tmp_path / "gaze.csv", gaze), boxes=str(tmp_path / "boxes.csv"))
    assert read.trials[0].path == (1, 0)


def _sides(data: RecordedData) -> list[dict[str, Any]]:
    display = data.displays[0]
    names = ("xmin", "ymin", "xmax", "ymax")
    return [
        {"object": name, **dict(zip(names, box.tolist(), strict=True))}
        for name, box in zip(display.ids, display.boxes, strict=True)
    ]


def test_a_display_to_predict_on(display_file: Path) -> None:
    data = _open(display_file)
    ((display, target, viewers),) = data.scenes()
    assert (display.name, display.ids, target, viewers) == ("display", tuple("abcdef"), 4, ())
    assert display.size == (300, 200)
    assert "no trials" in data.provenance
    near = _open(display_file, distance_cm=60, width_cm=30).displays[0]
    assert near.degree_px == pytest.approx(10.473, abs=1e-3)
    # 30 cm are 300 pixels: 10 cm right of the middle, seen from 60 cm.
    np.testing.assert_allclose(near.degrees(np.array([[250.0, 100.0]])), [[9.4623, 0]], atol=1e-4)


def test_pictures_give_crops_and_the_size(tmp_path: Path) -> None:
    pixels = np.zeros((120, 200, 3), np.uint8)
    pixels[:, 100:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "page.png")
    path = tmp_path / "page.json"
    path.write_text(json.dumps({"boxes": [[0, 0, 90, 100], [110, 0, 190, 100]], "image": "page.png"}))
    data = _open(path, images=str(tmp_path))
    assert data.appearance == "crops"
    crops = data.displays[0].appearance
    assert crops is not None
    assert crops.shape == (2, 150, 93, 3)
    assert crops[0].max() == 0
    assert crops[1, 70, 40].tolist() == [255, 0, 0]
    assert data.displays[0].size == (200, 120)


def test_annotations_of_coco_as_boxes(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "kitchen.jpg", "width": 640, "height": 480}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 30, 40]},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [100, 20, 30, 40]},
            {"id": 3, "image_id": 7, "category_id": 1, "bbox": [200, 20, 30, 40]},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    (scene,) = read_boxes(path, DisplaySettings())
    assert scene.ids == ("cup 1", "fork", "cup 2")
    assert scene.boxes[0].tolist() == [10, 20, 40, 60]
    gaze = [{"trial": 1, "x": 25, "y": 40, "target": "fork"}, {"trial": 1, "x": 110, "y": 40, "target": "fork"}]
    data = _open(write_csv(tmp_path / "gaze.csv", gaze))
    assert data.trials[0].path == (0, 1)
    assert data.appearance == "features"
    looks = data.displays[0].appearance
    assert looks is not None
    np.testing.assert_array_equal(looks[0], looks[2])
    assert abs(float(looks[0] @ looks[1])) < 0.7 * float(looks[0] @ looks[0])


@pytest.fixture
def search18(tmp_path: Path) -> Path:
    """Two images of COCO-Search18 with annotations."""
    annotations = {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480},
            {"id": 2, "file_name": "b.jpg", "width": 1680, "height": 1050},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100]},
            {"id": 2, "image_id": 1, "category_id": 2, "bbox": [300, 300, 100, 100]},
            {"id": 3, "image_id": 2, "category_id": 2, "bbox": [0, 0, 100, 100]},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    scale = 1050 / 480
    cup = [140, 0, 100 * scale, 100 * scale]
    trial = {"subject": 1, "condition": "present", "length": 3, "correct": 1}
    trials = [
        {
            **trial,
            "name": "a.jpg",
            "task": "cup",
            "bbox": cup,
            "X": [840, 900, 200],
            "Y": [525, 750, 90],
            "T": [1, 2, 3],
        },
        {
            **trial,
            "name": "b.jpg",
            "task": "cup",
            "bbox": [900, 500, 99, 99],
            "X": [840, 40],
            "Y": [525, 40],
            "T": [1, 2],
        },
        {**trial, "name": "b.jpg", "task": "cup", "bbox": [0, 0, 1, 1], "X": [9], "Y": [9], "condition": "absent"},
    ]
    path = tmp_path / "coco_search18_fixations_TP_train_split1.json"
    path.write_text(json.dumps(trials))
    return path


def test_coco_search18(search18: Path) -> None:
    data = _open(search18)
    assert len(data.trials) == 2
    first, second = data.trials
    assert first.path == (1, 0)  # the forced first fixation is left out
    assert first.durations == (2, 3)
    assert data.displays[first.display].ids[first.target] == "cup"
    # No annotation is the target of the second image: its own box becomes an object.
    assert data.displays[second.display].ids == ("fork", "cup")
    assert (second.path, second.target) == ((0,), 1)


def test_the_shelf_data_set(tmp_path: Path) -> None:
    names = ("ID", "Question", "Target", "T_Package", "Choice", "X", "Y", "Sub_ID")
    cells = [
        (1, "Q3_21", "T3_1", 5, 1, 50, 200, 9),
        (1, "Q3_21", "T3_1", 5, 5, 800, 200, 9),
        (2, "Q3_2", "T3_1", 1, 27, 1600, 900, 8),
    ]
    path = write_csv(tmp_path / "time_Q3_mousedel.csv", [dict(zip(names, row, strict=True)) for row in cells])
    data = _open(tmp_path)
    assert [(trial.path, trial.target, trial.viewer) for trial in data.trials] == [((0, 4), 4, "9"), ((26,), 0, "8")]
    assert data.displays[0].boxes[0].tolist() == [0, 135, 186, 440]
    assert data.displays[0].place[26].tolist() == [2, 8]
    assert "Q3_21" in {display.name for display in data.displays}
    assert path.exists()


def test_excel_tables_of_the_shelf_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "time_Q1_mousedel.xlsx").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(MissingExtraError, match=r"openpyxl is not installed: pip install 'polyhead-gaze\[shelf\]'"):
        _open(tmp_path)


def test_a_real_excel_table(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed")
    book = openpyxl.Workbook()
    book.active.append(["ID", "Question", "Target", "T_Package", "Choice", "X", "Y", "Sub_ID"])
    book.active.append([1, "Q1_3", "T1_1", 22, 3, 500, 300, 4])
    book.save(tmp_path / "time_Q1_mousedel.xlsx")
    data = _open(tmp_path)
    assert (data.trials[0].path, data.trials[0].target) == ((2,), 21)


def test_amazon_book_covers(shared: Path) -> None:
    """The reference values of the published protocol, computed from the same file."""
    data = _open(shared / "data" / "gaze" / "amazon-book-covers" / "Amazon.json")
    assert (len(data.displays), len(data.trials), data.left_out, data.longest) == (100, 585, 15, 54)
    paths, target = pack([trial.path for trial in data.trials]), np.array([trial.target for trial in data.trials])
    np.testing.assert_allclose(behaviour(paths, target).mean(0), [0.880, 12.887, 0.784, 0.173, 0.0435], atol=0.003)
    assert float((paths == target[:, None]).any(1).mean()) == pytest.approx(0.973, abs=0.003)
    pairs = [
        (one, other)
        for one, a in enumerate(data.trials)
        for other, b in enumerate(data.trials)
        if one < other and a.display == b.display
    ]
    first, second = np.array(pairs).T
    assert float(sequence_score(paths[first], paths[second]).mean()) == pytest.approx(0.211, abs=0.003)
    grid = np.stack([paths // 14, paths % 14], -1)
    jumps = np.sqrt(((grid[:, 1:] - grid[:, :-1]) ** 2).sum(-1))[paths[:, 1:] >= 0]
    found = [jumps.mean(), (jumps == 0).mean(), (jumps <= 1.5).mean()]
    np.testing.assert_allclose(found, [2.15, 0.168, 0.53], atol=0.005)
    assert {split: len(data.source(split)) for split in ("train", "validation", "test")} == {
        "train": 406,
        "validation": 60,
        "test": 119,
    }
    check_dataset(data)
