"""The umbrella command `polyhead`: what is installed, and whether it works. Imports torch only where it must."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer

from polyhead import plugins
from polyhead_apps.console import Console
from polyhead_apps.runs import versions
from polyhead_apps.shell import guard, version_option, with_debug

__all__ = ["main"]

cli = typer.Typer(
    help="Polyhead: attention operators, kernels and the plugins that use them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

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
        for kind in ("apps", "models", "datasets", "tasks"):
            if entry[kind]:
                typer.echo(f"  {kind}: {', '.join(entry[kind])}")
    for failure in manager.failures:
        typer.echo(str(failure), err=True)
    if not manager.plugins:
        typer.echo("No plugin is installed, such as polyhead-traffic.", err=True)


@cli.command("doctor")
@with_debug
def doctor(as_json: AsJson = False) -> None:
    """Say what this machine and this environment have; paste it into a bug report."""
    report = _doctor()
    if as_json:
        Console().result(json.dumps(report, indent=2))
        return
    for section, values in report.items():
        typer.echo(section)
        lines = values if isinstance(values, list) else _aligned(values)
        for line in lines or ["none"]:
            typer.echo(f"  {line}")
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


def _plugin(name: str) -> dict[str, Any]:
    plugin, origin = plugins.find_plugin(name), plugins.manager().origin(name)
    names = {kind: [spec.name for spec in getattr(plugin, kind)] for kind in ("apps", "models", "datasets", "tasks")}
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
        "threads of torch": torch.get_num_threads(),
        "devices": ", ".join(["cpu", *devices]),
        "free disk": f"{free / 2**30:.1f} GiB in {os.getcwd()}",
    }
    environment = {name: value for name, value in sorted(os.environ.items()) if name.startswith("POLYHEAD_")}
    return {
        "versions": versions(),
        "machine": machine,
        "environment": environment,
        "plugins": [f"{p.name} ({plugins.manager().origin(p.name).distribution})" for p in plugins.plugins()],
        "kernels": _kernels(),
        "failures": [str(failure) for failure in plugins.failures()],
    }


def _kernels() -> dict[str, str]:
    """Return the kernels of each operator, the highest priority first."""
    from polyhead.ops import registry

    return {name: ", ".join(kernel.name for kernel in registry.kernels(name)) for name in registry.operators()}


def _aligned(values: Mapping[str, Any]) -> list[str]:
    width = max((len(name) for name in values), default=0)
    return [f"{name:<{width}}  {value}" for name, value in values.items()]
