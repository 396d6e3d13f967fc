"""Readers of the public benchmarks' layouts: HDF5; changed bytes in any binary file; memory."""

from __future__ import annotations

import pickle
import resource
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_folder, table
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


def _write_h5(path: Path, readings: np.ndarray, *, start: str = "2012-03-01", **changes: Any) -> None:
    """Write what pandas' to_hdf(format="fixed") writes."""
    nodes = readings.shape[1]
    ns = np.datetime64(start, "ns").astype(np.int64) + np.arange(len(readings)) * 300 * 10**9
    parts: dict[str, Any] = {
        "axis0": np.array([f"40{i:04}".encode() for i in range(nodes)]),
        "axis1": ns,
        "block0_items": np.array([f"40{i:04}".encode() for i in range(nodes)]),
        "block0_values": readings.astype(np.float64),
    } | changes
    with h5py.File(path, "w") as file:
        group = file.create_group("df")
        for name, content in parts.items():
            if content is not None:
                group[name] = content
        if "axis1" in group and isinstance(group.get("axis1", getlink=True), h5py.HardLink):
            group["axis1"].attrs["kind"] = np.bytes_(b"datetime64")


# ---- HDF5 ----


def test_dcrnns_layout_is_read_with_its_distances(tmp_path: Path, readings: np.ndarray) -> None:
    path = tmp_path / "metr-la.h5"
    _write_h5(path, readings)
    distances = ["from,to,cost"]
    distances += [f"40{i:04},40{j:04},{100 * abs(i - j)}" for i in range(4) for j in range(4)]
    distances.append("999999,400000,5")  # the public file lists thousands of other sensors
    (tmp_path / "distances_la_2012.csv").write_text("\n".join(distances) + "\n")
    (tmp_path / "graph_sensor_locations.csv").write_text(
        "index,sensor_id,latitude,longitude\n" + "".join(f"{i},40{i:04},34.{i},-118\n" for i in range(4))
    )
    data = _open(tmp_path)
    np.testing.assert_array_equal(data.values, readings)
    assert data.ids == ("400000", "400001", "400002", "400003")
    assert data.step_s == 300
    assert data.calendar[1].tolist() == [3, 1]
    assert data.graph is not None
    listed = np.array([100.0 * abs(i - j) for i in range(4) for j in range(4)])
    weights = np.exp(-np.square(listed / listed.std())).reshape(4, 4)
    np.testing.assert_allclose(data.graph.dense(4), np.where(weights < 0.1, 0, weights))
    assert data.coordinates is not None
    assert data.notes[0].startswith("Graph from distances_la_2012.csv: 16 distances")


@pytest.mark.parametrize(
    ("name", "nodes", "unit"), [("METR-LA.h5", 207, "mph"), ("pems-bay.h5", 325, "mph"), ("own.h5", 207, "")]
)
def test_public_sets_are_recognised_by_name_and_size(tmp_path: Path, name: str, nodes: int, unit: str) -> None:
    values = np.random.default_rng(0).integers(0, 60, (30, nodes)).astype(np.float32) + np.eye(30, nodes)
    _write_h5(tmp_path / name, values)
    data = _open(tmp_path)
    assert data.unit == unit
    assert data.zero_is_missing == bool(unit)
    assert ("released with DCRNN" in data.provenance) == bool(unit)


def test_several_blocks_and_integer_labels_are_put_in_order(tmp_path: Path) -> None:
    values = np.arange(30 * 3, dtype=np.float64).reshape(30, 3)
    _write_h5(
        tmp_path / "a.h5",
        values,
        axis0=np.array([7, 8, 9]),
        block0_items=np.array([9, 7]),
        block0_values=values[:, [2, 0]],
        block1_items=np.array([8]),
        block1_values=values[:, [1]].astype(np.int32),
    )
    data = _open(tmp_path)
    assert data.ids == ("7", "8", "9")
    np.testing.assert_array_equal(data.values, values)


