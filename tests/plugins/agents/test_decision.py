"""Decision models: streaming, causality, padding, resets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from polyhead.errors import ConfigError, ShapeError
from polyhead.nn import states
from polyhead.testing import check_model
from polyhead_agents.decision import DecisionAaren, DecisionConfig, DecisionModel, DecisionTransformer

MODELS = (DecisionAaren, DecisionTransformer)


def make(cls: type[DecisionModel], **settings: object) -> DecisionModel:
    torch.manual_seed(0)
    values = {"state_dim": 3, "act_dim": 2, "dim": 16, "depth": 2, "heads": 2, "max_timestep": 64, **settings}
    model = cls(DecisionConfig(**values)).eval()  # type: ignore[arg-type]  # of several types, as its fields are
    model.set_data(state_mean=torch.tensor([1.0, -1.0, 0.5]), return_scale=torch.tensor(7.0))
    return model


def window(model: DecisionModel, batch: int = 3, steps: int = 9, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps)
    if model.config.discrete:
        actions = torch.randint(model.config.act_dim, shape, generator=generator)
    else:
        actions = torch.rand(*shape, model.config.act_dim, generator=generator) * 2 - 1
    return {
        "returns_to_go": torch.randn(shape, generator=generator),
        "states": torch.randn(*shape, 3, generator=generator),
        "actions": actions,
        "timesteps": torch.arange(steps).expand(shape).clone(),
        "mask": torch.ones(shape, dtype=torch.bool),
    }


@pytest.mark.parametrize("cls", MODELS)
@pytest.mark.parametrize("positions", ["table", "sinusoid"])
@pytest.mark.parametrize("discrete", [False, True])
def test_streaming_equals_parallel_with_resets(cls: type[DecisionModel], positions: str, discrete: bool) -> None:
    model = make(cls, positions=positions, discrete=discrete)
    first, second = window(model), window(model, seed=2)
    cut = 4  # row 1 begins a new episode here
    with torch.no_grad():
        whole = model(**first).action
        later = model(**second).action
        state = model.init_state(3, capacity=32)
        done = torch.tensor([False, True, False])
        for t in range(9):
            if t == cut:
                state = states.where(done, model.init_state(3, capacity=32), state)
            # The second row is at step t - cut of its second episode.
            now = {name: value[:, t].clone() for name, value in first.items()}
            if t >= cut:
                for name, value in second.items():
                    now[name][1] = value[1, t - cut]
            action, state = model.act(now["returns_to_go"], now["states"], state)
            expected = whole[:, t].clone()
            if t >= cut:
                expected[1] = later[1, t - cut]
            torch.testing.assert_close(action, expected, atol=1e-5, rtol=0)
            state = model.observe(now["actions"], state)
    assert state.timestep.tolist() == [9, 5, 9]


@pytest.mark.parametrize("cls", MODELS)
def test_no_action_sees_the_future_or_itself(cls: type[DecisionModel]) -> None:
    model = make(cls)
    inputs = window(model)
    with torch.no_grad():
        before = model(**inputs).action
        inputs["actions"][:, 5] += 1
        for name in ("returns_to_go", "states", "actions"):
            inputs[name][:, 6:] += 1
        after = model(**inputs).action
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


@pytest.mark.parametrize("cls", MODELS)
def test_padding_reaches_nothing(cls: type[DecisionModel]) -> None:
    model = make(cls)
    inputs = window(model)
    inputs["mask"][:, :4] = False
    with torch.no_grad():
        short = model(**{name: value[:, 4:] for name, value in inputs.items()}).action
        inputs["states"][:, :4] = 1e6
        padded = model(**inputs).action[:, 4:]
    torch.testing.assert_close(padded, short, atol=1e-5, rtol=0)


def test_aaren_has_one_token_a_layer_more_and_a_constant_state() -> None:
    aaren, transformer = make(DecisionAaren), make(DecisionTransformer)
    counts = [sum(p.numel() for p in model.parameters()) for model in (aaren, transformer)]
    assert counts[0] - counts[1] == 2 * 16
    sizes: dict[str, list[int]] = {}
    for name, model in (("aaren", aaren), ("transformer", transformer)):
        state = model.init_state(1)
        sizes[name] = []
        with torch.no_grad():
            for _ in range(4):
                action, state = model.act(torch.ones(1), torch.ones(1, 3), state)
                state = model.observe(action, state)
                sizes[name].append(states.nbytes(state.stack))
    assert sizes["aaren"] == [2 * 2 * (8 + 2) * 4] * 4
    assert sizes["transformer"] == sorted(set(sizes["transformer"]))


def test_actions_are_in_the_units_of_the_environment() -> None:
    model = make(DecisionAaren)
    model.set_data(action_mid=torch.tensor([10.0, 0.0]), action_half=torch.tensor([2.0, 0.5]))
    action = model(**window(model)).action
    assert ((action[..., 0] >= 8) & (action[..., 0] <= 12)).all()
    assert (action[..., 1].abs() <= 0.5).all()


@pytest.mark.parametrize("cls", MODELS)
def test_model_conforms(cls: type[DecisionModel], tmp_path: Path) -> None:
    model = make(cls)
    assert check_model(model, window(model), forward=lambda m, b: m(**b).action)
    model.save_pretrained(tmp_path / "saved")
    again = cls.from_pretrained(tmp_path / "saved")
    assert again.config == model.config
    assert torch.equal(again(**window(model)).action, model(**window(model)).action)


def test_a_step_behind_the_table_is_refused_and_the_sinusoid_goes_on() -> None:
    model = make(DecisionAaren, max_timestep=1)
    action, state = model.act(torch.ones(1), torch.ones(1, 3), model.init_state(1))
    state = model.observe(action, state)
    with pytest.raises(ConfigError, match=r"goes on at step 1, .* ends at 0\. Fit with model.positions=sinusoid"):
        model.act(torch.ones(1), torch.ones(1, 3), state)
    endless = make(DecisionAaren, max_timestep=1, positions="sinusoid")
    action, state = endless.act(
        torch.ones(1), torch.ones(1, 3), endless.init_state(1)._replace(timestep=torch.tensor([10**6]))
    )
    assert action.isfinite().all()


def test_wrong_configs_and_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"depth is 0, expected 1 or more"):
        DecisionConfig(state_dim=3, act_dim=2, depth=0)
    with pytest.raises(ConfigError, match=r'positions is "rotary"\. All: table, sinusoid'):
        DecisionConfig(state_dim=3, act_dim=2, positions="rotary")
    with pytest.raises(ConfigError, match=r"act_dim is 1 with discrete actions"):
        DecisionConfig(state_dim=3, act_dim=1, discrete=True)
    with pytest.raises(ConfigError, match=r'no release "gym"\. All: min-decision-transformer'):
        DecisionConfig.release("gym", state_dim=3, act_dim=2)
    model = make(DecisionAaren)
    inputs = window(model)
    with pytest.raises(ShapeError, match=r"states \(3, 9, 2\) is not \(batch, steps, state_dim\)"):
        model(**{**inputs, "states": inputs["states"][..., :2]})
    with pytest.raises(ShapeError, match=r"state_mean is \(2,\), expected \(3,\)"):
        model.set_data(state_mean=torch.zeros(2))
