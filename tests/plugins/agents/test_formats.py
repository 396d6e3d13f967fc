"""HDF5 files of Minari and D4RL: read, and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.errors import ConfigError, DataError, PolyheadError
from polyhead_agents import formats
from polyhead_agents.episodes import Episodes
from polyhead_agents.formats import open_episodes
from polyhead_agents.recording import write_minari
from polyhead_agents.settings import EpisodeSettings

Write = Callable[..., Path]
PLAIN = EpisodeSettings()


def d4rl(path: Path, *, without: str = "", **changed: object) -> Path:
    """Write seven steps: an episode of three, ended by a terminal, one of two, by a timeout, and two steps more."""
    arrays = {
        "observations": np.arange(14.0).reshape(7, 2),
        "actions": np.linspace(-1, 1, 7)[:, None],
        "rewards": np.ones(7),
        "terminals": np.arange(7) == 2,
        "timeouts": np.arange(7) == 4,
        **changed,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            if name != without:
                file[name] = array
    return path


def test_minari_is_read_in_the_order_of_its_numbers(minari: Write) -> None:
    lengths = tuple(range(1, 13))  # episode_10 comes behind episode_9, not behind episode_1
    data = open_episodes(minari(lengths), PLAIN)
    assert data.episodes.lengths.tolist() == list(lengths)
    assert (data.episodes.discrete, data.episodes.act_dim, data.episodes.state_dim) == (True, 2, 4)


def test_a_folder_of_minari_is_its_one_file(minari: Write, tmp_path: Path) -> None:
    file = minari()
    (tmp_path / "set" / "data").mkdir(parents=True)
    file.rename(tmp_path / "set" / "data" / "main_data.hdf5")
    (tmp_path / "set" / "data" / "metadata.json").write_text('{"env_spec": "{\\"entry_point\\": \\"os:system\\"}"}')
    assert open_episodes(tmp_path / "set", PLAIN).env == ""


def test_d4rl_ends_episodes_at_terminals_and_timeouts(tmp_path: Path) -> None:
    data = open_episodes(d4rl(tmp_path / "hopper.hdf5"), PLAIN)
    assert data.episodes.lengths.tolist() == [3, 2, 2]
    assert data.episodes.actions.shape == (7, 1)
    assert not data.episodes.discrete


def test_episodes_without_a_step_are_left_out_and_counted(minari: Write) -> None:
    data = open_episodes(minari((4, 0, 1, 2)), PLAIN)
    assert data.episodes.lengths.tolist() == [4, 1, 2]
    assert data.summary()["left out without a step"] == 1


def test_a_recording_is_read_as_it_was_written(episodes: Callable[..., Episodes], tmp_path: Path) -> None:
    made = episodes()
    write_minari(made, tmp_path / "own.hdf5", about="made up")
    data = open_episodes(tmp_path / "own.hdf5", PLAIN)
    for name in ("observations", "actions", "rewards", "lengths"):
        assert np.array_equal(getattr(data.episodes, name), getattr(made, name))
    assert data.provenance == "own.hdf5: made up."


def test_the_environment_knows_actions_that_nobody_took(minari: Write) -> None:
    data = open_episodes(minari(width=2), EpisodeSettings(env="MountainCar-v0"))
    assert (data.episodes.act_dim, data.horizon) == (3, 200)


@pytest.mark.parametrize(
    ("env", "width", "text"),
    [
        (
            "CartPole-v1",
            3,
            r"observations of 3 numbers and 2 actions; environment \"CartPole-v1\" has observations of 4",
        ),
        ("Pendulum-v1", 3, r"environment \"Pendulum-v1\" has observations of 3 numbers and actions of 1 numbers"),
        ("Blackjack-v1", 3, r"has observations .*: only vectors of numbers are read"),
    ],
)
def test_wrong_spaces_are_refused(minari: Write, env: str, width: int, text: str) -> None:
    with pytest.raises(DataError, match=text):
        open_episodes(minari(width=width), EpisodeSettings(env=env))


def test_an_unknown_environment_is_refused_with_the_nearest(minari: Write) -> None:
    with pytest.raises(ConfigError, match=r'no environment "CartPol-v1"\. Did you mean "CartPole-v1"\?'):
        open_episodes(minari(), EpisodeSettings(env="CartPol-v1"))


def test_no_setting_imports_a_package(minari: Write) -> None:
    with pytest.raises(ConfigError, match=r'would import "turtledemo", which a file may not ask for'):
        open_episodes(minari(), EpisodeSettings(env="turtledemo:Maze-v0"))


def test_a_truncated_file_is_refused(minari: Write) -> None:
    path = minari()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"main_data.hdf5 cannot be read as HDF5, or is cut short"):
        open_episodes(path, PLAIN)


def test_rewards_that_are_not_finite_are_refused(minari: Write) -> None:
    path = minari()
    with h5py.File(path, "r+") as file:
        file["episode_1/rewards"][7] = np.nan
    with pytest.raises(DataError, match=r"not finite: reward of episode 1, step 7\. Leave such episodes out"):
        open_episodes(path, PLAIN)


def _cut_rewards(file: h5py.File) -> None:
    del file["episode_0/rewards"]
    file["episode_0/rewards"] = np.ones(3)


def _without_rewards(file: h5py.File) -> None:
    del file["episode_0/rewards"]


def _nested(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file.create_group("episode_0/observations")


def _text(file: h5py.File) -> None:
    del file["episode_0/actions"]
    file["episode_0/actions"] = np.array([b"left"] * 30)


def _linked(file: h5py.File) -> None:
    del file["episode_0/actions"]
    file["episode_0/actions"] = h5py.ExternalLink("elsewhere.hdf5", "/actions")


def _other_width(file: h5py.File) -> None:
    del file["episode_0/observations"]
    file["episode_0/observations"] = np.zeros((31, 7))


def _integer_vectors(file: h5py.File) -> None:
    for key in file:
        del file[key]["actions"]
        file[key]["actions"] = np.zeros((file[key]["rewards"].shape[0], 2), dtype=np.int64)


def _empty(file: h5py.File) -> None:
    file.clear()


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (_cut_rewards, r"episode_0: observations \(31, 4\), actions \(30,\) and rewards \(3,\) do not fit"),
        (_without_rewards, r'"/episode_0" has no "rewards"\. It has actions, observations'),
        (_nested, r'"observations" of "/episode_0" is no array: only vectors'),
        (_text, r'"actions" of "/episode_0" holds \|S4, not numbers'),
        (_linked, r'"actions" of "/episode_0" is a link, which is not followed'),
        (_other_width, r"episodes have observations and actions of different sizes"),
        (_integer_vectors, r"has actions int64 \(75, 2\): only choices"),
        (_empty, r"has neither episode_0, as Minari writes it, nor observations.* It has nothing"),
    ],
)
def test_a_spoilt_file_is_refused(minari: Write, spoil: Callable[[h5py.File], None], text: str) -> None:
    path = minari()
    with h5py.File(path, "r+") as file:
        spoil(file)
    with pytest.raises(DataError, match=text):
        open_episodes(path, PLAIN)


def test_spoilt_d4rl_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "hopper.hdf5"
    with pytest.raises(DataError, match=r"arrays do not fit each other: observations \(7, 2\), actions \(7, 1\), rew"):
        open_episodes(d4rl(path, rewards=np.ones(6)), PLAIN)
    with pytest.raises(DataError, match=r"no terminal and no timeout: it does not say where its episodes end"):
        open_episodes(d4rl(path, terminals=np.zeros(7), timeouts=np.zeros(7)), PLAIN)
    with pytest.raises(DataError, match=r'"/" has no "actions"'):
        open_episodes(d4rl(path, without="actions"), PLAIN)


def test_places_without_episodes_are_refused(tmp_path: Path, minari: Write) -> None:
    with pytest.raises(DataError, match=r"There is no .*nowhere\. Give an HDF5 file of episodes"):
        open_episodes(tmp_path / "nowhere", PLAIN)
    with pytest.raises(DataError, match=r"holds 0 HDF5 files \(none\), expected one"):
        open_episodes(tmp_path, PLAIN)
    with pytest.raises(DataError, match=r"no episode with a step: 2 have none"):
        open_episodes(minari((0, 0)), PLAIN)


def test_a_file_of_too_many_numbers_is_refused_unread(minari: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_NUMBERS", 100)
    with pytest.raises(DataError, match=r"holds 462 numbers, more than the 100 that are read"):
        open_episodes(minari(), PLAIN)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_flipped_byte_ends_in_data_or_in_a_sentence(minari: Write, at: int, byte: int) -> None:
    path = minari()
    content = bytearray(path.read_bytes())
    content[at % len(content)] = byte
    path.write_bytes(content)
    try:
        text = open_episodes(path, PLAIN).name
    except PolyheadError as error:
        text = str(error)
    assert "main_data.hdf5" in text
