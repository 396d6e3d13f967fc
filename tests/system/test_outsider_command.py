"""The command of an outsider's plugin has the shell's verbs, from fitting to prediction."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_its_command_works_on_a_table_from_fit_to_prediction(outsider: Command, table: Path, tmp_path: Path) -> None:
    said = outsider("table-classify", "columns", table, "--target", "level").stdout
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
    figures = json.dumps(json.loads(outsider("table-classify", "fit", *fit).stdout))
    assert "10 nearest rows" in figures
    assert (tmp_path / "run" / "report.html").is_file()
    outsider("table-classify", "predict", "--model", "run", "--out", "classes.csv", "--digits", 2)
    rows = list(csv.DictReader((tmp_path / "classes.csv").read_text().splitlines()))
    truth = list(csv.DictReader(table.read_text().splitlines()))
    right = sum(mine["class"] == theirs["level"] for mine, theirs in zip(rows, truth, strict=True))
    assert right > 0.9 * len(truth)


def test_its_demo_ends_with_a_report_and_says_what_it_is(outsider: Command, tmp_path: Path) -> None:
    done = outsider("table-classify", "demo", "--quick", "--out", "run")
    assert "Simulated: three rings" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


def test_bad_tables_are_named_with_row_and_column(outsider: Command) -> None:
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
    said = outsider("python", "-c", code, *bad).stdout.splitlines()
    assert [line.removeprefix("t.csv").strip() for line in said] == [message.strip() for message in bad.values()]


def test_a_bad_table_is_one_line_and_leaves_nothing(outsider: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()
    said = outsider("table-classify", "fit", "--data", "empty.csv", code=1).stderr
    assert said == "table-classify: empty.csv is empty. Give a CSV file with a header.\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.csv"]
