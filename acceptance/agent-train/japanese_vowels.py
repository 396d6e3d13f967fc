"""Claim: on JapaneseVowels a classifier of Aaren is as accurate as the Transformer of the same size, within 3 points.

    .venv/bin/python acceptance/agent-train/japanese_vowels.py

The data: agent-train datasets get japanese-vowels.
"""

from __future__ import annotations

import sys

from support import claims

POINTS = 3.0


def main() -> int:
    """Train both with 3 seeds, compare, print."""
    document = claims.demo("japanese-vowels", "--task", "classify", "--data", "japanese-vowels")
    accuracy = {name: figures["accuracy"] for name, figures in claims.arms(document).items()}
    made = [
        claims.at_least("Aaren is at most 3 points less accurate", accuracy["aaren"], accuracy["transformer"] - POINTS),
        claims.at_least("Aaren is more accurate than 90 %", accuracy["aaren"], 90.0),
    ]
    return claims.finish(
        {
            "title": "JapaneseVowels",
            "accuracy": accuracy,
            "baselines": document["baselines"],
            "arms": document["arms"],
            "claims": made,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
