"""Claims on hulls of more points than in training: 5 to 20 points in training, up to 50 in the test.

.venv/bin/python acceptance/geometry-solve/hull_lengths.py
"""

from __future__ import annotations

import sys

import torch
from support import runs

from polyhead.errors import ShapeError
from polyhead_combinatorics.fixed_dictionary import FixedDictionaryConfig, LSTMAttention, Seq2Seq

SIZES = (20, 30, 50)
SETTINGS = {
    "data.min_points": 5,
    "data.max_points": 20,
    "data.test_points": list(SIZES),
    "train.steps": 1200,
    "train.workers": 1,
    "train.validate_epochs": 0.25,
}
NAMES = tuple(f"{name}_n{size}" for size in SIZES for name in ("accuracy", "simple", "area_of_simple", "area_coverage"))


def refusals() -> dict[str, str]:
    """Return what the fixed dictionaries say of 30 points."""
    said = {}
    for model in (LSTMAttention, Seq2Seq):
        try:
            model(FixedDictionaryConfig(max_points=20)).start(torch.zeros(1, 30, 2))
        except ShapeError as error:
            said[model.__name__] = str(error)
    return said


def main() -> int:
    """Fit, measure, print."""
    options = runs.options(SETTINGS)
    fits = [runs.fit("hull-lengths", "hull", *options, seed=seed) for seed in runs.SEEDS]
    table = runs.figures(fits, NAMES)
    said = refusals()
    claims = [
        *(
            runs.claim(
                f"area of simple polygons, % of the hull's, {size} points",
                min(table[f"area_of_simple_n{size}"]["seeds"]),
                at_least=98.0,
            )
            for size in SIZES
        ),
        runs.claim("baselines that refuse 30 points by name", float(len(said)), at_least=2.0),
    ]
    return runs.finish(
        {
            "title": "Hulls of more points than in training",
            "data": fits[0].document["data"],
            "settings": SETTINGS,
            "seeds": runs.SEEDS,
            "table": table,
            "baselines of 20 points, given 30": said,
            "cost": runs.cost(fits),
            "claims": claims,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
