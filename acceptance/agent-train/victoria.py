"""Claim: a forecaster of Aaren errs at most 5 % more than the Transformer of the same size, a day ahead.

    .venv/bin/python acceptance/agent-train/victoria.py

The data, 150 days of the demand for electricity by the hour: agent-train datasets get victoria-electricity.
"""

from __future__ import annotations

import sys

from support import claims

MOST = 1.05
OPTIONS = ("--task", "forecast", "--data", "victoria-electricity", "--history", "96", "--horizon", "24")


def main() -> int:
    """Train both with 3 seeds, compare, print."""
    document = claims.demo("victoria", *OPTIONS)
    error = {name: figures["mse"] for name, figures in claims.arms(document).items()}
    made = [
        claims.at_most(
            "mse of Aaren is at most 5 % above the Transformer's", error["aaren"], MOST * error["transformer"]
        )
    ]
    return claims.finish(
        {
            "title": "Electricity in Victoria",
            "mse": error,
            "baselines": document["baselines"],
            "arms": document["arms"],
            "claims": made,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
