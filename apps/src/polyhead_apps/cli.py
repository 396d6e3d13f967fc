"""The umbrella command `polyhead`: what is installed, and whether it works. Imports torch only where it must."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from polyhead import plugins
from polyhead_apps.console import Console
from polyhead_apps.runs import versions
from polyhead_apps.shell import guard, version_option, with_debug

if TYPE_CHECKING:
    from polyhead.ops.commands import Said

__all__ = ["main"]

cli = typer.Typer(
    help="Polyhead: attention operators, kernels and the plugins that use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

kernels = typer.Typer(
    help="Look at operators and their kernels.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
)
cli.add_typer(kernels, name="kernels")

KINDS = ("apps", "models", "datasets", "tasks", "mixers")
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else.")]


def main() -> NoReturn:
    """Run the command and exit: 0 done, 1 failed, 2 wrong usage."""
    raise SystemExit(guard("polyhead", lambda: cli, sys.argv[1:]))


cli.callback()(version_option("polyhead"))


@cli.command("plugins")
@with_debug
def list_plugins(as_json: AsJson = False) -> None:
    """List the plugins and what they offer; those that failed to load with their errors."""
    manager = plugins.manager()
    if as_json:
        Console().result(json.dumps({"plugins": [_plugin(p.name) for p in manager.plugins], "failures": _failures()}))
        return
    for plugin in manager.plugins:
        entry = _plugin(plugin.name)
        typer.echo(f"{plugin.name}  {plugin.summary}  ({entry['distribution']} {entry['version']})".rstrip())
        for kind in KINDS:
            if entry[kind]:
                typer.echo(f"  {kind}: {', '.join(entry[kind])}")
    for failure in manager.failures:
        typer.echo(str(failure), err=True)
    if not manager.plugins:
        typer.echo("No plugin is installed, such as polyhead-traffic.", err=True)


@cli.command("doctor")
@with_debug
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine and this environment have; exit code 1 if something does not load."""
    report = _doctor()
    if as_json:
        Console().result(json.dumps(report, indent=2))
    else:
        _print(report)
    if report["failures"]:
        raise typer.Exit(1)


@cli.command("check-plugin")
@with_debug
def check_plugin(
    name: Annotated[str, typer.Argument(help="The plugin's name; the command `plugins` lists them.")],
) -> None:
    """Check that a plugin keeps the contracts: manifest, models, datasets, tasks, apps."""
    from polyhead import testing

    for line in testing.check_plugin(name):
        typer.echo(str(line))


@kernels.command("list")
@with_debug
def list_kernels(
    op: Annotated[str | None, typer.Option("--op", metavar="OP", help="One operator; all if not given.")] = None,
    as_json: AsJson = False,
) -> None:
    """List operators, their forms and kernels, the highest priority first."""
    from polyhead.ops import commands

    _say(commands.list_kernels(op), as_json)


