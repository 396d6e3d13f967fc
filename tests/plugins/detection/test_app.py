"""The command from end to end: the kit, the quick demo, and a user's own pictures."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from tests.plugins.detection.conftest import coco_folder

from polyhead.models import from_pretrained
from polyhead.testing import check_plugin
from polyhead_apps.shell import main
from polyhead_detection.app import app

SMALL = ("--threads", "1", "--preset", "tiny", "--steps", "3", "-q", "--short-side", "64", "--long-side", "64")
SMALLER = ("--set", "train.batch_size=4")


def _call(*arguments: str) -> int:
    return main(app, arguments)


def test_the_plugin_passes_the_kit() -> None:
    assert check_plugin("detection")


def test_the_quick_demo_compares_three_encoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _call("demo", "--quick", "--threads", "1", "--out", "run", "--set", "train.steps=3") == 0
    shown = capsys.readouterr().out
    assert "it makes no claim" in shown
    assert all(name in shown for name in ("focus-detr", "random tokens", "all tokens", "usual boxes", "token_recall"))
    assert (tmp_path / "run" / "report.html").is_file()
    predictions = tmp_path / "run" / "focus-detr-seed-0" / "predictions"
    assert json.loads((predictions / "detections.json").read_text())["images"]
    with Image.open(next((predictions / "keep-maps").iterdir())) as picture:
        assert picture.size == (64 * 2 + 4, 64)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return coco_folder(tmp_path_factory.mktemp("coco") / "scenes")


@pytest.fixture(scope="module")
def fitted(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "run"
    assert _call("fit", "--data", str(scenes), *SMALL, *SMALLER, "--out", str(out)) == 0
    return out


def test_a_coco_folder_is_learned_from_measured_and_answered_with_its_own_ids(
    fitted: Path, scenes: Path, tmp_path: Path
) -> None:
    metrics = json.loads((fitted / "metrics.json").read_text())["metrics"]
    assert {"ap", "ap50", "ar100", "ap_digit 3", "token_recall"} <= set(metrics)
    out = tmp_path / "found"
    files = "results,coco,yolo,voc,pictures,keep-maps"
    options = ("--threshold", "0", "--top", "5", "--files", files, "--threads", "1", "-q")
    assert _call("predict", "--model", str(fitted), "--data", str(scenes), *options, "--out", str(out)) == 0
    results = json.loads((out / "results.json").read_text())
    assert {row["image_id"] for row in results} == {13, 14, 15, 16}
    assert {row["category_id"] for row in results} <= {3 + 3 * digit for digit in range(10)}
    assert all(row["bbox"][0] >= 0 and row["bbox"][0] + row["bbox"][2] <= 64.01 for row in results)
    lines = (out / "yolo" / "012.txt").read_text().splitlines()
    assert len(lines) == 5
    assert all(len(line.split()) == 6 for line in lines)
    assert len((out / "yolo" / "classes.txt").read_text().splitlines()) == 10
    assert len(ElementTree.parse(out / "voc" / "012.xml").findall("object")) == 5
    assert (out / "pictures" / "012.png").is_file()


def test_pictures_without_annotations_are_answered(fitted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "inner").mkdir(parents=True)
    Image.new("RGB", (90, 50)).save(folder / "a.jpg")
    Image.new("L", (50, 90)).save(folder / "inner" / "a.png")
    out = tmp_path / "found"
    options = ("--threshold", "0", "--top", "3", "--files", "coco,pictures", "--threads", "1", "-q")
    assert _call("predict", "--model", str(fitted), "--data", str(folder), *options, "--out", str(out)) == 0
    document = json.loads((out / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["a.jpg", "inner/a.png"]
    assert len(document["annotations"]) == 6
    one = tmp_path / "one.json"
    single = ("--files", "coco", "--threads", "1", "-q", "--data", str(folder / "a.jpg"))
    assert _call("predict", "--model", str(fitted), *single, "--out", str(one)) == 0
    assert json.loads(one.read_text())["images"][0]["width"] == 90


def test_a_video_is_answered_frame_by_frame(fitted: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    import numpy as np

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * shade, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    out = tmp_path / "found"
    options = ("--every", "2", "--files", "coco", "--threads", "1", "-q")
    assert _call("predict", "--model", str(fitted), "--data", str(path), *options, "--out", str(out)) == 0
    images = json.loads((out / "detections.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [f"clip-{n:06d}.png" for n in (1, 3, 5)]
    assert _call("fit", "--data", str(path), *SMALL, "--out", str(tmp_path / "run")) == 1


def test_other_categories_are_refused_and_can_be_fine_tuned_on(
    fitted: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "images").symlink_to(scenes / "images")
    for split in ("train", "val"):
        document = json.loads((scenes / f"{split}.json").read_text())
        document["categories"] = [{"id": 1, "name": "low"}, {"id": 2, "name": "high"}]
        for row in document["annotations"]:
            row["category_id"] = 1 if row["category_id"] < 18 else 2
        (folder / f"{split}.json").write_text(json.dumps(document))
    assert _call("evaluate", "--model", str(fitted), "--data", str(folder), "--threads", "1") == 1
    said = capsys.readouterr().err
    assert "has 2 categories and the model 10" in said
    assert "1 low" in said
    options = ("--init-from", str(fitted), *SMALL, *SMALLER)
    assert _call("fit", "--data", str(folder), *options, "--out", str(tmp_path / "run")) == 0


@pytest.mark.slow
def test_export_writes_a_program_for_any_number_of_pictures(fitted: Path, tmp_path: Path) -> None:
    options = ("--to", "pt2", "--threads", "1", "-q", "--out", str(tmp_path / "exported"))
    assert _call("export", "--model", str(fitted), *options) == 0
    program = torch.export.load(tmp_path / "exported" / "focus-detr.pt2").module()
    images = torch.randint(0, 256, (3, 3, 64, 64), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        expected = from_pretrained(fitted / "model")(images)
    assert torch.allclose(program(image=images).logits, expected.logits, atol=1e-4)
