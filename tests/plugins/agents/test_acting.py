"""Playing: environments by name, agents with either memory, policies."""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyhead.errors import ConfigError, DataError, NonFiniteError
from polyhead_agents import environments
from polyhead_agents.acting import Memory, play, play_at_random, play_policy
from polyhead_agents.decision import DecisionAaren, DecisionConfig, DecisionModel, DecisionTransformer

CARTPOLE = {"state_dim": 4, "act_dim": 2, "discrete": True, "dim": 16, "depth": 2, "heads": 2}


class Counter(gymnasium.Env[Any, Any]):
    """Ends after ``steps`` steps; the reward is the first number of the action, or 1."""

    def __init__(self, steps: int = 3, reward: float | None = None, seen: Any = None, acted: Any = None) -> None:
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,)) if seen is None else seen
        self.action_space = spaces.Box(-2.0, 4.0, (1,)) if acted is None else acted
        self.steps, self.reward = steps, reward

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        reward = float(np.ravel(action)[0]) if self.reward is None else self.reward
        return np.full(2, self.time, dtype=np.float32), reward, self.time >= self.steps, False, {}


@pytest.fixture
def register() -> Any:
    made = []

    def enter(name: str, **settings: Any) -> str:
        gymnasium.register(name, entry_point=lambda **kw: Counter(**{**settings, **kw}), disable_env_checker=True)
        made.append(name)
        return name

    yield enter
    for name in made:
        del gymnasium.registry[name]


def model(cls: type[DecisionModel], **settings: Any) -> DecisionModel:
    torch.manual_seed(0)
    return cls(DecisionConfig(**settings)).eval()


@pytest.mark.parametrize("cls", [DecisionAaren, DecisionTransformer])
def test_both_memories_agree_while_the_window_holds_the_episode(cls: type[DecisionModel]) -> None:
    agent = model(cls, **CARTPOLE, context=64)
    seeds = [5, 6, 7]
    window = play(agent, "CartPole-v1", seeds, target=50)
    episode = play(agent, "CartPole-v1", seeds, target=50, memory="episode")
    assert window.lengths.max() <= 64
    assert window.returns.tolist() == episode.returns.tolist() == window.lengths.tolist()


def test_an_episode_does_not_depend_on_its_neighbours() -> None:
    agent = model(DecisionAaren, **CARTPOLE, context=5)
    together = play(agent, "CartPole-v1", [1, 2, 3], target=50)
    alone = [play(agent, "CartPole-v1", [seed], target=50).returns[0] for seed in (1, 2, 3)]
    assert together.returns.tolist() == alone


def test_continuous_actions_stay_in_their_bounds(register: Any) -> None:
    name = register("Counter-v0")
    agent = model(DecisionAaren, state_dim=2, act_dim=1, dim=8, depth=1)
    agent.set_data(action_mid=torch.tensor([1.0]), action_half=torch.tensor([3.0]))
    torch.nn.init.constant_(agent.predict_action.bias, 100)
    assert play(agent, name, [0, 1], target=5).returns.tolist() == [12, 12]


def test_chance_is_the_same_for_the_same_seed() -> None:
    first, again = (play_at_random("CartPole-v1", [3, 4, 5]).returns for _ in range(2))
    assert first.tolist() == again.tolist()
    assert len(set(first.tolist())) > 1


def test_a_policy_plays(register: Any) -> None:
    name = register("Counter-v0", steps=4)
    found = environments.spaces_of(environments.make(name), name)
    played = play_policy(lambda seen: np.ones((len(seen), 1), dtype=np.float32), name, [0, 1], found)
    assert (played.returns.tolist(), played.lengths.tolist()) == ([4, 4], [4, 4])


def test_what_does_not_fit_is_refused(register: Any) -> None:
    agent = model(DecisionAaren, **CARTPOLE)
    with pytest.raises(DataError, match=r'"Acrobot-v1" has observations of 6 numbers and 3 actions; the model has'):
        play(agent, "Acrobot-v1", [0], target=1)
    with pytest.raises(ConfigError, match=r'no environment "nothing-at-all"\. Such as CartPole-v1; your own ones'):
        environments.make("nothing-at-all")
    short = model(DecisionAaren, **CARTPOLE, max_timestep=2)
    memories: tuple[Memory, ...] = ("window", "episode")
    for memory in memories:
        with pytest.raises(ConfigError, match=r"goes on at step 2, and the model's table of time steps ends at 1"):
            play(short, "CartPole-v1", [0], target=1, memory=memory)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"seen": spaces.Box(0, 1, (2, 2))}, "only vectors of numbers are read"),
        ({"seen": spaces.Dict({"a": spaces.Box(0, 1, (2,))})}, "only vectors of numbers are read"),
        ({"acted": spaces.MultiDiscrete([2, 2])}, "only choices and bounded vectors are acted"),
        ({"acted": spaces.Box(-np.inf, np.inf, (1,))}, "only choices and bounded vectors are acted"),
        ({"acted": spaces.Discrete(3, start=1)}, "they have to begin at 0"),
    ],
)
def test_spaces_that_no_model_has_are_refused(register: Any, settings: dict[str, Any], text: str) -> None:
    name = register("Odd-v0", **settings)
    with pytest.raises(DataError, match=text):
        environments.spaces_of(environments.make(name), name)


def test_a_reward_that_is_not_finite_is_named(register: Any) -> None:
    name = register("Broken-v0", reward=float("nan"))
    agent = model(DecisionAaren, state_dim=2, act_dim=1, dim=8, depth=1)
    with pytest.raises(NonFiniteError, match=r'"Broken-v0", episode 0, step 0: reward nan'):
        play(agent, name, [0], target=1)


def test_damaged_weights_are_named(register: Any) -> None:
    name = register("Counter-v0")
    agent = model(DecisionAaren, state_dim=2, act_dim=1, dim=8, depth=1)
    torch.nn.init.constant_(agent.predict_action.bias, float("nan"))
    with pytest.raises(NonFiniteError, match=r"The model acts \[nan\] in .* fit again"):
        play(agent, name, [0], target=1)


def test_a_package_is_imported_only_where_it_was_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    (tmp_path / "made_up_envs.py").write_text(
        "import gymnasium\ngymnasium.register('MadeUp-v0', entry_point='gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"which a file may not ask for\. Give --env made_up_envs:MadeUp-v0 yourself"):
        environments.make("made_up_envs:MadeUp-v0")
    assert "made_up_envs" not in sys.modules
    monkeypatch.setattr(sys, "argv", ["agent-train", "fit", "--env", "made_up_envs:MadeUp-v0"])
    try:
        assert environments.make("made_up_envs:MadeUp-v0").action_space.n == 2
        monkeypatch.setattr(sys, "argv", ["agent-train", "fit", "--env", "no_such_package:MadeUp-v0"])
        with pytest.raises(ConfigError, match=r"the package cannot be imported: No module named 'no_such_package'"):
            environments.make("no_such_package:MadeUp-v0")
        with pytest.raises(ConfigError, match=r"write package:Id, such as my_envs:Maze-v0"):
            environments.make("os;x:MadeUp-v0")
    finally:
        sys.modules.pop("made_up_envs", None)
        gymnasium.registry.pop("MadeUp-v0", None)


def test_scores_of_the_literature() -> None:
    assert environments.normalised("HalfCheetah-v4", [-280.178953, 12135.0]).tolist() == [0, 100]  # type: ignore[union-attr]  # known
    assert environments.normalised("CartPole-v1", [1.0]) is None
    assert (environments.target_of("Walker2d-v5"), environments.target_of("Ant-v5")) == (5000, None)
