"""The command `agent-train online`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from polyhead.errors import ConfigError, MissingExtraError
from polyhead_agents.app import app
from polyhead_agents.online import POLICIES, learn
from polyhead_agents.sb3 import PPO
from polyhead_agents.worlds import TMAZE
from polyhead_apps import run

SMALL: dict[str, Any] = {"steps": 64, "seed": 0, "envs": 2, "rollout": 16, "batch": 16, "epochs": 1, "episodes": 2}


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        run(app, arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_learns_and_is_tested(policy: str) -> None:
    said: list[int] = []
    learned = learn("CartPole-v1", policy, **SMALL, report=lambda steps, mean: said.append(steps))
    assert len(learned.returns) == 2
    assert min(learned.returns) >= 8
    assert said == sorted(set(said))
    # Four heads of 16 numbers, a maximum and a sum; four observations of four numbers; two times h and c of 64.
    assert learned.state_bytes == {"aaren": 4 * 18 * 4, "mlp": 0, "frames": 64, "lstm": 4 * 64 * 4}[policy]


def test_a_run_is_written_and_can_be_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made"
    command = (
        "online",
        "--env",
        TMAZE,
        "--out",
        str(out),
        "--steps",
        "64",
        "--envs",
        "2",
        "--rollout",
        "16",
        "--batch",
        "16",
    )
    assert call(*command, "--episodes", "2", "--threads", "1", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((out / "metrics.json").read_text())
    assert len(document["returns"]) == 2
    assert PPO.load(out / "model.zip", device="cpu").policy is not None
    assert call(*command) == 1
    assert "holds a run: name another folder, or replace it with --force" in capsys.readouterr().err
    assert call(*command, "--episodes", "2", "--force", "-q") == 0
    assert "return" in capsys.readouterr().out


def test_without_sb3_contrib_the_command_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyhead-agents\[contrib\]'"):
        learn("CartPole-v1", "lstm", **SMALL)


def test_what_there_is_not_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r'no policy "lstn"\. All: aaren, mlp, frames, lstm\. "lstm"\?'):
        learn("CartPole-v1", "lstn", **SMALL)
    with pytest.raises(
        ConfigError, match=r"batch is 24, and a rollout has 2 · 16 steps: a multiple of batch is needed"
    ):
        learn("CartPole-v1", "aaren", **{**SMALL, "batch": 24})
    assert call("online", "--env", "CartPool-v1", "--out", str(tmp_path / "a")) == 1
    assert 'Did you mean "CartPole-v1"?' in capsys.readouterr().err
