"""Recording from chance, from archives of Stable-Baselines3 and from PPO; the embedded recording."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
import torch

from polyhead.errors import ConfigError, DataError, StorageError
from polyhead_agents import environments, policies
from polyhead_agents.formats import open_cartpole, open_episodes
from polyhead_agents.recording import record, record_episodes
from polyhead_agents.settings import EpisodeSettings

CARTPOLE = environments.Spaces(4, 2, True, np.zeros(0, np.float32), np.zeros(0, np.float32))
PENDULUM = environments.Spaces(3, 1, False, np.array([-2], np.float32), np.array([2], np.float32))


def archive(path: Path, weights: Any, *, member: str = "policy.pth") -> Path:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(member, buffer.getvalue())
        file.writestr("data", '{"policy_class": {":serialized:": "never read"}}')
    return path


def linear(name: str, rows: int, columns: int, value: float = 0.0) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.full((rows, columns), value), f"{name}.bias": torch.zeros(rows)}


def test_recordings_repeat_and_are_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.hdf5", "b.hdf5"):
        record("CartPole-v1", tmp_path / name, policy="random", episodes=12, seed=3, quiet=True)
    first, again = (open_episodes(tmp_path / name, EpisodeSettings(env="CartPole-v1")) for name in ("a.hdf5", "b.hdf5"))
    assert first.fingerprint() == again.fingerprint()
    assert len(first.episodes.lengths) == 12
    assert first.provenance == "a.hdf5: CartPole-v1: actions drawn evenly, 12 episodes, seeds from 3."
    assert "return, mean" in capsys.readouterr().out
    with pytest.raises(StorageError, match=r"a\.hdf5 exists: name another file, or replace it with --force"):
        record("CartPole-v1", tmp_path / "a.hdf5", policy="random", quiet=True)
    with pytest.raises(ConfigError, match=r'--policy "best" is none\. All: sb3:ppo, random, or an archive'):
        record("CartPole-v1", tmp_path / "c.hdf5", policy="best", quiet=True)


def test_the_policy_of_an_archive_acts_as_its_layers_say(tmp_path: Path) -> None:
    weights = linear("mlp_extractor.policy_net.0", 8, 4) | linear("mlp_extractor.policy_net.2", 8, 8)
    weights |= linear("action_net", 2, 8)
    weights["action_net.bias"] = torch.tensor([0.0, 50.0])
    policy = policies.from_archive(archive(tmp_path / "ppo.zip", weights), CARTPOLE, seed=0)
    assert policy.act(np.zeros((5, 4), np.float32)).tolist() == [1] * 5
    episodes = record_episodes(policy, "CartPole-v1", episodes=2, seed=0)
    assert episodes.actions.all()


@pytest.mark.parametrize(
    ("names", "bias", "action"),
    [
        (("mlp_extractor.policy_net.0", "action_net"), 9.0, 2.0),  # clipped to the bounds
        (("actor.latent_pi.0", "actor.mu"), 9.0, 2.0),  # squashed to [-1, 1], stretched to the bounds
        (("actor.mu.0", "actor.mu.2"), 0.0, 0.0),
    ],
)
def test_continuous_policies_act_in_the_bounds(
    tmp_path: Path, names: tuple[str, str], bias: float, action: float
) -> None:
    weights = linear(names[0], 8, 3) | linear(names[1], 1, 8)
    weights[f"{names[1]}.bias"] = torch.tensor([bias])
    if names[1] == "action_net":
        weights["log_std"] = torch.tensor([-20.0])
    policy = policies.from_archive(archive(tmp_path / "policy.zip", weights), PENDULUM, seed=0)
    assert policy.act(np.zeros((2, 3), np.float32)) == pytest.approx(np.full((2, 1), action), abs=1e-3)


def test_archives_that_are_none_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(DataError, match=r"policy.pth is not a file of plain tensors: UnpicklingError"):
        policies.from_archive(archive(tmp_path / "evil.zip", {"a": Evil()}), CARTPOLE, seed=0)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(DataError, match=r"has no policy.pth: it is no archive of Stable-Baselines3"):
        policies.from_archive(archive(tmp_path / "other.zip", {}, member="weights"), CARTPOLE, seed=0)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(DataError, match=r"text\.zip cannot be read as an archive"):
        policies.from_archive(tmp_path / "text.zip", CARTPOLE, seed=0)
    with pytest.raises(DataError, match=r"policy.pth holds no named tensors"):
        policies.from_archive(archive(tmp_path / "list.zip", [torch.ones(1)]), CARTPOLE, seed=0)
    with pytest.raises(DataError, match=r"holds no MlpPolicy of PPO, A2C, DQN, SAC or TD3"):
        policies.from_archive(archive(tmp_path / "cnn.zip", {"cnn.weight": torch.ones(1)}), CARTPOLE, seed=0)
    weights = linear("mlp_extractor.policy_net.0", 8, 3) | linear("action_net", 2, 8)
    with pytest.raises(DataError, match=r"maps 3 numbers to 2; the environment has observations of 4 numbers"):
        policies.from_archive(archive(tmp_path / "small.zip", weights), CARTPOLE, seed=0)


def test_archives_of_stable_baselines_act_as_in_stable_baselines(tmp_path: Path) -> None:
    learner = stable_baselines3.DQN(
        "MlpPolicy", environments.make("CartPole-v1"), seed=0, device="cpu", buffer_size=100
    )
    learner.save(tmp_path / "dqn.zip")
    policy = policies.from_archive(tmp_path / "dqn.zip", CARTPOLE, seed=0)
    seen = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    assert policy.act(seen).tolist() == learner.predict(seen, deterministic=True)[0].tolist()


def test_ppo_is_trained_and_recorded() -> None:
    policy = policies.trained_ppo("Pendulum-v1", PENDULUM, steps=1, seed=0)
    assert policy.text == "PPO of Stable-Baselines3 after 1,024 steps, seed 0"
    episodes = record_episodes(policy, "Pendulum-v1", episodes=1, seed=0)
    assert (episodes.actions.shape, np.abs(episodes.actions).max() <= 2) == ((200, 1), True)


def test_the_embedded_recording_is_what_it_says() -> None:
    data = open_cartpole(None, EpisodeSettings())
    summary = data.summary()
    assert (summary["episodes"], summary["environment"]) == (150, "CartPole-v1")
    assert 200 < summary["return, mean"] < 400, "half-trained"
    assert "PPO of Stable-Baselines3 after 14,336 steps, seed 0" in data.provenance
    # Its episodes begin where the environment does with these seeds.
    environment = environments.make("CartPole-v1")
    for number in (0, 149):
        assert np.array_equal(
            environment.reset(seed=number)[0], data.episodes.observations[data.episodes.starts[number]]
        )
