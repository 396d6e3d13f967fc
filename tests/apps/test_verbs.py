"""What the verbs but `fit` do, end to end, with the plugin ``fake``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyhead_apps.console import Console

SHORT = ("--steps", "8", "--device", "cpu", "--threads", "1")
PROVENANCE = "Points drawn by a generator; they measure nothing."


@pytest.fixture
def run(line_fit: Callable[..., Any], tmp_path: Path) -> Path:
    """A finished run on the embedded data."""
    said = line_fit("fit", "--data", "toy-lines", "--out", "run", *SHORT)
    assert said.code == 0, said.err
    return tmp_path / "run"


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# evaluate


def test_evaluate_measures_the_newest_run(line_fit: Callable[..., Any]) -> None:
    assert line_fit("fit", "--data", "toy-lines", *SHORT).code == 0
    fitted = line_fit("evaluate", "--json")
    document = json.loads(fitted.out)
    assert document["run"].startswith("runs/line-fit/")
    assert f"model: {document['run']}/model" in fitted.err
    assert document["metrics"] == read(Path(document["run"]) / "metrics.json")["metrics"]
    shown = line_fit("evaluate")
    assert shown.out.splitlines()[-1] == f"test split. {PROVENANCE}"
    assert shown.err.splitlines()[-1] == f"Next: line-fit predict --model {document['run']}"


def test_evaluate_takes_a_split_and_a_file_for_the_figures(line_fit: Callable[..., Any], run: Path) -> None:
    said = line_fit("evaluate", "--model", "run", "--split", "train", "--out", "figures.json", "--json", "-q")
    assert (said.code, said.err) == (0, "")
    assert read(Path("figures.json")) == json.loads(said.out)
    assert json.loads(said.out)["split"] == "train"
    said = line_fit("evaluate", "--model", "run", "--out", "figures.json")
    assert (said.code, said.err) == (
        2,
        "line-fit: --out figures.json exists: name another file, or replace it with --force.\n",
    )


def test_a_bare_model_folder_needs_data(line_fit: Callable[..., Any], run: Path) -> None:
    shutil.copytree(run / "model", "bare")
    assert line_fit("evaluate", "--model", "bare").err.startswith("model: bare\nline-fit: Which data? Give --data PATH")
    said = line_fit("evaluate", "--model", "bare", "--data", "toy-lines", "--json")
    assert json.loads(said.out)["metrics"] == read(run / "metrics.json")["metrics"]


def test_other_data_keep_the_runs_settings_but_those_of_its_files(line_fit: Callable[..., Any], points: Path) -> None:
    comma = points.with_name("comma.csv")
    lines = [line.replace(".", ";") for line in points.read_text(encoding="utf-8").splitlines()]
    comma.write_text("\n".join(lines).replace(";", "."), encoding="utf-8")
    options = ("--decimal", "comma", "--scale", "3", "--out", "run")
    assert line_fit("fit", "--data", comma, *options, *SHORT).code == 0
    from polyhead_fake.settings import LineSettings

    from polyhead_apps.opening import data_arguments
    from polyhead_apps.runs import Run

    same = data_arguments(None, Run(Path("run")), LineSettings)
    assert same == data_arguments("comma.csv", Run(Path("run")), LineSettings) or same[0] == str(comma)
    assert same[1]["data.decimal"] == "comma"
    given, base = data_arguments(str(points), Run(Path("run")), LineSettings)
    assert given == str(points)
    assert "data.decimal" not in base
    assert base["data.scale"] == 3


def test_models_that_do_not_fit_are_refused(line_fit: Callable[..., Any], run: Path) -> None:
    task = run / "model" / "task.json"
    from polyhead.artifacts import json_bytes, write_atomic, write_manifest

    def say(content: Any, *options: str) -> str:
        write_atomic(task, json_bytes(content))
        write_manifest(run / "model")
        said = line_fit("evaluate", "--model", "run", *options)
        assert said.code == 1
        return str(said.err).splitlines()[-1]

    state = read(task)["state"]
    assert say({"plugin": "traffic", "task": "forecast", "state": {}}) == (
        'line-fit: run/model was fitted for task "forecast" of plugin "traffic"; '
        'line-fit runs line-fit, sign of plugin "fake".'
    )
    assert say({"plugin": "fake", "task": "line-fit", "state": state}, "--task", "sign") == (
        'line-fit: run/model was fitted for task "line-fit", not "sign": leave --task out.'
    )
    assert say([]) == ("line-fit: run/model/task.json is damaged: it holds no task. Use another copy of run/model.")
    assert say({"plugin": "fake", "task": "line-fit", "state": {**state, "width": 3}}) == (
        "line-fit: toy lines has 2 columns, the model was fitted on 3."
    )
    task.unlink()
    said = line_fit("evaluate", "--model", "run")
    assert (
        said.err == "line-fit: run/model has no task.json: it does not say what the model is for. Make it with `fit`.\n"
    )


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "task.json"])
def test_a_flipped_bit_is_named(line_fit: Callable[..., Any], run: Path, name: str) -> None:
    flip(run / "model" / name)
    for verb in ("evaluate", "predict", "export"):
        said = line_fit(verb, "--model", "run")
        assert (said.code, said.out) == (1, "")
        assert name in said.err.splitlines()[-1]
        assert "damaged" in said.err.splitlines()[-1]


# predict


def test_predict_writes_a_folder_in_the_run(line_fit: Callable[..., Any], run: Path) -> None:
    said = line_fit("predict", "--model", "run", "--parts", 2, "--digits", 1)
    assert said.code == 0, said.err
    assert said.out.splitlines() == ["run/predictions/part-0.csv", "run/predictions/part-1.csv"]
    assert (run / "predictions" / "part-0.csv").read_text(encoding="utf-8").splitlines()[0] == "y"
    about = (run / "predictions" / "about.txt").read_text(encoding="utf-8").splitlines()
    assert about == [
        "Made by: line-fit predict --model run --parts 2 --digits 1",
        "Model: run/model",
        "Data: toy lines",
        PROVENANCE,
    ]
    assert said.err.splitlines()[-1] == "made 2 files. Next: line-fit evaluate --model run"
    assert line_fit("predict", "--model", "run").out == "run/predictions-2/part-0.csv\n"


def test_predict_as_json_is_one_document(line_fit: Callable[..., Any], run: Path) -> None:
    said = line_fit("predict", "--model", "run", "--json", "-q")
    assert said.err == ""
    assert json.loads(said.out)["files"] == ["run/predictions/part-0.csv"]


def test_predict_writes_one_file_where_one_is_named(line_fit: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    said = line_fit("predict", "--model", "run", "--out", "y.csv")
    assert said.out == "y.csv\n"
    assert (tmp_path / "y.csv").read_text(encoding="utf-8").startswith("y\n")
    said = line_fit("predict", "--model", "run", "--out", "y.csv")
    assert said.err == "line-fit: --out y.csv exists: name another place, or replace it with --force.\n"
    assert line_fit("predict", "--model", "run", "--out", "y.csv", "--force").code == 0
    said = line_fit("predict", "--model", "run", "--out", "z.csv", "--parts", 2)
    assert said.code == 2
    assert said.err.splitlines()[-1] == (
        "line-fit: --out z.csv: this makes 2 files (part-0.csv, part-1.csv): name a folder."
    )
    assert not (tmp_path / "z.csv").exists()


def test_predictions_replace_others_only_with_force(line_fit: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert line_fit("predict", "--model", "run", "--out", "empty", "--parts", 2).code == 0
    said = line_fit("predict", "--model", "run", "--out", "empty")
    assert (said.code, said.out) == (2, "")
    assert line_fit("predict", "--model", "run", "--out", "empty", "--force").code == 0
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == ["about.txt", "manifest.json", "part-0.csv"]


def test_predictions_are_there_whole_or_not_at_all(
    line_fit: Callable[..., Any], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import polyhead_fake.task

    write = polyhead_fake.task.LineTask.write_predictions

    def failing(*arguments: Any) -> Any:
        write(*arguments)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(polyhead_fake.task.LineTask, "write_predictions", failing)
    before = sorted(run.iterdir())
    said = line_fit("predict", "--model", "run")
    assert (said.code, said.out) == (1, "")
    assert "run/predictions: No space left on device. Free some space" in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert sorted(run.iterdir()) == before


# demo


def test_quick_demo_says_that_it_makes_no_claim(line_fit: Callable[..., Any], tmp_path: Path) -> None:
    said = line_fit("demo", "--quick", "--out", "demo", "--threads", 1)
    assert said.code == 0, said.err
    note = "Quick demo: toy size, it makes no claim. These points are drawn."
    assert said.out.splitlines()[-1] == f"test split. {PROVENANCE} {note}"
    assert "predictions: demo/predictions/part-0.csv" in said.err
    assert said.err.splitlines()[-1] == (
        "made demo: open demo/report.html. Next, on your own data: line-fit fit --data PATH"
    )
    report = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    about = (tmp_path / "demo" / "predictions" / "about.txt").read_text(encoding="utf-8")
    for text in (report, about):
        assert PROVENANCE in text
        assert note in text
    document = read(tmp_path / "demo" / "metrics.json")
    assert (document["steps"], document["note"]) == (4, note)
    assert line_fit("demo", "--quick", "--out", "demo", "--threads", 1).code == 2
    assert line_fit("demo", "--quick", "--out", "demo", "--threads", 1, "--force", "-q").err == ""


def test_full_demo_uses_the_demos_settings_under_the_users(line_fit: Callable[..., Any]) -> None:
    said = line_fit("demo", "--json", "--set", "train.batch_size=16", "--threads", 1)
    document = json.loads(said.out)
    assert (document["steps"], document["note"]) == (8, "These points are drawn.")


def test_demo_on_own_data_drops_the_note_on_the_embedded_ones(line_fit: Callable[..., Any], points: Path) -> None:
    said = line_fit("demo", "--quick", "--data", points, "--threads", 1, "--json")
    document = json.loads(said.out)
    assert document["note"] == "Quick demo: toy size, it makes no claim."
    assert document["data"]["name"] == "points.csv"


def test_apps_may_bring_their_own_demo(fake_plugin: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import polyhead_fake.app

    from polyhead_apps import Demo
    from polyhead_apps.options import Given
    from polyhead_apps.verbs.demo import demo

    seen: dict[str, Any] = {}
    monkeypatch.setattr(polyhead_fake.app, "several_arms", lambda *a, **k: seen.update(k), raising=False)
    app = replace(polyhead_fake.app.app, demo=Demo(function="polyhead_fake.app:several_arms"))
    demo(app, Given(), Console(quiet=True), quick=True)
    assert seen["quick"] is True
    assert set(seen) == {"quick", "data", "task", "time_limit", "out", "force", "device", "threads", "as_json"}


def test_tasks_without_embedded_data_have_no_demo(fake_plugin: None) -> None:
    from polyhead_fake.plugin import FIT

    from polyhead.errors import PluginError
    from polyhead_apps.opening import embedded_default

    with pytest.raises(PluginError, match='Task "line-fit" has no embedded dataset: give --data PATH'):
        embedded_default(replace(FIT, datasets=("points",)))


# data check, models, datasets


def test_data_check_says_what_was_found(line_fit: Callable[..., Any], points: Path) -> None:
    said = line_fit("data", "check", points, "--scale", 2)
    assert said.code == 0
    lines = [line.split(None, 1) for line in said.out.splitlines()]
    assert ["rows", "32"] in lines
    assert ["columns", "a, b"] in lines
    assert ["range.high", "1,234.5"] in lines
    assert ["samples.train", "16"] in lines
    assert ["provenance", "Points of points.csv."] in lines
    assert said.err == f"{points} can be used. Next: line-fit fit --data {points} --scale 2.0\n"


def test_data_check_as_json_is_one_document(line_fit: Callable[..., Any]) -> None:
    document = json.loads(line_fit("data", "check", "toy-lines", "--json").out)
    assert document["summary"]["rows"] == 64
    assert document["samples"] == {"train": 32, "validation": 16, "test": 16}
    assert len(document["fingerprint"]) == 64


def test_data_check_says_what_is_wrong(line_fit: Callable[..., Any], points: Path) -> None:
    points.write_text("a,b,y\n", encoding="utf-8")
    said = line_fit("data", "check", points)
    assert (said.code, said.out) == (1, "")
    assert said.err == f"line-fit: {points} has 1 rows: at least 8 points and a header are needed.\n"


def test_models_are_listed_with_papers_and_presets(line_fit: Callable[..., Any]) -> None:
    said = line_fit("models")
    assert said.out.splitlines() == [
        "line  a straight line",
        "  paper: Galton 1886",
        "  --preset tiny: hidden 2",
        "  --preset wide: hidden 16",
        "bent  a line with a bend",
    ]
    assert [entry["name"] for entry in json.loads(line_fit("models", "--json").out)] == ["line", "bent"]


def test_sizes_of_models_are_counted_when_asked_for(line_fit: Callable[..., Any]) -> None:
    lines = line_fit("models", "-v").out.splitlines()
    assert "  wide: set by the data" in lines
    assert lines[-1] == "  default: 17 parameters"


def test_datasets_are_listed_with_their_use(line_fit: Callable[..., Any]) -> None:
    said = line_fit("datasets")
    assert said.out.splitlines() == [
        "toy-lines  drawn lines",
        "  use: --data toy-lines",
        "  licence: CC0",
        "points  points in a file",
        "  use: --data PATH",
        "  reads csv: a,b,y",
        "  source: https://example.org/points",
    ]
    assert [entry["embedded"] for entry in json.loads(line_fit("datasets", "--json").out)] == [True, False]