@kernels.command("explain")
@with_debug
def explain(
    operator: Annotated[str, typer.Argument(metavar="OP", help="The operator.")],
    shape: Annotated[str, typer.Option("--shape", help="Of its first tensor, such as 2,8,128,64.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Such as bfloat16.")] = "float32",
    device: Annotated[str, typer.Option("--device", help="Such as cuda; it need not be here.")] = "cpu",
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="What else is true of it: causal=true.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show which kernel serves a call, why the others do not, and what the call costs."""
    from polyhead.ops import commands

    _say(commands.explain_call(operator, commands.parse_shape(shape), dtype, device, sets or ()), as_json)


OneOperator = Annotated[str | None, typer.Option("--op", metavar="OP", help="One operator; all if not given.")]
Device = Annotated[str, typer.Option("--device", help="Where to run.")]


@kernels.command("verify")
@with_debug
def verify(
    op: OneOperator = None,
    kernel: Annotated[str | None, typer.Option("--kernel", help="One kernel; all if not given.")] = None,
    dtypes: Annotated[list[str] | None, typer.Option("--dtype", help="One dtype; may be repeated.")] = None,
    device: Device = "cpu",
    self_test: Annotated[
        bool, typer.Option("--self-test", help="Break the kernels on purpose and show that the cases notice.")
    ] = False,
    changed: Annotated[
        bool, typer.Option("--changed", help="Only what has not passed with the same source before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Hold kernels against their operators' definitions in float64; exit code 1 if one fails."""
    from polyhead.ops import commands

    if self_test:
        _say(commands.break_kernels(op, kernel, device, changed=changed), as_json)
    else:
        _say(commands.verify_kernels(op, kernel, dtypes or (), device, changed=changed), as_json)


@kernels.command("compile")
@with_debug
def compile_ahead(
    op: OneOperator = None,
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="One device family, such as sm_90; may be repeated.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every configuration, not only the ones launched.")] = False,
    workers: Annotated[int, typer.Option("--workers", help="Processes; 0: one for each processor.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Build kernels for devices that need not be here and read the binaries; exit code 1 if one has a problem."""
    from polyhead.ops import commands

    _say(commands.compile_kernels(op, targets or (), every=every, workers=workers), as_json)


@kernels.command("bench")
@with_debug
def bench(
    op: OneOperator = None,
    dtypes: Annotated[list[str] | None, typer.Option("--dtype", help="Such as bfloat16; may be repeated.")] = None,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option("--threads", help="Of torch, on a CPU.")] = 2,
    repeats: Annotated[int, typer.Option("--repeats", help="Runs of each side; times are medians.")] = 9,
    claims: Annotated[bool, typer.Option("--claims/--no-claims", help="The repository's own benchmarks too.")] = True,
    as_json: AsJson = False,
) -> None:
    """Time kernels against a peer and this machine's roofline, correctness first."""
    from polyhead.ops import commands

    said = commands.bench_kernels(op, dtypes or ["float32"], device, threads=threads, repeats=repeats, claims=claims)
    _say(said, as_json)


def _say(said: Said, as_json: bool) -> None:
    typer.echo(json.dumps(said.data, indent=2) if as_json else said.text)
    if not said.passed:
        raise typer.Exit(1)


def _plugin(name: str) -> dict[str, Any]:
    plugin, origin = plugins.find_plugin(name), plugins.manager().origin(name)
    names = {kind: [spec.name for spec in getattr(plugin, kind)] for kind in KINDS}
    return {
        "name": name,
        "summary": plugin.summary,
        "distribution": origin.distribution,
        "version": origin.version,
        **names,
    }


def _failures() -> list[dict[str, str]]:
    return [
        {"name": f.name, "distribution": f.distribution, "version": f.version, "error": str(f)}
        for f in plugins.failures()
    ]


def _doctor() -> dict[str, Any]:
    import torch

    devices = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        devices.append("mps")
    free = shutil.disk_usage(os.getcwd()).free
    machine = {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "CPUs": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": ", ".join(["cpu", *devices]),
        "free disk": f"{free / 2**30:.1f} GiB in {os.getcwd()}",
    }
    kernels, failures = _kernels()
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith("POLYHEAD_")}
    return {
        "versions": versions(),
        "machine": machine,
        "environment": environment,
        "plugins": [
            f"{plugin.name} ({plugins.manager().origin(plugin.name).distribution or 'this process'})"
            for plugin in plugins.plugins()
        ],
        "kernels": kernels,
        "failures": [*(str(failure) for failure in plugins.failures()), *failures],
    }


def _print(report: Mapping[str, Any]) -> None:
    for section, values in report.items():
        typer.echo(section)
        width = max((len(name) for name in values), default=0)
        lines = values if isinstance(values, list) else [f"{name:<{width}}  {value}" for name, value in values.items()]
        for line in lines or ["none"]:
            typer.echo(f"  {line}")


def _kernels() -> tuple[dict[str, str], list[str]]:
    """Return the kernels of each operator, the highest priority first, and the operators that do not load."""
    from polyhead.ops import registry

    kernels, failures = {}, []
    for name in registry.operators():
        try:
            kernels[name] = ", ".join(kernel.name for kernel in registry.kernels(name))
        except Exception as error:  # whatever is broken is what the report is for
            failures.append(f'Operator "{name}" failed to load: {error}')
    return kernels, failures
