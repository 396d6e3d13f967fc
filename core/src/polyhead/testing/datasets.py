"""Check that a dataset's sources are pure functions of their arguments, and that it says where it comes from."""

from __future__ import annotations

import copy
import json
import pickle
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from polyhead import plugins
from polyhead.errors import PolyheadError
from polyhead.manifest import DatasetSpec, Plugin, resolve
from polyhead.protocols import Batch, Data, Source, Split
from polyhead.testing.report import Report, RuleError
from polyhead.testing.values import difference, first_axis, leaves, rows

__all__ = ["check_dataset", "data_settings", "open_dataset", "report_adapter", "report_dataset", "report_registered"]

_DATA = "polyhead.protocols.Data"
_SOURCE = "polyhead.protocols.Source.fetch"


def check_dataset(
    dataset: str | Data, path: str | Path | None = None, *, settings: Any = None, samples: int = 4
) -> list[str]:
    """Check an opened dataset, or open a registered one and check it and its errors.

    Splits, fetching (the same indices twice, in another order, one by one, with other seeds, after writing into a
    batch, in a copy), provenance, licence, fingerprint, summary. Of an adapter that reads files also: what it says
    when they are missing or empty.

    Args:
        dataset: a registered name, or an opened dataset.
        path: the files of a registered dataset that is not embedded; None checks its errors only.
        settings: the ``data`` section of a task's settings, or values that differ from its defaults.
        samples: indices that are fetched of each split.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: a rule is broken; names all that are.
    """
    if isinstance(dataset, str):
        return report_registered(dataset, path, settings=settings, samples=samples).finish()
    return report_dataset(dataset, samples=samples).finish()


def report_registered(name: str, path: str | Path | None = None, *, settings: Any = None, samples: int = 4) -> Report:
    """Do what ``check_dataset`` does for a registered dataset, and return the report."""
    plugin, spec = plugins.find_dataset(name)
    report = Report(f'dataset "{name}"')
    with report.check("its settings have defaults", "polyhead_apps.config.TaskSettings"):
        defaults = data_settings(plugin, name)
        if settings is None or isinstance(settings, Mapping):
            settings = type(defaults)(**settings) if settings else defaults
    if not spec.embedded:
        report.include(report_adapter(spec, settings))
    if spec.embedded or path is not None:
        with report.check("it opens, twice with the same fingerprint", "polyhead.manifest.DatasetSpec.target"):
            opened = open_dataset(spec, path, settings)
            report.include(report_dataset(opened, samples=samples))
            if opened.fingerprint() != open_dataset(spec, path, settings).fingerprint():
                raise RuleError("the fingerprints differ. Make it of the content only.")
    return report


def data_settings(plugin: Plugin, dataset: str) -> Any:
    """Return the defaults of the ``data`` section of the first task of ``plugin`` that takes ``dataset``."""
    for task in plugin.tasks:
        if dataset in task.datasets:
            return resolve(task.settings)().data
    return None


def open_dataset(spec: DatasetSpec, path: str | Path | None, settings: Any) -> Data:
    """Open a dataset as the shell does."""
    opened: Data = resolve(spec.target)(None if path is None else Path(path), settings)
    return opened


def report_adapter(spec: DatasetSpec, settings: Any) -> Report:
    """Check what an adapter says to paths that hold no data."""
    report = Report(f'adapter "{spec.name}"')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "empty").mkdir()
        (folder / "empty.csv").touch()
        for name, what in (("missing", "a missing path"), ("empty", "an empty folder"), ("empty.csv", "an empty file")):
            with report.check(f"{what} is refused with its name", "polyhead.errors.DataError"):
                try:
                    open_dataset(spec, folder / name, settings)
                except PolyheadError as error:
                    if name not in str(error):
                        raise RuleError(f'the error does not name "{name}": {error}') from error
                else:
                    raise RuleError("it opens. Raise polyhead.errors.DataError with the path and the mend.")
    return report


