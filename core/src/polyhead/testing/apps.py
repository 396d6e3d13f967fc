"""Check a command in fresh processes: quick help, every verb, clean output, exit codes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from polyhead import plugins
from polyhead.manifest import resolve
from polyhead.testing.report import Report, RuleError

__all__ = ["HEAVY", "VERBS", "check_app", "fresh_imports", "report_app"]

HEAVY = ("torch", "pandas", "matplotlib", "accelerate")
"""What neither a manifest, nor settings, nor ``--help`` may import."""
VERBS: tuple[tuple[str, ...], ...] = (
    ("demo",),
    ("fit",),
    ("evaluate",),
    ("predict",),
    ("export",),
    ("data", "check"),
    ("models",),
    ("datasets",),
)
"""The verbs that every app has."""
_RULES = "design.md, Apps"

# Runs a console script's function with arguments, as pip's wrapper does, and reports what it imported.
_RUN = """
import atexit, importlib, json, sys
probe, name, module, attribute, *arguments = sys.argv[1:]
heavy = json.loads(probe)["heavy"]
atexit.register(lambda: open(json.loads(probe)["file"], "w").write(json.dumps([m for m in heavy if m in sys.modules])))
sys.argv = [name, *arguments]
sys.exit(getattr(importlib.import_module(module), attribute)())
"""


def check_app(name: str, *, demo: bool = False, timeout_s: float = 120) -> list[str]:
    """Check a registered app through its console script.

    Args:
        name: the command.
        demo: run ``demo --quick`` too, in a temporary folder; at most 60 s on two cores.
        timeout_s: limit of each command, seconds.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: a rule is broken; names all that are.
    """
    return report_app(name, demo=demo, timeout_s=timeout_s).finish()


def report_app(name: str, *, demo: bool = False, timeout_s: float = 120) -> Report:
    """Do what ``check_app`` does, and return the report."""
    plugin, spec = plugins.find_app(name)
    report = Report(f'app "{name}"')
    app: Any = None
    with report.check("its manifest, its App and its tasks agree", "polyhead.manifest.AppSpec"):
        app = resolve(spec.target)
        tasks = {task.name for task in plugin.tasks}
        for field, mine, theirs in (("name", app.name, spec.name), ("plugin", app.plugin, plugin.name)):
            if mine != theirs:
                raise RuleError(f'{field} of {spec.target} is "{mine}" where the manifest has "{theirs}".')
        if not app.tasks or not set(app.tasks) <= tasks:
            raise RuleError(f"its tasks are {list(app.tasks)}; the plugin has {sorted(tasks)}.")
    script: tuple[str, str] | None = None
    with report.check("its distribution installs the command", "polyhead.manifest.AppSpec.name"):
        found = list(importlib.metadata.entry_points(group="console_scripts", name=name))
        if not found:
            raise RuleError(f"there is no such console script. Add [project.scripts] {name} = ... to pyproject.toml.")
        script = (found[0].module, found[0].attr)
    if script is None or app is None:
        return report
    with tempfile.TemporaryDirectory() as temporary:
        command = _Command(name, script, Path(temporary), timeout_s)
        _check_help(report, command, app)
        _check_lists(report, command)
        _check_errors(report, command)
        if demo:
            _check_demo(report, command)
    return report


def fresh_imports(modules: Sequence[str]) -> list[str]:
    """Import ``modules`` in a fresh process; return which of ``HEAVY`` came with them.

    Raises:
        RuleError: a module cannot be imported.
    """
    code = f"import importlib, sys\nfor name in {list(modules)}: importlib.import_module(name)\n"
    code += f"print(*[name for name in {list(HEAVY)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuleError(done.stderr.strip().splitlines()[-1])
    return done.stdout.split()


class _Command:
    """Runs the app in fresh processes, in a folder of its own."""

    def __init__(self, name: str, script: tuple[str, str], folder: Path, timeout_s: float) -> None:
        self.name, self.folder, self._probes = name, folder / "work", folder
        self.folder.mkdir()
        self._script, self._timeout_s = script, timeout_s

    def __call__(self, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Return the finished process, and which heavy modules it imported."""
        handle, file = tempfile.mkstemp(suffix=".json", dir=self._probes)
        os.close(handle)
        probe = json.dumps({"heavy": HEAVY, "file": file})
        environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "120", "MPLBACKEND": "Agg"}
        done = subprocess.run(
            [sys.executable, "-c", _RUN, probe, self.name, *self._script, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=self._timeout_s,
            check=False,
        )
        return done, json.loads(Path(file).read_text() or "[]")

    def expect(self, code: int, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run and raise RuleError unless it exits with ``code``."""
        done, imported = self(*arguments)
        if done.returncode != code:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            shown = " ".join((self.name, *arguments))
            raise RuleError(f"`{shown}` exits with {done.returncode}, expected {code}, and says: {said}")
        return done, imported


def _check_help(report: Report, command: _Command, app: Any) -> None:
    verbs: list[tuple[str, ...]] = [(), *VERBS, *((name,) for name in app.commands)]
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        answers = [pool.submit(command.expect, 0, *verb, "--help") for verb in verbs]
    for verb, answer in zip(verbs, answers, strict=True):
        shown = " ".join((command.name, *verb, "--help"))
        with report.check(f"`{shown}` answers", _RULES):
            done, imported = answer.result()
            if not done.stdout.strip():
                raise RuleError("it prints nothing.")
            # A command of the plugin's own is imported to show its options.
            if imported and " ".join(verb) not in app.commands:
                raise RuleError(f"it imports {', '.join(imported)}. Import them inside functions.")


def _check_lists(report: Report, command: _Command) -> None:
    for verb in ("models", "datasets"):
        with report.check(f"`{command.name} {verb} --json` prints one JSON document", "style.md, Command line"):
            done, _ = command.expect(0, verb, "--json")
            try:
                document = json.loads(done.stdout)
            except ValueError as error:
                raise RuleError(f"stdout is no JSON: {error}") from error
            if not document:
                raise RuleError("it is empty.")


def _check_errors(report: Report, command: _Command) -> None:
    with report.check("an unknown option is wrong usage, exit code 2", _RULES):
        command.expect(2, "fit", "--no-such-option")
    with report.check("missing data are one line that names them, exit code 1", _RULES):
        done, _ = command.expect(1, "data", "check", "no-such-file.csv")
        lines = done.stderr.strip().splitlines()
        if len(lines) != 1 or "no-such-file.csv" not in lines[0]:
            raise RuleError(f"stderr is {done.stderr!r}.")


def _check_demo(report: Report, command: _Command) -> None:
    with report.check(f"`{command.name} demo --quick` ends with a report", _RULES):
        done, _ = command.expect(0, "demo", "--quick")
        if not done.stdout.strip():
            raise RuleError("it prints no result.")
        if not list(command.folder.rglob("report.html")):
            raise RuleError("it leaves no report.html.")
