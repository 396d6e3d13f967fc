"""Attention names what only something far away tells: the self-guided network with and without it.

.venv/bin/python acceptance/tumor-segment/remote_attribute.py

The full demo of the task organs (run here if it was not yet): three seeds. The margins are those that were fixed with
the task, before these runs.
"""

from __future__ import annotations

import statistics
import sys

from support import claims

WITH, WITHOUT = 0.90, 0.65
DISCS = ("present_discs_by_a_dim_liver", "present_discs_by_a_bright_liver")


def main() -> int:
    """Run the demo, compare, print."""
    document = claims.demo("demo-organs", "--task", "organs")
    discs = {
        arm["name"]: [statistics.fmean(run["metrics"][name] for name in DISCS) for run in arm["runs"]]
        for arm in document["arms"]
    }
    mean = {name: statistics.fmean(values) for name, values in discs.items()}
    return claims.finish(
        {
            "title": "remote attribute",
            "data": document["data"],
            "parameters": claims.parameters(document),
            "dice_of_discs": discs,
            "table": claims.table(document, ("dice", "present_liver", *DISCS)),
            "claims": [
                *(
                    claims.at_least(f"{name}: mean Dice of the discs", mean[name], WITH)
                    for name in ("guided attention", "attention, no guide")
                ),
                claims.at_most("without attention: mean Dice of the discs", mean["no attention"], WITHOUT),
            ],
        }
    )


if __name__ == "__main__":
    sys.exit(main())
