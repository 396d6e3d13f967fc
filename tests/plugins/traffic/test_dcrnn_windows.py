"""DCRNN's windows: put together to the series they were cut from, or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_folder
from polyhead_traffic.settings import SensorSettings

ROWS, SENSORS, PAST, FUTURE = 150, 4, 5, 3


def _open(path: Path, **values: Any) -> SensorData:
    return open_folder(path, SensorSettings(**{"history": PAST, "horizon": FUTURE, "start": "2024-03-01", **values}))


def _series() -> np.ndarray:
    """Readings and the time of day, as the published files have them: (T, N, 2)."""
    readings = np.random.default_rng(0).uniform(1, 70, (ROWS, SENSORS)).astype(np.float32)
    readings[7, 2] = np.nan
    day = np.arange(ROWS) * 600 / 86400 % 1
    return np.stack([readings, np.broadcast_to(day[:, None], readings.shape)], axis=-1)


def _windows(series: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    starts = np.arange(ROWS - PAST - FUTURE + 1)
    x = series[starts[:, None] + np.arange(PAST)]
    y = series[starts[:, None] + np.arange(PAST, PAST + FUTURE)]
    train, test = round(0.7 * len(starts)), round(0.2 * len(starts))
    cuts = {"train": slice(0, train), "val": slice(train, len(starts) - test), "test": slice(len(starts) - test, None)}
    offsets = {"x_offsets": np.arange(1 - PAST, 1)[:, None], "y_offsets": np.arange(1, FUTURE + 1)[:, None]}
    return {part: {"x": x[cut], "y": y[cut], **offsets} for part, cut in cuts.items()}


def _write(folder: Path, parts: Mapping[str, Mapping[str, np.ndarray]]) -> Path:
    folder.mkdir(exist_ok=True)
    for part, arrays in parts.items():
        np.savez_compressed(folder / f"{part}.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub
    return folder


def test_windows_become_the_series_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead_traffic.formats.arrays.BLOCK_BYTES", 4096)  # several blocks a part
    series = _series()
    folder = _write(tmp_path / "city", _windows(series))
    data = _open(folder)
    expected = series[..., 0]
    assert data.values.shape == expected.shape
    np.testing.assert_array_equal(np.where(data.mask, data.values, np.nan), expected)
    assert data.step_s == 600
    assert data.ids == ("0", "1", "2", "3")
    assert "143 windows of 5 past and 3 future steps were put together again." in data.notes
    assert "The split of the files is that of --protocol dcrnn." in data.notes
    assert _open(folder / "train.npz").fingerprint() == data.fingerprint()


def test_windows_have_the_split_of_the_protocol(tmp_path: Path) -> None:
    parts = _windows(_series())
    data = _open(_write(tmp_path / "city", parts), protocol="dcrnn")
    for split, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        source = data.source(split)  # type: ignore[arg-type]  # one of three texts
        batch = source.fetch(range(len(source)))
        expected = np.nan_to_num(parts[part]["y"][..., 0])
        np.testing.assert_array_equal(batch["y"].numpy(), expected.astype(np.float32))


def test_ids_beside_the_windows_are_taken(tmp_path: Path) -> None:
    folder = _write(tmp_path / "city", _windows(_series()))
    (folder / "graph_sensor_ids.txt").write_text("773869,767541,767542,717447")
    assert _open(folder).ids == ("773869", "767541", "767542", "717447")
    (folder / "graph_sensor_ids.txt").write_text("1,2,3")
    with pytest.raises(DataError, match=r"graph_sensor_ids\.txt lists 3 sensors, train\.npz has 4\. Give the list"):
        _open(folder)


def test_the_clock_in_the_windows_is_held_against_the_start(tmp_path: Path) -> None:
    folder = _write(tmp_path / "city", _windows(_series()))
    with pytest.raises(DataError, match=r"train\.npz has no dates; its first row is at 00:00, a step is 600 s"):
        _open(folder, start="")
    with pytest.raises(DataError, match=r"train\.npz says its first row is at 00:00, --start 2024-03-01T05:00 is a"):
        _open(folder, start="2024-03-01T05:00")


def _without(part: str) -> Callable[[dict[str, Any]], None]:
    return lambda parts: parts.pop(part) and None


def _change(part: str, key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, Any]], None]:
    def apply(parts: dict[str, Any]) -> None:
        parts[part][key] = change(parts[part][key])

    return apply


def _infinite(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[3, 1, 2, 0] = np.inf
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("val"), r"city has train\.npz but not val\.npz\. Give all three parts\."),
        (
            _change("train", "x", lambda x: x[np.random.default_rng(0).permutation(len(x))]),
            r"train\.npz, key x: the window of row 2 is not the one before it, moved by one step\. Windows that were",
        ),
        (_change("train", "x", lambda x: x[::2]), r"train\.npz, key x: the window of row 2 is not"),
        (_change("val", "x", lambda x: x / 2), r"val\.npz, key x: the window of row 101 is not"),
        (_change("train", "y", lambda y: y - 1), r"train\.npz, key y: the window of row 6 is not"),
        (_change("test", "x", lambda x: x[:, :, :3]), r"other shapes: train\.npz \(100, 5, 4, 2\), val\.npz"),
        (_change("test", "y", lambda x: x[:, :2]), r"test\.npz, key y has shape \(29, 2, 4, 2\), not \(windows, 3, 4"),
        (_change("train", "x", lambda x: x[..., 0]), r"train\.npz, key x has shape \(100, 5, 4\)\. Windows are \(wind"),
        (
            _change("val", "y_offsets", lambda y: y * 3),
            r"val\.npz: its windows have the steps -4, -3, -2, -1, 0, 3, 6, 9, which leave some out",
        ),
        (
            _change("val", "y_offsets", lambda y: np.zeros((300, 300))),
            r"val\.npz, key y_offsets has shape \(300, 300\)\. It is one number a step",
        ),
        (_change("train", "x", _infinite), r"train\.npz, key x, window 4, step 2, sensor 2: not finite\. Write NaN"),
        (
            _change("train", "y", lambda y: y.astype(object)),
            r"train\.npz, key y holds a pickle, which could run any code when opened, and is refused",
        ),
    ],
)
def test_windows_that_cannot_be_put_together_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    parts = _windows(np.nan_to_num(_series(), nan=3))
    change(parts)
    with pytest.raises(DataError, match=message) as caught:
        _open(_write(tmp_path / "city", parts))
    assert "\n" not in str(caught.value)


def test_other_values_of_a_reading(tmp_path: Path) -> None:
    folder = _write(tmp_path / "city", _windows(_series()))
    with pytest.raises(
        DataError, match=r"train\.npz, key x has 2 values a reading, no number 2\. Use a smaller --channel"
    ):
        _open(folder, channel=2)
    assert _open(folder, channel=1).values.max() < 1


def test_too_many_sensors_are_refused_by_the_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead_traffic.formats.dcrnn.MAX_SENSORS", 3)
    with pytest.raises(DataError, match=r"train\.npz, key x has 4 sensors, more than 3\. Give fewer\."):
        _open(_write(tmp_path / "city", _windows(_series())))


def test_a_split_of_their_own_is_said(tmp_path: Path) -> None:
    parts = _windows(_series())
    moved = {key: np.concatenate([parts["train"][key], parts["val"][key][:3]]) for key in ("x", "y")}
    rest = {key: parts["val"][key][3:] for key in ("x", "y")}
    parts["train"] |= moved
    parts["val"] |= rest
    notes = _open(_write(tmp_path / "city", parts)).notes
    assert "The split of the files is that of no protocol here and was not taken." in notes
