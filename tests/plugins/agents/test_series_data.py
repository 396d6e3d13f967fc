"""Series, tables and events from files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyhead.errors import DataError, PolyheadError
from polyhead.protocols import Split
from polyhead_agents import event_data, members, series_data, table_data
from polyhead_agents.event_data import hawkes, open_events, open_hawkes
from polyhead_agents.series_data import open_made_up_tones, open_uea, read_ts
from polyhead_agents.settings import EventSettings, SeriesSettings, TableSettings
from polyhead_agents.table_data import calendar, open_made_up_load, open_table

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
HEAD = "@problemName Made\n@timeStamps false\n@classLabel true a b\n@data\n"
ROWS = "1,2,3:4,?,8:a\n5,6:7,8:b\n1,1:2,2:a\n3,3:3,3:b\n"


@pytest.fixture
def uea(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "Made_TRAIN.ts").write_text(HEAD + ROWS)
    (folder / "Made_TEST.ts").write_text(HEAD + "9,9,9,9:1,1,1,1:b\n1:2:a\n")
    return folder


def test_series_are_read_filled_padded_and_split(uea: Path) -> None:
    data = open_uea(uea, SeriesSettings())
    assert (data.name, data.classes, data.channels, data.length) == ("Made", ("a", "b"), 2, 4)
    assert data.train.values[0].tolist() == [[1, 4], [2, 6], [3, 8]]
    assert [len(data.source(split)) for split in SPLITS] == [2, 2, 2]  # type: ignore[arg-type]
    batch = data.source("test").fetch([0, 1], seed=0, epoch=0)
    assert batch["mask"].tolist() == [[True] * 4, [True, False, False, False]]
    assert batch["label"].tolist() == [1, 0]
    assert batch["x"][1].tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]


def test_an_archive_is_read_and_not_extracted(uea: Path, tmp_path: Path) -> None:
    inside = tmp_path / "wheel"
    inside.mkdir()
    with zipfile.ZipFile(inside / "a.whl", "w") as archive:
        for file in uea.iterdir():
            archive.write(file, f"data/{file.name}")
            archive.writestr(f"data/Other_{file.name.rpartition('_')[2]}", file.read_text())
    with pytest.raises(DataError, match=r"ending in _TRAIN\.ts: Made, Other; give one by --series"):
        open_uea(inside, SeriesSettings())
    for place in (inside, inside / "a.whl"):
        assert (
            open_uea(place, SeriesSettings(series="Made")).fingerprint()
            == open_uea(uea, SeriesSettings()).fingerprint()
        )
    assert [file.name for file in inside.iterdir()] == ["a.whl"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", r"Made_TRAIN\.ts has no @data line"),
        ("@timeStamps true\n@data\n", r"has time stamps, which are not read"),
        ("@classLabel false\n@data\n1:a\n", r"names no classes"),
        (HEAD, r"has no series behind @data"),
        (HEAD + "1,2:3:a\n", r"line 5: channels of 1 to 2 readings"),
        (HEAD + "1,x:3,4:a\n", r"line 5: could not convert string to float: 'x'"),
        (HEAD + "1,inf:3,4:a\n", r"line 5: a reading that is infinite"),
        (HEAD + "?,?:3,4:a\n", r"line 5: a channel without any reading"),
        (HEAD + "1:c\n" * 12, r'line 5: class "c" is none of a, b; .*; and 2 more'),
        (HEAD + "1:a\n1:2:a\n", r"has series of 1 to 2 channels"),
        (HEAD + ROWS.replace(":b", ":a"), r"fewer than 2 training series of class b"),
    ],
)
def test_series_that_cannot_be_read_are_named(uea: Path, text: str, message: str) -> None:
    (uea / "Made_TRAIN.ts").write_text(text)
    with pytest.raises(DataError, match=message):
        open_uea(uea, SeriesSettings())


def test_places_without_series_are_refused(uea: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"There is no .*nowhere"):
        open_uea(tmp_path / "nowhere", SeriesSettings())
    with pytest.raises(DataError, match=r'"Mode" is not there'):
        open_uea(uea, SeriesSettings(series="Mode"))
    monkeypatch.setattr(series_data, "MAX_LENGTH", 10)
    with pytest.raises(DataError, match=r"1,000 readings, more than the 10 that are read"):
        read_ts(HEAD + ",".join(["1"] * 1000) + ":a\n", "Made")
    (uea / "Made_TEST.ts").write_text(HEAD + "1:b\n")
    with pytest.raises(DataError, match=r"training and test series have different channels"):
        open_uea(uea, SeriesSettings())
    (uea / "Made_TEST.ts").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"Made_TEST\.ts is no text: invalid start byte at byte 0"):
        open_uea(uea, SeriesSettings())
    monkeypatch.setattr(members, "MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"bytes, more than the 10 that are read"):
        open_uea(uea, SeriesSettings())
    (uea / "Made_TEST.ts").unlink()
    with pytest.raises(DataError, match=r"has Made_TRAIN\.ts and no Made_TEST\.ts\. Put it beside"):
        open_uea(uea, SeriesSettings())
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"broken\.zip cannot be read as an archive"):
        open_uea(broken, SeriesSettings())


def test_the_embedded_series_are_always_the_same() -> None:
    first, again = (open_made_up_tones(None, SeriesSettings()) for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    assert first.summary()["classes"] == 6


def table(rows: int = 40, *, step: str = "h") -> str:
    delta = timedelta(hours=1) if step == "h" else timedelta(minutes=15)
    lines = [f"{datetime(2024, 2, 28) + row * delta},{row},{row * 0.5}" for row in range(rows)]
    return "\n".join(["date,a,b", *lines]) + "\n"


def open_csv(tmp_path: Path, text: str, **settings: Any) -> table_data.TableData:
    (tmp_path / "made.csv").write_text(text)
    return open_table(tmp_path, TableSettings(**{"history": 4, "horizon": 2, **settings}))


def test_windows_are_split_in_time_and_look_back(tmp_path: Path) -> None:
    data = open_csv(tmp_path, table())
    assert (data.channels, data.borders, data.day) == (("a", "b"), (28, 32, 40), 24)
    sizes = [len(data.source(split)) for split in SPLITS]  # type: ignore[arg-type]
    assert sizes == [23, 3, 7]
    batch = data.source("test").fetch([0, 6], seed=0, epoch=0)
    assert batch["y"][0, 0, 0] == 32
    assert batch["y"][1, -1].tolist() == [39, 19.5]
    assert batch["x"][0, :, 0].tolist() == [28, 29, 30, 31]
    assert batch["marks"].shape == (2, 6, 4)


def test_the_column_of_times_may_be_called_ds(tmp_path: Path) -> None:
    assert open_csv(tmp_path, table().replace("date,", "ds,")).channels == ("a", "b")


def test_the_calendar_is_that_of_the_literature() -> None:
    marks = calendar([datetime(2024, 1, 1, 0), datetime(2023, 12, 31, 23)])
    assert marks[0].tolist() == [-0.5, -0.5, -0.5, -0.5]
    assert marks[1] == pytest.approx([23 / 23.999 - 0.5, 0.5, 0.5, 364 / 365 - 0.5], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"its first line is empty, expected date"),
        ("time,a\n", r"its first line is time, a, expected date"),
        (table(2), r"has 2 rows of readings: too few"),
        (table(9), r"has 9 rows: too few for a history of 4 and a horizon of 2, which need some 60"),
        (table().replace(",7,", ",x,"), r"row 9: could not convert string to float: 'x'"),
        (table().replace(",7,", ",nan,"), r"row 9: a reading that is not finite"),
        (table().replace(",7,", ",7,7,"), r"row 9: 4 columns, not 3"),
        (table().replace("2024-02-28 07", "2024-02-31 07"), r"row 9: day"),
        ("\n".join(table().splitlines()[:1] + table().splitlines()[:0:-1]), r"not in the order of time\. Sort them"),
    ],
)
def test_tables_that_cannot_be_read_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_csv(tmp_path, text)


def test_gaps_splits_and_sizes_of_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = table(60).splitlines()
    with pytest.raises(DataError, match=r"rows are 1:00:00 apart, but 10 are not: .*Fill the gaps"):
        open_csv(tmp_path, "\n".join(line for at, line in enumerate(lines) if at % 6 != 5))
    with pytest.raises(DataError, match=r"has 40 rows, ETT's split needs 14400\. Take --split ratio"):
        open_csv(tmp_path, table(), split="ett")
    (tmp_path / "other.csv").write_text(table())
    with pytest.raises(DataError, match=r"CSV files: made\.csv, other\.csv\. Give one by --table NAME\.csv"):
        open_csv(tmp_path, table())
    assert open_csv(tmp_path, table(), table="other.csv").name == "other.csv"
    monkeypatch.setattr(table_data, "MAX_NUMBERS", 10)
    with pytest.raises(DataError, match=r"more than the 10 numbers that are read"):
        open_csv(tmp_path, table(), table="made.csv")


def test_the_months_of_ett(tmp_path: Path) -> None:
    data = open_csv(tmp_path, table(14_500), split="ett")
    assert data.borders == (8640, 11520, 14400)


def test_the_embedded_table_is_always_the_same() -> None:
    settings_ = TableSettings()
    assert open_made_up_load(None, settings_).fingerprint() == open_made_up_load(None, settings_).fingerprint()


def npz(folder: Path, **arrays: Any) -> Path:
    times = np.array([[0.5, 1.0, 0.0], [2.0, 0.0, 0.0], [1.0, 1.0, 1.0], [3.0, 1, 0], [1, 0, 0]])
    masks = np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]])
    values = {"times": times, "marks": masks * 2, "masks": masks, **arrays}
    file = folder / "made.npz"
    np.savez(file, **{name: value for name, value in values.items() if value is not None})
    return file


def test_events_are_read_split_and_padded(tmp_path: Path) -> None:
    data = open_events(npz(tmp_path), EventSettings())
    assert [each.tolist() for each in data.intervals] == [[0.5, 1], [2], [1, 1, 1], [3, 1], [1]]
    assert data.kinds == 2
    assert [data.chosen(split).tolist() for split in SPLITS] == [[0, 1, 2], [3], [4]]
    batch = data.source("train").fetch([0, 1], seed=0, epoch=0)
    assert batch["mask"].tolist() == [[True, True, False], [True, False, False]]
    assert batch["intervals"].tolist() == [[0.5, 1, 1], [2, 1, 1]]
    assert batch["marks"].tolist() == [[1, 1, 0], [1, 0, 0]]
    assert batch["tail"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"marks": None}, r"made\.npz has no marks\. It has times, masks"),
        ({"marks": np.ones((2, 2))}, r"are not the same \(S, L\)"),
        ({"masks": np.array([[0, 1, 1]] * 5)}, r"padding stands before events"),
        ({"marks": np.zeros((5, 3), int)}, r"marks of events count from 1, 0 is padding; there is a 0"),
        ({"times": np.full((5, 3), -1.0)}, r"negative or not finite: sequence 0, event 0; .*"),
        ({"times": np.full((5, 3), np.nan)}, r"negative or not finite"),
        ({"times": np.zeros((5, 3))}, r"has no events at different times"),
        ({"masks": np.array([[1, 0, 0]] * 4 + [[0, 0, 0]])}, r"has 4 sequences with events: at least 5"),
        ({"times": np.array([["a"]], dtype=object)}, r"cannot be read as NPZ"),
    ],
)
def test_events_that_cannot_be_read_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_events(npz(tmp_path, **arrays), EventSettings())


def test_ties_and_limits_of_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = np.array([[0.0, 1.0, 0.0]] * 5)
    data = open_events(npz(tmp_path, times=times), EventSettings())
    assert data.raised == 3 + 3  # the first of five sequences, and the third of the longest
    assert min(each.min() for each in data.intervals) == 1
    monkeypatch.setattr(event_data, "MAX_NUMBERS", 10)
    with pytest.raises(DataError, match=r"holds 45 numbers, more than the 10 that are read"):
        open_events(npz(tmp_path), EventSettings())
    with pytest.raises(DataError, match=r"There is no .*Give an NPZ file"):
        open_events(tmp_path / "nowhere", EventSettings())
    (tmp_path / "second.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds 2 NPZ files and 0 CDNOW_master\.txt"):
        open_events(tmp_path, EventSettings())


def test_purchases_are_days_between_visits(tmp_path: Path) -> None:
    rows = [
        "customer_id date number_of_cds dollar_value",
        " 1 19970101 1 10.00",
        " 1 19970101 1 5.00",
        " 1 19970111 2 20.00",
        " 1 19980630 1 1.00",
        "2 19970505 1 3.0",
    ]
    rows += [f"{n} 19970101 1 2.0\n{n} 19970103 1 {n}.0" for n in range(3, 8)]
    (tmp_path / "CDNOW_master.txt").write_text("\n".join(rows))
    data = open_events(tmp_path, EventSettings())
    assert [each.tolist() for each in data.intervals] == [[10, 535]] + [[2]] * 5
    assert data.tails.tolist() == [0] + [543] * 5
    assert (data.kinds, data.marks[0].tolist()) == (2, [1, 0])
    (tmp_path / "CDNOW_master.txt").write_text("1 19970101 1 10.00\n1 19971301 1 2\n")
    with pytest.raises(DataError, match=r"CDNOW_master\.txt, line 2: .*Expected customer, YYYYMMDD"):
        open_events(tmp_path, EventSettings())
    (tmp_path / "CDNOW_master.txt").write_text("1 19970101 1 10.00\n")
    with pytest.raises(DataError, match=r"no customer who came again"):
        open_events(tmp_path, EventSettings())


def test_the_hawkes_process_has_the_rates_that_it_should() -> None:
    data = open_hawkes(None, EventSettings())
    assert data.fingerprint() == open_hawkes(None, EventSettings()).fingerprint()
    counts = np.bincount(np.concatenate(data.marks), minlength=2) / (len(data.intervals) * event_data.END)
    stationary = np.linalg.solve(np.eye(2) - event_data.EXCITES / event_data.DECAY, event_data.BASE)
    assert counts == pytest.approx(stationary, rel=0.06)  # the beginning is quieter
    intervals, _, tail = hawkes(3)
    assert intervals.sum() + tail == pytest.approx(event_data.END)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**6), byte=st.integers(0, 255), kind=st.sampled_from(["ts", "csv", "npz"]))
def test_a_flipped_byte_ends_in_data_or_in_a_sentence(tmp_path: Path, at: int, byte: int, kind: str) -> None:
    folder = tmp_path / kind
    folder.mkdir(exist_ok=True)
    if kind == "npz":
        file = npz(folder)
    else:
        file = folder / {"ts": "Made_TRAIN.ts", "csv": "made.csv"}[kind]
        file.write_text(HEAD + ROWS if kind == "ts" else table())
        (folder / "Made_TEST.ts").write_text(HEAD + ROWS)
    content = bytearray(file.read_bytes())
    content[at % len(content)] = byte
    file.write_bytes(content)
    opened: dict[str, Callable[[], Any]] = {
        "ts": lambda: open_uea(folder, SeriesSettings()),
        "csv": lambda: open_table(folder, TableSettings(history=4, horizon=2)),
        "npz": lambda: open_events(file, EventSettings()),
    }
    try:
        text = opened[kind]().name
    except PolyheadError as error:
        text = str(error)
    assert "Made" in text or "made" in text
