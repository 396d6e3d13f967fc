"""AarenPolicy in Stable-Baselines3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from polyhead.errors import ConfigError, ShapeError
from polyhead_agents.memory_policy import pack
from polyhead_agents.sb3 import PPO, AarenExtractor, AarenPolicy, SequenceBuffer
from polyhead_agents.worlds import TMaze

SMALL = {"memory_dim": 8, "memory_heads": 2, "net_arch": [8]}


def make(env: Any, *, steps: int = 24, **settings: Any) -> PPO:
    kwargs = {**SMALL, **settings.pop("policy_kwargs", {})}
    return PPO(
        "AarenPolicy", env, n_steps=steps, batch_size=steps, n_epochs=2, device="cpu", policy_kwargs=kwargs, **settings
    )


def mazes(count: int = 3, corridor: int = 4) -> DummyVecEnv:
    return DummyVecEnv([lambda: TMaze(corridor)] * count)


def collected(model: PPO) -> SequenceBuffer:
    """Let a model act for one rollout, and return what it stored."""
    _, callback = model._setup_learn(1)
    assert model.env is not None
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceBuffer)
    model.collect_rollouts(model.env, callback, buffer, model.n_steps)
    return buffer


@pytest.mark.parametrize("rollouts", [1, 3])
def test_learning_sees_what_acting_saw_with_resets_inside_a_rollout(rollouts: int) -> None:
    model = make(mazes(), seed=0)
    for _ in range(rollouts):
        buffer = collected(model) if _ == 0 else again(model)
    assert buffer.episode_starts[1:].any()
    assert isinstance(model.policy, AarenPolicy)
    steps = 0
    for samples in buffer.get(20):
        sequences: Any = samples.observations
        values, log_prob, entropy = model.policy.evaluate_actions(sequences, samples.actions.long().flatten())
        torch.testing.assert_close(values.flatten(), samples.old_values, atol=1e-5, rtol=0)
        torch.testing.assert_close(log_prob, samples.old_log_prob, atol=1e-5, rtol=0)
        assert entropy is not None
        steps += len(values)
    assert steps == 3 * 24


def again(model: PPO) -> SequenceBuffer:
    from stable_baselines3.common.callbacks import CallbackList

    callback = CallbackList([])
    callback.init_callback(model)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceBuffer)
    assert model.env is not None
    model.collect_rollouts(model.env, callback, buffer, model.n_steps)
    return buffer


def test_every_step_is_given_out_once_a_pass() -> None:
    buffer = collected(make(mazes(), seed=1))
    buffer.values[:] = np.arange(buffer.values.size).reshape(buffer.values.shape)
    for size in (None, 5, 20, 1000):
        seen = torch.cat([samples.old_values for samples in buffer.get(size)])
        assert sorted(seen.tolist()) == list(range(72))
    assert len(list(buffer.get(24))) == 3
    for samples in buffer.get(20):
        assert samples.observations.mask.sum() == len(samples.old_values)  # type: ignore[attr-defined]  # sequences


def test_a_gradient_reaches_the_sign_at_the_beginning_and_no_other_episode() -> None:
    model = make(mazes(2, corridor=4), steps=5, seed=0)
    buffer = collected(model)
    (samples,) = buffer.get()
    sequences: Any = samples.observations
    seen = sequences.observations.requires_grad_()
    values, *_ = model.policy.evaluate_actions(sequences._replace(observations=seen), samples.actions.long().flatten())
    last = int(sequences.mask[0].sum()) - 1
    values[last].sum().backward()
    assert seen.grad is not None
    assert seen.grad[0, 0].abs().sum() > 0
    assert seen.grad[1:].abs().sum() == 0


def test_predict_carries_a_memory_that_begins_anew_with_an_episode() -> None:
    model = make(mazes())
    seen = np.eye(3, dtype=np.float32)
    other = np.ones((3, 3), dtype=np.float32)
    _, state = model.predict(seen)
    _, kept = model.predict(other, state, np.array([False, False, True]))
    _, fresh = model.predict(other)
    assert state is not None
    assert kept is not None
    assert fresh is not None
    for a, b in zip(kept, fresh, strict=True):
        assert np.array_equal(a[2], b[2])
        assert a.shape == b.shape
    assert not np.array_equal(kept[2][0], fresh[2][0])
    alone, _ = model.predict(seen[0], None, deterministic=True)
    assert alone == model.predict(seen, None, deterministic=True)[0][0]
    with pytest.raises(ShapeError, match=r"The state is of 3 environments, the observations are of 1"):
        model.predict(seen[0], state)


def test_saved_and_loaded_it_acts_the_same(tmp_path: Path) -> None:
    model = make(mazes(), seed=0).learn(72)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    returns = [
        evaluate_policy(one, mazes(2), n_eval_episodes=6, return_episode_rewards=True, warn=False)[0]
        for one in (model, loaded)
    ]
    assert returns[0] == returns[1]
    model.policy.save(str(tmp_path / "policy.pt"))
    seen = np.eye(3, dtype=np.float32)
    alone = AarenPolicy.load(str(tmp_path / "policy.pt"), device="cpu")
    assert alone.predict(seen, deterministic=True)[0].tolist() == model.predict(seen, deterministic=True)[0].tolist()
    PPO.load(tmp_path / "model.zip", mazes(5), device="cpu").learn(5 * 24)


def test_the_same_seed_learns_the_same() -> None:
    first, second = (make(mazes(), seed=5).learn(144) for _ in range(2))
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("env", ["Pendulum-v1", "CartPole-v1"])
def test_it_learns_vectors_and_choices_in_normalised_environments(env: str) -> None:
    vectorised = VecNormalize(make_vec_env(env, n_envs=2, seed=0))
    model = make(vectorised, policy_kwargs={"memory_mixer": "aaren"}).learn(48)
    actions, _ = model.predict(vectorised.reset())
    assert np.isfinite(actions).all()


def test_a_cut_off_episode_is_worth_what_was_to_come() -> None:
    class Endless(TMaze):
        def step(self, action: Any) -> Any:
            seen, _, _, _, _ = super().step(action)
            return seen, 0.0, False, self.time >= 3, {}

    model = make(DummyVecEnv([Endless]), steps=3, gamma=0.5)
    assert isinstance(model.policy, AarenPolicy)
    model.policy.value_net.bias.data.fill_(8.0)
    model.policy.value_net.weight.data.zero_()
    assert collected(model).rewards[:, 0].tolist() == [0, 0, 4]


def test_other_policies_stay_as_they_are_in_sb3() -> None:
    ours, theirs = (
        cls("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=0, device="cpu").learn(64)
        for cls in (PPO, stable_baselines3.PPO)
    )
    for a, b in zip(ours.policy.parameters(), theirs.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_extractor_serves_any_policy() -> None:
    env = VecFrameStack(mazes(2), 3)
    kwargs = {
        "features_extractor_class": AarenExtractor,
        "features_extractor_kwargs": {"frames": 3, "dim": 8, "heads": 2},
    }
    model = stable_baselines3.PPO("MlpPolicy", env, n_steps=8, batch_size=16, policy_kwargs=kwargs, device="cpu").learn(
        16
    )
    assert model.policy.features_dim == 8
    with pytest.raises(ConfigError, match=r"Observations \(3,\) are not 2 vectors\. Wrap with VecFrameStack\(env, 2\)"):
        AarenExtractor(spaces.Box(0, 1, (3,)), frames=2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"neither use_sde nor separate features extractors"):
        make("Pendulum-v1", use_sde=True)
    with pytest.raises(ConfigError, match=r'memory_mixer "softmax" grows\. Take one of constant size: aaren'):
        make(mazes(), policy_kwargs={"memory_mixer": "softmax"})
    with pytest.raises(ShapeError, match=r"AarenPolicy learns from sequences\. Use polyhead_agents\.sb3\.PPO"):
        stable_baselines3.PPO(AarenPolicy, mazes(), n_steps=8, batch_size=24, device="cpu").policy.evaluate_actions(
            torch.zeros(2, 3), torch.zeros(2)
        )
    with pytest.raises(ConfigError, match=r"acts by predict or forward"):
        make(mazes()).policy._predict(torch.zeros(1, 3))

    class Dictionary(gymnasium.Env[Any, Any]):
        observation_space = spaces.Dict({"a": spaces.Box(0, 1, (2,))})
        action_space = spaces.Discrete(2)

    with pytest.raises(ConfigError, match=r"takes no dictionary of observations\. Flatten them"):
        make(DummyVecEnv([Dictionary]))


def test_a_packed_state_is_one_array_a_tensor() -> None:
    model = make(mazes())
    assert isinstance(model.policy, AarenPolicy)
    assert [part.shape for part in pack(model.policy.init_state(2))] == [(2, 2), (2, 2), (2, 2, 4)]
