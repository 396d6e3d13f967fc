"""Readers: what they read, what they choose, and how they refuse what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.errors import ConfigError, DataError
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import FORMATS, open_folder
from polyhead_traffic.formats.graph import kernel_weights, read_graph
from polyhead_traffic.plugin import polyhead_plugin
from polyhead_traffic.settings import SensorSettings


def _open(path: Path, **values: Any) -> SensorData:
    return open_folder(path, SensorSettings(**{"history": 4, "horizon": 3, **values}))


def _replace_line(path: Path, number: int, text: str) -> None:
    """Replace a line, counted from 1 as messages do."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[number - 1] = text
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# ---- what is read ----


def test_the_metr_la_week_is_read_from_the_files_as_they_are(shared: Path) -> None:
    data = open_folder(
        shared / "data" / "traffic" / "metr-la-week", SensorSettings(start="2012-03-01", step="5min", horizon=12)
    )
    assert (data.values.shape, data.step_s, data.unit) == ((2016, 207), 300, "mph")
    assert (data.ids[0], data.ids[-1]) == ("773869", "769373")
    assert data.calendar[0].tolist() == [3, 0]
    assert data.files == ("los_speed.csv", "los_adj.csv", "graph_sensor_locations.csv", "SE(METR).txt")
    assert data.graph is not None
    assert len(data.graph.weights) == 2833
    assert data.embedding is not None
    assert data.embedding.shape == (207, 64)
    assert data.coordinates is not None
    assert data.coordinates[0].tolist() == [34.15497, -118.31829]
    assert "Took los_adj.csv for the graph; also there: Adj(METR).txt" in data.notes[0]
    assert "METR-LA" in data.provenance
    assert data.zero_is_missing


def test_gmans_graph_of_the_metr_la_week_is_read_when_named(shared: Path) -> None:
    folder = shared / "data" / "traffic" / "metr-la-week"
    data = open_folder(folder, SensorSettings(start="2012-03-01", step="5min", graph="Adj(METR).txt"))
    symmetric = open_folder(folder, SensorSettings(start="2012-03-01", step="5min"))
    assert data.graph is not None
    assert symmetric.graph is not None
    directed = data.graph.dense(207)
    assert np.count_nonzero(directed) == 1722
    np.testing.assert_allclose(np.maximum(directed, directed.T), symmetric.graph.dense(207), atol=1e-6)


def test_pems_bay_distances_give_the_published_weights(shared: Path) -> None:
    folder = shared / "data" / "traffic" / "pems-bay-graph"
    ids = [line.split(",")[0] for line in (folder / "graph_sensor_locations_bay.csv").read_text().split()]
    graph, notes = read_graph(folder / "distances_bay_2017.csv", ids, SensorSettings())
    published, _ = read_graph(folder / "Adj(PeMS).txt", ids, SensorSettings())
    assert len(ids) == 325
    assert len(graph.weights) == 2694
    assert np.abs(graph.dense(325) - published.dense(325)).max() < 6e-7
    assert "sigma 3620.3" in notes[0]


@pytest.mark.parametrize(("name", "nodes", "edges"), [("PEMS04", 307, 340), ("PEMS07", 883, 866), ("PEMS08", 170, 277)])
def test_pems_graphs_are_read_by_index(shared: Path, name: str, nodes: int, edges: int) -> None:
    path = shared / "data" / "traffic" / "pems-0x-graphs" / f"{name}.csv"
    ids = [str(i) for i in range(nodes)]
    graph, notes = read_graph(path, ids, SensorSettings(threshold=0, graph_ids="common"))
    assert f"{edges} distances" in notes[0]
    assert len(graph.weights) == edges


def test_a_wide_table_finds_its_edges_and_places(table: Path) -> None:
    folder = table.parent
    (folder / "roads.csv").write_text("from,to,distance\na,b,100\nb,c,200\nc,a,500\n")
    (folder / "places.csv").write_text("sensor_id,latitude,longitude\nc,1,2\na,3,4\nb,5,6\n")
    data = _open(folder)
    assert data.ids == ("a", "b", "c")
    assert data.step_s == 3600
    assert data.values[2].tolist() == [12, 13, 14]
    assert str(data.timestamps[-1]) == "2024-03-02T23:00:00"
    assert data.coordinates is not None
    assert data.coordinates.tolist() == [[3, 4], [5, 6], [1, 2]]
    assert data.graph is not None
    weights, _ = kernel_weights(np.array([100.0, 200.0, 500.0]))
    np.testing.assert_allclose(data.graph.dense(3)[[0, 1, 2], [1, 2, 0]], weights)
    assert not data.zero_is_missing


