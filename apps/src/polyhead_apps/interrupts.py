"""Ctrl-C and SIGTERM as a wish to stop, which a loop grants when it suits."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["StopWish"]

PATIENCE_S = 2.0
"""A second Ctrl-C within this time is the same one: torchrun passes on what the terminal has sent already."""


class StopWish:
    """Inside the block, SIGINT and SIGTERM set `wanted`; a second Ctrl-C breaks off at once, as ever.

    Outside the main thread, which alone gets signals, it does nothing.
    """

    def __init__(self) -> None:
        """Nothing is wished yet."""
        self.wanted = False
        self._since = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.wanted:
            self.wanted, self._since = True, now
        elif number == signal.SIGINT and now - self._since > PATIENCE_S:
            raise KeyboardInterrupt
