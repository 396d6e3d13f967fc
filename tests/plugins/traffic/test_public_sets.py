"""Public sets by their names: the manifest's files are those that are read, and they open without further options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from polyhead.artifacts import sha256_file
from polyhead.manifest import DatasetSpec
from polyhead_apps.fetching import data_folder, fetched
from polyhead_apps.shell import main
from polyhead_traffic.app import app
from polyhead_traffic.formats import open_folder
from polyhead_traffic.plugin import HANGZHOU_METRO, METR_LA_WEEK
from polyhead_traffic.settings import SensorSettings

SETS = {spec.name: spec for spec in (METR_LA_WEEK, HANGZHOU_METRO)}


@pytest.fixture
def fetched_set(request: pytest.FixtureRequest, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `datasets get` would leave."""
    spec: DatasetSpec = SETS[request.param]
    monkeypatch.setenv("POLYHEAD_DATA", str(tmp_path))
    folder = data_folder(spec)
    folder.mkdir()
    for file in spec.files:
        source = shared / "data" / "traffic" / spec.name / file.name
        assert sha256_file(source) == file.sha256
        assert source.stat().st_size == file.bytes
        shutil.copy(source, folder)
    return fetched(spec)


@pytest.mark.parametrize("fetched_set", ["metr-la-week"], indirect=True)
def test_metr_la_week_opens_by_its_name(fetched_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["data", "check", "metr-la-week", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["dataset"] == "metr-la-week"
    assert found["name"] == "METR-LA week"
    assert found["samples"] == {"train": 1388, "validation": 179, "test": 380}
    summary = found["summary"]
    assert (summary["first"], summary["step_min"], summary["unit"]) == ("2012-03-01T00:00:00", 5.0, "mph")
    assert summary["edges"] == 2833
    assert "The file has no times: 2012-03-01 and 5min, as published for METR-LA week." in summary["notes"]
    by_hand = open_folder(fetched_set, SensorSettings(start="2012-03-01", step="5min"))
    assert by_hand.fingerprint() == found["fingerprint"]


@pytest.mark.parametrize("fetched_set", ["hangzhou-metro"], indirect=True)
def test_hangzhou_metro_opens_by_its_name(fetched_set: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(app, ["data", "check", "hangzhou-metro", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert (summary["first"], summary["last"]) == ("2019-01-01T06:00:00", "2019-01-25T23:50:00")
    assert (summary["step_min"], summary["gaps"], summary["unit"]) == (10.0, 24, "passengers/10min")


def test_a_set_that_was_not_fetched_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYHEAD_DATA", str(tmp_path))
    assert main(app, ["fit", "--data", "metr-la-week"]) == 1
    assert "Fetch it with the command `datasets get metr-la-week`." in capsys.readouterr().err


@pytest.mark.parametrize("fetched_set", ["metr-la-week"], indirect=True)
def test_a_start_of_the_users_own_is_kept(fetched_set: Path) -> None:
    data = open_folder(fetched_set, SensorSettings(start="2020-01-01", step="15min"))
    assert str(data.timestamps[0]) == "2020-01-01T00:00:00"
    assert data.step_s == 900
