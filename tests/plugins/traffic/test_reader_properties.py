"""Readers: what is written comes back, and whatever else a file holds ends in one sentence within bounded memory."""

from __future__ import annotations

import io
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import FORMATS, open_folder
from polyhead_traffic.formats.graph import read_coordinates, read_embedding, read_graph
from polyhead_traffic.holidays import read_holidays
from polyhead_traffic.settings import SensorSettings

IDS = ("a", "b", "c")
TIMES = {"start": "2024-01-01", "step": "1h"}
PROPERTY: Any = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
BOUND_KB = 128 * 1024

readings_and_gaps = arrays(
    np.float32,
    st.tuples(st.integers(8, 30), st.just(3)),
    elements=st.one_of(st.just(np.float32("nan")), st.floats(-1e6, 1e6, width=32)),
)


def _open(path: Path, **values: Any) -> SensorData:
    return open_folder(path, SensorSettings(**{"history": 2, "horizon": 1, "missing": "none", **values}))


def _stamps(rows: int) -> list[str]:
    return [str(np.datetime64("2024-01-01T00:00") + np.timedelta64(row, "h")) for row in range(rows)]


def _wide(path: Path, readings: np.ndarray) -> dict[str, Any]:
    lines = ["t," + ",".join(IDS)]
    for stamp, row in zip(_stamps(len(readings)), readings, strict=True):
        lines.append(",".join([stamp, *("" if np.isnan(value) else repr(float(value)) for value in row)]))
    (path / "x.csv").write_text("\n".join(lines))
    return {}


def _long(path: Path, readings: np.ndarray) -> dict[str, Any]:
    lines = ["timestamp,sensor_id,value"]
    for stamp, row in zip(_stamps(len(readings)), readings, strict=True):
        lines += [
            f"{stamp},{name},{'' if np.isnan(value) else repr(float(value))}"
            for name, value in zip(IDS, row, strict=True)
        ]
    (path / "x.csv").write_text("\n".join(lines))
    return {}


def _npz(path: Path, readings: np.ndarray) -> dict[str, Any]:
    np.savez_compressed(path / "x.npz", data=readings[:, :, None])
    return TIMES


def _basicts(path: Path, readings: np.ndarray) -> dict[str, Any]:
    for part, rows in zip(("train", "val", "test"), np.split(readings, [4, 6]), strict=True):
        np.save(path / f"{part}_data.npy", rows[:, :, None])
    (path / "meta.json").write_text('{"frequency (minutes)": 60}')
    return {"start": "2024-01-01"}


def _h5(path: Path, readings: np.ndarray) -> dict[str, Any]:
    import h5py

    with h5py.File(path / "x.h5", "w") as file:
        group = file.create_group("df")
        group["axis0"] = group["block0_items"] = np.array(IDS, "S1")
        group["axis1"] = np.array(_stamps(len(readings)), "datetime64[ns]").astype(np.int64)
        group["axis1"].attrs["kind"] = "datetime64"
        group["block0_values"] = readings
    return {}


def _mat(path: Path, readings: np.ndarray) -> dict[str, Any]:
    from scipy.io import savemat

    savemat(path / "x.mat", {"tensor": readings.T[:, None, :].astype(np.float64)})
    return TIMES


WRITERS: dict[str, Callable[[Path, np.ndarray], dict[str, Any]]] = {
    "wide": _wide,
    "long": _long,
    "npz": _npz,
    "basicts": _basicts,
    "h5": _h5,
    "mat": _mat,
}


@pytest.mark.parametrize("name", WRITERS)
@PROPERTY
@given(readings=readings_and_gaps)
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str, readings: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp(name)
    if name == "mat" and len(readings) > 24:
        readings = readings[:24]
    times = WRITERS[name](folder, readings)
    silent = np.isnan(readings).all(axis=0)
    if silent.any():
        with pytest.raises(DataError, match="no reading"):
            _open(folder, **times)
        return
    data = _open(folder, **times)
    np.testing.assert_array_equal(np.where(data.mask, data.values, np.nan), readings)
    assert [str(stamp) for stamp in data.timestamps.astype("datetime64[m]")] == _stamps(len(readings))


def _sentence(call: Callable[[], object]) -> str:
    """Return the error's text, or nothing; anything but a DataError, or more memory than allowed, fails."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = ""
    try:
        call()
    except DataError as error:
        text = str(error)
        assert text
        assert "\n" not in text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < BOUND_KB
    return text


SUFFIXES = {"wide": "csv", "long": "csv", "tgcn": "csv", "h5": "h5", "npz": "npz", "mat": "mat"}


@pytest.mark.parametrize("name", SUFFIXES)
@PROPERTY
@given(content=st.binary(max_size=600), marked=st.booleans())
def test_any_bytes_end_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes, marked: bool
) -> None:
    """With or without the mark by which a format's files begin."""
    mark = {
        "h5": b"\x89HDF\r\n\x1a\n",
        "npz": b"PK\x03\x04",
        "mat": b"MATLAB 5.0 MAT-file" + b" " * 105 + b"\x00\x01IM",
    }
    path = tmp_path_factory.mktemp("bytes") / f"x.{SUFFIXES[name]}"
    path.write_bytes((mark.get(name, b"t,a,b\n") if marked else b"") + content)
    times = TIMES if name in ("npz", "mat", "tgcn") else {}
    text = _sentence(lambda: _open(path, format=name, **times))
    assert not text or "x." in text


