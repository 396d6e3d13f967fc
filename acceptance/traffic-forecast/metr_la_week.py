"""Claims on one week of METR-LA: accuracy against baselines, three seeds, lost readings, intervals.

.venv/bin/python acceptance/traffic-forecast/metr_la_week.py [--data FOLDER]
"""

from __future__ import annotations

import statistics
import sys

from support import faults, runs

from polyhead_traffic.formats import open_folder
from polyhead_traffic.settings import SensorSettings

STEPS = ("mae_15min", "mae_30min", "mae_60min")
NAMES = (*STEPS, "rmse_60min", "mape_60min", "mae")
# Made apart from this project, from the same files.
REFERENCE = {
    "last value": (3.577, 4.383, 5.797),
    "slot mean": (4.645, 4.611, 4.547),
    "ridge": (3.500, 4.406, 5.873),
    "ridge + weekday mean": (3.486, 3.999, 4.645),
}
REFERENCE_60MIN = {"slot median": 4.348, "slot median + residual": 4.298}
LOST = 0.5
MOST_CPU_S = 2 * 30 * 60


def main() -> int:
    """Fit, compare, print."""
    folder = runs.data_folder("metr-la-week", "Fetch it: traffic-forecast datasets get metr-la-week --out FOLDER.")
    fits = [runs.fit("metr-la-week", folder, *runs.WEEK, seed=seed) for seed in runs.SEEDS]
    data = open_folder(folder, SensorSettings())
    table = runs.table(fits, NAMES)
    baselines, model = table["baselines"], {name: figures["mean"] for name, figures in table["gman"].items()}

    apart = max(
        *(abs(round(baselines[n][s], 3) - v) for n, row in REFERENCE.items() for s, v in zip(STEPS, row, strict=True)),
        *(abs(round(baselines[name]["mae_60min"], 3) - value) for name, value in REFERENCE_60MIN.items()),
    )
    lossy = faults.compare(
        {f"gman, seed {s}": f.folder for s, f in zip(runs.SEEDS, fits, strict=True)}, data, LOST, "mae_60min"
    )
    suffered = statistics.fmean(figures["increase"] for name, figures in lossy.items() if name.startswith("gman"))
    best = {name: min(figures[name] for figures in baselines.values()) for name in STEPS}
    coverage = [run.document["metrics"]["coverage_80"] for run in fits]
    claims = [
        runs.claim("baselines differ from the reference table by less than a thousandth", apart, 0.0005),
        runs.claim(
            "GMAN's mean MAE at 30 minutes is 4 % below the best baseline's",
            model["mae_30min"],
            0.96 * best["mae_30min"],
        ),
        runs.claim(
            "GMAN's mean MAE at 60 minutes is not above the best baseline's", model["mae_60min"], best["mae_60min"]
        ),
        runs.claim("a run takes at most 30 minutes of two cores (CPU s)", max(run.cpu_s for run in fits), MOST_CPU_S),
        runs.claim(
            "half of the readings lost raise GMAN's MAE at 60 minutes less than ridge's",
            suffered,
            lossy["ridge"]["increase"],
        ),
        runs.claim(
            "80 % intervals cover 75 to 85 % of the test readings (largest deviation from 80)",
            max(abs(share - 80) for share in coverage),
            5.0,
        ),
    ]
    return runs.finish(
        {
            "title": "METR-LA week",
            "data": fits[0].document["data"],
            "seeds": runs.SEEDS,
            "options": runs.WEEK,
            "table": table,
            "cost": runs.cost(fits),
            "lost_readings": {"share": LOST, "metric": "mae_60min", "figures": lossy},
            "coverage_80": coverage,
            "claims": claims,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
