"""The command: manifest, app, and a run from the first verb to the last."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead.manifest import resolve
from polyhead_actions.app import app
from polyhead_actions.plugin import polyhead_plugin
from polyhead_apps import run

TINY = ("--preset", "tiny", "--set", "train.log_steps=1", "--threads", "1")


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        run(app, arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


def test_every_reference_of_the_manifest_resolves() -> None:
    plugin = polyhead_plugin()
    for target in [spec.target for specs in (plugin.datasets, plugin.tasks, plugin.apps) for spec in specs]:
        assert resolve(target) is not None
    for spec in plugin.models:
        for preset in spec.presets.values():
            resolve(spec.target).Config(channels=4, **preset)


def test_manifest_app_and_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, polyhead_actions.plugin, polyhead_actions.settings, polyhead_actions.app\n"
        "polyhead_actions.plugin.polyhead_plugin()\n"
        "print([name for name in ('torch', 'numpy', 'matplotlib', 'h5py') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_fit_evaluate_predict_on_a_folder(
    folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder()
    assert _call("fit", "--data", str(path), "--length", "16", *TINY, "--set", "train.steps=3", "--out", "first") == 0
    said = capsys.readouterr()
    assert "step classifier" in said.out
    assert "Reported on the subset validation" in said.out
    assert _call("evaluate", "--model", "first", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert {"mAP", "mAP@0.5", "AP@0.7", "AR@100", "AUC"} <= set(document["metrics"])
    assert set(document["baselines"]) == {"usual segments", "threshold", "step classifier"}
    assert _call("predict", "--model", "first", "--files", "json", "--out", "results.json") == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["results"]) == 14
    assert _call("data", "check", str(path)) == 0
    assert "actions by class" in capsys.readouterr().out

    (path / "annotations.json").rename(tmp_path / "elsewhere.json")
    new = ("--data", str(path), "--fps", "2", "--stride", "1")
    assert _call("predict", "--model", "first", *new, "--files", "csv", "--out", "new.csv") == 1
    assert "videos has sampling window, the model was fitted with rescale. Use --sampling rescale." in (
        capsys.readouterr().err
    )
    assert (
        _call("predict", "--model", "first", *new, "--sampling", "rescale", "--files", "csv", "--out", "new.csv") == 0
    )
    assert {"wave", "jump"} >= {line.split(",")[3] for line in (tmp_path / "new.csv").read_text().splitlines()[1:]}


def test_the_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert _call("demo", "--quick", "--threads", "1", "--out", "demo") == 0
    said = capsys.readouterr().out
    assert "BMN + CSA" in said
    assert "it makes no claim" in said
    made = {file.relative_to(tmp_path / "demo").parts[-1] for file in (tmp_path / "demo").rglob("*") if file.is_file()}
    assert {"results.json", "detections.csv", "report.html", "comparison.json"} <= made


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "nowhere"), 1, "no such file, folder or dataset"),
        (("--data", "{folder}", "--set", "model.channels=9"), 1, "model.channels is 9, but the data have 3"),
        (("--data", "{folder}", "--set", "data.lenght=9"), 2, 'Did you mean "data.length"?'),
    ],
)
def test_what_is_wrong_ends_in_one_line(
    folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder()
    given = [argument.format(folder=path) for argument in arguments]
    assert _call("fit", *given, *TINY, "--out", "first") == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "first").exists()


def test_a_saved_model_is_exported(
    folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    call = ("fit", "--data", str(folder()), "--length", "16", *TINY, "--set", "train.steps=1", "--out", "first", "-q")
    assert _call(*call) == 0
    assert _call("export", "--model", "first", "--to", "pt2", "--out", "exported") == 0
    assert list((tmp_path / "exported").rglob("*.pt2"))
