"""The page of results says what its JSON documents say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import traffic_results

RECORD = {"machine": {"cpu": "a processor", "cores": 2}, "versions": {"torch": "2.14"}}


def claims(holds: bool = True) -> list[dict[str, Any]]:
    return [{"claim": "it is good", "value": 3.456, "at_most": 3.839, "holds": holds}]


def accuracy(names: tuple[str, ...]) -> dict[str, Any]:
    figures = {name: {"mean": 3.4564, "standard_deviation": 0.0126, "seeds": [3.44, 3.47]} for name in names}
    return {
        "data": {"provenance": "Speeds of somewhere."},
        "seeds": [0, 1],
        "table": {"gman": figures, "baselines": {"ridge": dict.fromkeys(names, 4.0)}},
        "cost": {"steps": [435, 500], "cpu_s": [600, 630]},
        "coverage_80": [80.11, 79.0],
        "claims": claims(),
    }


def write(folder: Path, name: str, record: dict[str, Any]) -> None:
    (folder / f"{name}.json").write_text(json.dumps(RECORD | record), encoding="utf-8")


def test_the_page_is_that_of_its_documents() -> None:
    assert traffic_results.main(["--check"]) == 0


def test_without_documents_only_what_was_published(tmp_path: Path) -> None:
    text = traffic_results.page(tmp_path)
    assert "## Published figures" in text
    assert "| **GMAN (authors' repository)** | 2.77/5.48/7.25 |" in text
    assert "METR-LA week" not in text


def test_accuracy(tmp_path: Path) -> None:
    names = ("mae_15min", "mae_30min", "mae_60min")
    lost = {"share": 0.5, "figures": {"ridge": {"all": 5.8734, "lossy": 20.0, "increase": 14.1266}}}
    write(tmp_path, "traffic-forecast-metr_la_week", {"result": accuracy(names) | {"lost_readings": lost}})
    text = traffic_results.page(tmp_path)
    for line in (
        "Speeds of somewhere. MAE in mph; GMAN: mean and standard deviation over 2 seeds.",
        "| forecast | 15 min | 30 min | 60 min |",
        "| **GMAN** | 3.456 ± 0.013 | 3.456 ± 0.013 | 3.456 ± 0.013 |",
        "| ridge | 4.000 | 4.000 | 4.000 |",
        "A run has 435 to 500 steps and takes 10 minutes of one core. Intervals of 80 % cover 80.1, 79.0 % of the test "
        "readings.",
        "| ridge | 5.873 | 20.000 | 14.127 |",
        "| it is good | 3.456 | 3.839 | yes |",
        "a processor, 2 cores, torch 2.14. [traffic-forecast-metr_la_week.json](traffic-forecast-metr_la_week.json)",
    ):
        assert f"{line}\n" in text


def test_hangzhou_groups_and_speed(tmp_path: Path) -> None:
    result = accuracy(("mae_30min", "mae_60min", "mae_120min")) | {"windows": {"train": 1402, "test": 340}}
    result["against_best_baseline"] = {"mae_30min": 1.0095, "mae_60min": 0.9}
    write(tmp_path, "traffic-forecast-hangzhou", {"result": result | {"claims": claims(holds=False)}})
    figures = {"mae_15min": {"full": 3.4, "groups": 3.5}, "mae": {"full": 3.6, "groups": 3.7}}
    group = {"seed": 0, "group_size": 7, "figures": figures, "claims": claims()}
    write(tmp_path, "traffic-forecast-group_attention", {"result": group})
    row = {"case": "train N=207", "peer": "written out", "ours_s": 1.0, "peer_s": 2.5, "memory_ratio": 0.4}
    growth = {"case": "from N=883 to N=2000", "exponent": 1.1234, "at_most": 1.2}
    speed = {"threads": 2, "correct": "they agree", "rows": [row, {**row, "at_least": 2.0}], "growth": growth}
    write(tmp_path, "bench-gman", speed)
    text = traffic_results.page(tmp_path)
    for line in (
        "| forecast | 30 min | 60 min | 120 min |",
        "Windows: 1,402 train, 340 test; none crosses a night. GMAN's MAE as a multiple of the best baseline's: "
        "1.010 at 30 min, 0.900 at 60 min.",
        "| it is good | 3.456 | 3.839 | **no** |",
        "| mean of all steps | 3.600 | 3.700 |",
        "| train N=207 | written out | 1 s | 2.5 s | 2.50 |  | 0.40 |  |",
        "| train N=207 | written out | 1 s | 2.5 s | 2.50 | 2.00 | 0.40 |  |",
        "Time of a step grows with N^1.12 (from N=883 to N=2000; claimed: at most 1.2).",
    ):
        assert f"{line}\n" in text


def test_a_stale_page_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "traffic.md"
    monkeypatch.setattr(traffic_results, "PAGE", page)
    monkeypatch.setattr(traffic_results, "ROOT", tmp_path)
    assert traffic_results.main([]) == 0
    assert traffic_results.main(["--check"]) == 0
    page.write_text("old", encoding="utf-8")
    assert traffic_results.main(["--check"]) == 1
    assert "traffic.md is not what its JSON documents say: run this without --check" in capsys.readouterr().out
