"""Turn an app into a command: the verbs with their options, one line for an error, an exit code. Imports no torch."""

from __future__ import annotations

import ast
import errno
import importlib.util
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from polyhead.errors import PolyheadError
from polyhead.manifest import resolve
from polyhead_apps.app import App
from polyhead_apps.config import UsageError
from polyhead_apps.console import Console
from polyhead_apps.opening import settings_class, task_spec
from polyhead_apps.options import SETTINGS, Given, SettingOption, common_parameters, setting_options
from polyhead_apps.runs import command_line, versions
from polyhead_apps.runtime import rank

__all__ = ["build", "guard", "main", "version_option", "with_debug"]

RUN = ("config", "sets", "seed", "device", "threads")
_TYPER_INTERRUPTED = 130
"""What Typer makes of Ctrl-C, silently."""
SAY = ("quiet", "verbose", "debug")


@dataclass(frozen=True)
class Verb:
    """A verb that every app has."""

    target: str
    """``"module:function"``, called as ``function(app, given, console, **options)``."""
    help: str
    options: tuple[str, ...]
    sections: tuple[str, ...] = ()
    """Sections of the task's settings whose fields become options."""
    argument: tuple[str, str, str] | None = None
    """The argument that it takes: parameter, what help calls it, help."""
    group: str = ""
    """The command it is part of; that command itself, if it has this name."""


VERBS: Mapping[str, Verb] = {
    "demo": Verb(
        "polyhead_apps.verbs.demo:demo",
        "Run the embedded dataset end to end: fit, evaluate against baselines, predict, report.",
        ("quick", "data", "task", "time_limit", "out", "force", *RUN, "as_json", *SAY),
        ("data",),
    ),
    "fit": Verb(
        "polyhead_apps.verbs.fit:fit",
        "Train a model on your data, evaluate it and write a report.",
        (
            *("data", "task", "model_name", "preset", "init_from"),
            *("epochs", "steps", "batch_size", "lr", "time_limit"),
            *("resume", "devices", "strategy", "num_nodes"),
            *("out", "force", *RUN, "as_json", *SAY),
        ),
        ("data",),
    ),
    "evaluate": Verb(
        "polyhead_apps.verbs.evaluate:evaluate",
        "Measure a saved model and the baselines on a split of the data.",
        ("data", "split", "task", "model", "batch_size", "out", "force", *RUN, "as_json", *SAY),
        ("data",),
    ),
    "predict": Verb(
        "polyhead_apps.verbs.predict:predict",
        "Write a saved model's predictions for your data.",
        ("data", "task", "model", "batch_size", "out", "force", *RUN, "as_json", *SAY),
        ("data", "predict"),
    ),
    "export": Verb(
        "polyhead_apps.verbs.export:export",
        "Write a saved model for use elsewhere; every file is checked against the model first.",
        ("data", "task", "model", "targets", "out", "force", *RUN, "as_json", *SAY),
        ("data",),
    ),
    "check": Verb(
        "polyhead_apps.verbs.data:check",
        "Read a dataset as `fit` would, and say what was found or what is wrong.",
        ("task", "config", "sets", "as_json", *SAY),
        ("data",),
        argument=("data", "PATH", "Folder or file, or a dataset's name."),
        group="data",
    ),
    "models": Verb("polyhead_apps.verbs.models:models", "List the models.", ("as_json", *SAY)),
    "datasets": Verb(
        "polyhead_apps.verbs.datasets:datasets",
        "List the datasets: what is embedded, what can be read, where to get public data.",
        ("as_json", *SAY),
        group="datasets",
    ),
    "get": Verb(
        "polyhead_apps.verbs.datasets:get",
        "Fetch a public dataset: every file is checked against its digest; an interrupted transfer goes on.",
        ("out", "as_json", *SAY),
        argument=("name", "NAME", "A public dataset that `datasets` lists."),
        group="datasets",
    ),
}
GROUPS: Mapping[str, str] = {
    "data": "Look at data before using them.",
    "datasets": VERBS["datasets"].help,
}
"""Commands that have commands, and their help."""


