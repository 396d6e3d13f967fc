"""Run folders: where a run is, what made it, and which one is meant. Imports no torch.

A run holds ``run.json`` (what it is), ``config.yaml`` (resolved), ``versions.json`` (command and versions),
``log.txt``, ``checkpoints/``, ``model/``, ``metrics.json`` and ``report.html``.
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyhead.artifacts import json_bytes, read_json, write_atomic
from polyhead.errors import CheckpointError, ConfigError, PolyheadError, StorageError, nearest
from polyhead_apps.config import Section, UsageError, flatten, read_yaml

__all__ = [
    "RUNS",
    "Run",
    "check_out",
    "command_line",
    "find_model",
    "find_run",
    "new_run",
    "now",
    "runs",
    "safe_name",
    "versions",
]

RUNS = Path("runs")
"""Where runs are kept, seen from the folder a command is called in."""
RECORD, CONFIG, MODEL = "run.json", "config.yaml", "model"
PARTS = ("checkpoints", "predictions", "tensorboard", MODEL, "log.jsonl", "log.txt", "metrics.json", "report.html")
PACKAGES = ("polyhead", "polyhead-apps", "polyhead-kernels", "torch", "triton", "accelerate", "numpy", "safetensors")


@dataclass(frozen=True)
class Run:
    """A run's folder."""

    folder: Path

    @property
    def model(self) -> Path:
        """The folder of the saved model; there once fitting is done."""
        return self.folder / MODEL

    @property
    def fitted(self) -> bool:
        """True if fitting is done and the model is saved."""
        return (self.model / "config.json").is_file()

    @property
    def finished(self) -> bool:
        """True if the model has been measured as well, which is the last thing `fit` does."""
        return (self.folder / "metrics.json").is_file()

    @property
    def record(self) -> dict[str, Any]:
        """What the run is: app, plugin, task, data, fingerprint, start.

        Raises:
            CheckpointError: ``run.json`` is missing or damaged.
        """
        record = read_json(self.folder / RECORD)
        if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
            raise CheckpointError(f"{self.folder / RECORD} is damaged: it does not say what the run is. Fit again.")
        return record

    def settings(self) -> dict[str, Any]:
        """Return the dotted settings of ``config.yaml``.

        Raises:
            CheckpointError: ``config.yaml`` is missing or no mapping.
        """
        path = self.folder / CONFIG
        try:
            tree = read_yaml(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise CheckpointError(f"Cannot read {path}: {error.strerror}. A run keeps its settings there.") from error
        if not isinstance(tree, Mapping):
            raise CheckpointError(f"{path} is damaged: it holds no settings. Fit again.")
        return flatten(tree)

    def write_settings(self, settings: Section) -> None:
        """Write ``config.yaml``: every setting, defaults included; ``--config`` reads it again."""
        import yaml

        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_atomic(self.folder / CONFIG, text.encode())

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_atomic(self.folder / name, json_bytes(value))


def new_run(app: str, name: str, out: Path | None, *, force: bool) -> Run:
    """Make a run's folder: ``out``, or ``runs/APP/TIME-NAME``.

    Args:
        app: the command.
        name: what the run is called after its time, such as the model's name.
        out: the folder the user asked for.
        force: a run that ``out`` holds is removed; other files there stay.

    Raises:
        UsageError: ``out`` is not empty, and ``force`` is not set or it holds something else than a run.
    """
    if out is None:
        stamp = f"{datetime.now():%Y%m%d-%H%M%S}-{name}"
        folder = RUNS / app / stamp
        for number in range(2, 1000):
            if not folder.exists():
                break
            folder = RUNS / app / f"{stamp}-{number}"
    else:
        check_out(out, force=force)
        folder = out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot make the folder {folder}: {error.strerror}. Name another with --out.") from error
    for part in (folder / name for name in PARTS):
        shutil.rmtree(part) if part.is_dir() and not part.is_symlink() else part.unlink(missing_ok=True)
    return Run(folder)


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an ``--out`` that cannot take a new run; see `new_run` for the errors."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is a file: name a folder for the run.")
    if not any(out.iterdir()):
        return
    if not (out / RECORD).is_file():
        raise UsageError(f"--out {out} is not empty and holds no run: name another folder.")
    if not force:
        raise UsageError(f"--out {out} holds a run: go on with it (--resume), replace it (--force) or name another.")


def runs(app: str) -> list[Run]:
    """Return the app's runs in the default place, those of comparisons included, the newest first."""
    found = []
    for record in [*(RUNS / app).glob(f"*/{RECORD}"), *(RUNS / app).glob(f"*/*/{RECORD}")]:
        run = Run(record.parent)
        try:
            started = str(run.record.get("started", ""))
        except PolyheadError:
            continue
        found.append((started, record.parent.name, run))
    return [run for *_, run in sorted(found, key=lambda item: item[:2], reverse=True)]


def find_run(app: str, out: Path | None) -> Run:
    """Return the run to go on with: ``out``, or the newest one that is not finished.

    Raises:
        UsageError: there is none.
    """
    if out is not None:
        if not (out / RECORD).is_file():
            raise UsageError(f"--resume: {out} holds no run. Fit without --resume to start one there.")
        return Run(out)
    for run in runs(app):
        if not run.finished:
            return run
    raise UsageError(f"--resume: no unfinished run in {RUNS / app}. Name one with --out RUN.")


def find_model(app: str, given: str | None, option: str = "--model") -> tuple[Path, Run | None]:
    """Return the model folder that ``--model`` means, and its run if it belongs to one.

    Args:
        app: the command, whose newest fitted run is the default.
        given: a run, a model folder, or the name of a run in the default place; None for the default.
        option: what messages call ``given``.

    Raises:
        CheckpointError: no run is fitted yet, or this one is not; names the command that mends it.
        ConfigError: ``given`` is none of these; suggests the nearest run.
    """
    if given is None:
        for run in runs(app):
            if run.fitted:
                return run.model, run
        raise CheckpointError(f"No fitted run in {RUNS / app}: fit first ({app} fit --data PATH), or name --model.")
    for folder in (Path(given), RUNS / app / given):
        if (folder / RECORD).is_file():
            run = Run(folder)
            if not run.fitted:
                resume = command_line(app, ["fit", "--resume", "--out", str(folder)])
                raise CheckpointError(f"Run {folder} has no model yet. Go on with it: {resume}")
            return run.model, run
        if (folder / "config.json").is_file():
            parent = folder.resolve().parent
            return folder, Run(folder.parent) if folder.name == MODEL and (parent / RECORD).is_file() else None
    names = [run.folder.name for run in runs(app)]
    text = f"{option} {given}: no such run or model folder (a model folder holds config.json and model.safetensors)."
    if guess := nearest(given, names):
        text += f' Did you mean "{guess}"?'
    raise ConfigError(text)


def command_line(app: str, arguments: Sequence[str]) -> str:
    """Return a command as it is typed in a POSIX shell."""
    return shlex.join([app, *arguments])


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions that a result depends on, by name; what is not installed is left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in dict.fromkeys((*PACKAGES, *packages)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the time in UTC, as ``run.json`` keeps it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def safe_name(text: str) -> str:
    """Return ``text`` as a part of a file name.

    >>> safe_name("METR-LA week/../x")
    'METR-LA-week-x'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-") or "run"
