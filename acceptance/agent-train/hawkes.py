"""Claim: on a Hawkes process the event model of Aaren is better than processes that forget.

    .venv/bin/python acceptance/agent-train/hawkes.py

The Transformer of the same size stands beside it in the document.
"""

from __future__ import annotations

import sys

from support import claims


def main() -> int:
    """Train both with 3 seeds, compare, print."""
    document = claims.demo("hawkes", "--task", "events")
    figures = claims.arms(document)
    made = [
        claims.at_most(f"{name} of Aaren is below that of {what}", figures["aaren"][name], baseline[name])
        for what, baseline in document["baselines"].items()
        for name in ("nll", "rmse")
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
