from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead.errors import CheckpointError, ConfigError, StorageError
from polyhead_apps.config import TaskSettings, UsageError, load_settings
from polyhead_apps.runs import Run, check_out, find_model, find_run, new_run, runs, safe_name, versions


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def make(folder: str, started: str = "", *, fitted: bool = True, done: bool = True) -> Run:
    run = Run(Path(folder))
    run.folder.mkdir(parents=True)
    run.write_json("run.json", {"started": started, "data": {}})
    if fitted:
        run.model.mkdir()
        (run.model / "config.json").write_text("{}", encoding="utf-8")
    if done:
        run.write_json("metrics.json", {})
    return run


def test_new_runs_get_a_folder_of_their_own() -> None:
    first, second = (new_run("app", "gman", None, force=False) for _ in range(2))
    assert first.folder.parent == Path("runs/app")
    assert first.folder.name.endswith("-gman")
    assert first.folder != second.folder
    assert second.folder.is_dir()


def test_out_is_taken_if_it_is_free(tmp_path: Path) -> None:
    assert new_run("app", "x", tmp_path / "a" / "b", force=False).folder.is_dir()
    assert new_run("app", "x", tmp_path / "a" / "b", force=False).folder == tmp_path / "a" / "b"


def test_out_that_is_not_free_is_refused() -> None:
    make("mine")
    Path("other").mkdir()
    Path("other/notes.txt").touch()
    with pytest.raises(UsageError) as caught:
        check_out(Path("mine"), force=False)
    assert (
        str(caught.value) == "--out mine holds a run: go on with it (--resume), replace it (--force) or name another."
    )
    for force in (False, True):
        with pytest.raises(UsageError, match=r"^--out other is not empty and holds no run: name another folder"):
            new_run("app", "x", Path("other"), force=force)
        with pytest.raises(UsageError, match=r"^--out other/notes\.txt is a file: name a folder for the run"):
            check_out(Path("other/notes.txt"), force=force)


def test_force_replaces_the_run_and_leaves_other_files() -> None:
    run = make("mine")
    (run.folder / "checkpoints").mkdir()
    (run.folder / "notes.txt").touch()
    new_run("app", "x", run.folder, force=True)
    assert sorted(path.name for path in run.folder.iterdir()) == ["notes.txt", "run.json"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"^Cannot make the folder .*file/run: .*. Name another with --out"):
        new_run("app", "x", tmp_path / "file" / "run", force=False)


def test_newest_comes_first_and_damaged_ones_are_left_out() -> None:
    make("runs/app/b", "2026-01-01")
    make("runs/app/a", "2026-01-02")
    make("runs/app/c", "2025-01-01")
    make("runs/other/d", "2027-01-01")
    Path("runs/app/broken").mkdir()
    Path("runs/app/broken/run.json").write_text("{", encoding="utf-8")
    assert [run.folder.name for run in runs("app")] == ["a", "b", "c"]


def test_resume_takes_the_newest_unfinished_run() -> None:
    make("runs/app/a", "2026-01-01", fitted=False, done=False)
    make("runs/app/b", "2026-01-02", done=False)
    make("runs/app/c", "2026-01-03")
    assert find_run("app", None).folder.name == "b"
    assert find_run("app", Path("runs/app/c")).folder.name == "c"


def test_resume_without_a_run_says_so() -> None:
    with pytest.raises(UsageError, match=r"^--resume: no unfinished run in runs/app\. Name one with --out RUN\."):
        find_run("app", None)
    with pytest.raises(
        UsageError, match=r"^--resume: nothing holds no run\. Fit without --resume to start one there\."
    ):
        find_run("app", Path("nothing"))


def test_model_is_the_newest_fitted_run_a_run_a_name_or_a_folder() -> None:
    make("runs/app/a", "2026-01-01")
    make("runs/app/b", "2026-01-02", fitted=False)
    run = make("elsewhere", "2020-01-01")
    assert find_model("app", None) == (Path("runs/app/a/model"), Run(Path("runs/app/a")))
    assert find_model("app", "elsewhere") == (run.model, run)
    assert find_model("app", "elsewhere/model") == (run.model, run)
    assert find_model("app", "a") == (Path("runs/app/a/model"), Run(Path("runs/app/a")))
    Path("bare").mkdir()
    Path("bare/config.json").touch()
    assert find_model("app", "bare") == (Path("bare"), None)


def test_models_that_are_not_there_are_named() -> None:
    with pytest.raises(CheckpointError) as caught:
        find_model("app", None)
    assert str(caught.value) == "No fitted run in runs/app: fit first (app fit --data PATH), or name --model."
    make("runs/app/20260101-gman", fitted=False)
    with pytest.raises(ConfigError) as unknown:
        find_model("app", "20260101-gmann")
    assert str(unknown.value) == (
        "--model 20260101-gmann: no such run or model folder (a model folder holds config.json and "
        'model.safetensors). Did you mean "20260101-gman"?'
    )
    with pytest.raises(CheckpointError) as unfitted:
        find_model("app", "20260101-gman")
    assert str(unfitted.value) == (
        "Run runs/app/20260101-gman has no model yet. Go on with it: app fit --resume --out runs/app/20260101-gman"
    )


def test_settings_of_a_run_come_back(tmp_path: Path) -> None:
    run = Run(tmp_path)
    settings = load_settings(TaskSettings, sets=["model.heads=4", "train.steps=3", "model.name=grün"])
    run.write_settings(settings)
    assert load_settings(TaskSettings, base=run.settings()) == settings
    assert load_settings(TaskSettings, tmp_path / "config.yaml") == settings


def test_damaged_runs_are_named(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"^Cannot read .*config.yaml: No such file.* A run keeps its settings there"
    ):
        run.settings()
    (tmp_path / "config.yaml").write_text("- 1", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config.yaml is damaged: it holds no settings. Fit again"):
        run.settings()
    (tmp_path / "run.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"run.json is damaged: it does not say what the run is. Fit again"):
        _ = run.record


def test_versions_are_those_of_this_environment() -> None:
    found = versions(["no-such-distribution"])
    assert {"python", "platform", "polyhead", "torch"} <= set(found)
    assert "no-such-distribution" not in found
    json.dumps(found)


@pytest.mark.parametrize(("text", "name"), [("a b", "a-b"), ("../..", "run"), ("ä.csv", "csv"), ("", "run")])
def test_names_are_safe_in_a_path(text: str, name: str) -> None:
    assert safe_name(text) == name
