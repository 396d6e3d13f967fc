"""Claim: what a step of Decision Aaren costs does not depend on how many came before; Decision Transformer's grows.

.venv/bin/python acceptance/agent-train/streaming.py
"""

from __future__ import annotations

import os
import sys

from support import claims

AAREN, TRANSFORMER = "decision-aaren", "decision-transformer"
SLACK = 1.5
"""Times of some tenths of a millisecond vary by so much on a machine that is not idle."""


def main() -> int:
    """Measure, compare, print."""
    os.environ["OMP_NUM_THREADS"] = "1"  # one agent keeps no second thread busy; waiting for it is noise
    rows = claims.run("streaming", "--json", "--repeats", "50")
    figures = {name: {row["steps"]: row for row in rows if row["model"] == name} for name in (AAREN, TRANSFORMER)}
    first, last = min(figures[AAREN]), max(figures[AAREN])
    growth = {
        name: {what: by_steps[last][what] / by_steps[first][what] for what in ("state_bytes", "step_ms")}
        for name, by_steps in figures.items()
    }
    longer = last / first
    made = [
        claims.at_most("the state of Decision Aaren has one size", growth[AAREN]["state_bytes"], 1.0),
        claims.at_most("the time of its step stays", growth[AAREN]["step_ms"], SLACK),
        claims.at_least(
            "the cache of Decision Transformer grows as the steps do", growth[TRANSFORMER]["state_bytes"], 0.99 * longer
        ),
        claims.at_least(
            f"after {last:,} steps its step takes at least 10 times as long as Decision Aaren's",
            figures[TRANSFORMER][last]["step_ms"] / figures[AAREN][last]["step_ms"],
            10,
        ),
    ]
    return claims.finish({"title": "A step late in a stream", "rows": rows, "growth": growth, "claims": made})


if __name__ == "__main__":
    sys.exit(main())
