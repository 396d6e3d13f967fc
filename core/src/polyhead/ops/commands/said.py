"""What a command answers."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Said"]


class Said(NamedTuple):
    """The answer of a command."""

    data: dict[str, Any]
    """JSON values, for ``--json``."""
    text: str
    """The same for people."""
    passed: bool = True
    """False makes the command exit with 1."""
