"""Start one command several times under torchrun: one process per device, on one or more machines."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
from pathlib import Path

import typer

from polyhead.errors import PolyheadError
from polyhead_apps.config import UsageError
from polyhead_apps.options import Given

__all__ = ["launch"]


def launch(app: str, given: Given, *, devices: int, strategy: str, num_nodes: int, out: Path | None) -> None:
    """Run ``given.command`` in ``devices`` processes on each of ``num_nodes`` machines, and wait for them.

    The processes are started as ``python -m polyhead_apps APP …`` with the variables that torchrun sets.

    Args:
        app: the command; a plugin must register it.
        given: what the user asked for.
        devices: processes on this machine.
        strategy: "ddp" or "fsdp".
        num_nodes: machines; each starts the same command, with MASTER_ADDR and MASTER_PORT set alike.
        out: the run's folder, which all processes must know.

    Raises:
        UsageError: no folder is named, or several machines and no MASTER_ADDR.
        PolyheadError: a process failed; it has said why.
        Exit: Ctrl-C; the processes have written a checkpoint.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if out is None:
        raise UsageError("Several processes need one folder for the run: name it with --out RUN.")
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    if num_nodes > 1 and not (address and port):
        raise UsageError(
            "--num-nodes: set MASTER_ADDR and MASTER_PORT to those of the first machine, on every machine."
        )
    rendezvous = f"{address}:{port}" if num_nodes > 1 else f"127.0.0.1:{_free_port()}"
    config = LaunchConfig(
        min_nodes=num_nodes,
        max_nodes=num_nodes,
        nproc_per_node=devices,
        run_id=f"polyhead-{out.name}",
        rdzv_backend="c10d",
        rdzv_endpoint=rendezvous,
        max_restarts=0,
        monitor_interval=0.5,
    )
    arguments = shlex.split(given.command)[1:]
    if "--out" not in arguments and "-o" not in arguments:
        arguments += ["--out", str(out)]
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    if strategy == "fsdp":
        os.environ["ACCELERATE_USE_FSDP"] = "true"
        os.environ.setdefault("FSDP_VERSION", "2")
    # The processes speak for themselves.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, sys.executable)("-m", "polyhead_apps", app, *arguments)
    except SignalException as error:
        raise typer.Exit(1) from error  # the first process has said how to go on
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise PolyheadError(
            f"process {rank} failed with exit code {failure.exitcode}; its message is above."
        ) from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