def main(app: App, arguments: Sequence[str] | None = None) -> int:
    """Run an app's command on ``arguments``, those of the process if None; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return guard(app.name, lambda: build(app, given), given)


def guard(name: str, make: Callable[[], typer.Typer], arguments: Sequence[str]) -> int:
    """Run a Typer app; turn whatever goes wrong into one line on stderr and an exit code.

    Args:
        name: the command.
        make: builds the Typer app; its errors are treated like those of the command.
        arguments: those after the command's name.

    Returns:
        int: 0 done; 1 failed; 2 wrong usage.
    """
    debug = "--debug" in arguments
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        with warnings.catch_warnings():
            # One line, without the source line that raised it.
            warnings.showwarning = lambda message, *_, **__: _warn(" ".join(str(message).split()))
            code = make()(args=_with_resume_value(arguments), prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        if code == _TYPER_INTERRUPTED:
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except BrokenPipeError:
        # The reader of our output has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (KeyboardInterrupt, typer.Abort):
        return _fail(name, "stopped.", debug)
    except UsageError as error:
        return _fail(name, str(error), debug, code=2)
    except typer.TyperException as error:
        return _fail(name, _usage(name, error), debug, code=2)
    except PolyheadError as error:
        return _fail(name, str(error), debug)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" ({error.filename})" if error.filename else ""
            return _fail(name, f"the disk is full{where}. Free some space; a run goes on with fit --resume.", debug)
        return _fail(name, _unexpected(error, debug), debug)
    except Exception as error:
        return _fail(name, _unexpected(error, debug), debug)


def build(app: App, arguments: Sequence[str] = ()) -> typer.Typer:
    """Return the Typer app of ``app``. Extra commands are imported only if ``arguments`` call them."""
    command = _typer(app.summary, app.epilog)
    settings = [settings_class(task_spec(app, task)) for task in app.tasks]
    groups: dict[str, typer.Typer] = {}
    for name, verb in VERBS.items():
        parent = command
        if verb.group:
            if verb.group not in groups:
                groups[verb.group] = _typer(GROUPS[verb.group], "", bare=verb.group not in VERBS)
                command.add_typer(groups[verb.group], name=verb.group)
            parent = groups[verb.group]
        function = _verb(app, verb, settings, arguments)
        if name == verb.group:
            parent.callback(invoke_without_command=True)(_unless_called(function))
        else:
            parent.command(name, help=verb.help)(function)
    called = next((argument for argument in arguments if not argument.startswith("-")), "")
    for name, reference in app.commands.items():
        if name == called:
            command.command(name)(with_debug(resolve(reference)))
        else:
            command.command(name, help=_summary(reference))(_nothing)
    command.callback()(version_option(f"{app.name} of plugin {app.plugin}, polyhead"))
    return command


def _typer(summary: str, epilog: str, *, bare: bool = True) -> typer.Typer:
    return typer.Typer(
        help=summary,
        epilog=epilog or None,
        no_args_is_help=bare,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["--help", "-h"]},
    )


def _verb(app: App, verb: Verb, settings: Sequence[Any], arguments: Sequence[str]) -> Callable[..., Any]:
    """Return a function with the verb's options as its signature; it calls the verb with what the user gave."""
    common = common_parameters(verb.options, app.tasks)
    taken = [flag for parameter in common for flag in _flags(parameter)]
    fields: list[SettingOption] = []
    for section in verb.sections:
        fields += setting_options(settings, section, [*taken, *(option.flag for option in fields)])

    def call(**values: Any) -> None:
        # Of several processes only the first one speaks.
        console = Console(quiet=values.pop("quiet") or rank() != 0, verbose=values.pop("verbose"))
        values.pop("debug")
        flags = {}
        for parameter, (key, flag) in SETTINGS.items():
            if parameter in verb.options and (value := values.pop(parameter)) is not None:
                flags[key] = (flag, value)
        # Who asks for a number of steps does not mean the task's default of epochs, and the reverse.
        for one, other in (("train.steps", "train.epochs"), ("train.epochs", "train.steps")):
            if one in flags and other not in flags:
                flags[other] = (flags[one][0], None)
        for option in fields:
            if (value := values.pop(option.name)) is not None:
                flags[option.key] = (option.flag, option.value(value))
        file, sets = values.pop("config", None), values.pop("sets", None)
        given = Given(file, tuple(sets or ()), flags, command_line(app.name, arguments))
        resolve(verb.target)(app, given, console, **values)

    parameters = [*common[:1], *(option.parameter for option in fields), *common[1:]] if fields else common
    if verb.argument is not None:
        name, metavar, text = verb.argument
        typed = Annotated[str, typer.Argument(metavar=metavar, help=text)]
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typed), *parameters]
    return _with_signature(call, parameters)


