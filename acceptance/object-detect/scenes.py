"""Claims on digit scenes: selection against random and against all tokens, two seeds, equal steps.

.venv/bin/python acceptance/object-detect/scenes.py

The runs are those of the full demo; what it has finished is used again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from polyhead_detection.demo import encoder_costs

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "build" / "acceptance" / "object-detect" / "demo"
COMMAND = Path(sys.executable).with_name("object-detect")
FOCUS, RANDOM, ALL = "focus-detr", "random tokens", "all tokens (dino)"
RECALL, AHEAD, BEHIND, WORK = 0.98, 0.03, 0.03, 0.35


def main() -> int:
    """Train, or take what the demo trained; compare; print."""
    command = [str(COMMAND), "demo", "--json", "--out", str(DEMO)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the command failed: {' '.join(command)}")
    document = json.loads(done.stdout)
    arms: dict[str, Any] = {arm["name"]: arm for arm in document["arms"]}
    ap = {name: arm["mean"]["ap"] for name, arm in arms.items()}
    recalls = [run["metrics"]["token_recall"] for run in arms[FOCUS]["runs"]]
    costs = encoder_costs(DEMO)
    work = costs[FOCUS]["encoder_mmac"] / costs[ALL]["encoder_mmac"]
    scored = (costs[FOCUS]["encoder_mmac"] + costs[FOCUS]["scoring_mmac"]) / costs[ALL]["encoder_mmac"]
    claims: list[dict[str, Any]] = [
        {"claim": "recall of foreground tokens, the lowest of all seeds", "value": min(recalls), "at_least": RECALL},
        {"claim": "mean AP above random tokens", "value": ap[FOCUS] - ap[RANDOM], "at_least": AHEAD},
        {"claim": "mean AP above all tokens", "value": ap[FOCUS] - ap[ALL], "at_least": -BEHIND},
        {"claim": "the encoder's multiply-accumulates in those of the full one", "value": work, "at_most": WORK},
    ]
    for claim in claims:
        claim["holds"] = claim.get("at_least", claim["value"]) <= claim["value"] <= claim.get("at_most", claim["value"])
    table = {
        name: {key: [run["metrics"][key] for run in arm["runs"]] for key in ("ap", "ap50", "ap75", "token_recall")}
        for name, arm in arms.items()
    }
    print(
        json.dumps(
            {
                "title": "Digit scenes: which tokens an encoder updates",
                "data": document["data"],
                "steps": [run["steps"] for arm in arms.values() for run in arm["runs"]],
                "seeds": [run["seed"] for run in arms[FOCUS]["runs"]],
                "table": table,
                "usual boxes": document["baselines"]["usual boxes"]["ap"],
                "encoder": costs,
                "work with the scoring of tokens": scored,
                "claims": claims,
            },
            indent=2,
        )
    )
    broken = [claim["claim"] for claim in claims if not claim["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
