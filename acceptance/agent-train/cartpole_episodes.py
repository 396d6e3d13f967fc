"""Claim: from episodes of a half-trained PPO, Decision Aaren acts as well as that policy and Decision Transformer.

    .venv/bin/python acceptance/agent-train/cartpole_episodes.py

The runs are those of `agent-train demo`: both models of one size, 3 seeds.
"""

from __future__ import annotations

import sys

from support import claims


def main() -> int:
    """Train, play, compare, print."""
    document = claims.demo("cartpole-episodes")
    figures = {name: figure["return"] for name, figure in claims.arms(document).items()}
    whole = {name: figure["return_episode"] for name, figure in claims.arms(document).items()}
    recorded = document["baselines"]["recorded policy"]["return"]
    least, largest = min(figures.values()), max(figures.values())
    made = [
        *(
            claims.at_least(f"{name}: return at least 90 % of the recorded policy's", value, 0.9 * recorded)
            for name, value in figures.items()
        ),
        claims.at_least("both returns are within 15 % of each other", least, 0.85 * largest),
    ]
    return claims.finish(
        {
            "title": "Acting from recorded episodes",
            "figures": {"window": figures, "carried state": whole, "recorded policy": recorded},
            "random": document["baselines"]["random"]["return"],
            "arms": document["arms"],
            "claims": made,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
