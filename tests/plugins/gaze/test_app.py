"""The command: manifest, the quick demo, and a run on own files from the first verb to the last."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from polyhead import plugins
from polyhead.testing import check_plugin
from polyhead_apps import run
from polyhead_gaze.app import app

TINY = ("--preset", "tiny", "--threads", "1", "--set", "train.steps=4", "--set", "task.samples=3")


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        run(app, arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.mark.slow
def test_conformance() -> None:
    check_plugin("gaze")


def test_the_installed_plugin_is_this_one() -> None:
    assert plugins.find_app("gaze-scanpath")[0].name == "gaze"
    assert plugins.find_model("oat")[0].name == "gaze"


def test_manifest_app_and_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, polyhead_gaze.plugin, polyhead_gaze.settings, polyhead_gaze.app\n"
        "polyhead_gaze.plugin.polyhead_plugin()\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib', 'PIL', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _call("demo", "--quick", "--threads", "1", "--out", "demo", "--set", "train.steps=6") == 0
    said = capsys.readouterr()
    for name in ("OAT", "random place codes", "distance-Markov", "other viewers", "sequence_score", "delta"):
        assert name in said.out
    assert "Simulated viewers are no people." in said.out
    assert "it makes no claim" in said.out
    assert (tmp_path / "demo" / "report.html").stat().st_size > 3_000


def test_fit_evaluate_predict_on_own_files(
    shelf: Path,
    display_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _call("data", "check", str(shelf)) == 0
    assert "overlapping boxes" in capsys.readouterr().out
    assert _call("fit", "--data", str(shelf), *TINY, "--out", "first") == 0
    assert "on displays that training has not seen" in capsys.readouterr().out
    assert _call("evaluate", "--model", "first", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    recorded = json.loads((tmp_path / "first" / "metrics.json").read_text())
    assert document["metrics"] == pytest.approx(recorded["metrics"])
    assert {"nll_low", "sequence_score_high", "human_found", "multimatch_shape"} <= set(document["metrics"])

    common = ("--model", "first", "--data", str(display_file))
    assert _call("predict", *common, "--samples", "7", "--out", "scanpaths.csv", "--plot", "out.png") == 0
    assert "is not modelled" in capsys.readouterr().err
    with (tmp_path / "scanpaths.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["display", "target", "sample", "order", "object", "x", "y"]
    assert {row["sample"] for row in rows} == {str(number) for number in range(1, 8)}
    assert {row["target"] for row in rows} == {"e"}
    assert (rows[0]["object"] in "abcdef", rows[0]["order"]) == (True, "1")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width == 960

    assert _call("predict", *common, "--plot", "out.png", "--out", "no.csv") == 1
    assert "--plot out.png exists: name another place, or remove it" in capsys.readouterr().err

    assert _call("predict", *common, "--samples", "7", "--out", "again.csv") == 0
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "scanpaths.csv").read_text()
    assert _call("predict", *common, "--samples", "7", "--draw", "1", "--out", "other.csv") == 0
    assert (tmp_path / "other.csv").read_text() != (tmp_path / "scanpaths.csv").read_text()

    seen = ("--distance-cm", "60", "--width-cm", "30")
    assert _call("predict", *common, *seen, "--samples", "7", "--out", "angles.csv") == 0
    assert (tmp_path / "angles.csv").read_text().splitlines()[0].endswith(",x,y,x_deg,y_deg")

    assert _call("predict", *common, "--target", "c", "--files", "areas", "--out", "areas.csv") == 0
    with (tmp_path / "areas.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["object"] for row in table] == list("abcdef")
    assert [row["is_target"] for row in table] == ["0", "0", "1", "0", "0", "0"]
    assert sum(float(row["first_rate"]) for row in table) == pytest.approx(1, abs=1e-3)

    assert _call("predict", "--model", "first", "--files", "areas,picture", "--out", "test") == 0
    pictures = list((tmp_path / "test").glob("picture-*.png"))
    assert len(pictures) == 2
    assert "human_reach_rate" in (tmp_path / "test" / "areas.csv").read_text().splitlines()[0]
    capsys.readouterr()

    assert _call("predict", *common, "--target", "z", "--out", "no.csv") == 1
    assert 'No object of display is called "z". Objects: a, b, c, d, e, f.' in capsys.readouterr().err
    assert _call("predict", "--model", "first", "--plot", "no.png", "--out", "no.csv") == 1
    assert "has 2 displays, and one picture shows one" in capsys.readouterr().err
    content = json.loads(display_file.read_text())
    del content["target"]
    display_file.write_text(json.dumps(content))
    assert _call("predict", *common, "--out", "no.csv") == 1
    assert "display names no target: say by --target what is searched for" in capsys.readouterr().err
    assert not (tmp_path / "no.csv").exists()


def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ("--set", "data.displays=8", "--set", "data.test_displays=2")
    assert _call("fit", "--data", "simulated-searchers", *TINY, *sizes, "--out", "run", "-q") == 0
    assert _call("export", "--model", "run", "--to", "pt2", "--out", "exported", "-q") == 0
    assert list((tmp_path / "exported").glob("*.pt2"))
