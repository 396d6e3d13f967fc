"""The tables of the plugin's README are those of the documents in docs/results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Document = Mapping[str, Any]


def _spread(figure: Document, digits: int = 1) -> str:
    return f"{figure['mean']:.{digits}f} ± {figure['standard_deviation']:.{digits}f}"


def hull_accuracy(result: Document) -> list[str]:
    rows = []
    for name, table in result["table"].items():
        cost = result["cost"][name]
        seconds, steps = statistics.fmean(cost["cpu_s"]), cost["steps"][0]
        rows.append(f"| {name} | {_spread(table['accuracy'])} | {steps:,} | {seconds:.0f} |")
    return rows


TABLES: Mapping[str, Callable[[Document], list[str]]] = {
    "geometry-solve-hull_accuracy": hull_accuracy,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_readme_says_what_was_measured(name: str, root: Path) -> None:
    record = json.loads((root / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    text = (root / "plugins" / "combinatorics" / "README.md").read_text(encoding="utf-8")
    rows = TABLES[name](record.get("result", record))
    assert rows
    assert [row for row in rows if row not in text] == []
