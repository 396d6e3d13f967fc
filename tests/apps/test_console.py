from __future__ import annotations

import io
from pathlib import Path

import pytest

from polyhead_apps import console as module
from polyhead_apps.console import Console, format_figure, format_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until a test moves it."""
    time = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: time[0])
    return time


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.result("figures")
    console.line("a step")
    console.detail("more")
    console.warn("odd")
    assert capsys.readouterr() == ("figures\n", "a step\nwarning: odd\n")


def test_quiet_leaves_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True, verbose=True)
    console.result("figures")
    console.line("a step")
    console.detail("more")
    console.warn("odd")
    with console.progress("fit", 1) as progress:
        progress.advance()
    assert capsys.readouterr() == ("figures\n", "warning: odd\n")


def test_verbose_says_details(capsys: pytest.CaptureFixture[str]) -> None:
    Console(verbose=True).detail("more")
    assert capsys.readouterr().err == "more\n"


def test_log_takes_what_is_said_even_when_quiet(tmp_path: Path) -> None:
    console = Console(quiet=True, stderr=io.StringIO())
    path = tmp_path / "log.txt"
    console.line("zero")
    with console.log_to(path):
        console.line("one")
        console.detail("two")
        console.warn("three")
    console.line("four")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line.split("  ", 1)[1] for line in lines] == ["zero", "one", "two", "warning: three"]


def test_plain_progress_speaks_every_few_seconds(clock: list[float]) -> None:
    stderr = io.StringIO()
    with Console(stderr=stderr).progress("fit", 1000, unit="step") as progress:
        for _ in range(1000):
            clock[0] += 0.012
            progress.advance(loss=0.25)
    assert stderr.getvalue().splitlines() == [
        "fit: 417/1,000 steps, loss 0.2500, 7 s left",
        "fit: 834/1,000 steps, loss 0.2500, 2 s left",
        "fit: 1,000/1,000 steps, loss 0.2500",
    ]


def test_short_plain_loops_are_silent(clock: list[float]) -> None:
    stderr = io.StringIO()
    with Console(stderr=stderr).progress("evaluate", 10) as progress:
        progress.advance(10)
    assert stderr.getvalue() == ""


def test_plain_progress_of_a_resumed_loop_of_unknown_length(clock: list[float]) -> None:
    stderr = io.StringIO()
    with Console(stderr=stderr).progress("fit", done=500) as progress:
        clock[0] += 6
        progress.advance(2)
    assert stderr.getvalue().splitlines()[0] == "fit: 502"


def test_terminals_get_bars_that_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stderr = Terminal()
    console = Console(stderr=stderr)
    with console.progress("fit", 2) as progress:
        progress.advance(loss=0.5)
        console.line("validated [1/2]")
        with console.progress("evaluate", 1) as inner:
            inner.advance()
        progress.advance(loss=0.25)
    said = stderr.getvalue()
    assert "fit" in said
    assert "validated [1/2]" in said


@pytest.mark.parametrize(("variables", "bold"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_best_cells_are_bold_on_a_terminal_that_wants_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], bold: bool
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stdout = Terminal()
    Console(stdout=stdout).table(["model", "mae"], [["gman", 1.0]], bold=[(0, 1)])
    assert ("\x1b[1m1.0000\x1b[0m" in stdout.getvalue()) is bold


def test_tables_align_words_left_and_figures_right() -> None:
    assert format_table(["name", "n"], [["a", 1], ["long", None], ["b", 12345]]).splitlines() == [
        "name       n",
        "a          1",
        "long       –",
        "b     12,345",
    ]
    assert format_table(["name", "n"], []) == "name  n"


def test_figures_are_short() -> None:
    assert [format_figure(value) for value in (True, 0.0, 1234.56, 2e9, float("nan"), float("inf"))] == [
        "yes",
        "0.0000",
        "1,234.6",
        "2e+09",
        "nan",
        "inf",
    ]