def report_dataset(data: Data, *, samples: int = 4) -> Report:
    """Do what ``check_dataset`` does for an opened dataset, and return the report."""
    report = Report(f'data "{getattr(data, "name", type(data).__name__)}"')
    for field in ("name", "provenance", "licence"):
        with report.check(f"it says its {field}", f"{_DATA}.{field}"):
            value = getattr(data, field, None)
            if not isinstance(value, str) or not value.strip():
                raise RuleError(f"{field} is {value!r}. Set it to a text.")
    with report.check("its fingerprint is a text that stays the same", f"{_DATA}.fingerprint"):
        first = data.fingerprint()
        if not isinstance(first, str) or not first or first != data.fingerprint():
            raise RuleError(f"it is {first!r} and then {data.fingerprint()!r}. Return a digest of the content.")
    with report.check("its summary is a JSON object", f"{_DATA}.summary"):
        summary = data.summary()
        if not json.loads(json.dumps(summary, allow_nan=False)):
            raise RuleError(f"it is {summary!r}. Say sizes, ranges and the share of missing values.")
    for split in get_args(Split):
        part = Report(f'split "{split}"')
        source: Source | None = None
        with part.check("it exists and has a length", f"{_DATA}.source"):
            source = data.source(split)
            if not getattr(source, "endless", False) and len(source) < 1:  # type: ignore[arg-type]  # see Source
                raise RuleError("it has no sample. Every split needs one, or raise DataError when opening.")
        if source is not None:
            _check_source(part, source, samples)
        report.include(part)
    return report


def _check_source(report: Report, source: Source, samples: int) -> None:
    length = samples if getattr(source, "endless", False) else len(source)  # type: ignore[arg-type]  # see Source
    # Both ends and something between, each once.
    indices = sorted({round(i * (length - 1) / max(samples - 1, 1)) for i in range(samples)})

    def fetch(chosen: Sequence[int], *, seed: int = 0, epoch: int = 0) -> Batch:
        return source.fetch(list(chosen), seed=seed, epoch=epoch)

    batch: Batch = {}
    with report.check("a batch maps names to values with the batch as first axis, on the CPU", _SOURCE):
        batch = copy.deepcopy(fetch(indices))  # a view of the data would change with them
        _check_form(batch, len(indices))
    if not batch:
        return
    with report.check("fetching twice gives the same", _SOURCE):
        _expect(batch, fetch(indices), "Seed what is random by (seed, epoch, index).")
        _expect(
            fetch(indices, seed=7, epoch=3), fetch(indices, seed=7, epoch=3), "Seed what is random by its arguments."
        )
    with report.check("the order and company of an index do not matter", _SOURCE):
        order = list(reversed(range(len(indices))))
        _expect(rows(batch, order), fetch([indices[i] for i in order]), "A sample depends on its own index only.")
        for row, index in enumerate(indices):
            _expect(rows(batch, [row]), fetch([index]), f"Index {index} alone must equal its row in a batch.")
    with report.check("fetching neither moves nor reads the global random states", _SOURCE):
        before = _random_states()
        fetch(indices, seed=1, epoch=1)
        if _random_states() != before:
            raise RuleError("it moves them. Use a generator of your own, seeded by (seed, epoch, index).")
    with report.check("writing into a batch does not change the data", _SOURCE):
        for _, leaf in leaves(fetch(indices)):
            if isinstance(leaf, Tensor):
                leaf.zero_()
            elif isinstance(leaf, np.ndarray) and leaf.flags.writeable and leaf.dtype.kind in "biufc":
                leaf[...] = 0
        _expect(batch, fetch(indices), "Return copies, not views of what the source keeps.")
    with report.check("it can be sent to a loader's worker", _SOURCE):
        copied = pickle.loads(pickle.dumps(source))  # noqa: S301 - bytes made on this line
        _expect(batch, copied.fetch(indices, seed=0, epoch=0), "A copy of the source must give the same samples.")


def _check_form(batch: Any, size: int) -> None:
    if not hasattr(batch, "keys") or not batch:
        raise RuleError(f"it is {type(batch).__name__}. Return a mapping with at least one entry.")
    for name, value in batch.items():
        if hasattr(value, "keys"):
            _check_form(value, size)
        elif first_axis(value) != size:
            raise RuleError(f'"{name}" has first axis {first_axis(value)} for {size} indices.')
        elif isinstance(value, Tensor) and value.device.type != "cpu":
            raise RuleError(f'"{name}" is on {value.device}. The recipe moves batches; return CPU tensors.')


def _expect(a: Any, b: Any, mend: str) -> None:
    if text := difference(a, b):
        raise RuleError(f"{text}. {mend}")


def _random_states() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        np.random.get_state()[1].tobytes(),  # type: ignore[index]  # the legacy form is a tuple
        np.random.get_state()[2],  # type: ignore[index]
        random.getstate(),
    )
