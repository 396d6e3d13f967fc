"""Claim: AarenPolicy solves tasks that need memory: a T-maze of 50 steps, and CartPole without velocities.

    .venv/bin/python acceptance/agent-train/memory_tasks.py

Beside it in the table: MlpPolicy, the same on the last four observations, and RecurrentPPO of sb3-contrib, all by PPO
with the same settings; 3 seeds each. A run that was finished is used again.
"""

from __future__ import annotations

import json
import statistics
import sys
from typing import Any

from support import claims

SEEDS = (0, 1, 2)
POLICIES = ("aaren", "mlp", "frames", "lstm")
TASKS = {
    "polyhead/TMaze-v0": (0.95, ("--steps", "150000")),
    "polyhead/CartPoleNoVelocity-v1": (475.0, ("--steps", "150000")),
}


def learned(env: str, policy: str, options: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Return the document of a run."""
    arguments = ("--env", env, "--policy", policy, *options, "--seed", str(seed), "--episodes", "100", "--threads", "1")
    out = claims.folder(f"{env.rpartition('/')[2]}-{policy}-seed-{seed}", arguments)
    file = out / "metrics.json"
    if not file.is_file():
        print(f"{env}, {policy}, seed {seed}", file=sys.stderr, flush=True)
        claims.run("online", *arguments, "--out", str(out), "--json", "--force")
    document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return document


def main() -> int:
    """Learn, compare, print."""
    table, made = [], []
    for policy in POLICIES:
        for env, (bound, options) in TASKS.items():
            runs = [learned(env, policy, options, seed)["metrics"] for seed in SEEDS]
            row = {
                "env": env,
                "policy": policy,
                "returns": [run["return"] for run in runs],
                **{
                    name: statistics.fmean(run[name] for run in runs)
                    for name in ("return", "seconds", "cpu_seconds", "peak_memory_mb", "state_bytes", "parameters")
                },
            }
            table.append(row)
            if policy == "aaren":
                made.append(claims.at_least(f"{env}: return of AarenPolicy, mean of 3 seeds", row["return"], bound))
    return claims.finish({"title": "Tasks that need memory", "seeds": SEEDS, "table": table, "claims": made})


if __name__ == "__main__":
    sys.exit(main())
