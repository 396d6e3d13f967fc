"""The container: shapes, splits, windows, gaps, digests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.errors import DataError
from polyhead.protocols import Data, Source
from polyhead_traffic.data import SensorData, calendar
from polyhead_traffic.windows import PROTOCOLS, split_starts

Make = Callable[..., SensorData]


def test_the_container_is_a_data_object(network: Make) -> None:
    data = network()
    assert isinstance(data, Data)
    assert isinstance(data.source("train"), Source)
    assert "A ring of made-up sensors. Unit: km/h. Protocol gman" in data.provenance


def test_calendar_agrees_with_datetime() -> None:
    stamps = np.array(["1969-12-31T23:55", "1970-01-01", "2012-03-01T00:10", "2024-02-29T12:00"], dtype="datetime64[s]")
    expected = [[when.weekday(), (when.hour * 60 + when.minute) // 5] for when in stamps.astype(object)]
    assert calendar(stamps, 300).tolist() == expected


@pytest.mark.parametrize(
    ("rows", "protocol", "windows"),
    [
        # METR-LA and PEMS-BAY as published.
        (34272, "gman", (23967, 3405, 6831)),
        (34272, "dcrnn", (23974, 3425, 6850)),
        (52116, "dcrnn", (36465, 5209, 10419)),
        # The METR-LA week.
        (2016, "gman", (1388, 179, 380)),
        # PEMS04 in STSGCN's split: parts of 10,195, 3,398 and 3,399 rows.
        (16992, "pems-6-2-2", (10172, 3375, 3376)),
        (2016, "tgcn", (1388, 178, 381)),
    ],
)
def test_numbers_of_windows_are_those_of_the_literature(
    rows: int, protocol: str, windows: tuple[int, int, int]
) -> None:
    starts = split_starts(rows, (), 12, 12, protocol)
    assert tuple(len(starts[split]) for split in ("train", "validation", "test")) == windows


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 300),
    breaks=st.lists(st.integers(1, 299), max_size=5),
    history=st.integers(1, 12),
    horizon=st.integers(1, 12),
    protocol=st.sampled_from(sorted(PROTOCOLS)),
)
def test_windows_stay_in_order_inside_their_part_and_between_breaks(
    rows: int, breaks: list[int], history: int, horizon: int, protocol: str
) -> None:
    breaks = sorted({row for row in breaks if row < rows})
    starts = split_starts(rows, breaks, history, horizon, protocol)
    length = history + horizon
    together = np.concatenate([starts[split] for split in ("train", "validation", "test")])
    assert (np.diff(together) > 0).all()
    assert ((together >= 0) & (together + length <= rows)).all()
    for row in breaks:
        assert not ((together < row) & (together + length > row)).any()
    if protocol != "dcrnn":  # DCRNN's parts share rows
        parts = [starts["train"], starts["validation"], starts["test"]]
        for before, after in pairwise(parts):
            if len(before) and len(after):
                assert before[-1] + length <= after[0]


def test_a_batch_is_the_rows_themselves(network: Make) -> None:
    data = network(days=6, missing=0.2)
    source = data.source("validation")
    batch = source.fetch([2, 0], seed=0, epoch=0)
    first = int(data.starts["validation"][2])
    assert batch["start"].tolist() == [first, first - 2]
    assert torch.equal(batch["x"][0], torch.from_numpy(data.values[first : first + 4]))
    assert torch.equal(batch["y"][0], torch.from_numpy(data.values[first + 4 : first + 7]))
    assert torch.equal(batch["te"][0], torch.from_numpy(data.calendar[first : first + 7]))
    assert batch["x"].dtype == torch.float32
    assert batch["te"].dtype == torch.int64
    assert batch["y_mask"].dtype == torch.bool
    assert (batch["y"][~batch["y_mask"]] == 0).all()


def test_fetching_is_a_pure_function_of_its_arguments(network: Make) -> None:
    source = network(missing=0.3).source("train")
    one, two = (source.fetch([5, 1, 3], seed=1, epoch=2) for _ in range(2))
    single = source.fetch([1], seed=1, epoch=2)
    for name in one:
        assert torch.equal(one[name], two[name])
        assert torch.equal(one[name][1], single[name][0])


def test_zeros_count_as_missing_only_where_they_should() -> None:
    readings = np.array([[1.0, 0.0], [np.nan, 2.0]])
    stamps = np.array(["2024-01-01", "2024-01-02"], dtype="datetime64[s]")
    fields: dict[str, Any] = {"step_s": 86400, "ids": ("a", "b"), "name": "n", "origin": "o"}
    counts = SensorData.from_readings(readings, stamps, **fields)
    speeds = SensorData.from_readings(readings, stamps, zero_is_missing=True, **fields)
    assert counts.mask.tolist() == [[True, True], [False, True]]
    assert speeds.mask.tolist() == [[True, False], [False, True]]
    assert counts.values.tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_filling_takes_the_last_reading_and_keeps_the_mask(network: Make) -> None:
    data = network(fill="last")
    values, mask = data.values.copy(), data.mask.copy()
    mask[0, 0] = mask[2:4, 1] = False
    values[~mask] = 0
    data = replace(data, values=values, mask=mask)
    batch = data.source("train").fetch([0])
    assert batch["x"][0, 0, 0] == data.sensor_means[0]
    assert (batch["x"][0, 2:, 1] == values[1, 1]).all()
    assert torch.equal(batch["x_mask"][0], torch.from_numpy(mask[:4]))


def test_the_latest_window_knows_the_future_calendar(network: Make) -> None:
    data = network(days=2)
    batch = data.latest()
    assert torch.equal(batch["x"][0], torch.from_numpy(data.values[-4:]))
    assert batch["te"][0].tolist() == [[1, 20], [1, 21], [1, 22], [1, 23], [2, 0], [2, 1], [2, 2]]
    assert "y" not in batch


def test_the_latest_window_needs_rows_without_a_gap(network: Make) -> None:
    data = network(days=2, breaks=(46,))
    with pytest.raises(DataError, match=r"ring ends with 2 rows without a gap: a forecast needs 4\. Give more rows\."):
        data.latest()
    # A break at the first row of the window does not cut it.
    assert len(network(days=2, breaks=(44,)).latest()["x"]) == 1


def test_a_horizon_longer_than_the_data_is_refused(network: Make) -> None:
    data = network(days=1, horizon=40)
    with pytest.raises(
        DataError, match=r"ring has 24 rows, too few for a train window of 4 past and 40 future steps \(protocol gman\)"
    ):
        data.source("train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ("a", "b", "a", "c")}, "ring: sensor id 'a' appears twice. Give every sensor its own id."),
        ({"ids": ("a",)}, "timestamps and 1 ids do not fit each other."),
        ({"step_s": 420}, "ring: a step of 420 s does not divide a day. Resample to 5, 10, 15 or 60 minutes."),
    ],
)
def test_parts_that_do_not_fit_are_refused(network: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(network(), **change)


def test_one_sensor_is_no_network(network: Make) -> None:
    with pytest.raises(DataError, match="ring has 1 sensor: a network needs at least 2"):
        network(sensors=1)


def test_the_fingerprint_sees_readings_ids_graph_and_windows(network: Make) -> None:
    data = network()
    values = data.values.copy()
    values[3, 1] += 0.125
    assert data.graph is not None
    others = [
        replace(data, values=values),
        replace(data, ids=("a", "b", "c", "d")),
        replace(data, graph=data.graph._replace(weights=data.graph.weights / 2)),
        replace(data, horizon=2),
        replace(data, protocol="dcrnn"),
    ]
    digests = {each.fingerprint() for each in [data, *others]}
    assert len(digests) == len(others) + 1
    assert network().fingerprint() == data.fingerprint()


def test_the_summary_is_json_and_counts_what_is_missing(network: Make) -> None:
    import json

    summary = network(missing=0.25, breaks=(30,), notes=("sorted",)).summary()
    json.dumps(summary)
    assert summary["rows"] == 72
    assert summary["sensors"] == 4
    assert summary["gaps"] == 1
    assert 15 < summary["missing_percent"] < 35
    assert summary["notes"] == ["sorted"]


def test_a_memory_map_serves_as_readings(network: Make, tmp_path: object) -> None:
    data = network()
    np.save(f"{tmp_path}/values.npy", data.values)
    mapped = replace(data, values=np.load(f"{tmp_path}/values.npy", mmap_mode="r"))
    one, two = (each.source("test").fetch([0, 1]) for each in (data, mapped))
    assert torch.equal(one["x"], two["x"])
    assert mapped.fingerprint() == data.fingerprint()
