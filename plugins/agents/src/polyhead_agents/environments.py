"""Environments of Gymnasium: made by name, with their spaces as the models see them."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ConfigError, DataError, MissingExtraError, nearest

__all__ = ["Spaces", "horizon_of", "make", "normalised", "spaces_of", "target_of"]

# Source: D4RL, d4rl/infos.py: returns of a random and of an expert policy.
REFERENCE_RETURNS = {
    "HalfCheetah": (-280.178953, 12135.0),
    "Hopper": (-20.272305, 3234.3),
    "Walker2d": (1.629008, 4592.3),
    "Ant": (-325.6, 3879.7),
}
# Source: min-decision-transformer, scripts/train.py.
TARGET_RETURNS = {"HalfCheetah": 6000.0, "Hopper": 3600.0, "Walker2d": 5000.0}


class Spaces(NamedTuple):
    """What goes in and out of an environment."""

    state_dim: int
    """Numbers in an observation."""
    act_dim: int
    """Numbers in an action, or actions to choose from."""
    discrete: bool
    low: NDArray[np.float32]
    """(act_dim,): least values of continuous actions; empty if discrete."""
    high: NDArray[np.float32]

    def text(self) -> str:
        """Return the sizes in words."""
        kind = f"{self.act_dim} actions" if self.discrete else f"actions of {self.act_dim} numbers"
        return f"observations of {self.state_dim} numbers and {kind}"


def make(name: str, *, render: bool = False) -> Any:
    """Make an environment of Gymnasium.

    ``package:Id`` imports the package first, and does so only where a person named it: on the command line of this
    process, or by an import of their own. A name in a file never imports anything.

    Raises:
        ConfigError: there is no such environment; suggests the nearest. Or a package that nobody here named.
        MissingExtraError: it needs a simulator that is not installed.
    """
    import gymnasium
    from gymnasium import error

    from polyhead_agents import worlds  # noqa: F401  # registers

    package, colon, inner = name.rpartition(":")
    if colon:
        _import_named(package, name)
    known = gymnasium.registry.keys()
    if inner not in known:
        guess = nearest(inner, known) or next((k for k in known if k.startswith(re.sub(r"-v\d+$", "", inner))), None)
        mend = f'Did you mean "{guess}"?' if guess else "Such as CartPole-v1; your own ones: --env package:Id."
        raise ConfigError(f'There is no environment "{name}". {mend}')
    try:
        # Environments that draw nothing need not know the argument.
        return gymnasium.make(inner, render_mode="rgb_array") if render else gymnasium.make(inner)
    except error.DependencyNotInstalled as problem:
        raise MissingExtraError(f'Environment "{name}" needs more: {problem}') from problem
    except error.Error as problem:
        raise ConfigError(f'Environment "{name}" cannot be made: {problem}') from problem


def _import_named(package: str, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z_][\w.]*", package):
        raise ConfigError(f'Environment "{name}": write package:Id, such as my_envs:Maze-v0.')
    if package in sys.modules:
        return
    if not any(name in argument for argument in sys.argv[1:]):
        raise ConfigError(
            f'Environment "{name}" would import "{package}", which a file may not ask for. Give --env {name} yourself.'
        )
    try:
        importlib.import_module(package)
    except ImportError as problem:
        raise ConfigError(f'Environment "{name}": the package cannot be imported: {problem}.') from problem


def spaces_of(environment: Any, name: str) -> Spaces:
    """Return the sizes of an environment's spaces.

    Raises:
        DataError: observations are no vector of numbers, or actions neither choices nor a vector.
    """
    from gymnasium.spaces import Box, Discrete

    seen, acted = environment.observation_space, environment.action_space
    if not isinstance(seen, Box) or len(seen.shape) != 1:
        raise DataError(
            f'Environment "{name}" has observations {seen}: only vectors of numbers are read. Flatten them.'
        )
    if isinstance(acted, Discrete):
        if acted.start != 0:
            raise DataError(f'Environment "{name}" numbers its actions from {acted.start}; they have to begin at 0.')
        nothing = np.zeros(0, dtype=np.float32)
        return Spaces(seen.shape[0], int(acted.n), True, nothing, nothing)
    if isinstance(acted, Box) and len(acted.shape) == 1 and np.isfinite([acted.low, acted.high]).all():
        return Spaces(seen.shape[0], acted.shape[0], False, acted.low.astype(np.float32), acted.high.astype(np.float32))
    raise DataError(f'Environment "{name}" has actions {acted}: only choices and bounded vectors are acted. Wrap it.')


def horizon_of(environment: Any) -> int | None:
    """Return the steps after which an environment cuts an episode off; None if it never does."""
    steps = getattr(environment.spec, "max_episode_steps", None)
    return None if steps is None else int(steps)


def normalised(name: str, returns: Sequence[float] | NDArray[np.floating]) -> NDArray[np.float64] | None:
    """Return D4RL's normalised scores: 0 is a random policy, 100 an expert; None for environments without them.

    >>> normalised("Hopper-v5", [3234.3]).tolist()
    [100.0]
    """
    found = REFERENCE_RETURNS.get(_family(name))
    if found is None:
        return None
    low, high = found
    return 100 * (np.asarray(returns, dtype=np.float64) - low) / (high - low)


def target_of(name: str) -> float | None:
    """Return the return that the literature asks an agent for; None for environments without one."""
    return TARGET_RETURNS.get(_family(name))


def _family(name: str) -> str:
    return re.sub(r"-v\d+$", "", name.rpartition(":")[2])
