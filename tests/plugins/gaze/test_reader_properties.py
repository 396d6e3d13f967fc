"""Whatever a file holds, a reader opens it or says what is wrong in one sentence."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.plugins.gaze.conftest import grid_boxes, write_csv

from polyhead.errors import PolyheadError
from polyhead_gaze.formats import open_files
from polyhead_gaze.settings import DisplaySettings

VALUES = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(), st.text(max_size=5))
JSON = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
GAZE = "trial,x,y,target,display\n1,50,50,o00,d0\n1,150,50,o00,d0\n"
DISPLAY = {"boxes": [[0, 0, 9, 9], [10, 0, 19, 9]], "ids": ["a", "b"], "size": [20, 20], "target": "a"}
COVERS = {
    "1.jpg": {
        "fixations": {"1": [[100, 100], [300, 100]]},
        "ground_truth": [{"xmin": 30, "ymin": 20, "xmax": 190, "ymax": 260}],
        "size": {"width": 2557, "height": 1600},
        "target": "target_0.jpg",
    }
}


def _opened_or_refused(path: Path, **options: Any) -> None:
    with contextlib.suppress(PolyheadError):
        assert open_files(path, DisplaySettings(**options)).displays


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, len(GAZE) - 1), text=st.text(max_size=4), length=st.integers(0, 6))
def test_damaged_tables(place: int, text: str, length: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_csv(Path(folder) / "boxes.csv", grid_boxes(1))
        path = Path(folder) / "gaze.csv"
        path.write_text(GAZE[:place] + text + GAZE[place + length :], encoding="utf-8", errors="replace")
        _opened_or_refused(path, boxes="boxes.csv", format="csv")


@settings(max_examples=60, deadline=None)
@given(value=JSON, key=st.sampled_from(sorted(DISPLAY)), whole=st.booleans())
def test_displays_of_anything(value: Any, key: str, whole: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "display.json"
        path.write_text(json.dumps(value if whole else {**DISPLAY, key: value}), encoding="utf-8", errors="replace")
        _opened_or_refused(path, format="display")


@settings(max_examples=60, deadline=None)
@given(value=JSON, key=st.sampled_from(sorted(COVERS["1.jpg"])), whole=st.booleans())
def test_covers_of_anything(value: Any, key: str, whole: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "Amazon.json"
        content = value if whole else {"1.jpg": {**COVERS["1.jpg"], key: value}}
        path.write_text(json.dumps(content), encoding="utf-8", errors="replace")
        _opened_or_refused(path, format="amazon")


@settings(max_examples=60, deadline=None)
@given(value=JSON, key=st.sampled_from(["name", "task", "X", "Y", "T", "bbox", "condition", "subject"]))
def test_coco_search18_of_anything(value: Any, key: str) -> None:
    annotations = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
        "annotations": [{"id": n, "image_id": 1, "category_id": n, "bbox": [9 * n, 9 * n, 9, 9]} for n in (1, 2)],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}],
    }
    trial = {
        "name": "a.jpg",
        "subject": 1,
        "task": "cup",
        "bbox": [9, 9, 9, 9],
        "X": [840, 9],
        "Y": [525, 9],
        "T": [1, 2],
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "instances.json").write_text(json.dumps(annotations))
        path = Path(folder) / "fixations.json"
        path.write_text(json.dumps([{**trial, key: value}]), encoding="utf-8", errors="replace")
        _opened_or_refused(path, boxes="instances.json", format="coco-search18")


@settings(max_examples=60, deadline=None)
@given(value=JSON, key=st.sampled_from(["images", "annotations", "categories"]), whole=st.booleans())
def test_annotations_of_anything(value: Any, key: str, whole: bool) -> None:
    annotations: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "d0", "width": 640, "height": 480}],
        "annotations": [{"id": n, "image_id": 1, "category_id": n, "bbox": [9 * n, 9 * n, 9, 9]} for n in (1, 2)],
        "categories": [{"id": 1, "name": "o00"}, {"id": 2, "name": "fork"}],
    }
    with tempfile.TemporaryDirectory() as folder:
        content = value if whole else {**annotations, key: value}
        (Path(folder) / "boxes.json").write_text(json.dumps(content), encoding="utf-8", errors="replace")
        path = Path(folder) / "gaze.csv"
        path.write_text(GAZE)
        _opened_or_refused(path, boxes="boxes.json", format="csv")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00" * 50, b"[" * 5000])
@pytest.mark.parametrize("name", ["Amazon.json", "display.json", "gaze.csv"])
def test_no_text_at_all(tmp_path: Path, content: bytes, name: str) -> None:
    write_csv(tmp_path / "boxes.csv", grid_boxes(1))
    path = tmp_path / name
    path.write_bytes(content)
    form = {"Amazon.json": "amazon", "display.json": "display", "gaze.csv": "csv"}[name]
    with pytest.raises(PolyheadError, match=name):
        open_files(path, DisplaySettings.model_validate({"format": form, "boxes": "boxes.csv"}))
