"""How a check tells what it found."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from polyhead.errors import PolyheadError

__all__ = ["CheckError", "Report", "RuleError"]


class CheckError(PolyheadError, AssertionError):
    """Something breaks its contract; the message has a line per broken rule."""


class RuleError(Exception):
    """Raised inside a check: this rule is broken; the message says how, and what mends it."""


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
            rule: what should hold, a sentence without its full stop.
            where: where the rule is written, such as ``polyhead.protocols.Data.source``.
        """
        try:
            yield
        except RuleError as error:
            self.broken.append(f"{rule}: {error} (rule: {where})")
        except CheckError as error:
            self.broken.append(f"{rule}: {error}")
        except (Exception, SystemExit) as error:
            what = " ".join(str(error).split()) or "no message"
            self.broken.append(f"{rule}: raised {type(error).__name__}: {what} (rule: {where})")
        else:
            self.passed.append(rule)

    def include(self, other: Report) -> None:
        """Take over what another report found, under the name of its subject."""
        self.passed += [f"{other.subject}: {rule}" for rule in other.passed]
        self.broken += [f"{other.subject}: {rule}" for rule in other.broken]

    def finish(self) -> list[str]:
        """Return what was checked, a sentence each.

        Raises:
            CheckError: a rule is broken.
        """
        if self.broken:
            lines = "".join(f"\n- {line}" for line in self.broken)
            rules = "1 rule is" if len(self.broken) == 1 else f"{len(self.broken)} rules are"
            raise CheckError(f"{self.subject}: {rules} broken, {len(self.passed)} kept.{lines}")
        return self.passed
