"""Claim: on a Hawkes process the event model of Aaren is as good as the Transformer's, and better than no memory.

.venv/bin/python acceptance/agent-train/hawkes.py
"""

from __future__ import annotations

import sys

from support import claims

NATS, MOST = 0.02, 1.05


def main() -> int:
    """Train both with 3 seeds, compare, print."""
    document = claims.demo("hawkes", "--task", "events")
    figures = claims.arms(document)
    aaren, transformer = figures["aaren"], figures["transformer"]
    forgetful = document["baselines"]["log-normal renewal"]
    made = [
        claims.at_most("nll of Aaren is at most 0.02 above the Transformer's", aaren["nll"], transformer["nll"] + NATS),
        claims.at_most(
            "rmse of Aaren is at most 5 % above the Transformer's", aaren["rmse"], MOST * transformer["rmse"]
        ),
        claims.at_most("nll of Aaren is below that of a renewal process", aaren["nll"], forgetful["nll"]),
    ]
    return claims.finish(
        {
            "title": "A Hawkes process",
            "figures": figures,
            "baselines": document["baselines"],
            "arms": document["arms"],
            "claims": made,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
