"""Claims on tours of 10 points, and on routes: berlin52 and 300 stops in degrees by one command each.

    .venv/bin/python acceptance/geometry-solve/tours.py

The runs are those of `geometry-solve demo`; routes are ordered by the first one.
"""

from __future__ import annotations

import dataclasses
import sys

from support import routes, runs

from polyhead.models import from_pretrained, read_extra
from polyhead_apps.console import Console
from polyhead_apps.recipe import evaluate, predictor
from polyhead_combinatorics.app import TOURS
from polyhead_combinatorics.generated import open_tsp
from polyhead_combinatorics.settings import InstanceSettings
from polyhead_combinatorics.task import TourTask

NEAREST = "nearest neighbour"


def without_rules(fit: runs.Fit) -> dict[str, float]:
    """Return the test figures of greedy decoding that may name any point at any step."""
    task = TourTask.restore(read_extra(fit.folder / "model", "task.json")["state"])
    free = dataclasses.replace(task, constrained=False, beam=1)
    settings = {name.removeprefix("data."): x for name, x in TOURS.settings.items() if name.startswith("data.")}
    source = open_tsp(None, InstanceSettings(**settings)).source("test")
    model = from_pretrained(fit.folder / "model")
    return evaluate(predictor(model, free), free, source, batch_size=250, seed=0, console=Console(quiet=True))


def main() -> int:
    """Fit, measure, print."""
    options = runs.options(TOURS.settings)
    fits = [runs.fit("tours", "tsp", *options, seed=seed) for seed in runs.SEEDS]
    table = runs.figures(fits, ("gap", "length", "shortest", "valid"))
    baselines = fits[0].document["baselines"]
    free = [without_rules(fit) for fit in fits]
    found = routes.measure(fits[0].folder)
    claims = [
        runs.claim(
            "gap of tours of 10 points to the shortest, %, largest of the seeds",
            max(table["gap"]["seeds"]),
            at_most=5.0,
        ),
        runs.claim(
            "length of tours of 10 points, largest of the seeds, against nearest neighbour's",
            max(table["length"]["seeds"]),
            at_most=baselines[NEAREST]["length"],
        ),
        runs.claim(
            "berlin52 by one command, against the proved shortest", found["berlin52"]["auto"]["length"], at_most=7542.0
        ),
        runs.claim("300 stops in degrees are all visited once", found["300 stops"]["auto"]["stops"], at_least=300),
    ]
    return runs.finish(
        {
            "title": "Tours",
            "data": fits[0].document["data"],
            "settings": dict(TOURS.settings),
            "seeds": runs.SEEDS,
            "table": table,
            "baselines": baselines,
            "any token at any step, greedy": free,
            "routes": found,
            "cost": runs.cost(fits),
            "claims": claims,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
