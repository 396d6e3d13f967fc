"""Commands that claims are made of: each is run once, goes on where it was stopped, and is used again."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "acceptance" / "tumor-segment"
COMMAND = Path(sys.executable).with_name("tumor-segment")
SOURCES = ("core/src", "apps/src", "plugins/medical/src")


def demo(name: str, *options: str) -> Mapping[str, Any]:
    """Return the document of a demo, run in ``build/acceptance/tumor-segment/NAME`` unless that was done before."""
    run("demo", *options, "--out", str(BUILD / name), "--json")
    return read(BUILD / name / "comparison.json")


def run(*arguments: str) -> None:
    """Run the command; its messages go to the screen.

    Raises:
        SystemExit: it failed.
    """
    command = [str(COMMAND), *arguments]
    status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode
    if status:
        raise SystemExit(f"the command failed: {' '.join(command)}")


def read(path: Path) -> Any:
    """Return a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def digest(*more: Any) -> str:
    """Return a digest of the source and of whatever else a run depends on."""
    found = hashlib.sha256(json.dumps(more, default=str).encode())
    for path in sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def parameters(document: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of parameters of each arm's model."""
    from polyhead import from_pretrained

    return {
        arm["name"]: sum(p.numel() for p in from_pretrained(Path(arm["runs"][0]["run"]) / "model").parameters())
        for arm in document["arms"]
    }


def at_least(text: str, value: float, least: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_least": least, "holds": value >= least}


def at_most(text: str, value: float, most: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_most": most, "holds": value <= most}


def table(document: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of all arms, mean and every seed, and of the baselines."""
    arms = {
        arm["name"]: {
            name: {"mean": arm["mean"].get(name), "seeds": [run["metrics"].get(name) for run in arm["runs"]]}
            for name in names
        }
        for arm in document["arms"]
    }
    return {"arms": arms, "baselines": {key: {n: v.get(n) for n in names} for key, v in document["baselines"].items()}}


def finish(document: Mapping[str, Any]) -> int:
    """Print the document; return the exit status: 0 if all its claims hold."""
    print(json.dumps(document, indent=2))
    broken = [entry["claim"] for entry in document["claims"] if not entry["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))
