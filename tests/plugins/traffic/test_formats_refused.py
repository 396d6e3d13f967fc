"""Readers: how they refuse what is wrong, within bounded memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.errors import DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_folder
from polyhead_traffic.formats.graph import kernel_weights
from polyhead_traffic.formats.table import Table, read_table
from polyhead_traffic.settings import SensorSettings


def _open(path: Path, **values: Any) -> SensorData:
    return open_folder(path, SensorSettings(**{"history": 4, "horizon": 3, **values}))


# ---- bad input ----


def _bad(name: str, content: str | bytes, message: str, **values: Any) -> Any:
    return pytest.param(name, content, values, message, id=message[:60])


GOOD = "timestamp,a,b\n" + "".join(f"2024-03-01 {hour:02}:00,{hour},1\n" for hour in range(24))


@pytest.mark.parametrize(
    ("name", "content", "values", "message"),
    [
        _bad("s.csv", "", r"s\.csv is empty\. Give a file with a header"),
        _bad("s.csv", "\n\n  \n", r"s\.csv is empty\."),
        _bad("s.csv", "timestamp,a,b\n", r"s\.csv has a header and no rows\. Give one row a time step\."),
        _bad("s.csv", "timestamp,a\n2024-03-01,1\n", r"s\.csv, row 1: 1 sensor\. A network needs at least 2"),
        _bad("s.csv", "timestamp,a,b\n2024-03-01,1,2\n", r"s\.csv has 1 row of readings\. Give one row a time step"),
        _bad(
            "s.csv", GOOD.replace("05:00,5", "05:00,n/a"), r's\.csv, row 7, column "a": "n/a" is not a number\. Leave'
        ),
        _bad("s.csv", GOOD.replace("05:00,5", "05:00,1_0"), r's\.csv, row 7, column "a": "1_0" is not a number\.'),
        _bad("s.csv", GOOD.replace("05:00,5", "05:00,inf"), r's\.csv, row 7, column "a": "inf" is not finite\. Leave'),
        _bad("s.csv", GOOD.replace("05:00,5", "05:00,1e39"), r's\.csv, row 7, column "a": "1e39" is not finite\.'),
        _bad("s.csv", GOOD.replace("05:00,5", "05:00"), r"s\.csv, row 7: 2 cells, the header has 3\. Give every row"),
        _bad(
            "s.csv", GOOD.replace("2024-03-01 05:00", "yesterday"), r's\.csv, row 7: "yesterday" is not a time\. Write'
        ),
        _bad(
            "s.csv", GOOD.replace(",a,b", ",a,a"), r's\.csv, row 1, column 3: "a" is also column 2\. Give every sensor'
        ),
        _bad(
            "s.csv", GOOD.replace(",a,b", ",,b"), r"s\.csv, row 1, column 2: the sensor has no name\. Give every sensor"
        ),
        _bad(
            "s.csv",
            GOOD.encode("utf-16"),
            r"s\.csv, near row 1: byte 0xff is not UTF-8\. Save the file as UTF-8 text\.",
        ),
        _bad("s.csv", GOOD.replace("5,1", "5,\0"), r"s\.csv, row 7: not a text file \(it has a NUL byte\)"),
        _bad(
            "s.csv",
            GOOD.replace(",1\n", ",\n"),
            r's\.csv: 1 sensors have no reading at all: "b"\. Remove their columns\.',
        ),
        _bad(
            "s_speed.csv",
            "a,b\n" + "0,1\n" * 9,
            "or say --missing none if 0 is a reading",
            start="2024-01-01",
            step="1h",
        ),
        _bad("s.csv", GOOD, "too few for a train window of 4 past and 30 future steps", horizon=30),
        _bad("s.csv", GOOD.replace(":00,", ":07,").replace("01:07", "01:14"), "no multiple of the step"),
        _bad("s.parquet", b"PAR1 nonsense", r"s\.parquet is not a readable Parquet file: .* Write it again\."),
    ],
)
def test_bad_readings_are_named_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, values: dict[str, Any], message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message) as caught:
        _open(path, **values).source("train")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_all_wrong_cells_are_listed_up_to_ten_and_counted(table: Path) -> None:
    lines = table.read_text().splitlines()
    for number in range(20, 34):
        lines[number - 1] = lines[number - 1].rsplit(",", 1)[0] + ",?"
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        _open(table)
    text = str(caught.value)
    assert text.startswith('sensors.csv, row 20, column "c": "?" is not a number. Leave missing readings empty')
    assert 'row 29, column "c"' in text
    assert 'row 30, column "c"' not in text
    assert text.endswith("…. 14 faults in all.")


def test_a_million_columns_are_refused_by_the_header_within_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    header = "timestamp," + ",".join(str(i) for i in range(200_000))
    path.write_text(header + "\n")
    with pytest.raises(
        DataError, match=r"wide.csv, row 1: 200,001 columns, more than 20,000\. Write one row a time step"
    ):
        _open(path)
    with path.open("w") as file:
        file.write("timestamp")
        for i in range(1_000_000):
            file.write(f",{i}")
        file.write("\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        DataError, match=r"wide.csv, row 1: a line of more than 2,097,152 characters and \d+,\d+ columns"
    ):
        _open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


def test_a_line_without_an_end_is_refused_within_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "endless.csv"
    with path.open("wb") as file:
        file.write(b"timestamp,a,b\n2024-03-01,")
        file.truncate(300 * 2**20)  # NUL bytes without a newline, nothing on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"endless\.csv, row 2: a line of more than 2,097,152 characters"):
        _open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # kB


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "from,to,distance\na,b,1\nb,c,1\nc,x,1\n",
            r'names 1 sensors that the readings do not have: "x" \(row 4\)\. Remove',
        ),
        ("from,to,distance\na,b,1\nb,a,2\n", r'has no edge of 1 sensors of the readings: "c"\. Add them, or keep them'),
        ("from,to,distance\na,b,-1\nb,c,1\n", r"row 2: distance -1 is negative or not finite\. Write 0 or more"),
        ("from,to,distance\na,b,nan\nb,c,1\n", r"row 2: distance nan is negative or not finite"),
        ("from,to,weight\na,b,inf\nb,c,1\n", r"row 2: weight inf is negative or not finite"),
        ("from,to,distance\na,b,far\nb,c,1\n", r'row 2: distance "far" is not a number\. Write a number'),
        ("from,to,distance\na,b\nb,c,1\n", r"row 2: 2 cells instead of 3\. Write from,to,distance"),
        ("from,to,lanes\na,b,1\n", r"row 1: columns from, to, lanes: none is a distance or a weight"),
        ("from,to,weight\na,a,1\nb,b,1\nc,c,1\n", r"connects no two sensors \(smallest weight kept: 0\.1\)"),
        ("0,1,0\n0,0,1\n", r"has 2 rows for 3 sensors\. Give a square matrix"),
        ("0,1\n0,0\n", r"row 1: 2 columns, but the readings have 3 sensors"),
        ("0,1,0\n0,0,1\n1,0,0\n1,1,1\n", r"has more than 3 rows, one for each sensor"),
        ("0,1,0\n0,-1,1\n1,0,0\n", r"row 2, column 2: weight -1 is negative or not finite"),
        ("0,1,0\n0,x,1\n1,0,0\n", r'row 2, column 2: "x" is not a number'),
        (",a,b,z\na,0,1,0\nb,0,0,1\nz,1,0,0\n", r'row 1: its 3 sensors are not the 3 of the readings; .* is "z"'),
        ("0 1 0.5\n1 3 0.5\n", r"row 2: sensor 3 is not among the 3 of the readings \(0 to 2\)"),
        ("0 1 0.5\n1 2 -1\n", r"row 2: weight -1 is negative or not finite"),
        ("0 1 0.5\n1 2\n", r'row 2: "1 2" is not "i j w"'),
        ("", r"is empty"),
    ],
)
def test_bad_graphs_are_named_in_one_line(table: Path, content: str, message: str) -> None:
    path = table.with_name("edges.csv")
    path.write_text(content)
    with pytest.raises(DataError, match=r"edges\.csv.*" + message) as caught:
        _open(table.parent, graph="edges.csv")
    assert "\n" not in str(caught.value)


def test_sensors_of_one_side_only_can_be_left_out_of_the_graph(table: Path) -> None:
    table.with_name("edges.csv").write_text("from,to,distance\na,b,1\nb,x,2\n")
    data = _open(table.parent, graph_ids="common")
    assert data.graph is not None
    assert data.graph.edges.tolist() == [[0], [1]]
    assert any("1 have no readings and were left out; 1 sensors of the readings are not" in note for note in data.notes)


def test_no_graph_when_told_so(table: Path) -> None:
    table.with_name("edges.csv").write_text("nonsense")
    assert _open(table.parent, graph="none").graph is None
    with pytest.raises(DataError, match=r"--graph roads\.csv: no such file, here or in"):
        _open(table.parent, graph="roads.csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("sensor_id,latitude,longitude\na,1,2\nb,3,4\n", r'has no row for 1 sensors of the readings: "c"\. Add them'),
        ("sensor_id,latitude,longitude\na,-118.3,34.1\n", r"row 2: \(-118.3, 34.1\) is no place .* seem swapped"),
        ("sensor_id,latitude,longitude\na,500,34.1\n", r"row 2: \(500, 34.1\) is no place on earth"),
        ("sensor_id,latitude,longitude\na,north,2\n", r'row 2: "north,2" are not two numbers'),
        ("sensor_id,latitude,longitude\na,2\n", r"row 2: 2 cells\. Write sensor_id,latitude,longitude"),
        ("name,x,y,z\na,1,2,3\n", r"row 1: columns name, x, y, z\. Name them sensor_id,latitude,longitude"),
    ],
)
def test_bad_coordinates_are_named_in_one_line(table: Path, content: str, message: str) -> None:
    table.with_name("locations.csv").write_text(content)
    with pytest.raises(DataError, match=r"locations\.csv.*" + message) as caught:
        _open(table.parent)
    assert "\n" not in str(caught.value)
    assert _open(table.parent, coordinates="none").coordinates is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("two 2\n", r'row 1: "two 2" is not "sensors dimensions"'),
        ("4 2\n", r"row 1: 4 sensors of 2 values, but the readings have 3 sensors"),
        ("3 2\n0 1 2\n1 1 2\n", r"has no row for sensor 2\. Give one row"),
        ("3 2\n0 1 2\n1 1 nan\n2 1 1\n", r"row 3: sensor 1 with 2 values, not all of them fit"),
        ("3 2\n0 1 2\nx 1 1\n", r"row 3: not an index and numbers"),
    ],
)
def test_bad_embeddings_are_named_in_one_line(table: Path, content: str, message: str) -> None:
    table.with_name("SE(X).txt").write_text(content)
    with pytest.raises(DataError, match=r"SE\(X\)\.txt.*" + message) as caught:
        _open(table.parent)
    assert "\n" not in str(caught.value)


def test_files_that_count_sensors_need_the_listed_order(table: Path) -> None:
    table.with_name("SE(X).txt").write_text("3 1\n2 2\n0 0\n1 1\n")
    table.with_name("graph_sensor_ids.txt").write_text("a,b,c")
    data = _open(table.parent)
    assert data.embedding is not None
    assert data.embedding[:, 0].tolist() == [0, 1, 2]
    table.with_name("graph_sensor_ids.txt").write_text("a,c,b")
    with pytest.raises(
        DataError, match=r"graph_sensor_ids.txt and the readings differ from sensor 1 on, and SE\(X\).txt"
    ):
        _open(table.parent)


# ---- properties ----


def _table_or_sentence(path: Path) -> tuple[Table | None, str]:
    try:
        return read_table(path), ""
    except DataError as error:
        return None, str(error)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_end_in_a_table_or_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "sensors.csv"
    path.write_bytes(content)
    table, sentence = _table_or_sentence(path)
    assert (table is None) == ("sensors.csv" in sentence)
    assert "\n" not in sentence
    if table is not None:
        assert table.readings.shape == (len(table.rows), len(table.ids))


@settings(max_examples=60, deadline=None)
@given(st.text('0123456789,.;-+eE"\n abt:/', max_size=300))
def test_any_text_after_a_good_header_ends_in_a_table_or_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: str
) -> None:
    path = tmp_path_factory.mktemp("text") / "sensors.csv"
    path.write_text("timestamp,a,b\n" + content)
    table, sentence = _table_or_sentence(path)
    assert (table is None) == ("sensors.csv" in sentence)
    assert "\n" not in sentence
    if table is not None:
        assert not np.isinf(table.readings).any()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), min_size=3, max_size=3), min_size=1, max_size=30
    )
)
def test_numbers_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, readings: list[list[float | None]]
) -> None:
    path = tmp_path_factory.mktemp("numbers") / "sensors.csv"
    rows = ["t,a,b,c"]
    for hour, row in enumerate(readings):
        cells = ["" if value is None else repr(value) for value in row]
        rows.append(",".join([f"2024-03-{1 + hour // 24:02}T{hour % 24:02}:00", *cells]))
    path.write_text("\n".join(rows))
    table = read_table(path)
    expected = np.array([[np.nan if value is None else value for value in row] for row in readings], dtype=np.float32)
    np.testing.assert_array_equal(table.readings, expected)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1e5), min_size=2, max_size=20),
    st.floats(0, 1e4),
    st.floats(0, 0.99),
)
def test_kernel_weights_fall_with_distance_and_are_cut(distances: list[float], sigma: float, threshold: float) -> None:
    weights, width = kernel_weights(np.array(distances), sigma=sigma, threshold=threshold)
    assert width > 0
    assert ((weights == 0) | (weights >= threshold)).all()
    assert (weights <= 1).all()
    order = np.argsort(distances)
    assert (np.diff(weights[order]) <= 0).all()
