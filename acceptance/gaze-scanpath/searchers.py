"""Claims on simulated searchers: what the full demo measures, on layouts and targets that training has not seen.

.venv/bin/python acceptance/gaze-scanpath/searchers.py
"""

from __future__ import annotations

import sys

from support import claims

MARKOV = "distance-Markov"
CEILING = "other viewers"


def main() -> int:
    """Run the demo, compare, print."""
    document = claims.run("demo", "demo", "--threads", "1", result="comparison.json")
    model, ablated = (arm["mean"] for arm in document["arms"])
    baselines = document["baselines"]
    best = max(figures["sequence_score"] for name, figures in baselines.items() if name != CEILING)
    stated = [
        claims.at_least(
            "NLL per fixation below distance-Markov, nat (mean of three seeds)",
            baselines[MARKOV]["nll"] - model["nll"],
            0.3,
        ),
        claims.at_least("sequence score above the best baseline", model["sequence_score"] - best, 1e-6),
        claims.at_most("delta of the behavioural metric", model["delta"], 0.15),
        claims.at_least("NLL that random place codes add, nat", ablated["nll"] - model["nll"], 1e-6),
    ]
    return claims.finish(
        {
            "title": "Simulated searchers",
            "data": document["data"],
            "arms": document["arms"],
            "baselines": baselines,
            "claims": stated,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
