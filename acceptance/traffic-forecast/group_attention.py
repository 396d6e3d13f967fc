"""Claim: attention in groups is nearly as accurate as attention over all sensors, on one week of METR-LA.

    .venv/bin/python acceptance/traffic-forecast/group_attention.py [--data FOLDER]

What groups save is measured by `make bench ARGS=gman`.
"""

from __future__ import annotations

import sys

from support import runs

from polyhead_traffic.group_attention import best_group_size

SEED = 0
SENSORS = 207
NAMES = ("mae_15min", "mae_30min", "mae_60min", "mae")
MOST = 1.05


def main() -> int:
    """Fit both, compare, print."""
    folder = runs.data_folder("metr-la-week", "Fetch it: traffic-forecast datasets get metr-la-week --out FOLDER.")
    size = best_group_size(SENSORS)
    full = runs.fit("metr-la-week", folder, *runs.WEEK, seed=SEED)
    groups = runs.fit("metr-la-week-groups", folder, *runs.WEEK, "--set", f"model.group_size={size}", seed=SEED)
    figures = {
        name: {kind: run.document["metrics"][name] for kind, run in (("full", full), ("groups", groups))}
        for name in NAMES
    }
    claims = [
        runs.claim(
            f"{name} in groups of at most {size} is at most 5 % above that over all sensors",
            value["groups"],
            MOST * value["full"],
        )
        for name, value in figures.items()
    ]
    document = {"title": "Group attention", "seed": SEED, "group_size": size, "figures": figures, "claims": claims}
    return runs.finish({**document, "cost": runs.cost([full, groups])})


if __name__ == "__main__":
    sys.exit(main())
