"""Write docs/results/traffic.md from the JSON documents beside it, which claims and benchmarks left there.

.venv/bin/python -m scripts.traffic_results [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.workspace import ROOT

RESULTS = ROOT / "docs" / "results"
PAGE = RESULTS / "traffic.md"
HEAD = """\
# Traffic: results

The figures of this page come from the JSON documents beside it, by `.venv/bin/python -m scripts.traffic_results`.
`make acceptance APP=traffic-forecast` writes those on accuracy, `make bench ARGS=gman` those on time and memory.
"""
PUBLISHED = """\
## Published figures

MAE / RMSE / MAPE (%) on the whole of METR-LA and PEMS-BAY, quoted as published; none was made here. Those of the week
above are on other test days and cannot be compared with them.

| METR-LA | 15 min | 30 min | 60 min |
| --- | --- | --- | --- |
| historical average (as in the D2STGNN and STEP papers) | 4.79/10.00/11.70 | 5.47/11.45/13.50 | 6.99/13.89/17.54 |
| DCRNN (paper) | 2.77/5.38/7.30 | 3.15/6.45/8.80 | 3.60/7.60/10.50 |
| DCRNN (repository, after a bug fix) | 2.67/5.17/6.84 | 3.08/6.30/8.38 | 3.56/7.52/10.30 |
| Graph WaveNet | 2.69/5.15/6.90 | 3.07/6.22/8.37 | 3.53/7.37/10.01 |
| **GMAN (authors' repository)** | 2.77/5.48/7.25 | 3.07/6.34/8.35 | 3.40/7.21/9.72 |
| **GMAN (run again in the D2STGNN and STEP papers)** | 2.80/5.55/7.41 | 3.12/6.49/8.73 | 3.44/7.35/10.07 |
| MTGNN | 2.69/5.18/6.88 | 3.05/6.17/8.19 | 3.49/7.23/9.87 |
| D2STGNN | 2.56/4.88/6.48 | 2.90/5.89/7.78 | 3.35/7.03/9.40 |
| STEP (pre-trained) | 2.61/4.98/6.60 | 2.96/5.97/7.96 | 3.37/6.99/9.61 |
| MegaCRN (repository) | 2.52/4.94/6.44 | 2.93/6.06/7.96 | 3.38/7.23/9.72 |
| STAEformer (not checked against the paper) | 2.65/5.11/6.85 | 2.97/6.00/8.13 | 3.34/7.02/9.70 |

| PEMS-BAY | 15 min | 30 min | 60 min |
| --- | --- | --- | --- |
| DCRNN (paper) | 1.38/2.95/2.90 | 1.74/3.97/3.90 | 2.07/4.74/4.90 |
| DCRNN (repository) | 1.31/2.76/2.74 | 1.66/3.78/3.76 | 1.98/4.62/4.74 |
| Graph WaveNet | 1.30/2.74/2.73 | 1.63/3.70/3.67 | 1.95/4.52/4.63 |
| **GMAN (paper)** | 1.34/2.82/2.81 | 1.62/3.72/3.63 | 1.86/4.32/4.31 |
| **GMAN (run again)** | 1.34/2.91/2.86 | 1.63/3.76/3.68 | 1.86/4.32/4.37 |
| D2STGNN | 1.24/2.60/2.58 | 1.55/3.52/3.49 | 1.85/4.30/4.37 |
| STEP | 1.26/2.73/2.59 | 1.55/3.58/3.43 | 1.79/4.20/4.18 |
| MegaCRN | 1.28/2.72/2.67 | 1.60/3.68/3.57 | 1.88/4.42/4.41 |
| STAEformer (not checked against the paper) | 1.31/2.78/2.76 | 1.62/3.68/3.62 | 1.88/4.34/4.41 |

Among today's models: a plain Transformer with learned embeddings of sensor and time (STAEformer) equals GMAN at 60
minutes and is better at 15. What speaks for GMAN is the calendar it knows of, one pass for all steps, and attention in
groups, whose cost grows more slowly than the square of the number of sensors.
"""


def page(folder: Path = RESULTS) -> str:
    """Return the page: a section for each document that is there."""
    sections = [HEAD]
    for name, write in (
        ("traffic-forecast-metr_la_week", metr_la),
        ("traffic-forecast-hangzhou", hangzhou),
        ("traffic-forecast-group_attention", groups),
        ("bench-gman", speed),
    ):
        file = folder / f"{name}.json"
        if file.is_file():
            record = json.loads(file.read_text(encoding="utf-8"))
            sections.append("\n".join([*write(record), "", f"{_machine(record)} [{file.name}]({file.name})", ""]))
    return "\n".join([*sections, PUBLISHED])


def metr_la(record: Mapping[str, Any]) -> list[str]:
    """Return the section on the METR-LA week."""
    result = record["result"]
    lost = result["lost_readings"]
    suffered = [
        [name, *(_figure(figures[key]) for key in ("all", "lossy", "increase"))]
        for name, figures in lost["figures"].items()
    ]
    return [
        *_accuracy("METR-LA week", result, "mph", ("mae_15min", "mae_30min", "mae_60min")),
        "",
        f"With {100 * lost['share']:.0f} % of the past readings lost (0, as the data have it), the MAE at 60 minutes:",
        "",
        *_table(["forecast", "all readings", "half lost", "increase"], suffered),
        "",
        *_claims(result["claims"]),
    ]


def hangzhou(record: Mapping[str, Any]) -> list[str]:
    """Return the section on the Hangzhou metro."""
    result = record["result"]
    windows = ", ".join(f"{count:,} {split}" for split, count in result["windows"].items())
    against = ", ".join(f"{ratio:.3f} at {_words(name)}" for name, ratio in result["against_best_baseline"].items())
    return [
        *_accuracy("Hangzhou metro", result, "passengers / 10 min", ("mae_30min", "mae_60min", "mae_120min")),
        "",
        f"Windows: {windows}; none crosses a night. GMAN's MAE as a multiple of the best baseline's: {against}.",
        "",
        *_claims(result["claims"]),
    ]


def groups(record: Mapping[str, Any]) -> list[str]:
    """Return the section on attention in groups."""
    result = record["result"]
    rows = [
        [_words(name), _figure(value["full"]), _figure(value["groups"])] for name, value in result["figures"].items()
    ]
    return [
        "## Attention in groups",
        "",
        f"METR-LA week, seed {result['seed']}, groups of at most {result['group_size']} sensors, MAE in mph:",
        "",
        *_table(["", "all sensors", "groups"], rows),
        "",
        *_claims(result["claims"]),
    ]


def speed(record: Mapping[str, Any]) -> list[str]:
    """Return the section on time and memory."""
    rows = [
        [
            row["case"],
            row["peer"],
            f"{row['ours_s']:.3g} s",
            f"{row['peer_s']:.3g} s",
            f"{row['peer_s'] / row['ours_s']:.2f}",
            _claimed(row, "at_least"),
            f"{row['memory_ratio']:.2f}" if "memory_ratio" in row else "",
            _claimed(row, "memory_at_most"),
        ]
        for row in record["rows"]
    ]
    growth = record["growth"]
    return [
        "## Time and memory",
        "",
        f"GMAN with one block against one that writes attention out, {record['threads']} threads; {record['correct']}.",
        "Full attention is the peer of attention in groups.",
        "",
        *_table(["case", "peer", "ours", "peer's", "faster", "claimed", "memory", "claimed"], rows),
        "",
        f"Time of a step grows with N^{growth['exponent']:.2f} ({growth['case']}; claimed: at most "
        f"{growth['at_most']}).",
    ]


def _accuracy(title: str, result: Mapping[str, Any], unit: str, names: Sequence[str]) -> list[str]:
    table, seeds, cost = result["table"], result["seeds"], result["cost"]
    model = [
        f"{figures['mean']:.3f} ± {figures['standard_deviation']:.3f}"
        for figures in (table["gman"][name] for name in names)
    ]
    rows = [
        ["**GMAN**", *model],
        *([name, *(_figure(figures[key]) for key in names)] for name, figures in table["baselines"].items()),
    ]
    coverage = ", ".join(f"{share:.1f}" for share in result["coverage_80"])
    steps, minutes = _range(cost["steps"]), _range([seconds / 60 for seconds in cost["cpu_s"]])
    return [
        f"## {title}",
        "",
        f"{result['data']['provenance']} MAE in {unit}; GMAN: mean and standard deviation over {len(seeds)} seeds.",
        "",
        *_table(["forecast", *(_words(name) for name in names)], rows),
        "",
        f"A run has {steps} steps and takes {minutes} minutes of one core. Intervals of 80 % cover {coverage} % of the "
        "test readings.",
    ]


def _claims(claims: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = [
        [entry["claim"], f"{entry['value']:.4g}", f"{entry['at_most']:.4g}", "yes" if entry["holds"] else "**no**"]
        for entry in claims
    ]
    return _table(["claim", "figure", "at most", "holds"], rows)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _claimed(row: Mapping[str, Any], key: str) -> str:
    return f"{row[key]:.2f}" if key in row else ""


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return low if low == high else f"{low} to {high}"


def _figure(value: float) -> str:
    return f"{value:.3f}"


def _words(name: str) -> str:
    """Return how a table calls a metric.

    >>> _words("mae_15min"), _words("mae")
    ('15 min', 'mean of all steps')
    """
    _, _, step = name.partition("_")
    return step.replace("min", " min") if step else "mean of all steps"


def _machine(record: Mapping[str, Any]) -> str:
    here, versions = record["machine"], record["versions"]
    return f"{here['cpu']}, {here['cores']} cores, torch {versions['torch']}."


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