@PROPERTY
@given(
    shape=array_shapes(min_dims=0, max_dims=4, max_side=6),
    dtype=st.sampled_from(["<f4", ">f8", "<i8", "|b1", "<c8", "<U3", "|S2", "<M8[s]", "|V4"]),
    fortran=st.booleans(),
    claimed=st.one_of(st.none(), st.lists(st.integers(0, 2**62), max_size=4)),
)
def test_any_array_in_an_archive_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    dtype: str,
    fortran: bool,
    claimed: list[int] | None,
) -> None:
    """Headers may claim any shape: it is compared with the limits before anything is allocated."""
    import zipfile

    path = tmp_path_factory.mktemp("array") / "x.npz"
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": dtype, "fortran_order": fortran, "shape": tuple(claimed if claimed is not None else shape)}
    )
    buffer.write(bytes(np.dtype(dtype).itemsize * int(np.prod(shape))))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.npy", buffer.getvalue())
    text = _sentence(lambda: _open(path, **TIMES))
    assert not text or "x.npz" in text


@PROPERTY
@given(content=st.text('0123456789,.;-+eE"\n abcnif\t', max_size=200))
def test_any_text_beside_the_readings_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    path = tmp_path_factory.mktemp("beside") / "beside.csv"
    path.write_text(content)
    plain = SensorSettings()
    for call in (
        lambda: read_graph(path, IDS, plain),
        lambda: read_coordinates(path, IDS, plain),
        lambda: read_embedding(path, 3),
        lambda: read_holidays(str(path), None, np.array(["2024-01-01", "2024-01-02"], "datetime64[s]")),
    ):
        text = _sentence(call)
        assert not text or "beside.csv" in text


@PROPERTY
@given(
    weights=arrays(np.float64, (3, 3), elements=st.floats(0, 10).map(lambda value: round(value, 3))),
    kind=st.sampled_from(["matrix", "triples", "edges", "npy"]),
)
def test_graphs_come_back_from_every_layout(
    tmp_path_factory: pytest.TempPathFactory, weights: np.ndarray, kind: str
) -> None:
    folder = tmp_path_factory.mktemp("graph")
    pairs = [(i, j) for i in range(3) for j in range(3)]
    path = folder / {"npy": "adj.npy", "triples": "Adj.txt"}.get(kind, "adj.csv")
    if kind == "npy":
        np.save(path, weights)
    elif kind == "matrix":
        path.write_text("\n".join(",".join(map(str, row)) for row in weights))
    elif kind == "triples":
        path.write_text("\n".join(f"{i} {j} {weights[i, j]}" for i, j in pairs))
    else:
        path.write_text("from,to,weight\n" + "\n".join(f"{IDS[i]},{IDS[j]},{weights[i, j]}" for i, j in pairs))
    if not (weights - np.diag(np.diag(weights))).any():
        with pytest.raises(DataError, match="connects no two sensors"):
            read_graph(path, IDS, SensorSettings())
        return
    graph, _ = read_graph(path, IDS, SensorSettings())
    np.testing.assert_array_equal(graph.dense(3), weights)


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_weights_that_are_no_weights_are_refused_in_every_layout(tmp_path: Path, bad: float) -> None:
    weights = np.ones((3, 3))
    weights[1, 2] = bad
    np.save(tmp_path / "adj.npy", weights)
    with pytest.raises(
        DataError, match=rf"adj\.npy, row 2, column 3: weight {bad} is negative or not finite\. Weights"
    ):
        read_graph(tmp_path / "adj.npy", IDS, SensorSettings())
    (tmp_path / "adj.csv").write_text("\n".join(",".join(map(str, row)) for row in weights))
    with pytest.raises(
        DataError, match=rf"adj\.csv, row 2, column 3: weight {bad} is negative or not finite\. Weights"
    ):
        read_graph(tmp_path / "adj.csv", IDS, SensorSettings())
    (tmp_path / "Adj.txt").write_text(f"0 1 1\n1 2 {bad}\n")
    with pytest.raises(DataError, match=rf"Adj\.txt, row 2: weight {bad} is negative or not finite\. Weights are 0"):
        read_graph(tmp_path / "Adj.txt", IDS, SensorSettings())
    (tmp_path / "edges.csv").write_text(f"from,to,distance\na,b,1\nb,c,{bad}\nc,a,2\n")
    if bad == np.inf:  # how some files write "not connected"
        assert len(read_graph(tmp_path / "edges.csv", IDS, SensorSettings())[0].weights) == 2
        return
    with pytest.raises(DataError, match=rf"edges\.csv, row 3: distance {bad} is negative or not finite\. Write 0 or"):
        read_graph(tmp_path / "edges.csv", IDS, SensorSettings())


def test_every_format_is_among_these_or_has_tests_of_its_own() -> None:
    assert set(FORMATS) == {*WRITERS, "tgcn", "dcrnn"}