def test_roads_of_the_same_length_stay_connected(table: Path) -> None:
    edges = table.with_name("edges.csv")
    edges.write_text("from,to,distance\na,b,100\nb,c,101\nc,a,102\n")
    graph, notes = read_graph(edges, ("a", "b", "c"), SensorSettings())
    assert len(graph.weights) == 3
    assert "sigma 101.003, threshold 0.1" in notes[0]


def test_weights_and_labelled_matrices_are_read_as_they_are(table: Path) -> None:
    edges = table.with_name("edges.csv")
    edges.write_text("from,to,weight\na,b,0.5\nb,c,2\nc,c,1\n")
    matrix = table.with_name("matrix.csv")
    matrix.write_text(",b,a,c\nb,0,0,2\na,0.5,0,0\nc,0,0,1\n")
    ids = ("a", "b", "c")
    expected = [[0, 0.5, 0], [0, 0, 2], [0, 0, 1]]
    for path in (edges, matrix):
        graph, _ = read_graph(path, ids, SensorSettings())
        assert graph.dense(3).tolist() == expected, path.name


def test_parquet_gives_what_csv_gives(table: Path, tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.read_csv(table, parse_dates=["timestamp"])
    frame.loc[5, "b"] = np.nan
    frame.to_csv(table, index=False)
    folder = tmp_path / "parquet"
    folder.mkdir()
    frame.to_parquet(folder / "sensors.parquet")
    frame.set_index("timestamp").to_parquet(folder.parent / "indexed.pq")
    one = _open(table)
    for path in (folder, folder.parent / "indexed.pq"):
        two = _open(path)
        assert np.array_equal(one.values, two.values)
        assert np.array_equal(one.mask, two.mask)
        assert np.array_equal(one.timestamps, two.timestamps)
    assert not one.mask[5, 1]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_delimiters_quotes_and_marks_of_other_tools(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "sensors.csv"
    rows = [["time", '"station, north"' if mark == "," else "station, north", "b"]]
    rows += [[f"2024/03/01 {hour:02}:00", "", "NaN" if hour == 3 else f" {hour}.5 "] for hour in range(24)]
    rows[1][1] = "1e1"
    path.write_bytes(("\ufeff" + "\r\n".join(mark.join(row) for row in rows) + "\r\n\r\n").encode())
    data = _open(path)
    assert data.ids == ("station, north", "b")
    assert data.values[0].tolist() == [10, 0.5]
    assert data.mask[:, 0].sum() == 1
    assert not data.mask[3, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, False),
        ({"unit": "km/h"}, True),
        ({"unit": "veh/h"}, False),
        ({"missing": "zero"}, True),
        ({"unit": "mph", "missing": "none"}, False),
    ],
)
def test_zeros_are_missing_for_speeds(table: Path, values: dict[str, Any], expected: bool) -> None:
    _replace_line(table, 4, "2024-03-01 02:00,0,12,13")
    data = _open(table, **values)
    assert data.zero_is_missing == expected
    assert bool(data.mask[2, 0]) != expected


# ---- time ----


def test_times_in_words_of_the_user_for_files_without_times(tmp_path: Path) -> None:
    speed = tmp_path / "my_speed.csv"
    speed.write_text("a,b\n" + "1.5,2\n" * 30)
    (tmp_path / "my_adj.csv").write_text("1,0.5\n0.5,1\n")
    with pytest.raises(DataError, match=r"my_speed.csv has no times\..*--start 2012-03-01 --step 5min\."):
        _open(tmp_path)
    data = _open(tmp_path, start="2012-03-01", step="5min")
    assert str(data.timestamps[1]) == "2012-03-01T00:05:00"
    assert data.zero_is_missing
    assert data.graph is not None
    assert data.graph.dense(2).tolist() == [[1, 0.5], [0.5, 1]]


def test_start_is_refused_for_files_with_times(table: Path) -> None:
    with pytest.raises(
        DataError, match=r"sensors\.csv has times of its own in its first column\. Leave --start away\."
    ):
        _open(table, start="2024-03-01", step="1h")


def test_short_gaps_become_missing_rows_and_long_ones_split(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join(lines[:6] + lines[8:30] + lines[45:]) + "\n")
    data = _open(table, fill_gaps=3)
    assert len(data.timestamps) == 48 - 15
    assert data.mask[5:7].sum() == 0
    assert data.mask[7].all()
    assert data.breaks == (29,)
    assert str(data.timestamps[29]) == "2024-03-02T20:00:00"
    assert any("2 missing time steps" in note for note in data.notes)
    assert any("1 gaps longer than 3 steps" in note for note in data.notes)
    assert _open(table, gaps="ignore").breaks == ()
    with pytest.raises(
        DataError, match=r"sensors\.csv, row 7: 2 steps are missing before it.*Also row 29: 15 steps.*2 faults"
    ):
        _open(table, gaps="refuse")


