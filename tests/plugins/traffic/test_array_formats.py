"""Readers of the public benchmarks' layouts: NPZ, NPY, MATLAB tensors, long tables."""

from __future__ import annotations

import io
import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from scipy.io import savemat

from polyhead.errors import DataError
from polyhead_traffic.baselines import LastValue, Profile
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_folder
from polyhead_traffic.metrics import ForecastMetric
from polyhead_traffic.settings import SensorSettings

ROWS = 288


def _open(path: Path, **values: Any) -> SensorData:
    return open_folder(path, SensorSettings(**{"history": 4, "horizon": 3, **values}))


@pytest.fixture
def readings() -> np.ndarray:
    """A day of five-minute readings of four sensors; two of them 0."""
    values = np.random.default_rng(0).uniform(1, 70, (ROWS, 4)).astype(np.float32)
    values[3, 1] = values[5, 2] = 0
    return values


# ---- NPZ ----


def _pems(folder: Path, nodes: int, name: str = "PEMS04") -> np.ndarray:
    values = np.random.default_rng(0).uniform(1, 300, (ROWS, nodes, 3)).astype(np.float32)
    np.savez_compressed(folder / f"{name}.npz", data=values)
    edges = [f"{i},{(i + 1) % nodes},{100 + i}" for i in range(nodes)]
    (folder / f"{name}.csv").write_text("from,to,cost\n" + "\n".join(edges))
    return values


def test_pems_archives_are_read_with_their_graph(tmp_path: Path) -> None:
    values = _pems(tmp_path, 307)
    data = _open(tmp_path)
    np.testing.assert_array_equal(data.values, values[..., 0])
    assert str(data.timestamps[0]) == "2018-01-01T00:00:00"
    assert data.graph is not None
    assert data.unit == "veh/5min"
    assert not data.zero_is_missing
    assert data.notes[0] == "The file has no times: 2018-01-01 and 5min, as published for PEMS04."
    np.testing.assert_array_equal(_open(tmp_path, channel=2).values, values[..., 2])
    with pytest.raises(DataError, match=r"PEMS04\.npz, key data has 3 values a reading, no number 3\. Use a smaller"):
        _open(tmp_path, channel=3)


