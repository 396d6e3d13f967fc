"""Claims of the demo: class-semantics attention finds actions that only their context tells from look-alikes.

.venv/bin/python acceptance/action-detect/context_gated.py

Runs `action-detect demo` (three arms of equal size, three seeds) and goes on with it where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "acceptance" / "action-detect"
COMMAND = Path(sys.executable).with_name("action-detect")
SOURCES = ("core/src", "apps/src", "plugins/actions/src")
OURS, SE, PLAIN = "BMN + CSA", "BMN + SE", "BMN"


def claim(text: str, value: float, more_than: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "more_than": more_than, "holds": value > more_than}


def main() -> int:
    """Run the demo, compare, print."""
    digest = hashlib.sha256()
    for path in sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        digest.update(path.read_bytes())
    folder = BUILD / f"demo-{digest.hexdigest()[:12]}"
    command = [str(COMMAND), "demo", "--json", "--threads", "1", "--out", str(folder)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The command failed: {' '.join(command)}")
    document = json.loads(done.stdout)
    means = {arm["name"]: arm["mean"] for arm in document["arms"]}

    def ahead(metric: str, of: str) -> float:
        return float(means[OURS][metric] - means[of][metric])

    claims = [
        claim("CSA's mean AP@0.5 is more than 3 points above BMN's", ahead("AP@0.5", PLAIN), 3.0),
        claim("CSA's mean AP@0.7 is more than 2 points above BMN's", ahead("AP@0.7", PLAIN), 2.0),
        claim("CSA's mean AP@0.5 is above that of squeeze-and-excitation", ahead("AP@0.5", SE), 0.0),
        claim("CSA's mean mAP is above BMN's", ahead("mAP", PLAIN), 0.0),
        claim("CSA's mean mAP is above that of squeeze-and-excitation", ahead("mAP", SE), 0.0),
        claim("CSA's mean AR@1 is above BMN's", ahead("AR@1", PLAIN), 0.0),
    ]
    print(json.dumps({"title": "Context-gated actions", **document, "claims": claims}, indent=2))
    broken = [entry["claim"] for entry in claims if not entry["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
