"""The page of benchmarks says what its JSON documents say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripts import bench_results

ROW: dict[str, Any] = {"case": "B1 S8", "peer": "SDPA", "ours_s": 0.01, "peer_s": 0.025}
RECORD: dict[str, Any] = {
    "title": "an_operator",
    "threads": 2,
    "correct": "largest error 1e-07",
    "machine": {"cpu": "a processor"},
    "versions": {"torch": "2.14"},
    "roofline": {"flops_per_s": 2e11, "bytes_per_s": 3e10},
}


def write(folder: Path, **changes: Any) -> str:
    (folder / "bench-an_operator.json").write_text(json.dumps(RECORD | changes), encoding="utf-8")
    return bench_results.page(folder)


def test_the_page_is_that_of_its_documents() -> None:
    assert bench_results.main(["--check"]) == 0


def test_rows_say_which_claims_hold(tmp_path: Path) -> None:
    rows = [ROW, ROW | {"at_least": 2.0, "flops": 1e9, "bytes": 1e6}, ROW | {"at_least": 3.0}]
    text = write(tmp_path, rows=rows)
    for line in (
        "## an_operator",
        "Largest error 1e-07.",
        "| case | peer | ours | peer's | faster | claimed | holds | roofline |",
        "| B1 S8 | SDPA | 10 ms | 25 ms | 2.50 |  |  |  |",
        "| B1 S8 | SDPA | 10 ms | 25 ms | 2.50 | 2.00 | yes | 50 % |",
        "| B1 S8 | SDPA | 10 ms | 25 ms | 2.50 | 3.00 | **no** |  |",
        "a processor, 2 threads, 200 GFLOP/s, 30 GB/s, torch 2.14. [bench-an_operator.json](bench-an_operator.json)",
    ):
        assert f"{line}\n" in text


def test_memory_and_growth_where_they_were_measured(tmp_path: Path) -> None:
    growth = {"case": "from 10 to 20", "exponent": 1.234}
    text = write(tmp_path, rows=[ROW | {"memory_ratio": 0.25}, ROW], growth=growth)
    assert "| B1 S8 | SDPA | 10 ms | 25 ms | 2.50 |  |  |  | 0.25 |\n" in text
    assert "| B1 S8 | SDPA | 10 ms | 25 ms | 2.50 |  |  |  |  |\n" in text
    assert "Exponent of growth, from 10 to 20: 1.23.\n" in text


def test_a_stale_page_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "benchmarks.md"
    monkeypatch.setattr(bench_results, "PAGE", page)
    monkeypatch.setattr(bench_results, "ROOT", tmp_path)
    assert bench_results.main([]) == 0
    assert bench_results.main(["--check"]) == 0
    page.write_text("old", encoding="utf-8")
    assert bench_results.main(["--check"]) == 1
    assert "benchmarks.md is not what its JSON documents say: run this without --check" in capsys.readouterr().out
