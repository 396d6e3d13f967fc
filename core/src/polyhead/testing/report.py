"""How a check tells what it found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from polyhead.errors import PolyheadError

__all__ = ["CheckError", "Report", "RuleError"]


class CheckError(PolyheadError, AssertionError):
    """Something breaks its contract; the message has a line per broken rule."""


class Report:
    """Collects what was checked and what is broken, so that an author sees everything at once."""

    def __init__(self, subject: str) -> None:
        """Begin a report on ``subject``, such as ``model "gman"``."""
        self.subject = subject
        self.passed: list[str] = []
        self.broken: list[str] = []

    @contextlib.contextmanager
    def check(self, rule: str, where: str) -> Iterator[None]:
        """Run one check in the block; whatever it raises is a broken rule.

        Args:
            rule: what should hold, as a sentence without its full stop.
            where: where the rule is written, such as ``polyhead.protocols.Data.source``.
        """
        try:
            yield
        except RuleError as error:
            self.broken.append(f"{rule}: {error} (rule: {where})")
        except Exception as error:
            what = str(error) or "no message"
            self.broken.append(f"{rule}: {type(error).__name__} was raised: {what} (rule: {where})")
        else:
            self.passed.append(rule)

    def finish(self) -> list[str]:
        """Return what was checked.

        Raises:
            CheckError: a rule is broken.
        """
        if self.broken:
            lines = "".join(f"\n- {line}" for line in self.broken)
            held = f"{len(self.passed)} other rule{'s hold' if len(self.passed) != 1 else ' holds'}"
            raise CheckError(f"{self.subject} breaks {len(self.broken)} of its rules; {held}.{lines}")
        return self.passed


class RuleError(Exception):
    """Inside a check: this rule is broken, and the message says how and what mends it."""
