"""Runs for claims, each made once until the source changes, and the document that states them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
BUILD = ROOT / "build" / "acceptance" / "gaze-scanpath"
COMMAND = Path(sys.executable).with_name("gaze-scanpath")
SOURCES = ("core/src", "apps/src", "plugins/gaze/src")
SEEDS = (0, 1, 2)


def run(name: str, verb: str, *arguments: str, result: str) -> dict[str, Any]:
    """Return the JSON document ``result`` of a command's folder; the command goes on where it was stopped.

    Raises:
        SystemExit: the command failed; its message is on the screen.
    """
    folder = BUILD / f"{name}-{_digest([verb, *arguments])[:12]}"
    while not (folder / result).is_file():
        begun = verb == "fit" and (folder / "config.yaml").is_file()
        given = [*arguments] if not begun else ["--resume"]
        command = [str(COMMAND), verb, *given, "--out", str(folder), "--json"]
        print(f"{name}: {' '.join(command)}", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False).returncode
        if status:
            raise SystemExit(f"{name}: the command failed: {' '.join(command)}")
    document: dict[str, Any] = json.loads((folder / result).read_text(encoding="utf-8"))
    return document


def shared_file(*parts: str, fetch: str) -> Path:
    """Return a file of public data in $POLYHEAD_SHARED or ``../shared``.

    Raises:
        SystemExit: it is not there; says how to get it.
    """
    shared = Path(os.environ.get("POLYHEAD_SHARED") or ROOT.parent / "shared")
    path = shared.joinpath("data", "gaze", *parts)
    if not path.is_file():
        raise SystemExit(f"{path} is not there. {fetch}")
    return path.resolve()


def at_most(text: str, value: float, bound: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_most": bound, "holds": value <= bound}


def at_least(text: str, value: float, bound: float) -> dict[str, Any]:
    """Return one claim with its figures."""
    return {"claim": text, "value": value, "at_least": bound, "holds": value >= bound}


def finish(document: Mapping[str, Any]) -> int:
    """Print the document; return the exit status: 0 if all its claims hold."""
    print(json.dumps(document, indent=2))
    broken = [entry["claim"] for entry in document["claims"] if not entry["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))


def _digest(arguments: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([*arguments]).encode())
    for path in sorted(path for source in SOURCES for path in (ROOT / source).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
