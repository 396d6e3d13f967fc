"""Policies that episodes are recorded from: chance, an archive of Stable-Baselines3, or one trained for it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyhead.errors import DataError
from polyhead_agents.environments import Spaces

__all__ = ["Policy", "chance", "from_archive", "trained_ppo"]

MAX_WEIGHTS_BYTES = 256 * 2**20


class Policy(NamedTuple):
    """A policy without memory."""

    act: Callable[[NDArray[np.float32]], NDArray[Any]]
    """Observations (B, state_dim) to actions."""
    text: str
    """What it is, for the provenance of recordings."""


def chance(spaces: Spaces, *, seed: int) -> Policy:
    """Return a policy that draws its actions evenly."""
    rng = np.random.default_rng(seed)

    def act(observations: NDArray[np.float32]) -> NDArray[Any]:
        if spaces.discrete:
            return rng.integers(spaces.act_dim, size=len(observations))
        drawn = rng.uniform(spaces.low, spaces.high, (len(observations), spaces.act_dim))
        return drawn.astype(np.float32)

    return Policy(act, "actions drawn evenly")


def from_archive(path: Path, spaces: Spaces, *, seed: int) -> Policy:
    """Return the policy in an archive of Stable-Baselines3 (PPO, A2C, DQN, SAC, TD3), made of plain layers.

    Only its member ``policy.pth`` is read, tensors and nothing else; code and settings in the archive are not. So
    layers are those of SB3's ``MlpPolicy`` by default: tanh for PPO and A2C, ReLU for the others; PPO's and A2C's
    actions are drawn as in training, with the deviation that was learned. Observations that were normalised by
    ``VecNormalize`` are not known to the archive.

    Raises:
        DataError: no such archive, no weights of such a policy, or of other sizes than the environment.
    """
    weights = _weights(path)
    families: tuple[tuple[str, str, type[nn.Module]], ...] = (
        ("mlp_extractor.policy_net", "action_net", nn.Tanh),
        ("actor.latent_pi", "actor.mu", nn.ReLU),
        ("actor.mu", "", nn.ReLU),
        ("q_net.q_net", "", nn.ReLU),
    )
    for trunk, head, activation in families:
        layers = _layers(weights, trunk, head, activation)
        if layers is not None:
            break
    else:
        raise DataError(f"{path.name}: policy.pth holds no MlpPolicy of PPO, A2C, DQN, SAC or TD3. Record from one.")
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if (linear[0].in_features, linear[-1].out_features) != (spaces.state_dim, spaces.act_dim):
        raise DataError(
            f"{path.name} maps {linear[0].in_features} numbers to {linear[-1].out_features}; the environment has "
            f"{spaces.text()}."
        )
    generator = torch.Generator().manual_seed(seed)
    stochastic = trunk.startswith("mlp_extractor")
    deviation = weights["log_std"].exp() if stochastic and "log_std" in weights else None

    @torch.no_grad()
    def act(observations: NDArray[np.float32]) -> NDArray[Any]:
        y = layers(torch.from_numpy(observations))
        if spaces.discrete:
            chosen = torch.multinomial(y.softmax(-1), 1, generator=generator)[:, 0] if stochastic else y.argmax(-1)
            return chosen.numpy()
        if deviation is not None:
            y = y + deviation * torch.randn(y.shape, generator=generator)
        elif not stochastic:  # SAC and TD3 act in [-1, 1], which stands for the whole range
            y = torch.from_numpy(spaces.low) + (torch.tanh(y) + 1) / 2 * torch.from_numpy(spaces.high - spaces.low)
        return np.clip(y.numpy(), spaces.low, spaces.high)

    return Policy(act, f"the policy in {path.name}")


def _weights(path: Path) -> Mapping[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.getinfo("policy.pth")
            if member.file_size > MAX_WEIGHTS_BYTES:
                raise DataError(f"{path.name}: policy.pth has {member.file_size:,} bytes, more than is read.")
            content = archive.read(member)
    except KeyError as error:
        raise DataError(f"{path.name} has no policy.pth: it is no archive of Stable-Baselines3.") from error
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as an archive of Stable-Baselines3: {error}.") from error
    try:
        weights = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of several kinds for what is no plain tensors
        raise DataError(f"{path.name}: policy.pth is not a file of plain tensors: {type(error).__name__}.") from error
    if not isinstance(weights, Mapping) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise DataError(f"{path.name}: policy.pth holds no named tensors.")
    return {name: value.float() for name, value in weights.items()}


def _layers(weights: Mapping[str, Tensor], trunk: str, head: str, activation: type[nn.Module]) -> nn.Sequential | None:
    """Return linear layers with activations between them; None if the archive has none of these names."""
    numbers = sorted(
        int(name.split(".")[-2])
        for name in weights
        if name.startswith(f"{trunk}.") and name.endswith(".weight") and name.split(".")[-2].isdigit()
    )
    names = [f"{trunk}.{number}" for number in numbers] + ([head] if head else [])
    if not names or any(f"{name}.{part}" not in weights for name in names for part in ("weight", "bias")):
        return None
    layers: list[nn.Module] = []
    for name in names:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            return None
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, activation()]
    return nn.Sequential(*layers[:-1])


def trained_ppo(name: str, spaces: Spaces, *, steps: int, seed: int) -> Policy:
    """Return a policy that Stable-Baselines3's PPO reaches after so many steps; its actions are drawn."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    from polyhead_agents.environments import make

    vectorised = DummyVecEnv([lambda: make(name)] * 4)
    learner = PPO("MlpPolicy", vectorised, n_steps=256, seed=seed, device="cpu")
    learner.learn(steps)

    def act(observations: NDArray[np.float32]) -> NDArray[Any]:
        actions = learner.predict(observations, deterministic=False)[0]
        return actions if spaces.discrete else np.clip(actions, spaces.low, spaces.high).astype(np.float32)

    return Policy(act, f"PPO of Stable-Baselines3 after {learner.num_timesteps:,} steps, seed {seed}")
