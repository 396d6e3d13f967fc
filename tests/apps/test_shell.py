"""Options, help, errors and exit codes; what the verbs do is in test_verbs.py."""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import pytest
import typer
from pydantic import Field

from polyhead.errors import DataError, PluginError, StorageError
from polyhead_apps.config import Section, TaskSettings, UsageError
from polyhead_apps.options import Given, setting_options
from polyhead_apps.shell import VERBS, guard, with_debug


def failing(error: BaseException) -> Callable[[], typer.Typer]:
    """Make a Typer app whose only command raises."""
    cli = typer.Typer(pretty_exceptions_enable=False)

    @cli.command()
    def command(debug: bool = False) -> None:
        raise error

    return lambda: cli


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DataError("a.csv is empty."), 1, "app: a.csv is empty."),
        (UsageError("--x is wrong."), 2, "app: --x is wrong."),
        (ZeroDivisionError("by\nzero"), 1, "app: ZeroDivisionError: by zero  --debug shows the traceback."),
        (KeyError(), 1, "app: KeyError.  --debug shows the traceback."),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/log.txt"),
            1,
            "app: the disk is full (/x/log.txt). Free some space; a run goes on with fit --resume.",
        ),
        (OSError(errno.ENOSPC, ""), 1, "app: the disk is full. Free some space; a run goes on with fit --resume."),
        (StorageError("Cannot write x: the disk is full."), 1, "app: Cannot write x: the disk is full."),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "x"),
            1,
            "app: FileNotFoundError: [Errno 2] No such file: 'x'  --debug shows the traceback.",
        ),
        (KeyboardInterrupt(), 1, "app: stopped."),
        (typer.Abort(), 1, "app: stopped."),
        (
            typer.BadParameter("not\ngood"),
            2,
            "app: Invalid value: not good  See: app --help",
        ),
    ],
)
def test_errors_are_one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert guard("app", failing(error), []) == code
    said = capsys.readouterr()
    assert said.out == ""
    # Typer ends the line that ^C was echoed on.
    assert said.err.removeprefix("\n") == line + "\n"


