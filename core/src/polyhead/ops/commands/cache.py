"""Results kept on disk by a digest of the source that they come from, so that what did not change is not run again.

They are in ``$POLYHEAD_CACHE``, or in ``polyhead`` under ``$XDG_CACHE_HOME`` (default ``~/.cache``). A result that
cannot be read is made anew, one that cannot be written is not kept.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from polyhead.artifacts import write_atomic
from polyhead.errors import StorageError

__all__ = ["folder", "load", "source_digest", "store"]


def folder() -> Path:
    """Return where results are kept; it need not exist."""
    if chosen := os.environ.get("POLYHEAD_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyhead"


def load(kind: str, digest: str | None) -> Any:
    """Return a result, or None if there is none."""
    if digest is None:
        return None
    try:
        return json.loads((folder() / kind / f"{digest}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def store(kind: str, digest: str | None, result: Any) -> None:
    """Keep a result made of JSON values; one without a digest is not kept."""
    if digest is None:
        return
    try:
        (folder() / kind).mkdir(parents=True, exist_ok=True)
        write_atomic(folder() / kind / f"{digest}.json", json.dumps(result).encode())
    except (OSError, StorageError):
        return


def source_digest(modules: Iterable[str], facts: Iterable[str], without: Iterable[str] = ()) -> str | None:
    """Return a digest of modules, of all that they import of their own packages, and of further facts.

    Imports are read from the source, those inside of functions too; nothing is run. None if one of the modules has no
    source, as in a notebook.

    Args:
        modules: their names, such as "polyhead.ops.decay_attention.spec".
        facts: what else the result depends on, such as versions.
        without: packages that are left out, although something imports them.
    """
    given = list(modules)
    waiting, digests, out = list(given), dict[str, str](), tuple(without)
    packages = {name.partition(".")[0] for name in waiting}
    while waiting:
        name = waiting.pop()
        left_out = any(name == package or name.startswith(f"{package}.") for package in out)
        if name in digests or left_out or name.partition(".")[0] not in packages:
            continue
        path = _source(name)
        if path is None:
            if name in given:
                return None
            continue
        content = path.read_bytes()
        digests[name] = hashlib.sha256(content).hexdigest()
        waiting += _imported(content)
    text = json.dumps([sorted(digests.items()), list(facts)])
    return hashlib.sha256(text.encode()).hexdigest()


def _source(module: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):  # an attribute, not a module; or a module that was made by hand
        return None
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None


def _imported(content: bytes) -> list[str]:
    """Return the modules that a source may import; ``from package import name`` may mean a module ``package.name``."""
    found = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