def test_rows_out_of_order_are_named_or_sorted(table: Path) -> None:
    lines = table.read_text().splitlines()
    lines[4], lines[9] = lines[9], lines[4]
    table.write_text("\n".join(lines) + "\n")
    with pytest.raises(
        DataError, match=r"sensors\.csv, row 6: its time is before that of the row above.*Sort the rows"
    ):
        _open(table)
    data = _open(table, unsorted="sort")
    assert (np.diff(data.timestamps) == np.timedelta64(3600, "s")).all()
    assert data.values[3].tolist() == [13, 14, 15]


def test_repeated_times_are_named_or_merged(table: Path) -> None:
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:5], "2024-03-01 03:00,1,,5", *lines[5:]]) + "\n")
    with pytest.raises(
        DataError, match=r"sensors\.csv, row 6: the time 2024-03-01T03:00:00 comes again\. Remove it, or"
    ):
        _open(table)
    assert _open(table, duplicates="first").values[3].tolist() == [13, 14, 15]
    assert _open(table, duplicates="mean").values[3].tolist() == [7, 14, 10]


def test_mixed_steps_are_named(table: Path) -> None:
    _replace_line(table, 10, "2024-03-01 08:20,1,2,3")
    with pytest.raises(
        DataError, match=r"sensors\.csv, row 10: 4800 s after the row above, no multiple of the step of 3600 s"
    ):
        _open(table)


def test_offsets_tell_the_two_hours_apart_when_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "sensors.csv"
    rows = [f"2024-10-27T{hour:02}:00+02:00,{hour},1" for hour in range(3)]
    rows += [f"2024-10-27T{hour:02}:00+01:00,{hour},2" for hour in range(2, 24)]
    path.write_text("timestamp,a,b\n" + "\n".join(rows) + "\n")
    data = _open(path)
    assert data.breaks == ()
    assert data.calendar[:5, 1].tolist() == [0, 1, 2, 2, 3]
    moved = _open(path, timezone="UTC")
    assert moved.calendar[:5, 1].tolist() == [22, 23, 0, 1, 2]
    with pytest.raises(ConfigError, match=r'data\.timezone "Mars/Olympus" is not known\. Give a name such as'):
        _open(path, timezone="Mars/Olympus")


def test_a_zone_needs_times_with_an_offset(table: Path) -> None:
    with pytest.raises(
        DataError, match=r"sensors\.csv has times without an offset from UTC, so they are taken as local"
    ):
        _open(table, timezone="UTC")
    _replace_line(table, 6, "2024-03-01T04:00+01:00,1,2,3")
    with pytest.raises(
        DataError, match=r"sensors\.csv, row 6: the time has an offset from UTC, those before it have none"
    ):
        _open(table)


# ---- which file ----


def test_a_folder_with_two_tables_needs_a_choice(table: Path) -> None:
    table.with_name("more.csv").write_bytes(table.read_bytes())
    with pytest.raises(
        DataError, match=r"has 2 files that could hold the readings: more.csv, sensors.csv. Give the file"
    ):
        _open(table.parent)
    assert _open(table).name == "sensors"


def test_folders_without_readings_say_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no files\. Give the folder of your readings"):
        _open(tmp_path)
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(
        DataError, match=r"has no readings in a layout that is known \(.*tgcn: .*wide: .*Files: notes\.md"
    ):
        _open(tmp_path)
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        _open(tmp_path / "nowhere")


def test_every_format_is_a_choice_of_the_setting_and_documented(root: Path) -> None:
    readme = (root / "plugins" / "traffic" / "README.md").read_text()
    (sensors,) = (data for data in polyhead_plugin().datasets if not data.embedded and not data.files)
    assert {line.split(":")[0] for line in sensors.formats} == {*FORMATS, "beside them"}
    for name in FORMATS:
        assert f"| `{name}` |" in readme
        assert SensorSettings.model_validate({"format": name}).format == name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": "first of March"}, "not a time: write it as 2012-03-01"),
        ({"start": "2012-03-01T00:00+01:00"}, "it has a time zone: give local time without one"),
        ({"step": "five minutes"}, "not a number with a unit: write it as 30s, 5min, 1h or 1d"),
        ({"step": "0min"}, "not a number with a unit"),
    ],
)
def test_bad_settings_say_how_to_write_them(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SensorSettings(**values)
