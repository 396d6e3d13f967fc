"""Holidays: from a country or a file, and everywhere where the day of the week matters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from polyhead.errors import ConfigError, DataError, MissingExtraError
from polyhead_traffic.baselines import Profile
from polyhead_traffic.data import SensorData
from polyhead_traffic.formats import open_embedded, open_folder
from polyhead_traffic.holidays import read_holidays
from polyhead_traffic.settings import SensorSettings

NEW_YEAR = np.array(["2012-12-30T00:00", "2012-12-31T23:00"], dtype="datetime64[s]")


def test_a_countrys_holidays_reach_into_the_year_that_is_forecast() -> None:
    pytest.importorskip("holidays", reason="the extra holidays is not installed")
    found = read_holidays("US", None, NEW_YEAR)
    assert {"2012-12-25", "2013-01-01", "2013-07-04"} <= set(found)
    assert "2014-01-01" not in found
    assert list(found) == sorted(found)
    assert "2012-03-31" in read_holidays("US-CA", None, NEW_YEAR)
    assert "2012-03-31" not in found


def test_unknown_countries_are_refused() -> None:
    pytest.importorskip("holidays", reason="the extra holidays is not installed")
    with pytest.raises(ConfigError, match=r"--holidays XX: .*XX.* Give another code, or a file with a date a line\."):
        read_holidays("XX", None, NEW_YEAR)
    with pytest.raises(ConfigError, match=r"--holidays US-QQ: .* Give another code"):
        read_holidays("US-QQ", None, NEW_YEAR)


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "holidays", None)
    with pytest.raises(
        MissingExtraError, match=r"pip install 'polyhead-traffic\[holidays\]'  Or give a file with a date"
    ):
        read_holidays("US", None, NEW_YEAR)


def test_dates_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "free.csv"
    path.write_text("date,name\n2024-12-25,Christmas\n2024-03-05,Fair\n2024-03-05,Fair again\n")
    assert read_holidays(str(path), None, NEW_YEAR) == ("2024-03-05", "2024-12-25")
    assert read_holidays("free.csv", tmp_path, NEW_YEAR) == ("2024-03-05", "2024-12-25")
    path.write_text("2024-03-05\nEaster\n")
    with pytest.raises(DataError, match=r'free\.csv, row 2: "Easter" is not a date\. Write one date a line'):
        read_holidays("free.csv", tmp_path, NEW_YEAR)
    with pytest.raises(
        ConfigError, match=r"--holidays bank: no such file, and not a country\. Give a file with a date"
    ):
        read_holidays("bank", tmp_path, NEW_YEAR)


def test_too_many_dates_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead_traffic.holidays.MOST", 3)
    path = tmp_path / "free.txt"
    path.write_text("\n".join(f"2024-03-0{day}" for day in range(1, 6)))
    with pytest.raises(DataError, match=r"free\.txt has more than 3 dates\. Give a file of holidays\."):
        read_holidays(str(path), None, NEW_YEAR)


def test_a_holiday_is_a_sunday_for_model_and_baselines(network: Callable[..., SensorData]) -> None:
    plain = network(days=20, sensors=2)
    tuesday = "2024-01-02"
    data = replace(plain, holidays=(tuesday,))
    rows = data.timestamps.astype("datetime64[D]").astype(str) == tuesday
    assert set(plain.calendar[rows, 0]) == {1}
    assert set(data.calendar[rows, 0]) == {6}
    assert (data.calendar[~rows] == plain.calendar[~rows]).all()
    assert data.fingerprint() != plain.fingerprint()
    assert data.summary()["holidays"] == 1
    assert (Profile.fit(data, "mean").table != Profile.fit(plain, "mean").table).any()


def test_the_day_after_the_last_row_can_be_one(network: Callable[..., SensorData]) -> None:
    data = replace(network(days=8), holidays=("2024-01-09",))
    assert data.latest()["te"][0, -3:, 0].tolist() == [6, 6, 6]
    assert data.latest()["te"][0, :-3, 0].tolist() == [0] * 4


def test_readings_are_opened_with_them(table: Path) -> None:
    table.with_name("free.txt").write_text("2024-03-02\n")
    data = open_folder(table.parent, SensorSettings(history=4, horizon=3, holidays="free.txt", format="wide"))
    assert data.holidays == ("2024-03-02",)
    assert data.calendar[24].tolist() == [6, 0]
    assert "Holidays (free.txt) count as Sundays." in data.notes
    roads = open_embedded(None, SensorSettings(holidays=str(table.with_name("free.txt"))))
    assert roads.holidays == ("2024-03-02",)
