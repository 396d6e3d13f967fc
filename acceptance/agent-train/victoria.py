"""Claim: a forecaster of Aaren errs at most 5 % more than the Transformer of the same size, a day ahead.

    .venv/bin/python acceptance/agent-train/victoria.py

The data, 150 days of the demand for electricity by the hour, are in the wheel of statsmodels for Linux on x86-64 and
Python 3.11, which is downloaded by pip and not installed.
"""

from __future__ import annotations

import sys

from support import claims

MOST = 1.05
SHA256 = "b67886b66d9c7ca118526accedb5c6de7ffd74c015dc0492ea0b1690192b65da"
OPTIONS = ("--task", "forecast", "--table", "mstl_elec_vic.csv", "--history", "96", "--horizon", "24")


def main() -> int:
    """Train both with 3 seeds, compare, print."""
    document = claims.demo("victoria", *OPTIONS, "--data", str(claims.wheel("statsmodels==0.15.0", SHA256)))
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