def test_debug_shows_the_traceback_before_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard("app", failing(ZeroDivisionError("x")), ["--debug"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback (most recent call last):")
    assert said.splitlines()[-1] == "app: ZeroDivisionError: x"


def test_errors_while_building_are_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    def make() -> typer.Typer:
        raise PluginError("no such task")

    assert guard("app", make, []) == 1
    assert capsys.readouterr().err == "app: no such task\n"


def test_warnings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    cli = typer.Typer()

    @cli.command()
    def command() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("odd\nthing", stacklevel=1)

    assert guard("app", lambda: cli, []) == 0
    assert capsys.readouterr().err == "warning: odd thing\n"


TOY = "fit --data toy-lines"
WRONG = [
    ("fti", 2, "No such command 'fti'. Did you mean 'fit'?  See: line-fit --help"),
    ("fit --dat x", 2, "No such option: --dat"),
    ("fit --steps many", 2, "Invalid value for '--steps': Input should be a valid integer"),
    ("fit --task other", 2, "Invalid value for '--task': Value error, 'other' is not one of"),
    ("fit", 2, "Which data? Give --data PATH, or an embedded dataset: toy-lines. The command `datasets` lists"),
    ("fit --data toy-line", 1, '--data toy-line: no such file, folder or dataset. Did you mean "toy-lines"?  Embedded'),
    ("fit --data points", 2, 'Dataset "points" reads your files: give their path, --data PATH.'),
    ("fit --data . --task sign", 2, 'Task "sign" reads no files: --data takes toy-lines.'),
    ("fit --data x --task sign --scale 2", 2, "--scale is no option of this task: its settings have no data.scale."),
    (f"{TOY} --scale 0", 2, "--scale: data.scale is 0.0: input should be greater than 0."),
    (f"{TOY} --set data.scal=1", 2, '--set data.scal=1: no setting "data.scal". Did you mean "data.scale"?'),
    (f"{TOY} --model lin", 1, 'No model of task "line-fit" "lin". Did you mean "line"?'),
    (f"{TOY} --preset tin", 1, 'No preset of model "line" "tin". Did you mean "tiny"?'),
    (f"{TOY} --set model.hiden=3", 1, 'Model "line": no setting "hiden". Did you mean "hidden"?  (--set model.KEY'),
    (f"{TOY} --set model.zzz=3", 1, 'Model "line": no setting "zzz". All: hidden, width.  (--set model.KEY=VALUE)'),
    (
        f"{TOY} --set model.hidden=2.5",
        1,
        'Model "line": "hidden" is 2.5 (float); expected int.  (--set model.KEY=VALUE)',
    ),
    (f"{TOY} --time-limit soon", 2, "--time-limit soon: write a time such as 90s, 20min or 1.5h."),
    (f"{TOY} --device abacus", 2, "--device abacus: no such device. Write auto, cpu, cuda, cuda:1 or mps."),
    (f"{TOY} --device cuda:99", 2, "--device cuda:99: not available on this machine ("),
    (f"{TOY} --device meta", 2, "--device meta: not available on this machine. Try --device cpu."),
    (f"{TOY} --config none.yaml", 1, "Cannot read settings none.yaml: No such file or directory."),
    (f"{TOY} --init-from none", 1, "--init-from none: no such run or model folder"),
    ("fit --resume", 2, "--resume: no unfinished run in runs/line-fit. Name one with --out RUN."),
    ("evaluate", 1, "No fitted run in runs/line-fit: fit first (line-fit fit --data PATH), or name --model."),
    ("predict", 1, "No fitted run in runs/line-fit: fit first"),
    ("export", 1, "No fitted run in runs/line-fit: fit first"),
    ("data check", 2, "Missing argument 'PATH'.  See: line-fit data check --help"),
]


@pytest.mark.parametrize(("command", "code", "line"), WRONG)
def test_wrong_commands_are_answered_in_one_line(
    line_fit: Callable[..., Any], tmp_path: Path, command: str, code: int, line: str
) -> None:
    said = line_fit(*command.split())
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"line-fit: {line}")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_help_names_every_verb_and_the_apps_own_commands(line_fit: Callable[..., Any]) -> None:
    said = line_fit("--help")
    assert said.code == 0
    assert "Fit straight lines." in said.out
    assert "Lines of your own: line-fit fit --data points.csv" in said.out
    for verb in ("demo", "fit", "evaluate", "predict", "export", "data", "models", "datasets", "draw"):
        assert f" {verb} " in said.out
    assert "Draw points into a file." in said.out


def test_fields_of_settings_are_options(line_fit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    said = line_fit("fit", "--help")
    assert "Decimal mark [of the file] (default: point)." in said.out
    assert "Factor on all columns (default: 1.5)." in said.out
    assert "--shuffle-rows" in said.out
    assert "--no-shuffle-rows" in said.out
    assert "Columns to use (default: a,b)." in said.out
    assert "--digits" not in said.out
    assert "--digits" in line_fit("predict", "--help").out


def test_version_is_shown(line_fit: Callable[..., Any]) -> None:
    said = line_fit("--version")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("line-fit of plugin fake, polyhead ")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], *([*dict.fromkeys([*verb.group.split(), name]), "--help"] for name, verb in VERBS.items())],
)
def test_help_needs_no_torch(fresh: Callable[..., Any], arguments: list[str]) -> None:
    probe = (
        "import sys, polyhead_fake.app\n"
        "from polyhead_apps.shell import main\n"
        f"code = main(polyhead_fake.app.app, {arguments!r})\n"
        "heavy = {'torch', 'accelerate', 'matplotlib', 'pandas', 'numpy', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    result = fresh("-c", probe)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: line-fit" in result.stdout


def test_broken_pipe_is_quiet(fresh: Callable[..., Any]) -> None:
    probe = (
        "import os, sys, polyhead_fake.app\n"
        "from polyhead_apps.shell import main\n"
        "reader, writer = os.pipe(); os.dup2(writer, 1); os.close(writer); os.close(reader)\n"
        "sys.exit(main(polyhead_fake.app.app, ['models']))\n"
    )
    result = fresh("-c", probe)
    assert (result.returncode, result.stderr) == (1, "")


def test_own_commands_of_an_app_run(line_fit: Callable[..., Any], tmp_path: Path) -> None:
    said = line_fit("draw", tmp_path / "drawn.csv", "--rows", 2, "--debug")
    assert (said.code, said.out, said.err) == (0, "", "")
    assert len((tmp_path / "drawn.csv").read_text(encoding="utf-8").splitlines()) == 3
    assert "How many." in line_fit("draw", "--help").out


def test_modules_of_own_commands_that_are_missing_are_named(
    fake_plugin: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from polyhead_fake.app import app

    from polyhead_apps.shell import main

    broken = replace(app, commands={"draw": "polyhead_fake.draw:dra"})
    assert main(broken, ["draw"]) == 1
    assert 'Module "polyhead_fake.draw" has no "dra"' in capsys.readouterr().err
    assert main(broken, ["--help"]) == 0


def test_resume_takes_a_value_or_none(line_fit: Callable[..., Any], tmp_path: Path) -> None:
    for arguments in (["--resume"], ["--resume", "last"], ["--resume", "step-3"], ["--resume", "--out", "x"]):
        said = line_fit("fit", *arguments)
        assert said.err.startswith("line-fit: --resume: ")


class Data(Section):
    text: Annotated[str, Field(description="a text")] = "x"
    whole: Annotated[int | None, Field(description="a number.")] = None
    yes: Annotated[bool, Field(description="a switch")] = True
    kind: Annotated[Literal["a", "b"] | None, Field(description="a choice")] = None
    level: Annotated[Literal[1, 2], Field(description="a level")] = 1
    many: Annotated[tuple[int, ...], Field(description="numbers")] = (1, 2)
    either: Annotated[int | str, Field(description="both")] = 1
    where: Annotated[Path | None, Field(description="a file")] = None


class Settings(TaskSettings):
    data: Data = Data()


def test_types_of_fields_become_types_of_options() -> None:
    options = {option.key: option for option in setting_options([Settings], "data", [])}
    types = {key: get_args(get_args(o.parameter.annotation)[0])[0] for key, o in options.items()}
    assert types == {
        "data.text": str,
        "data.whole": int,
        "data.yes": bool,
        "data.kind": Literal["a", "b"],
        "data.level": str,
        "data.many": str,
        "data.either": str,
        "data.where": Path,
    }
    assert options["data.many"].value("3, 4,") == ["3", "4"]
    assert options["data.text"].value("3, 4,") == "3, 4,"


def test_fields_that_clash_with_common_options_are_refused() -> None:
    with pytest.raises(PluginError) as caught:
        setting_options([Settings], "data", ["--many"])
    assert str(caught.value) == "Setting data.many cannot become --many: the app has that option. Rename it."


def test_given_lies_over_the_base() -> None:
    given = Given(sets=("data.text=z",), flags={"data.many": ("--many", ["3"])})
    assert given.settings(Settings, {"data.text": "y", "data.whole": 3}).data == Data(text="z", whole=3, many=(3,))


def test_given_can_be_typed_again() -> None:
    flags = {
        "data.text": ("--text", "a b"),
        "data.yes": ("--yes", False),
        "data.many": ("--many", ["3", "4"]),
        "train.epochs": ("--steps", None),
    }
    given = Given(Path("my.yaml"), ("data.whole=3",), flags)
    assert given.arguments() == [
        *("--config", "my.yaml", "--text", "a b", "--no-yes", "--many", "3,4"),
        *("--set", "data.whole=3"),
    ]


def test_debug_is_added_once() -> None:
    def plain(x: int = 0) -> int:
        """Plain."""
        return x

    def knowing(debug: bool = False) -> bool:
        return debug

    assert with_debug(knowing) is knowing
    wrapped = with_debug(plain)
    assert list(inspect.signature(wrapped).parameters) == ["x", "debug"]
    assert wrapped.__doc__ == "Plain."
    assert wrapped(x=3, debug=True) == 3
