"""The command: manifest, quick demo, own episodes from the first verb to the last."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from polyhead import plugins
from polyhead.manifest import resolve
from polyhead.testing import check_plugin
from polyhead_agents import streaming
from polyhead_agents.app import app
from polyhead_agents.plugin import polyhead_plugin
from polyhead_apps import run

Write = Callable[..., Path]
SIZES = {
    "decision-aaren": {"state_dim": 4, "act_dim": 2},
    "decision-transformer": {"state_dim": 4, "act_dim": 2},
    "series-classifier": {"channels": 1, "classes": 2, "length": 3},
    "series-forecaster": {"channels": 1},
    "event-model": {"marks": 2},
}
TINY = ("--preset", "tiny", "--set", "train.steps=3", "--set", "train.warmup_steps=1", "--threads", "1")


def call(*arguments: str) -> int:
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
            resolve(spec.target).Config(**SIZES[spec.name], **preset)
    for target in (*app.commands.values(), app.demo.function):
        assert callable(resolve(target))


def test_the_installed_plugin_is_this_one_and_conforms() -> None:
    assert plugins.find_app("agent-train")[0].name == "agents"
    assert check_plugin("agents")


def test_manifest_app_and_settings_import_nothing_heavy() -> None:
    code = (
        "import sys, polyhead_agents.plugin, polyhead_agents.settings, polyhead_agents.app, polyhead_agents.recording\n"
        "import polyhead_agents.streaming\n"
        "polyhead_agents.plugin.polyhead_plugin()\n"
        "print([name for name in ('torch', 'gymnasium', 'matplotlib', 'h5py', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_quick_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(streaming, "LENGTHS", (10, 100))
    assert call("demo", "--quick", "--threads", "1", "--set", "train.steps=5", "--out", "made") == 0
    out = capsys.readouterr().out
    for text in ("decision-aaren", "decision-transformer", "recorded policy", "random", "state, bytes", "no claim"):
        assert text in out
    assert (tmp_path / "made" / "report.html").stat().st_size > 1000
    assert (tmp_path / "made" / "decision-aaren-seed-0" / "predictions" / "episodes.csv").is_file()


def test_a_demo_in_json_is_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--set", "train.steps=2", "--set", "data.play_episodes=2", "--set", "predict.episodes=1")
    assert call("demo", "--quick", "--threads", "1", "--json", "--out", str(tmp_path / "made"), *quick) == 0
    document = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in document["arms"]] == ["decision-aaren", "decision-transformer"]


def test_the_state_of_aaren_stays_and_the_cache_grows(capsys: pytest.CaptureFixture[str]) -> None:
    streaming.streaming(repeats=1, as_json=True)
    rows = json.loads(capsys.readouterr().out)
    sizes = {
        name: [row["state_bytes"] for row in rows if row["model"] == name]
        for name in ("decision-aaren", "decision-transformer")
    }
    assert sizes["decision-aaren"] == [544] * 4
    tokens = [3 * steps for steps in streaming.LENGTHS]
    # Two layers of keys and values, 64 numbers each, and a count.
    assert sizes["decision-transformer"] == [2 * (2 * 64 * 4 * n + 8) for n in tokens]


def test_own_episodes_from_fit_to_predict(minari: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = str(minari((25,) * 12)), str(tmp_path / "made")
    assert call("data", "check", data, "--env", "CartPole-v1") == 0
    assert "25" in capsys.readouterr().out
    fit = ("fit", "--data", data, "--env", "CartPole-v1", "--out", out, *TINY, "--play-episodes", "3")
    assert call(*fit) == 0
    assert "random" in capsys.readouterr().out
    assert call("evaluate", "--model", out, "--json", "--threads", "1") == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert {"return", "return_ci95", "return_episode", "length"} <= set(metrics)
    assert call("predict", "--model", out, "--out", str(tmp_path / "episodes.csv"), "--episodes", "2") == 0
    assert (tmp_path / "episodes.csv").read_text().startswith("seed,return,length\n")


def test_bad_input_ends_in_one_line(minari: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = minari()
    assert call("fit", "--data", str(path), "--env", "CartPool-v1", *TINY) == 1
    assert 'Did you mean "CartPole-v1"?' in capsys.readouterr().err
    path.write_bytes(path.read_bytes()[:1000])
    assert call("fit", "--data", str(path), *TINY) == 1
    assert "cut short" in capsys.readouterr().err
    assert call("record", "--env", "Nowhere-v0", "--out", str(tmp_path / "a.hdf5")) == 1
    assert 'no environment "Nowhere-v0"' in capsys.readouterr().err
