"""An installed distribution of broken plugins: each is named with its mend, and everything else works."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

BROKEN = Path(__file__).parent / "broken_plugin"
NAMED = (
    'Plugin "leaver" (polyhead-broken 0.3.0) failed to load: usage: leaver FILE',
    "Plugin \"squint\" (polyhead-broken 0.3.0) failed to load: No module named 'no_such_backbones'  "
    "pip install 'polyhead-broken[backbones]'",
)
LIST = (
    "from polyhead import plugins\nprint(*[p.name for p in plugins.plugins()])\nprint(*plugins.failures(), sep='\\n')"
)
APP = "from polyhead_traffic.app import main\nmain()"
UMBRELLA = "from polyhead_apps.cli import main\nmain()"
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def python(environment_with: Callable[[Path], Path]) -> Path:
    return environment_with(BROKEN) / "python"


@pytest.fixture
def run(python: Path) -> Run:
    def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run code as a console script would, and say at the end whether torch was imported."""
        probe = (
            "import atexit, sys\natexit.register(lambda: sys.stderr.write(f'torch: {\"torch\" in sys.modules}\\n'))\n"
        )
        return subprocess.run(
            [str(python), "-c", probe + code, *arguments],
            env={**os.environ, "NO_COLOR": "1", "COLUMNS": "300", **variables},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    return run


def test_each_is_named_with_its_mend_and_the_others_load(run: Run) -> None:
    names, *failures = run(LIST, POLYHEAD_PLUGINS="traffic,squint,leaver").stdout.splitlines()
    assert names == "traffic"
    assert tuple(failures) == NAMED


def test_of_two_owners_of_a_name_the_first_is_kept_and_both_are_named(run: Run) -> None:
    # Distributions are loaded by name: polyhead-broken comes before polyhead-traffic, in every process.
    names, failure = run(LIST, POLYHEAD_PLUGINS="traffic,thief").stdout.splitlines()
    assert names == "thief"
    assert failure == (
        'Plugin "traffic" (polyhead-traffic 0.1.0) failed to load: Model "gman" belongs to both '
        '"thief" (polyhead-broken 0.3.0) and "traffic" (polyhead-traffic 0.1.0). Rename or uninstall one.'
    )


@pytest.mark.parametrize("arguments", [("--help",), ("fit", "--help"), ("models",)], ids=" ".join)
def test_the_apps_work(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(APP, *arguments, POLYHEAD_PLUGINS="traffic,squint,leaver")
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.endswith("torch: False\n")


def test_the_umbrella_command_names_them(run: Run) -> None:
    done = run(UMBRELLA, "plugins", POLYHEAD_PLUGINS="traffic,squint,leaver")
    said = done.stdout + done.stderr
    assert "traffic" in done.stdout
    for sentence in NAMED:
        assert sentence in said
    assert done.stderr.endswith("torch: False\n")


def test_the_kit_names_them(run: Run) -> None:
    done = run(UMBRELLA, "check-plugin", "squint", POLYHEAD_PLUGINS="traffic,squint")
    assert done.returncode == 1
    assert NAMED[1] in done.stderr


def test_strict_makes_the_first_an_error(run: Run) -> None:
    done = run(LIST, POLYHEAD_PLUGINS="traffic,squint,leaver", POLYHEAD_STRICT_PLUGINS="1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2] == f"polyhead.errors.PluginError: {NAMED[0]}"