def test_pems03_takes_its_ids_from_its_list(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "traffic" / "pems-0x-graphs"
    _pems(tmp_path, 358, "PEMS03")
    for name in ("PEMS03.csv", "PEMS03.txt"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    data = _open(tmp_path)
    assert data.ids[0] == (source / "PEMS03.txt").read_text().split()[0]
    assert data.graph is not None
    (tmp_path / "PEMS03.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match=r"PEMS03\.txt lists 2 sensors, PEMS03\.npz has 358"):
        _open(tmp_path)


@pytest.mark.parametrize("divided", [False, True])
def test_clocks_in_the_file_are_held_against_the_start(tmp_path: Path, readings: np.ndarray, divided: bool) -> None:
    slots = (6 + np.arange(ROWS)) / 288
    day = np.full(ROWS, 3.0) / (7 if divided else 1)
    data = np.stack([readings, *(np.repeat(clock[:, None], 4, axis=1) for clock in (slots % 1, day))], axis=-1)
    np.savez(tmp_path / "data.npz", data=data)
    with pytest.raises(
        DataError, match=r"first row is at 00:30 on a Thursday, a step is 300 s\. Say which day: --start"
    ):
        _open(tmp_path)
    opened = _open(tmp_path, start="2012-03-01T00:30", missing="zero")
    assert opened.step_s == 300
    assert not opened.mask[3, 1]
    with pytest.raises(DataError, match=r"first row is at 00:30 on a Thursday, --start 2012-03-02T00:30 is a Friday"):
        _open(tmp_path, start="2012-03-02T00:30")
    with pytest.raises(DataError, match=r"data\.npz says a step is 300 s, --step is 15min"):
        _open(tmp_path, start="2012-03-01T00:30", step="15min")


def test_index_files_are_compared_with_the_protocols(tmp_path: Path, readings: np.ndarray) -> None:
    np.savez(tmp_path / "data.npz", data=readings[..., None])
    starts = np.arange(ROWS - 6)
    triples = np.stack([starts, starts + 4, starts + 7], axis=1)
    cuts = [round(0.7 * len(starts)), len(starts) - round(0.2 * len(starts))]
    train, val, test = np.split(triples, cuts)
    np.savez(tmp_path / "index.npz", train=train, val=val, test=test)
    values = {"start": "2012-03-01", "step": "5min"}
    assert "The split of index.npz is that of --protocol dcrnn." in _open(tmp_path, **values).notes
    np.savez(tmp_path / "index.npz", train=train, val=val, test=test[1:])
    assert "The split of index.npz is that of no protocol here and was not taken." in _open(tmp_path, **values).notes
    np.savez(tmp_path / "index.npz", train=train[:, :2], val=val, test=test)
    with pytest.raises(DataError, match=r"index\.npz, key train has shape .*rows of three numbers"):
        _open(tmp_path, **values)


def test_largests_normalised_readings_are_put_back(tmp_path: Path, readings: np.ndarray) -> None:
    np.savez(tmp_path / "his.npz", data=(readings[..., None] - 30) / 20, mean=30.0, std=20.0)
    data = _open(tmp_path, start="2019-01-01", step="5min")
    np.testing.assert_allclose(data.values, readings, atol=1e-4)


def _npz(path: Path, content: bytes, key: str = "data") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{key}.npy", content)


def _npy(array: np.ndarray, **values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **values)
    return buffer.getvalue()


class _Exploit:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return (Path.touch, (Path("exploited"),))  # type: ignore[return-value]


def test_pickles_in_an_archive_are_refused_and_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _npz(tmp_path / "x.npz", _npy(np.array([_Exploit()], dtype=object), allow_pickle=True))
    with pytest.raises(DataError, match=r"x\.npz, key data holds a pickle, which could run any code when opened"):
        _open(tmp_path)
    assert not (tmp_path / "exploited").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", r"x\.npz, key data is not a readable NumPy array: .* Get the file again\."),
        (_npy(np.ones(5)), r"x\.npz, key data has shape \(5,\)\. Readings are \(steps, sensors\)"),
        (_npy(np.ones((0, 4))), r"key data has shape \(0, 4\)"),
        (_npy(np.array([["a", "b"]])), r"key data holds <U1, not numbers"),
        (_npy(np.asfortranarray(np.ones((5, 4)))), r"key data is stored column by column"),
        (_npy(np.ones((50, 4)))[:-8], r"key data ends after row 49\. Get the file again"),
        (_npy(np.full((5, 4), np.inf)), r"key data, row 1, sensor 0: the reading is not finite"),
        (_npy(np.ones((5, 30_000))), r"key data has 30,000 sensors, more than 20,000"),
    ],
)
def test_bad_archives_are_named_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    _npz(tmp_path / "x.npz", content)
    with pytest.raises(DataError, match=message) as caught:
        _open(tmp_path / "x.npz", start="2024-01-01", step="1h")
    assert "\n" not in str(caught.value)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**4)})
    _npz(tmp_path / "x.npz", header.getvalue() + b"\0" * 10**6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"shape \(10000000, 10000\), more than"):
        _open(tmp_path / "x.npz", start="2024-01-01", step="1h")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, data=np.random.default_rng(0).random((200, 20)))
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:60] + b"\xff" * 40 + content[100:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.npz") as caught:
            _open(path, format="npz", start="2024-01-01", step="1h")
        assert "\n" not in str(caught.value)
    np.savez(path, other=np.ones(3))
    with pytest.raises(DataError, match=r'x\.npz has no array "data", only other\.'):
        _open(path, format="npz")


# ---- BasicTS ----


def test_basicts_parts_are_put_together(tmp_path: Path, readings: np.ndarray) -> None:
    for part, rows in zip(("train", "val", "test"), np.split(readings, [200, 230]), strict=True):
        np.save(tmp_path / f"{part}_data.npy", rows)
    (tmp_path / "meta.json").write_text(json.dumps({"name": "x", "frequency (minutes)": 5}))
    with pytest.raises(DataError, match=r"has no times\. Say when its first row is"):
        _open(tmp_path)
    data = _open(tmp_path, start="2024-01-01")
    np.testing.assert_array_equal(data.values, readings)
    assert data.step_s == 300
    np.save(tmp_path / "val_data.npy", np.ones((5, 3)))
    with pytest.raises(DataError, match=r"train, val and test have 4, 3, 4 sensors"):
        _open(tmp_path, start="2024-01-01")
    (tmp_path / "meta.json").write_text("[]")
    with pytest.raises(DataError, match=r"meta\.json holds no object"):
        _open(tmp_path)
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json is not readable JSON"):
        _open(tmp_path)


def test_basicts_memory_maps_are_read(tmp_path: Path, readings: np.ndarray) -> None:
    np.stack([readings, readings / 100], axis=-1).astype("<f4").tofile(tmp_path / "data.dat")
    (tmp_path / "desc.json").write_text(json.dumps({"shape": [ROWS, 4, 2], "frequency (minutes)": 5}))
    np.testing.assert_array_equal(_open(tmp_path, start="2024-01-01").values, readings)
    (tmp_path / "desc.json").write_text(json.dumps({"shape": [ROWS + 1, 4, 2]}))
    with pytest.raises(DataError, match=r"data\.dat has 9,216 bytes, shape \[289, 4, 2\] in desc\.json needs 9,248"):
        _open(tmp_path, start="2024-01-01")
    (tmp_path / "desc.json").write_text(json.dumps({"shape": "wide"}))
    with pytest.raises(DataError, match=r'desc\.json, key "shape": wide is not \[steps, sensors, values\]'):
        _open(tmp_path, start="2024-01-01")


# ---- MATLAB ----


def _mae(predictor: Any, data: SensorData) -> list[float]:
    source = data.source("test")
    batch = source.fetch(range(len(source)))
    metric = ForecastMetric(data.horizon, data.step_s)
    metric.update(predictor(batch), batch)
    return [metric.compute()[f"mae_{minutes}min"] for minutes in (30, 60, 120)]


def test_hangzhou_metro_reproduces_the_published_figures_and_respects_the_night(shared: Path) -> None:
    folder = shared / "data" / "traffic" / "hangzhou-metro"
    values: dict[str, Any] = {
        "start": "2019-01-01T06:00",
        "step": "10min",
        "graph": "none",
        "history": 12,
        "horizon": 12,
    }
    jumping = open_folder(folder, SensorSettings(**values, gaps="ignore"))
    assert jumping.values.shape == (2700, 80)
    assert len(jumping.source("test")) == 517
    assert _mae(LastValue(jumping), jumping) == pytest.approx([42.7, 68.0, 99.0], abs=0.06)
    data = open_folder(folder, SensorSettings(**values))
    assert data.breaks == tuple(range(108, 2700, 108))
    assert data.calendar[108].tolist() == [2, 36]
    assert len(data.source("test")) == 5 * (108 - 23)
    assert _mae(Profile.fit(data, "mean"), data)[0] < 30
    with pytest.raises(DataError, match=r"graph\.csv, row 1: its 81 sensors are not the 80 of the readings"):
        open_folder(folder, SensorSettings(**{**values, "graph": "auto"}))


def test_tensors_of_other_meaning_are_asked_about(shared: Path) -> None:
    folder = shared / "data" / "traffic" / "nyc-taxi-od"
    with pytest.raises(DataError, match=r"tensor\.mat has no times\. Say when its first slot is"):
        _open(folder)
    with pytest.raises(DataError, match=r"1464 slots of 1h are more than a day\. Mend --step, or say --axes"):
        _open(folder, start="2018-01-01", step="1h")
    data = _open(folder, start="2018-01-01", step="1h", axes="origin-destination-time")
    assert data.values.shape == (1464, 30)
    parking = _open(shared / "data" / "traffic" / "birmingham-parking", start="2016-10-04T08:00", step="30min")
    assert parking.values.shape == (77 * 18, 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"tensor": np.ones((5, 4))}, r"tensor has shape \(5, 4\)\. A tensor is sensors x days x slots"),
        ({"a": np.ones(3), "b": np.ones(3)}, r'has 2 arrays \(a \(1, 3\), b \(1, 3\)\)\. Give one called "tensor"'),
        ({"tensor": np.full((2, 2, 4), np.inf)}, r"tensor\(1, 1, 1\) is not finite"),
        ({"tensor": np.array([[["a"]]], dtype=object)}, r"tensor is a cell, not an array of numbers"),
        ({"tensor": np.ones((30_000, 1, 1), np.uint8)}, r"shape \(30000, 1, 1\), more than is read"),
    ],
)
def test_bad_tensors_are_named_in_one_line(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    savemat(tmp_path / "x.mat", content)
    with pytest.raises(DataError, match=r"x\.mat.*" + message) as caught:
        _open(tmp_path, start="2024-01-01", step="1h")
    assert "\n" not in str(caught.value)


def test_damaged_and_other_matlab_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    savemat(path, {"tensor": np.random.default_rng(0).random((5, 4, 6))}, do_compression=True)
    content = path.read_bytes()
    for damaged in (b"", b"MATLAB", content[:200], content[:-30], content[:300] + b"\0" * 60 + content[360:]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.mat") as caught:
            _open(path, start="2024-01-01", step="1h")
        assert "\n" not in str(caught.value)
    with h5py.File(path, "w", userblock_size=512) as file:
        file["tensor"] = np.ones(3)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(DataError, match=r"x\.mat is a MATLAB 7\.3 file\. Save it with save\(\.\.\., '-v7'\)"):
        _open(path, start="2024-01-01", step="1h")


# ---- long tables ----


def _long(path: Path, rows: list[str], header: str = "timestamp,sensor_id,value") -> None:
    path.write_text("\n".join([header, *rows]) + "\n")


def test_a_long_table_gives_what_a_wide_one_gives(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hours = [f"2024-03-01T{hour:02}:00" for hour in range(24)]
    values = rng.integers(1, 70, (24, 3))
    rows = [f"{hour},{sensor},{values[i, j]}" for i, hour in enumerate(hours) for j, sensor in enumerate("abc")]
    rows[4] = rows[4].rsplit(",", 1)[0] + ","
    first = rows.pop(0)
    rng.shuffle(rows)
    _long(tmp_path / "long.csv", [first, *rows])
    data = _open(tmp_path)
    order = [data.ids.index(name) for name in "abc"]
    expected = values.astype(np.float32)
    expected[1, 1] = 0
    np.testing.assert_array_equal(data.values[:, order], expected)
    assert not data.mask[1, order[1]]
    assert data.mask.sum() == 71


@pytest.mark.parametrize("header", ["speed;id;time", "Sensor\tDateTime\tFlow"])
def test_long_headers_in_other_words(tmp_path: Path, header: str) -> None:
    mark = ";" if ";" in header else "\t"
    place = {"speed": "5", "flow": "5", "id": "{s}", "sensor": "{s}", "time": "{t}", "datetime": "{t}"}
    line = mark.join(place[name.lower()] for name in header.split(mark))
    rows = [line.format(s=s, t=f"2024-03-01 {hour:02}:00") for hour in range(24) for s in "ab"]
    _long(tmp_path / "x.csv", rows, header)
    assert _open(tmp_path).values.tolist() == [[5, 5]] * 24


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"has a header and no rows\. Give one reading a row"),
        (["2024-03-01,a,1"], r'has 1 sensor \("a"\)\. A network needs at least 2'),
        (["2024-03-01,a,fast", "2024-03-01,b,1"], r'row 2: value "fast" is not a finite number'),
        (["2024-03-01,a,inf", "2024-03-01,b,1"], r'row 2: value "inf" is not a finite number'),
        (["2024-03-01,,1", "2024-03-01,b,1"], r"row 2: the sensor has no name"),
        (["noon,a,1", "2024-03-01,b,1"], r'row 2: "noon" is not a time'),
        (["2024-03-01,a", "2024-03-01,b,1"], r"row 2: 2 cells, the header has 3"),
        (["2024-03-01,a,1", "2024-03-01T00:00+01:00,b,1"], r"row 3: the time has an offset from UTC"),
        (
            ["2024-03-01,a,1", "2024-03-01,b,1", "2024-03-01,a,2"],
            r"row 4: a reading of this sensor and time was there before\. Remove it, or --duplicates first \(or mean\)",
        ),
    ],
)
def test_bad_long_tables_are_named_in_one_line(tmp_path: Path, rows: list[str], message: str) -> None:
    _long(tmp_path / "x.csv", rows)
    with pytest.raises(DataError, match=r"x\.csv.*" + message) as caught:
        _open(tmp_path)
    assert "\n" not in str(caught.value)


def test_readings_that_come_twice_are_merged_when_told_so(tmp_path: Path) -> None:
    rows = [f"2024-03-01 {hour:02}:00,{sensor},{hour}" for hour in range(24) for sensor in "ab"]
    _long(tmp_path / "x.csv", [*rows, "2024-03-01 05:00,b,9"])
    assert _open(tmp_path, duplicates="first").values[5].tolist() == [5, 5]
    assert _open(tmp_path, duplicates="mean").values[5].tolist() == [5, 7]
