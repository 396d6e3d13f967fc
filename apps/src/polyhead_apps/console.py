"""What a command says: results on stdout, everything else on stderr, bars only on a terminal.

The recipe and the verbs take a `Console`; ``Console(quiet=True)`` says nothing but results.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = ["Console", "Progress", "format_figure", "format_seconds", "format_table"]

PLAIN_INTERVAL_S = 5.0
"""Least time between two plain progress lines of one loop."""


class Console:
    """Speaks for a command."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
    ) -> None:
        """Say where to speak and how much.

        Args:
            quiet: say nothing but results and warnings.
            verbose: say details too.
            stdout: where results go; ``sys.stdout`` as it is at the time of writing if None.
            stderr: where everything else goes; ``sys.stderr`` likewise.
        """
        self.quiet, self.verbose = quiet, verbose
        self._stdout, self._stderr = stdout, stderr
        self._log: TextIO | None = None
        self._said: deque[str] = deque(maxlen=100)  # before there is a log
        self._bars: Bars | None = None

    @property
    def terminal(self) -> bool:
        """True where bars can be drawn."""
        stream = self._stderr or sys.stderr
        return stream.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def color(self) -> bool:
        """True where results may carry bold text: stdout is a terminal and NO_COLOR is not set."""
        stream = self._stdout or sys.stdout
        return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def line(self, text: str) -> None:
        """Say one thing on stderr; it goes to the log of the run too."""
        self._record(text)
        if not self.quiet:
            self._write(text)

    def detail(self, text: str) -> None:
        """Say what only ``--verbose`` shows; the log of the run has it anyway."""
        self._record(text)
        if self.verbose and not self.quiet:
            self._write(text)

    def warn(self, text: str) -> None:
        """Warn on stderr, in spite of ``quiet``."""
        self._record(f"warning: {text}")
        self._write(f"warning: {text}")

    def result(self, text: str) -> None:
        """Write a result to stdout."""
        stream = self._stdout or sys.stdout
        stream.write(text + "\n")
        stream.flush()

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bold: Sequence[tuple[int, int]] = ()
    ) -> None:
        """Write a table to stdout; ``bold`` names the cells (row, column) to stress on a terminal."""
        self.result(format_table(columns, rows, bold=bold if self.color else ()))

    @contextmanager
    def progress(self, label: str, total: int | None = None, *, done: int = 0, unit: str = "") -> Iterator[Progress]:
        """Show how far a loop is: a bar on a terminal, a line every few seconds elsewhere, nothing when quiet.

        Args:
            label: what is being done, such as "fit".
            total: the number of items; None if unknown.
            done: items done before, when a loop is resumed.
            unit: what is counted, such as "step".
        """
        if self.quiet or not self.terminal:
            progress = Progress(self, label, total, done, unit)
            yield progress
            progress.finish()
            return
        outermost = self._bars is None
        bars = self._bars or self._make_bars()
        if outermost:
            bars.start()
            self._bars = bars
        task = bars.add_task(label, total=total, completed=done, figures="")
        try:
            yield _Bar(self, label, total, done, unit, bars=bars, task=task)
        finally:
            bars.remove_task(task)
            if outermost:
                bars.stop()
                self._bars = None

    @contextmanager
    def log_to(self, path: Path) -> Iterator[None]:
        """Append what is said inside, and was said before, to the file ``path`` too, each line with the time."""
        with path.open("a", encoding="utf-8", buffering=1) as log:
            self._log = log
            log.writelines(self._said)
            self._said.clear()
            try:
                yield
            finally:
                self._log = None

    def _write(self, text: str) -> None:
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False, soft_wrap=True)
            return
        stream = self._stderr or sys.stderr
        stream.write(text + "\n")
        stream.flush()

    def _record(self, text: str) -> None:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {text}\n"
        self._said.append(line) if self._log is None else self._log.write(line)

    def _make_bars(self) -> Bars:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=RichConsole(file=self._stderr or sys.stderr),
            transient=True,
        )


class Progress:
    """One loop's progress: `advance` is called by the loop, nobody else."""

    def __init__(self, console: Console, label: str, total: int | None, done: int, unit: str) -> None:
        """Start at ``done`` of ``total``; see `Console.progress`."""
        self._console, self._label, self._total, self._unit = console, label, total, unit
        self._first = self._done = done
        self._figures: Mapping[str, Any] = {}
        self._start = self._spoke = time.monotonic()

    def advance(self, n: int = 1, **figures: Any) -> None:
        """Count ``n`` items more; ``figures`` such as ``loss=0.3`` are shown beside the count."""
        self._done += n
        self._figures = figures or self._figures
        now = time.monotonic()
        if not self._console.quiet and now - self._spoke >= PLAIN_INTERVAL_S:
            self._spoke = now
            self._console._write(self._plain(now))

    def finish(self) -> None:
        """Say the last line of a loop that was long enough to have said one before."""
        now = time.monotonic()
        if not self._console.quiet and now - self._start >= PLAIN_INTERVAL_S:
            self._console._write(self._plain(now))

    def _plain(self, now: float) -> str:
        parts = [f"{self._label}: {self._done:,}" + (f"/{self._total:,}" if self._total else "") + self._suffix()]
        parts += [f"{name} {format_figure(value)}" for name, value in self._figures.items()]
        rate = (self._done - self._first) / max(now - self._start, 1e-9)
        if self._total and rate > 0 and self._done < self._total:
            parts.append(f"{format_seconds((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _suffix(self) -> str:
        return f" {self._unit}s" if self._unit else ""


class _Bar(Progress):
    """A loop's progress on a terminal."""

    def __init__(
        self, console: Console, label: str, total: int | None, done: int, unit: str, *, bars: Bars, task: TaskID
    ) -> None:
        super().__init__(console, label, total, done, unit)
        self._bars, self._task = bars, task

    def advance(self, n: int = 1, **figures: Any) -> None:
        self._figures = figures or self._figures
        text = "  ".join(f"{name} {format_figure(value)}" for name, value in self._figures.items())
        self._bars.update(self._task, advance=n, figures=text)


def format_table(columns: Sequence[str], rows: Sequence[Sequence[Any]], *, bold: Sequence[tuple[int, int]] = ()) -> str:
    """Return a table as aligned text: figures to the right, words to the left.

    >>> print(format_table(["model", "mae"], [["gman", 2.5], ["last value", 3.125]]))
    model          mae
    gman        2.5000
    last value  3.1250
    """
    texts = [list(columns)] + [[format_figure(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
    right = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(columns))
    ]
    lines = []
    for number, row in enumerate(texts):
        cells = [
            f"{text:>{width}}" if to_right else f"{text:<{width}}"
            for text, width, to_right in zip(row, widths, right, strict=True)
        ]
        cells = [f"\x1b[1m{cell}\x1b[0m" if (number - 1, i) in bold else cell for i, cell in enumerate(cells)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def format_figure(value: Any) -> str:
    """Return a value as people read it: floats with five significant digits, None as a dash.

    >>> [format_figure(v) for v in (3.14159, 0.000012345, 1234567, None, "a")]
    ['3.1416', '1.2345e-05', '1,234,567', '–', 'a']
    """
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        magnitude = abs(value)
        if magnitude and (magnitude < 1e-3 or magnitude >= 1e6):
            return f"{value:.5g}"
        return f"{value:.4f}" if magnitude < 1000 else f"{value:,.1f}"
    return str(value)


def format_seconds(seconds: float) -> str:
    """Return a duration as people say it.

    >>> [format_seconds(s) for s in (4.2, 75, 7300)]
    ['4 s', '1 min 15 s', '2 h 1 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
