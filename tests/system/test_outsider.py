"""An outsider's plugin, installed from its wheel into an environment of its own, works and passes the kit."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

OUTSIDER = Path(__file__).parent / "outsider"
PUBLIC = re.compile(r"polyhead(_apps|_outsider)?(\.[a-z]\w*)*")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(environment_with: Callable[[Path], Path]) -> Path:
    return environment_with(OUTSIDER)


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Command:
    variables = {**os.environ, "NO_COLOR": "1", "COLUMNS": "160", "OMP_NUM_THREADS": "1"}

    def run(name: str, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(environment / name), *map(str, arguments)],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done

    return run


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table in which the sum of two columns decides."""
    path = tmp_path / "mine.csv"
    rows = [[(7 * i) % 11, "low" if (7 * i) % 11 + (5 * i) % 13 < 11 else "high", (5 * i) % 13] for i in range(143)]
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["a", "level", "b"], *rows])
    return path


def test_it_imports_the_public_api_alone() -> None:
    for path in (OUTSIDER / "src").rglob("*.py"):
        for module, names in re.findall(r"^(?:from|import) (polyhead\S*)(?: import (.*))?$", path.read_text(), re.M):
            assert PUBLIC.fullmatch(module), f"{path.name}: {module}"
            assert not any(name.strip().startswith("_") for name in names.split(",")), f"{path.name}: {names}"


def test_it_passes_the_kit(run: Command, table: Path) -> None:
    given = f"path={str(table)!r}, settings={{'target': 'level'}}"
    code = f"from polyhead.testing import check_plugin\nprint(*check_plugin('outsider', {given}), sep='\\n')"
    kept = run("python", "-c", code).stdout
    for rule in (
        'dataset "table": data "mine.csv": split "test": the order and company of an index do not matter',
        'dataset "table": adapter "table": an empty file is refused with its name',
        'task ClassifyTask with model "table-attention": metrics of two processes merge into those of one',
        'model "table-attention": a batch equals its rows one by one',
        'app "table-classify": `table-classify columns --help` answers',
    ):
        assert rule in kept


def test_the_umbrella_command_lists_it(run: Command) -> None:
    assert (
        "classify the rows of a table"
        in run("python", "-c", "from polyhead_apps.cli import main; main()", "plugins").stdout
    )


def test_its_command_works_on_a_table_from_fit_to_prediction(run: Command, table: Path, tmp_path: Path) -> None:
    said = run("table-classify", "columns", table, "--target", "level").stdout
    assert said.splitlines() == ["a\t0\t10", "b\t0\t12"]
    fit = [
        "--data",
        table,
        "--target",
        "level",
        "--preset",
        "tiny",
        "--epochs",
        60,
        "--set",
        "train.validate_epochs=20",
        "--out",
        "run",
        "--json",
    ]
    figures = json.dumps(json.loads(run("table-classify", "fit", *fit).stdout))
    assert "10 nearest rows" in figures
    assert (tmp_path / "run" / "report.html").is_file()
    run("table-classify", "predict", "--model", "run", "--out", "classes.csv", "--digits", 2)
    rows = list(csv.DictReader((tmp_path / "classes.csv").read_text().splitlines()))
    truth = list(csv.DictReader(table.read_text().splitlines()))
    right = sum(mine["class"] == theirs["level"] for mine, theirs in zip(rows, truth, strict=True))
    assert right > 0.9 * len(truth)


def test_its_demo_ends_with_a_report_and_says_what_it_is(run: Command, tmp_path: Path) -> None:
    done = run("table-classify", "demo", "--quick", "--out", "run")
    assert "Simulated: three rings" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


def test_bad_tables_are_named_with_row_and_column(run: Command) -> None:
    bad = {
        "": "is empty. Give a CSV file with a header.",
        "a,b\n1,x,3\n": ", row 2: 3 cells where the header has 2.",
        "a,b\nx,y\n": ', row 2, column "a": "x" is not a finite number. Fill it or leave it out.',
        "a,b\n1,y\n": "has 1 rows of 1 classes. It needs 10 rows of 2 classes.",
        "b\n1\n": "has one column only. It needs columns of numbers beside the classes.",
        'a,b\n"1,y\n': "is not a CSV file in UTF-8: unexpected end of data.",
    }
    code = (
        "import sys, pathlib\nfrom polyhead_outsider import data, settings\n"
        "for content in sys.argv[1:]:\n"
        "    path = pathlib.Path('t.csv')\n    path.write_text(content)\n"
        "    try: data.open_csv(path, settings.TableSettings())\n"
        "    except data.DataError as error: print(error)\n"
    )
    said = run("python", "-c", code, *bad).stdout.splitlines()
    assert [line.removeprefix("t.csv").strip() for line in said] == [message.strip() for message in bad.values()]


def test_a_bad_table_is_one_line_and_leaves_nothing(run: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    said = run("table-classify", "fit", "--data", "empty.csv", code=1).stderr
    assert said == "table-classify: empty.csv is empty. Give a CSV file with a header.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.csv"]
