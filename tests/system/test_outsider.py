"""An outsider's plugin, installed from its wheel into an environment of its own, passes the kit."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

SOURCES = Path(__file__).parent / "outsider" / "src"
PUBLIC = re.compile(r"polyhead(_apps|_outsider)?(\.[a-z]\w*)*")
Command = Callable[..., subprocess.CompletedProcess[str]]


def test_it_imports_the_public_api_alone() -> None:
    for path in SOURCES.rglob("*.py"):
        for module, names in re.findall(r"^(?:from|import) (polyhead\S*)(?: import (.*))?$", path.read_text(), re.M):
            assert PUBLIC.fullmatch(module), f"{path.name}: {module}"
            assert not any(name.strip().startswith("_") for name in names.split(",")), f"{path.name}: {names}"


def test_it_passes_the_kit(outsider: Command, table: Path) -> None:
    given = f"path={str(table)!r}, settings={{'target': 'level'}}"
    code = f"from polyhead.testing import check_plugin\nprint(*check_plugin('outsider', {given}), sep='\\n')"
    kept = outsider("python", "-c", code).stdout
    for rule in (
        'dataset "table": data "mine.csv": split "test": the order and company of an index do not matter',
        'dataset "table": adapter "table": an empty file is refused with its name',
        'task ClassifyTask with model "table-attention": metrics of two processes merge into those of one',
        'model "table-attention": a batch equals its rows one by one',
        'app "table-classify": `table-classify columns --help` answers',
    ):
        assert rule in kept


def test_the_umbrella_command_lists_it(outsider: Command) -> None:
    assert (
        "classify the rows of a table"
        in outsider("python", "-c", "from polyhead_apps.cli import main; main()", "plugins").stdout
    )