def _unless_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the callback of a command that has commands: it does its own work only if none of them is called."""

    def call(context: typer.Context, **values: Any) -> None:
        if context.invoked_subcommand is None:
            function(**values)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    context = inspect.Parameter("context", kind, annotation=typer.Context)
    return _with_signature(call, [context, *inspect.signature(function).parameters.values()])


def _with_signature(call: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> Callable[..., Any]:
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _flags(parameter: inspect.Parameter) -> list[str]:
    return [flag for flag in parameter.annotation.__metadata__[0].param_decls if flag.startswith("--")]


def with_debug(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command's function with the option ``--debug``, which `guard` answers, where it lacks it."""
    signature = inspect.signature(function, eval_str=True)
    if "debug" in signature.parameters:
        return function

    def call(*positional: Any, **values: Any) -> Any:
        values.pop("debug")
        return function(*positional, **values)

    call.__doc__ = function.__doc__
    return _with_signature(call, [*signature.parameters.values(), *common_parameters(["debug"], ())])


def _nothing() -> None:
    """Stand in for a command of the app that is listed but not called."""


def _summary(reference: str) -> str:
    """Return the first line of a function's docstring, read from the source: importing it may be slow."""
    module, _, attribute = reference.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return ""
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


def version_option(name: str) -> Callable[..., None]:
    """Return the callback of a Typer app that gives it the option ``--version``."""

    def show(wanted: bool) -> None:
        if wanted:
            typer.echo(f"{name} {versions().get('polyhead', '(no distribution)')}")
            raise typer.Exit

    def callback(version: bool) -> None:
        """Take ``--version``, which `show` has answered."""

    option = typer.Option("--version", help="Show the version.", callback=show, is_eager=True)
    parameter = inspect.Parameter(
        "version", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )
    return _with_signature(callback, [parameter])


def _with_resume_value(arguments: Sequence[str]) -> list[str]:
    """Give a ``--resume`` without a value the value "last": Typer's options always take one."""
    result: list[str] = []
    for number, argument in enumerate(arguments):
        result.append(argument)
        following = arguments[number + 1] if number + 1 < len(arguments) else "-"
        if argument == "--resume" and not re.fullmatch(r"last|step-\d+", following):
            result.append("last")
    return result


def _usage(name: str, error: typer.TyperException) -> str:
    """Return Typer's complaint as one line."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else name
    return f"{' '.join(error.format_message().split())}  See: {command} --help"


def _unexpected(error: Exception, debug: bool) -> str:
    text = " ".join(str(error).split())
    hint = "" if debug else "  --debug shows the traceback."
    return f"{type(error).__name__}: {text}{hint}" if text else f"{type(error).__name__}.{hint}"


def _fail(name: str, message: str, debug: bool, code: int = 1) -> int:
    if debug:
        traceback.print_exc()
    process = f" (process {rank()})" if rank() else ""
    sys.stderr.write(f"{name}{process}: {message}\n")
    return code


def _warn(message: str) -> None:
    if rank() == 0:
        sys.stderr.write(f"warning: {message}\n")
