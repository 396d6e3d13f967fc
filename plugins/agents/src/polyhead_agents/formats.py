"""Recorded episodes from files: Minari's HDF5, D4RL's HDF5, and the embedded recording."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError
from polyhead_agents import environments
from polyhead_agents.episodes import EpisodeData, Episodes
from polyhead_agents.settings import EpisodeSettings

__all__ = ["open_cartpole", "open_episodes", "read_d4rl", "read_minari"]

MAX_NUMBERS = 2**29
"""Numbers in a file, 2 GB of float32: more is refused before anything is read."""
SUFFIXES = (".hdf5", ".h5")
CARTPOLE = "CartPole-v1"


def open_cartpole(path: Path | None, settings: EpisodeSettings) -> EpisodeData:  # noqa: ARG001  # embedded
    """Open the embedded recording: CartPole-v1, played by a half-trained PPO."""
    embedded = resources.files("polyhead_agents") / "assets" / "cartpole-ppo.npz"
    with resources.as_file(embedded) as file, np.load(file, allow_pickle=False) as arrays:
        about = str(arrays["about"])
        episodes = Episodes(
            observations=arrays["observations"],
            actions=arrays["actions"].astype(np.int64),
            rewards=np.ones(len(arrays["actions"]), dtype=np.float32),
            lengths=arrays["lengths"].astype(np.int64),
            name="cartpole-ppo",
            act_dim=2,
        )
    return _with_environment(
        episodes, settings, env=settings.env or CARTPOLE, provenance=f"Simulated: {about}.", licence="Apache-2.0"
    )


def open_episodes(path: Path | None, settings: EpisodeSettings) -> EpisodeData:
    """Open a file of episodes, or a folder that holds one, such as a dataset of Minari.

    Nothing but arrays is read from it: an environment is what ``settings.env`` names, whatever the file says.

    Raises:
        DataError: no such file, cut short, of another layout, or with episodes that cannot be learned from.
    """
    file = _find(Path(path or ""))
    with _hdf5(file) as opened:
        form = settings.format
        if form == "auto":
            form = "d4rl" if "observations" in opened else "minari"
        episodes = read_d4rl(opened, file.name) if form == "d4rl" else read_minari(opened, file.name)
        about = str(opened.attrs.get("description", ""))[:300]
    provenance = f"{file.name}: {about}." if about else f"{file.name}, of the user."
    return _with_environment(episodes, settings, env=settings.env, provenance=provenance, licence="that of the file")


def _with_environment(
    episodes: Episodes, settings: EpisodeSettings, *, env: str, provenance: str, licence: str
) -> EpisodeData:
    extra: dict[str, Any] = {}
    if env:
        environment = environments.make(env)
        spaces = environments.spaces_of(environment, env)
        extra = {"horizon": environments.horizon_of(environment), "low": spaces.low, "high": spaces.high}
        environment.close()
        fits = spaces.state_dim == episodes.state_dim and spaces.discrete == episodes.discrete
        if not fits or episodes.act_dim > spaces.act_dim or (not spaces.discrete and episodes.act_dim < spaces.act_dim):
            kind = f"{episodes.act_dim} actions" if episodes.discrete else f"actions of {episodes.act_dim} numbers"
            raise DataError(
                f'{episodes.name} has observations of {episodes.state_dim} numbers and {kind}; environment "{env}" has '
                f"{spaces.text()}. Name the environment it was recorded in."
            )
        if episodes.discrete and episodes.act_dim < spaces.act_dim:  # an action that nobody ever took
            episodes = Episodes(**{**vars_of(episodes), "act_dim": spaces.act_dim})
    return EpisodeData(
        episodes=episodes,
        context=settings.context,
        name=episodes.name,
        provenance=provenance,
        licence=licence,
        env=env,
        play_episodes=settings.play_episodes,
        **extra,
    )


def vars_of(episodes: Episodes) -> dict[str, Any]:
    """Return the fields of episodes by name."""
    names = ("observations", "actions", "rewards", "lengths", "name", "act_dim", "dropped")
    return {name: getattr(episodes, name) for name in names}


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.exists():
        raise DataError(f"There is no {path}. Give an HDF5 file of episodes, or record one: agent-train record.")
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise DataError(f"{path} holds {len(found)} HDF5 files ({names}), expected one. Give the file itself.")
    return found[0]


@contextmanager
def _hdf5(path: Path) -> Iterator[Any]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path.name} cannot be read as HDF5, or is cut short: {text}. Get another copy.") from error


def _array(name: str, group: Any, key: str) -> Any:
    """Return a plain dataset of numbers that lies in this very file, not read yet."""
    import h5py

    if key not in group:
        raise DataError(f'{name}: "{group.name}" has no "{key}". It has {", ".join(list(group)[:8]) or "nothing"}.')
    if isinstance(group.get(key, getlink=True), h5py.ExternalLink | h5py.SoftLink):
        raise DataError(f'{name}: "{key}" of "{group.name}" is a link, which is not followed. Copy the data.')
    found = group[key]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f'{name}: "{key}" of "{group.name}" is no array: only vectors of numbers are read.')
    if found.external or found.is_virtual:
        raise DataError(f'{name}: "{key}" of "{group.name}" lies in another file, which is not followed.')
    if found.dtype.kind not in "iufb":
        raise DataError(f'{name}: "{key}" of "{group.name}" holds {found.dtype}, not numbers.')
    return found


def read_minari(file: Any, name: str) -> Episodes:
    """Read groups ``episode_N`` with ``observations`` (T + 1 or T rows), ``actions`` and ``rewards``.

    Raises:
        DataError: no such groups, arrays that do not fit each other, or too many numbers.
    """
    keys = [key for key in file if re.fullmatch(r"episode_\d+", key)]
    keys.sort(key=lambda key: int(key.partition("_")[2]))
    if not keys:
        has = ", ".join(list(file)[:8]) or "nothing"
        raise DataError(
            f"{name} has neither episode_0, as Minari writes it, nor observations, as D4RL does. It has {has}."
        )
    groups = [file[key] for key in keys]
    parts = [[_array(name, group, what) for what in ("observations", "actions", "rewards")] for group in groups]
    total = sum(int(np.prod(array.shape)) for three in parts for array in three)
    _limit(name, total)
    chosen: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    dropped = 0
    for key, (seen, acted, rewarded) in zip(keys, parts, strict=True):
        steps = acted.shape[0] if acted.shape else 0
        if not steps and not rewarded.size:
            dropped += 1
            continue
        if rewarded.shape != (steps,) or seen.ndim != 2 or seen.shape[0] not in (steps, steps + 1):
            raise DataError(
                f"{name}, {key}: observations {seen.shape}, actions {acted.shape} and rewards {rewarded.shape} do not "
                "fit each other. Expected (T + 1, numbers), (T,) or (T, numbers), and (T,)."
            )
        chosen.append((seen[:steps], acted[...], rewarded[...]))
    widths = {(seen.shape[1], acted.shape[1:]) for seen, acted, _ in chosen}
    if len(widths) > 1:
        raise DataError(f"{name}: its episodes have observations and actions of different sizes.")
    if not chosen:
        raise DataError(f"{name} has no episode with a step: {dropped} have none. Record some: agent-train record.")
    seen, acted, rewarded = (np.concatenate(column) for column in zip(*chosen, strict=True))
    return _episodes(seen, acted, rewarded, [len(three[2]) for three in chosen], name, dropped)


def read_d4rl(file: Any, name: str) -> Episodes:
    """Read ``observations``, ``actions``, ``rewards``, ``terminals`` and, where there are, ``timeouts``.

    An episode ends at a terminal or a timeout; what is behind the last one is an episode too.

    Raises:
        DataError: arrays that are missing or do not fit each other, or no end of an episode.
    """
    seen, acted, rewarded = (_array(name, file, key) for key in ("observations", "actions", "rewards"))
    steps = rewarded.shape[0] if rewarded.ndim == 1 else -1
    ends = [_array(name, file, key) for key in ("terminals", "timeouts") if key in file]
    if seen.ndim != 2 or {seen.shape[0], acted.shape[0] if acted.shape else -1, *(end.size for end in ends)} != {steps}:
        shapes = ", ".join(f"{array.name[1:]} {array.shape}" for array in (seen, acted, rewarded, *ends))
        raise DataError(f"{name}: its arrays do not fit each other: {shapes}.")
    _limit(name, sum(int(np.prod(array.shape)) for array in (seen, acted, rewarded)))
    over = np.zeros(steps, dtype=bool)
    for end in ends:
        over |= np.asarray(end[...]).reshape(-1).astype(bool)
    if not over.any():
        raise DataError(f"{name} has no terminal and no timeout: it does not say where its episodes end.")
    last = np.flatnonzero(over)
    bounds = np.concatenate([[0], last + 1, [steps]])
    lengths = [int(length) for length in np.diff(bounds) if length]
    return _episodes(seen[...], acted[...], rewarded[...], lengths, name, 0)


def _limit(name: str, numbers: int) -> None:
    if numbers > MAX_NUMBERS:
        raise DataError(f"{name} holds {numbers:,} numbers, more than the {MAX_NUMBERS:,} that are read. Give a part.")


def _episodes(
    seen: NDArray[Any], acted: NDArray[Any], rewarded: NDArray[Any], lengths: list[int], name: str, dropped: int
) -> Episodes:
    if acted.ndim == 2 and acted.shape[1] == 1 and acted.dtype.kind in "iu":
        acted = acted[:, 0]
    if acted.ndim == 1 and acted.dtype.kind == "f":
        acted = acted[:, None]
    if acted.ndim > 2 or (acted.ndim == 2 and acted.dtype.kind in "iu"):
        raise DataError(
            f"{name} has actions {acted.dtype} {acted.shape}: only choices (T,) and vectors (T, numbers) are read."
        )
    discrete = acted.ndim == 1
    return Episodes(
        observations=seen.astype(np.float32),
        actions=acted.astype(np.int64 if discrete else np.float32),
        rewards=rewarded.astype(np.float32),
        lengths=np.asarray(lengths, dtype=np.int64),
        name=name,
        act_dim=max(2, int(acted.max()) + 1) if discrete else acted.shape[1],
        dropped=dropped,
    )