def test_largests_matrix_and_meta_file_are_read(tmp_path: Path, readings: np.ndarray) -> None:
    _write_h5(tmp_path / "ca_his_2019.h5", readings)
    matrix = np.eye(4, dtype=np.float32) + 0.5 * np.eye(4, k=1, dtype=np.float32)
    np.save(tmp_path / "ca_rn_adj.npy", matrix)
    rows = [f"40{i:04},3{i}.5,-12{i}.1,4,Alameda" for i in range(4)]
    (tmp_path / "ca_meta.csv").write_text("ID,Lat,Lng,District,County\n" + "\n".join(rows))
    data = _open(tmp_path)
    assert data.graph is not None
    np.testing.assert_array_equal(data.graph.dense(4), matrix)
    assert data.coordinates is not None
    assert data.coordinates[3].tolist() == [33.5, -123.1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis1": None}, r"has 0 pandas frames \(it holds df\)\. Give a file with one frame"),
        ({"block0_values": None}, "its arrays do not fit each other"),
        ({"block0_items": None}, r'has no "block0_items" in "/df"'),
        ({"block0_values": np.zeros((5, 4))}, "its arrays do not fit each other"),
        ({"block0_values": np.array([[b"a"] * 4] * ROWS)}, r'column "400000" holds \|S1, not numbers'),
        ({"block0_values": np.full((ROWS, 4), np.inf)}, r"row 1, column 1: not finite\. Write NaN where missing"),
        (
            {"axis0": h5py.ExternalLink("/etc/passwd", "/x")},
            r'"axis0" is a link to another place, which is not followed',
        ),
        ({"block0_values": h5py.SoftLink("/elsewhere")}, r'"block0_values" is a link to another place'),
        ({"axis0": np.array([1.5, 2, 3, 4])}, r"column labels are stored as float64 \(a pickle\?\) and are not read"),
        ({"axis1": np.zeros((ROWS, 2), np.int64)}, r"rows are labelled by datetime64, not by times"),
        ({"axis0": np.array([b"a", b"a", b"b", b"c"])}, r'column 2: "a" is also column 1'),
    ],
)
def test_bad_frames_are_named_in_one_line(
    tmp_path: Path, readings: np.ndarray, changes: dict[str, Any], message: str
) -> None:
    _write_h5(tmp_path / "x.h5", readings, **changes)
    with pytest.raises(DataError, match=r"x\.h5.*" + message) as caught:
        _open(tmp_path)
    assert "\n" not in str(caught.value)


