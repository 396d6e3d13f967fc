"""Readers: what they say to files that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.plugins.gaze.conftest import grid_boxes, write_csv

from polyhead.errors import DataError
from polyhead.testing import check_dataset
from polyhead_gaze.formats import open_files
from polyhead_gaze.settings import DisplaySettings

Rows = list[dict[str, Any]]


def _open(path: Path, **settings: Any) -> Any:
    return open_files(path, DisplaySettings(**settings))


def _gaze() -> Rows:
    points = ((50, 50), (150, 50), (250, 50))
    return [
        {"trial": 1, "viewer": "v", "order": n, "x": x, "y": y, "target": "o02", "display": "d0"}
        for n, (x, y) in enumerate(points)
    ]


def test_missing_and_empty_paths() -> None:
    check_dataset("gaze-files")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda gaze, boxes: gaze[1].update(x="n/a"), r'gaze.csv, row 3, column "x": "n/a" is not a number'),
        (lambda gaze, boxes: gaze[1].update(x="inf"), r'gaze.csv, row 3, column "x": "inf" is not a number'),
        (
            lambda gaze, boxes: gaze[1].update(x=-5),
            r"1 of 3 fixations lie outside of the screen of 400 × 300 pixels, .* at \(-5, 50\)\. .*--outside drop",
        ),
        (
            lambda gaze, boxes: [row.update(x=row["x"] / 400, y=row["y"] / 300) for row in gaze],
            r"they seem to be shares of the screen\. Multiply x by its width",
        ),
        (
            lambda gaze, boxes: [row.update(x=row["x"] / 40, y=row["y"] / 40) for row in gaze],
            r"they seem to be degrees or centimetres\. Give pixels",
        ),
        (
            lambda gaze, boxes: [row.update(target="o2") for row in gaze],
            r'the target "o2" is no object of d0\. Did you mean "o',
        ),
        (
            lambda gaze, boxes: [row.update(display="d00") for row in gaze],
            r'no boxes of the display "d00"\. Did you mean "d0"\?',
        ),
        (lambda gaze, boxes: gaze[2].update(target="o01"), r"row 4: trial 1 of viewer v has another display or target"),
        (lambda gaze, boxes: gaze[2].update(order=1), r"row 4: trial 1 has two fixations of order 1"),
        (lambda gaze, boxes: gaze[2].update(trial=""), r'row 4, column "trial" is empty\. Number the trials'),
        (lambda gaze, boxes: [row.update(duration=-1) for row in gaze], r'column "duration": -1 is negative'),
        (lambda gaze, boxes: boxes[4].update(xmax=0), r"1 of the boxes are empty: o10 \[10\.0, 110\.0, 0\.0, 190\.0\]"),
        (
            lambda gaze, boxes: boxes[4].update(boxes[3] | {"object": "twin"}),
            r"o03 and twin have the same box .*Leave one out",
        ),
        (lambda gaze, boxes: boxes[4].update(object="o03"), r'the object "o03" is there more than once'),
        (lambda gaze, boxes: boxes[4].update(object=""), r'boxes.csv, row 6, column "object" is empty'),
        (lambda gaze, boxes: boxes[4].update(ymin="high"), r'boxes.csv, row 6, column "ymin": "high" is not a number'),
        (
            lambda gaze, boxes: boxes.__delitem__(slice(1, None)),
            r"there is 1 object, and with fewer than two there is nothing",
        ),
        (
            lambda gaze, boxes: [row.pop("display") for row in gaze] and boxes.append({**boxes[0], "display": "d1"}),
            r'gaze.csv has no column "display", and boxes.csv has 2 displays',
        ),
        (lambda gaze, boxes: [row.pop("target") for row in gaze], r'gaze.csv has no column "target"'),
        (
            lambda gaze, boxes: [row.__setitem__("targets", row.pop("target")) for row in gaze],
            r'no column "target"\. Is it "targets"\? Rename it',
        ),
        (
            lambda gaze, boxes: boxes[0].update(category="cup") or [row.setdefault("category", "") for row in boxes],
            None,
        ),
    ],
)
def test_fixations_and_boxes(tmp_path: Path, change: Callable[[Rows, Rows], Any], message: str | None) -> None:
    gaze, boxes = _gaze(), grid_boxes(1)
    change(gaze, boxes)
    write_csv(tmp_path / "boxes.csv", boxes)
    path = write_csv(tmp_path / "gaze.csv", gaze)
    if message is None:
        assert _open(path).appearance == "none"
        return
    with pytest.raises(DataError, match=message):
        _open(path)


def test_fixations_outside_can_be_dropped_and_what_is_left_empty_goes(tmp_path: Path) -> None:
    gaze = _gaze()
    gaze[1]["x"] = 4000
    gaze.append({**gaze[0], "trial": 2, "x": -3})
    write_csv(tmp_path / "boxes.csv", grid_boxes(1))
    data = _open(write_csv(tmp_path / "gaze.csv", gaze), outside="drop")
    assert [trial.path for trial in data.trials] == [(0, 2)]


def test_boxes_that_are_not_there_or_several(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "gaze.csv", _gaze())
    with pytest.raises(DataError, match=r"gaze.csv: no boxes of objects beside it\. Name their file, --boxes FILE"):
        _open(path)
    with pytest.raises(DataError, match=r"--boxes other.csv: no such file"):
        _open(path, boxes="other.csv")
    for name in ("a.csv", "b.csv"):
        write_csv(tmp_path / name, grid_boxes(1))
    with pytest.raises(DataError, match=r"a.csv, b.csv could hold the boxes\. Name one"):
        _open(path)
    write_csv(tmp_path / "c.csv", [{"object": "a", "left": 1}])
    with pytest.raises(DataError, match=r"c.csv needs the columns xmin, ymin, xmax, ymax, or x, y, width, height"):
        _open(path, boxes="c.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"display.json, line 1, column 2: .*It is no JSON file"),
        ('{"boxes": [[0, 0, 1]]}', r"display.json, box 1 is \[0, 0, 1\], expected \[left, top, right, bottom\]"),
        ('{"boxes": [[0, 0, 1, NaN]]}', r"NaN is no JSON number"),
        ('{"boxes": [[0, 0, 1, "x"]]}', r'box 1: "x" is not a number'),
        ('{"boxes": [[0, 0, 9, 9], [10, 0, 19, 9]], "ids": ["a"]}', r"has 1 ids for 2 boxes"),
        ('{"boxes": [[0, 0, 9, 9]], "lables": ["a"]}', r'has the key "lables"; known are boxes, ids'),
        ('{"boxes": []}', r"there is no object, and with fewer than two"),
        ('{"boxes": [[0, 0, 9, 9], [10, 0, 19, 9]], "target": "x"}', r'the target "x" is no object of display'),
        ('{"boxes": [[0, 0, 9, 9], [10, 0, 19, 9]], "size": 7}', r"size is 7, expected \[width, height\] in pixels"),
        ('{"boxes": [[0, 0, 9, 9], [10, 0, 19, 9]], "image": "../../etc/passwd"}', r"is not inside of"),
    ],
)
def test_displays(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "display.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        _open(path, format="display")


def test_displays_of_which_some_have_categories(tmp_path: Path) -> None:
    content = {"boxes": [[0, 0, 9, 9], [10, 0, 19, 9]]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert len(_open(tmp_path).displays) == 1
    (tmp_path / "b.json").write_text(json.dumps({**content, "categories": ["cup", "fork"]}))
    with pytest.raises(DataError, match=r"of some displays it is known what objects look like, and of others not"):
        _open(tmp_path)


def test_pictures(tmp_path: Path) -> None:
    path = tmp_path / "display.json"
    boxes = [[0, 0, 9, 9], [10, 0, 19, 9]]
    path.write_text(json.dumps({"boxes": boxes, "size": [20, 20], "image": "no.png"}))
    with pytest.raises(DataError, match=r"There is no picture .*no.png\. Name the folder"):
        _open(path, images=str(tmp_path))
    (tmp_path / "no.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    with pytest.raises(DataError, match=r"no.png cannot be read as a picture"):
        _open(path, images=str(tmp_path))
    Image.new("1", (20_000, 9_000)).save(tmp_path / "no.png")
    with pytest.raises(DataError, match=r"no.png .*(more than 100,000,000|exceeds limit|could be decompression bomb)"):
        _open(path, images=str(tmp_path))
    path.write_text(json.dumps({"boxes": boxes, "size": [20, 20]}))
    with pytest.raises(DataError, match=r"names no picture, and --images is given"):
        _open(path, images=str(tmp_path))


AMAZON = {
    "fixations": {"1": [[100, 100], [300, 100]]},
    "ground_truth": [{"xmin": 30, "ymin": 20, "xmax": 190, "ymax": 260}],
    "size": {"width": 2557, "height": 1600},
    "target": "target_0.jpg",
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ground_truth": []}, r"1.jpg: ground_truth is no list of one box"),
        ({"ground_truth": [{"xmin": 3}]}, r'ground_truth ymin: "None" is not a number'),
        ({"fixations": {"2": []}}, r"1.jpg, viewer 2 has no fixations\. Leave the trial out"),
        ({"fixations": {"2": [[1]]}}, r"viewer 2, fixation 1 is \[1\], expected \[x, y\]"),
        ({"fixations": {"2": 7}}, r"viewer 2: fixations are int, expected a list"),
        ({"fixations": {"2": [[9000, 5]]}}, r"viewer 2: 1 of 1 fixations lie outside of the screen of 2557 × 1600"),
        ({"size": {"width": 5}}, r'size height: "None" is not a number'),
    ],
)
def test_amazon(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "Amazon.json"
    path.write_text(json.dumps({"1.jpg": {**AMAZON, **change}}))
    with pytest.raises(DataError, match=message):
        _open(path)
    path.write_text(json.dumps({"1.jpg": {"fixations": {}}}))
    with pytest.raises(DataError, match=r'1.jpg has no "ground_truth"'):
        _open(path)


def test_shelf(tmp_path: Path) -> None:
    row = {"ID": 1, "Question": "Q3_1", "Target": "T", "T_Package": 5, "Choice": 1, "X": 5, "Y": 5, "Sub_ID": 9}
    path = tmp_path / "time_Q3.csv"
    write_csv(path, [{**row, "Choice": 28}])
    with pytest.raises(DataError, match=r'row 2, column "choice": 28 is no cell of this shelf, expected 1 to 27'):
        _open(path)
    write_csv(path, [{**row, "Question": "Q2_1"}])
    with pytest.raises(DataError, match=r'the question "Q2_1" has no known layout\. Known: Q1 \(wine\), Q3 \(yogurt\)'):
        _open(path)
    write_csv(path, [row, {**row, "T_Package": 6}])
    with pytest.raises(DataError, match=r"row 3: trial 1 has another question or target"):
        _open(path)


def test_what_is_no_layout(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(DataError, match=r"has nothing in a layout that is known .*Files: notes.txt"):
        _open(tmp_path)


def test_too_little_to_learn_from(shelf: Path, tmp_path: Path) -> None:
    write_csv(tmp_path / "boxes.csv", grid_boxes(1))
    with pytest.raises(DataError, match=r"gaze has 1 trials, at least 20 are needed"):
        _open(write_csv(tmp_path / "gaze.csv", _gaze())).check_trainable()
    many = [{**row, "trial": number} for number in range(25) for row in _gaze()]
    data = _open(write_csv(tmp_path / "gaze.csv", many))
    with pytest.raises(DataError, match=r"trials on 1 display, .*Or split single trials: --split trial"):
        data.check_trainable()
    _open(tmp_path / "gaze.csv", split="trial").check_trainable()
    _open(shelf).check_trainable()


def test_coco_search18(tmp_path: Path) -> None:
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    annotations: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "annotations": [box, {**box, "id": 2, "bbox": [20, 20, 9, 9]}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(annotations))
    trial = {
        "name": "a.jpg",
        "subject": 1,
        "task": "cup",
        "bbox": [9, 9, 9, 9],
        "X": [840, 9],
        "Y": [525, 9],
        "T": [1, 2],
    }
    path = tmp_path / "fixations.json"

    def refused(message: str, **change: Any) -> None:
        path.write_text(json.dumps([{**trial, **change}]))
        with pytest.raises(DataError, match=message):
            _open(path, format="coco-search18", boxes="instances.json")

    refused(r"trial 1: X and Y are no lists of the same length", X=[1])
    refused(r"trial 1: T has another length than X and Y", T=[1])
    refused(r"trial 1: bbox is 7, expected \[x, y, width, height\]", bbox=7)
    refused(r'no annotations of the image "b.jpg"\. Name their file: --boxes FILE', name="b.jpg")
    refused(r"has no trial that can be used", condition="absent")
    path.write_text(json.dumps([{"name": "a.jpg"}]))
    with pytest.raises(DataError, match=r'trial 1 has no "subject"'):
        _open(path, format="coco-search18", boxes="instances.json")
    for key, value, message in (
        ("images", 7, r"instances.json: images is 7, expected a list"),
        ("images", [7], r"instances.json, entry 1 of images is 7, expected an object with keys"),
        ("annotations", [{**box, "bbox": 3}], r"annotation 1: bbox is 3, expected \[x, y, width, height\]"),
        ("annotations", [], r"instances.json has no image with annotations"),
    ):
        (tmp_path / "instances.json").write_text(json.dumps({**annotations, key: value}))
        refused(message)
    (tmp_path / "instances.json").write_text("{}")
    refused(r'instances.json has no "images": expected COCO JSON')
