"""Claims on hulls of 8 points: exact polygons of a Pointer Network and of the paper's two baselines at equal time.

    .venv/bin/python acceptance/geometry-solve/hull_accuracy.py

The runs are those of `geometry-solve demo --task hull`.
"""

from __future__ import annotations

import statistics
import sys

from support import runs

from polyhead_combinatorics.app import HULLS

MARGIN = 10.0
EQUAL = 0.9
NAMES = ("accuracy", "simple", "area_of_simple")


def main() -> int:
    """Fit, compare, print."""
    fits = {}
    for arm in HULLS.arms:
        options = runs.options({**HULLS.settings, **arm.settings})
        fits[arm.name] = [runs.fit(f"hull-{arm.name}", "hull", *options, seed=seed) for seed in runs.SEEDS]
    table = {name: runs.figures(found, NAMES) for name, found in fits.items()}
    accuracy = {name: figures["accuracy"]["mean"] for name, figures in table.items()}
    cpu = {name: statistics.fmean(run.cpu_s for run in found) for name, found in fits.items()}
    pointer, attention, seq2seq = "pointer-network", "lstm-attention", "lstm-seq2seq"
    claims = [
        runs.claim(
            "exact hulls of 8 points: Pointer Network, %, above LSTM with attention by 10 points",
            accuracy[pointer],
            at_least=accuracy[attention] + MARGIN,
        ),
        runs.claim(
            "exact hulls of 8 points: LSTM with attention, %, plus 10 points, above LSTM without",
            accuracy[attention] + MARGIN,
            at_least=accuracy[seq2seq],
        ),
        runs.claim(
            "area of simple polygons, % of the hull's, Pointer Network",
            table[pointer]["area_of_simple"]["mean"],
            at_least=98.0,
        ),
        *(
            runs.claim(
                f"processor seconds of a run of {name}, start and measuring included, against 9 tenths of the Pointer "
                "Network's",
                cpu[name],
                at_least=EQUAL * cpu[pointer],
            )
            for name in (attention, seq2seq)
        ),
    ]
    return runs.finish(
        {
            "title": "Hulls of 8 points",
            "data": fits[pointer][0].document["data"],
            "seeds": runs.SEEDS,
            "table": table,
            "baselines": fits[pointer][0].document["baselines"],
            "cost": {name: runs.cost(found) for name, found in fits.items()},
            "claims": claims,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
