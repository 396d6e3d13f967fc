"""Write docs/results/benchmarks.md from the JSON documents beside it, which `make bench` left there.

.venv/bin/python -m scripts.bench_results [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import Roofline
from scripts.workspace import ROOT

RESULTS = ROOT / "docs" / "results"
PAGE = RESULTS / "benchmarks.md"
HEAD = """\
# Benchmarks: results

The figures of this page come from the JSON documents beside it, by `.venv/bin/python -m scripts.bench_results`;
`make bench` writes those. Each benchmark compares results before it takes times, and runs both sides in turn in one
process. "faster" is the peer's time divided by ours, "memory" our peak divided by the peer's, "roofline" the share of
what the machine can do at best; "**no**" marks a claim that does not hold there.
"""


def page(folder: Path = RESULTS) -> str:
    """Return the page: a section for each document of a benchmark that is there."""
    sections = [HEAD]
    for file in sorted(folder.glob("bench-*.json")):
        sections.append("\n".join(section(json.loads(file.read_text(encoding="utf-8")), file.name)))
    return "\n".join(sections)


def section(record: Mapping[str, Any], name: str) -> list[str]:
    """Return the section of one benchmark."""
    rows, limits = record["rows"], Roofline(**record["roofline"])
    memory = any("memory_ratio" in row for row in rows)
    columns = ["case", "peer", "ours", "peer's", "faster", "claimed", "holds", "roofline", *["memory"] * memory]
    here = record["machine"]
    lines = [
        f"## {record['title']}",
        "",
        f"{record['correct'][0].upper()}{record['correct'][1:]}.",
        "",
        _line(columns),
        _line(["---"] * len(columns)),
        *(_line([*_cells(row, limits), *[_number(row.get("memory_ratio"))] * memory]) for row in rows),
        "",
    ]
    if "growth" in record:
        growth = record["growth"]
        lines += [f"Exponent of growth, {growth['case']}: {growth['exponent']:.2f}.", ""]
    return [
        *lines,
        f"{here['cpu']}, {record['threads']} threads, {limits.flops_per_s / 1e9:.0f} GFLOP/s, "
        f"{limits.bytes_per_s / 1e9:.0f} GB/s, torch {record['versions']['torch']}. [{name}]({name})",
        "",
    ]


def _cells(row: Mapping[str, Any], limits: Roofline) -> list[str]:
    ratio, claim = row["peer_s"] / row["ours_s"], row.get("at_least")
    share = ""
    if "flops" in row and "bytes" in row:
        share = f"{100 * limits.bound_s(row['flops'], row['bytes']) / row['ours_s']:.0f} %"
    holds = "" if claim is None else "yes" if ratio >= claim else "**no**"
    times = (_duration(row[side]) for side in ("ours_s", "peer_s"))
    return [row["case"], row["peer"], *times, f"{ratio:.2f}", _number(claim), holds, share]


def _duration(seconds: float) -> str:
    """Return a time as people write it.

    >>> _duration(0.0123), _duration(2.5)
    ('12.3 ms', '2.50 s')
    """
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the page is not that of the JSON"
    )
    options = parser.parse_args(arguments)
    text = page()
    if options.check:
        fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        if not fresh:
            print(f"{PAGE.relative_to(ROOT)} is not what its JSON documents say: run this without --check")
        return int(not fresh)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(f"made {PAGE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
