"""The command `tumor-segment` from end to end, on embedded volumes and on files."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from polyhead.testing import check_app, check_plugin
from polyhead_apps.shell import main
from polyhead_medical.app import app


def run(*arguments: str) -> int:
    return main(app, list(arguments))


@pytest.fixture
def fitted(folder: Path, tmp_path: Path) -> Path:
    run_folder = tmp_path / "run"
    sets = ["model.filters=[4,8]", "train.steps=2", "train.batch_size=2", "data.size=[16,16,16]"]
    arguments = [part for setting in sets for part in ("--set", setting)]
    assert run("fit", "--data", str(folder), *arguments, "--out", str(run_folder), "-q") == 0
    return run_folder


def test_the_plugin_and_its_app_keep_the_rules() -> None:
    check_app("tumor-segment")
    check_plugin("medical")


def test_nothing_heavy_is_imported_to_list_the_plugin() -> None:
    code = (
        "import sys, polyhead_medical.plugin, polyhead_medical.settings, polyhead_medical.app\n"
        "print([name for name in ('torch', 'monai', 'nibabel', 'scipy', 'matplotlib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("demo", "--quick", "--out", str(tmp_path / "demo"), "--json", "-q") == 0
    document = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in document["arms"]] == ["DAUNet", "AGUNet", "U-Net"]
    assert "Quick demo" in document["note"]
    report = (tmp_path / "demo" / "DAUNet-seed-0" / "report.html").read_text()
    assert "no medical device" in report


def test_one_scan_gives_one_mask_on_its_own_grid_and_says_ml(
    fitted: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], save: Any, ball: Any
) -> None:
    affine = np.array([[0, -1.5, 0, 40], [2.0, 0, 0, -20], [0, 0, -2.5, 30], [0, 0, 0, 1]])
    scan = save(tmp_path / "scan.nii.gz", ball(9)[0], affine)
    out = tmp_path / "seg.nii.gz"
    assert run("predict", "--model", str(fitted), "--data", str(scan), "--out", str(out), "-q") == 0
    said = capsys.readouterr().out
    assert "scan: " in said
    assert " ml, " in said
    assert "spacing 2 × 1.5 × 2.5 mm, 24 × 28 × 20 voxels" in said
    assert "no medical device" in said
    mask: Any = nibabel.load(out)
    assert mask.shape == (24, 28, 20)
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    assert not list(tmp_path.glob("scan*[!z]"))  # nothing is written beside the scan


def test_a_folder_gives_masks_probabilities_a_table_and_pictures(
    fitted: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    files = ["--files", "seg,prob,csv,png"]
    common = ["predict", "--model", str(fitted), "--data", str(folder), "--out", str(out), "-q", "--json"]
    assert run(*common, *files) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["scans"]) == 7
    with (out / "volumes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["scan"] for row in rows] == [f"head-{i}" for i in range(7)]
    probability: Any = nibabel.load(out / "head-3-prob.nii.gz")
    values = np.asarray(probability.dataobj)
    assert (values >= 0).all()
    assert (values <= 1).all()
    mask = np.asarray(nibabel.load(out / "head-3-seg.nii.gz").dataobj)  # type: ignore[attr-defined]
    threshold = float(rows[3]["threshold"])
    assert np.array_equal(mask > 0, values >= threshold)
    assert float(rows[3]["volume_ml"]) == pytest.approx(mask.sum() * 7.5 / 1000, abs=1e-4)
    assert (out / "head-3.png").read_bytes()[:4] == b"\x89PNG"


def test_growth_is_printed_with_the_warning(
    fitted: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now, before = (str(folder / "images" / f"head-{i}.nii.gz") for i in (0, 1))
    arguments = ["--threshold", "0.05", "--compare", before, "--compare-days", "365"]
    out = str(tmp_path / "seg.nii.gz")
    assert run("predict", "--model", str(fitted), "--data", now, "--out", out, "-q", *arguments) == 0
    said = capsys.readouterr().out
    assert "growth: " in said
    assert "not registered" in said


def test_data_check_says_what_is_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data", "check", str(folder)) == 0
    said = capsys.readouterr().out
    assert "with masks" in said
    assert "RAS" in said


def test_bad_files_are_one_line(tmp_path: Path, save: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "image.nii.gz", np.zeros((9, 9), np.float32))
    assert run("data", "check", str(path)) == 1
    assert "a scan has three axes" in capsys.readouterr().err
