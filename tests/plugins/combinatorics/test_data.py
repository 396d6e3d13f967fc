"""Generated streams, and every layout of files: what is read, and what is said of what cannot be."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.errors import DataError, PolyheadError
from polyhead_combinatorics.formats import read
from polyhead_combinatorics.generated import Stream, open_tsp
from polyhead_combinatorics.instances import KINDS, Kind, distances_of
from polyhead_combinatorics.settings import InstanceSettings
from polyhead_combinatorics.solvers import held_karp, tour_length

SQUARE = "id,x,y\na,0,0\nb,0,2\nc,2,2\nd,2,0\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_a_function_of_seed_and_index(kind: Kind) -> None:
    stream = Stream(kind, InstanceSettings(min_points=5, max_points=7, block=2))
    together = stream.fetch([0, 5, 9], seed=3, epoch=0)
    for row, index in enumerate([0, 5, 9]):
        alone = stream.fetch([index], seed=3, epoch=7)
        assert all(torch.equal(together[name][row], alone[name][0]) for name in together)
    assert not torch.equal(stream.fetch([0], seed=4, epoch=0)["points"], together["points"][:1])


def test_tours_beyond_the_solved_ones_are_turned_and_renumbered_with_the_shortest_tour() -> None:
    stream = Stream("tsp", InstanceSettings(min_points=6, max_points=6, solved=3))
    batch = stream.fetch(range(12), seed=0, epoch=0)
    points, tours = batch["points"].double().numpy(), batch["target"][:, :6].tolist()
    distances = np.linalg.norm(points[:, :, None] - points[:, None], axis=-1)
    assert tours[3:] == [list(tour) for tour in held_karp(distances)[3:].tolist()]
    alone = stream.fetch([11], seed=0, epoch=0)
    assert torch.equal(alone["points"][0], batch["points"][11])
    lengths = [tour_length(each, tour) for each, tour in zip(distances, tours, strict=True)]
    np.testing.assert_allclose(lengths[3:], lengths[:3] * 3, rtol=1e-6)
    assert len({tuple(map(tuple, each)) for each in points.tolist()}) == 12


def test_a_curriculum_climbs_and_then_draws_from_the_whole_range() -> None:
    stream = Stream("hull", InstanceSettings(min_points=8, max_points=8, block=10, curriculum=100))
    sizes = [stream.size(index, seed=0) for index in range(0, 200, 10)]
    assert sizes == sorted(sizes)
    assert sizes[0] == 4
    assert sizes[10:] == [8] * 10
    mixed = Stream("hull", InstanceSettings(min_points=5, max_points=9, block=1))
    assert {mixed.size(index, seed=0) for index in range(100)} == {5, 6, 7, 8, 9}


def test_held_out_instances_have_the_sizes_that_are_asked_for() -> None:
    data = open_tsp(None, InstanceSettings(test_points=(5, 14), held_out=4))
    batch = data.source("test").fetch(range(8), seed=0, epoch=0)
    assert batch["lengths"].tolist() == [5] * 4 + [14] * 4
    assert batch["target"][7, :15].sort().values.tolist() == list(range(15))


def _write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


RELEASED = "0.0 0.0 0.0 1.0 1.0 1.0 1.0 0.0 output 1 4 3 2 1\n"


def test_the_release_is_read_plain_and_zipped(tmp_path: Path) -> None:
    plain = _write(tmp_path, "hull.txt", RELEASED * 3)
    packed = tmp_path / "hull.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("one.txt", RELEASED * 2)
        archive.writestr("two.txt", RELEASED)
    for path in (plain, packed):
        found = read(path, InstanceSettings(), "hull")
        assert [each.solution for each in found] == [(1, 4, 3, 2)] * 3
        assert found[0].points.tolist() == [[0, 0], [0, 1], [1, 1], [1, 0]]
    assert len(read(packed, InstanceSettings(member="two.txt"), "tsp")) == 1
    with pytest.raises(DataError, match=r'has no member "three.txt"; it holds one.txt, two.txt'):
        read(packed, InstanceSettings(member="three.txt"), "tsp")


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("0 0 1 1 1 0\n", "tsp", r'x.txt, line 1 has no word "output" between points and answer'),
        ("0 0 1 1 1 output 1 2\n", "tsp", r"line 1 has 5 coordinates: an even number of 6 or more"),
        ("0 0 1 1 1 0 output 1 2 9\n", "tsp", r'line 1: "9" is no point from 1 to 3'),
        ("0 0 1 1 1 0 output 1 2\n", "tsp", r"the answer is no tour through its 3 points. Is this a hull\?"),
        ("0 0 1 1 1 0 output 1 2\n", "hull", r"the answer has 2 corners of 2: that is no hull"),
        ("0 0 1 1 1 0 output 1 2\n", "delaunay", r"has 2 indices, a triangulation has three a triangle"),
        ("0 0 1 nan 1 0 output 1 2 3\n", "tsp", r'"nan" is not a finite number'),
        ("\n", "tsp", r"x.txt holds no instances"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, text: str, kind: Kind, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(_write(tmp_path, "x.txt", text), InstanceSettings(), kind)


def test_a_damaged_zip_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x.zip is no zip file, or a damaged one"):
        read(_write(tmp_path, "x.zip", "PK"), InstanceSettings(), "tsp")


def test_csv_keeps_names_and_knows_degrees(tmp_path: Path) -> None:
    (plain,) = read(_write(tmp_path, "a.csv", SQUARE), InstanceSettings(), "tsp")
    assert plain.names == ("a", "b", "c", "d")
    assert distances_of(plain)[0, 1] == 2
    text = "lat;lon\n52.52;13.405\n52.391;13.065\n52.4;13.2\n"
    (degrees,) = read(_write(tmp_path, "b.csv", text), InstanceSettings(), "tsp")
    assert (degrees.metric, degrees.unit, degrees.names) == ("haversine", "km", ("1", "2", "3"))
    assert degrees.points[0].tolist() == [13.405, 52.52]


@pytest.mark.parametrize(
    ("text", "settings", "kind", "message"),
    [
        ("id,x,y\na,1,2\nb,2,3\n", {}, "tsp", r"s.csv: 2 points, at least 3 are needed"),
        ("id,x,y\na,1,2\nb,1,2\nc,3,4\n", {}, "tsp", r"rows stand at the same place as another \(1 of them, the first"),
        ("id,x,y\na,1,2\na,1,3\nc,3,4\n", {}, "tsp", r's.csv: 1 names stand in several rows \("a"\)'),
        ("id,x,y\na,1,1\nb,2,2\nc,3,3\n", {}, "hull", r"all 3 points lie on one line, they have no hull"),
        ("id,x,y\na,1,nan\nb,2,2\nc,3,9\n", {}, "tsp", r's.csv, row 2, column "y": "nan" is not a finite number'),
        ("id,x,y\na,1,?\nb,2,2\nc,3,9\n", {}, "tsp", r's.csv, row 2, column "y": "\?" is not a number'),
        ("id,x,y\na,1,1\n,2,2\n,3,9\n", {}, "tsp", r's.csv: 2 rows have no "id" \(rows 3, 4\). Name them'),
        ("id,x,y\na,1\n", {}, "tsp", r"s.csv, row 2 has 2 cells, the header 3"),
        ("id,a,b\na,1,1\n", {}, "tsp", r"has no column x or lon .*; it has id, a, b. Name it: --x"),
        ("id,x,y\na,1,1\n", {"x": "eks"}, "tsp", r'has no column "eks" \(--x\). It has id, x, y'),
        (
            "id,x,y,demand\na,1,1,1\n",
            {},
            "tsp",
            r'the column "demand": capacities are not kept here. PyVRP and OR-Tools do that',
        ),
        ("id,x,y,tw_start\na,1,1,1\n", {}, "tsp", r'"tw_start": time windows are not kept here. PyVRP and OR-Tools'),
        ("lat,lon\n52,13\n95,13\n51,12\n", {}, "tsp", r"row 3: lon 13, lat 95 is not on the globe"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(
    tmp_path: Path, text: str, settings: dict[str, Any], kind: Kind, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(_write(tmp_path, "s.csv", text), InstanceSettings(**settings), kind)


def test_a_million_rows_end_early(tmp_path: Path) -> None:
    path = _write(tmp_path, "s.csv", "x,y\n" + "".join(f"{i},{i % 7}\n" for i in range(10**6)))
    with pytest.raises(DataError, match=r"s.csv has more than 100,000 rows. Cut them into districts"):
        read(path, InstanceSettings(), "tsp")


def test_columns_of_limits_can_be_left_out_of_account(tmp_path: Path) -> None:
    path = _write(tmp_path, "s.csv", "id,x,y,demand\na,1,1,1\nb,2,2,1\nc,3,9,1\n")
    assert len(read(path, InstanceSettings(ignore=("demand",)), "tsp")[0].points) == 3


def test_matrices_are_read_with_and_without_names(tmp_path: Path) -> None:
    bare = "0,3,4\n3,0,5\n4,5,0\n"
    named = ",a,b,c\na,0,3,4\nb,3,0,5\nc,4,5,0\n"
    for name, text, ids in (("a.csv", bare, ("1", "2", "3")), ("b.csv", named, ("a", "b", "c"))):
        (found,) = read(_write(tmp_path, name, text), InstanceSettings(), "tsp")
        assert found.names == ids
        assert distances_of(found)[1, 2] == 5
        placed = np.linalg.norm(found.points[:, None] - found.points[None], axis=-1)
        np.testing.assert_allclose(placed, distances_of(found), atol=1e-9)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("0,1,2\n1,0,3\n", "tsp", r"m.csv is not square: 2 rows, and row 1 has 3 distances"),
        (",a,b,c\na,0,1,2\nc,1,0,2\nb,1,2,0\n", "tsp", r"the names of its rows are not those of its columns"),
        ("0,1,2\n1,0,3\n2,9,0\n", "tsp", r"from 2 to 3 it is 3 and back 9. Ways of two lengths .* PyVRP and OR-Tools"),
        ("0,-1,2\n-1,0,3\n2,3,0\n", "tsp", r"row 1, column 2: the distance -1 is negative"),
        ("1,1,2\n1,0,3\n2,3,0\n", "tsp", r"row 1: the distance to itself is 1, not 0"),
        ("0,1,2\n1,0,3\n2,3,0\n", "hull", r"m.csv holds distances: a hull needs coordinates"),
    ],
)
def test_what_is_wrong_with_a_matrix_is_said(tmp_path: Path, text: str, kind: Kind, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(_write(tmp_path, "m.csv", text), InstanceSettings(), kind)


def _tsplib(sort: str, body: str, more: str = "", count: int = 3, kind: str = "TSP") -> str:
    return f"NAME: x\nTYPE: {kind}\nDIMENSION: {count}\nEDGE_WEIGHT_TYPE : {sort}\n{more}{body}EOF\n"


COORDINATES = "NODE_COORD_SECTION\n1 0 0\n2 0 3.4\n3 4 0\n"


@pytest.mark.parametrize(("sort", "expected"), [("EUC_2D", 3), ("CEIL_2D", 4), ("ATT", 2)])
def test_tsplib_coordinates(tmp_path: Path, sort: str, expected: float) -> None:
    (found,) = read(_write(tmp_path, "x.tsp", _tsplib(sort, COORDINATES)), InstanceSettings(), "tsp")
    assert distances_of(found)[0, 1] == expected


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ("FULL_MATRIX", "0 3 4 3 0 5 4 5 0"),
        ("UPPER_ROW", "3 4 5"),
        ("LOWER_COL", "3 4 5"),
        ("LOWER_ROW", "3 4 5"),
        ("UPPER_COL", "3 4 5"),
        ("UPPER_DIAG_ROW", "0 3 4 0 5 0"),
        ("LOWER_DIAG_COL", "0 3 4 0 5 0"),
        ("LOWER_DIAG_ROW", "0 3 0 4 5 0"),
        ("UPPER_DIAG_COL", "0 3 0 4 5 0"),
    ],
)
def test_tsplib_explicit_distances(tmp_path: Path, form: str, values: str) -> None:
    text = _tsplib("EXPLICIT", f"EDGE_WEIGHT_SECTION\n{values}\n", f"EDGE_WEIGHT_FORMAT: {form}\n")
    (found,) = read(_write(tmp_path, "x.tsp", text), InstanceSettings(), "tsp")
    assert distances_of(found).tolist() == [[0, 3, 4], [3, 0, 5], [4, 5, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_tsplib("EUC_3D", COORDINATES), r'EDGE_WEIGHT_TYPE "EUC_3D" is not read, these are: EUC_2D'),
        (_tsplib("EUC_2D", COORDINATES, kind="CVRP"), r"of TYPE CVRP: capacities are not solved here. PyVRP and OR"),
        (_tsplib("EUC_2D", COORDINATES, count=4), r"DIMENSION is 4 and NODE_COORD_SECTION has 3 nodes"),
        (_tsplib("EUC_2D", "NODE_COORD_SECTION\n1 2\n"), r"line 1 has 2 words, a node has name, x and y"),
        (
            _tsplib("EXPLICIT", "EDGE_WEIGHT_SECTION\n1 2\n", "EDGE_WEIGHT_FORMAT: UPPER_ROW\n"),
            r"UPPER_ROW of 3 nodes has 3 distances, here are 2",
        ),
        (_tsplib("EXPLICIT", "", "EDGE_WEIGHT_FORMAT: FUNCTION\n"), r'EDGE_WEIGHT_FORMAT "FUNCTION" is not read'),
        (_tsplib("EXPLICIT", "", count=1), r"DIMENSION is 1, 3 to 5,000 are read"),
        ("hello\n", r'"hello" is neither KEY : VALUE nor a section of TSPLIB'),
    ],
)
def test_what_is_wrong_with_a_tsplib_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(_write(tmp_path, "x.tsp", text), InstanceSettings(), "tsp")


def _points(*spots: Any, **facts: Any) -> str:
    features = [
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": spot}, "properties": {"id": f"p{i}", **facts}}
        for i, spot in enumerate(spots)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def test_geojson_points_are_read(tmp_path: Path) -> None:
    path = _write(tmp_path, "x.geojson", _points([13, 52], [13.1, 52.1], [13, 52.2]))
    (found,) = read(path, InstanceSettings(), "tsp")
    assert (found.names, found.metric) == (("p0", "p1", "p2"), "haversine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"x.geojson is no JSON"),
        ("[]", r"is no GeoJSON of points"),
        (_points([1, 2], "a", [3, 4]), r"feature 2: 'a' are no longitude and latitude"),
        (_points([1, 2], [3, 400], [3, 4]), r"feature 2: \[3.0, 400.0\] is not on the globe"),
        (_points([1, 2], [3, 4], [3, 5], demand=1), r'feature 1 has the column "demand": capacities'),
        ('{"type": "FeatureCollection", "features": [{"geometry": {"type": "Polygon"}}]}', r"feature 1 is no point"),
    ],
)
def test_what_is_wrong_with_geojson_is_said(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(_write(tmp_path, "x.geojson", text), InstanceSettings(), "tsp")


def test_a_layout_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'the suffix ".dat" says no layout .* Name it with --format'):
        read(_write(tmp_path, "x.dat", SQUARE), InstanceSettings(), "tsp")
    with pytest.raises(DataError, match="is a folder: give one file of points"):
        read(tmp_path, InstanceSettings(), "tsp")
    assert read(_write(tmp_path, "y.dat", SQUARE), InstanceSettings(format="csv"), "tsp")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["x.csv", "x.tsp", "x.txt", "x.geojson", "x.zip"]),
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
)
def test_hostile_files_end_in_a_clear_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for kind in KINDS:
        said = ""
        try:
            read(path, InstanceSettings(), kind)
        except PolyheadError as error:
            said = str(error)
        assert not said or name in said