def test_data_outside_of_the_file_are_not_followed(tmp_path: Path, readings: np.ndarray) -> None:
    path = tmp_path / "x.h5"
    _write_h5(path, readings, block0_values=None)
    (tmp_path / "elsewhere.bin").write_bytes(b"\0" * ROWS * 4 * 8)
    with h5py.File(path, "a") as file:
        file["df"].create_dataset(
            "block0_values", (ROWS, 4), np.float64, external=[(str(tmp_path / "elsewhere.bin"), 0, ROWS * 4 * 8)]
        )
    with pytest.raises(DataError, match=r'x\.h5: "block0_values" lies in another file, which is not followed'):
        _open(path)
    _write_h5(path, readings, block0_values=None)
    with h5py.File(path, "a") as file:
        layout = h5py.VirtualLayout((ROWS, 4), np.float64)
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "values", (ROWS, 4))
        file["df"].create_virtual_dataset("block0_values", layout)
    with pytest.raises(DataError, match=r'x\.h5: "block0_values" lies in another file'):
        _open(path)
    with h5py.File(path, "w") as file:
        file["df"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/df")
    with pytest.raises(DataError, match=r'x\.h5: "df" is a link to another place'):
        _open(path)


def test_pandas_table_layout_says_how_to_write_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_group("df")["table"] = np.zeros(3)
    with pytest.raises(
        DataError, match=r'x\.h5 has pandas\' "table" layout\. Write it with to_hdf\(\.\.\., format="fixed"\)'
    ):
        _open(tmp_path)


def test_truncated_hdf5_is_named(tmp_path: Path, readings: np.ndarray) -> None:
    path = tmp_path / "x.h5"
    _write_h5(path, readings)
    content = path.read_bytes()
    for size in (0, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(DataError, match=r"x\.h5 is not a readable HDF5 file: .* Get the file again\.") as caught:
            _open(path)
        assert "\n" not in str(caught.value)


def test_pickled_graphs_are_refused_and_the_distances_named(tmp_path: Path, readings: np.ndarray) -> None:
    _write_h5(tmp_path / "metr-la.h5", readings)
    (tmp_path / "adj_mx.pkl").write_bytes(pickle.dumps([["a"], {"a": 0}, np.eye(1)]))
    message = r"adj_mx\.pkl is a pickle, which could run any code when opened, .*--graph distances_la_2012\.csv"
    with pytest.raises(DataError, match=message):
        _open(tmp_path)
    with pytest.raises(DataError, match=message):
        _open(tmp_path, graph="adj_mx.pkl")
    assert _open(tmp_path, graph="none").graph is None
    (tmp_path / "adj_mx.pkl").rename(tmp_path / "adj_mx_bay.pkl")
    with pytest.raises(DataError, match=r"--graph distances_bay_2017\.csv"):
        _open(tmp_path)


# ---- memory ----


def test_large_readings_lie_in_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "IN_MEMORY", 100)
    monkeypatch.setattr(table, "MAX_VALUES", 1000)
    assert isinstance(table.scratch("x", 10, 10), np.memmap)
    assert not isinstance(table.scratch("x", 10, 9), np.memmap)
    with pytest.raises(DataError, match=r"x has 11 rows of 100 sensors, more than 1,000 readings\. Give fewer of them"):
        table.scratch("x", 11, 100)


def test_a_memory_mapped_set_is_forecast_like_one_in_memory(
    tmp_path: Path, readings: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_h5(tmp_path / "x.h5", readings)
    one = _open(tmp_path)
    monkeypatch.setattr(table, "IN_MEMORY", 1)
    two = _open(tmp_path)
    assert isinstance(two.values, np.memmap)
    assert one.fingerprint() == two.fingerprint()


def _write(path: Path, readings: np.ndarray) -> None:
    """Write the same readings in the layout that the suffix names."""
    import pandas as pd

    if path.suffix == ".h5":
        _write_h5(path, readings)
    elif path.suffix == ".npz":
        np.savez_compressed(path, data=readings)
    elif path.suffix == ".mat":
        savemat(path, {"tensor": readings.T.reshape(4, 12, 24)}, do_compression=True)
    else:
        stamps = pd.date_range("2024-01-01", periods=len(readings), freq="5min")
        pd.DataFrame(readings, stamps, list("abcd")).rename_axis("timestamp").to_parquet(path)


@pytest.mark.parametrize("suffix", [".h5", ".npz", ".mat", ".parquet"])
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), change=st.binary(min_size=1, max_size=16))
def test_changed_bytes_end_in_data_or_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, readings: np.ndarray, suffix: str, place: float, change: bytes
) -> None:
    path = tmp_path_factory.mktemp("flip") / f"x{suffix}"
    _write(path, readings)
    content = bytearray(path.read_bytes())
    first = int(place * len(content))
    content[first : first + len(change)] = change
    path.write_bytes(bytes(content))
    times = {} if suffix in (".h5", ".parquet") else {"start": "2024-01-01", "step": "1h"}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        data = _open(path, format={".h5": "h5", ".npz": "npz", ".mat": "mat"}.get(suffix, "wide"), **times)
    except DataError as error:
        sentence = str(error)
    else:
        sentence = f"x{suffix} {data.values.shape}"
    assert f"x{suffix}" in sentence
    assert "\n" not in sentence
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 128 * 1024  # kB
