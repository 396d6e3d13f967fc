"""Claim: on JapaneseVowels a classifier of Aaren is as accurate as the Transformer of the same size, within 3 points.

    .venv/bin/python acceptance/agent-train/japanese_vowels.py

The data are in the wheel of aeon, which is downloaded by pip and not installed.
"""

from __future__ import annotations

import sys

from support import claims

POINTS = 3.0
SHA256 = "d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409"


def main() -> int:
    """Train both with 3 seeds, compare, print."""
    data = claims.wheel("aeon==1.6.0", SHA256)
    options = ("--task", "classify", "--data", str(data), "--series", "JapaneseVowels")
    document = claims.demo("japanese-vowels", *options)
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
