"""Check that a task trains, predicts, measures and can be stored."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyhead import plugins
from polyhead.errors import ConfigError
from polyhead.manifest import TaskSpec, resolve
from polyhead.protocols import Batch, Data, Metric, Ratio, Task
from polyhead.testing.datasets import data_settings, open_dataset
from polyhead.testing.models import expect_gradients, report_model
from polyhead.testing.report import Report, RuleError
from polyhead.testing.values import difference, leaves

__all__ = ["check_task", "report_task", "smallest_preset"]

_TASK = "polyhead.protocols.Task"
_METRIC = "polyhead.protocols.Metric"


def check_task(
    task: str | type[Task],
    data: Data | None = None,
    *,
    settings: Any = None,
    model: str = "",
    config: Mapping[str, Any] | None = None,
    predict_settings: Any = None,
    unused: Sequence[str] = (),
    additive: bool = True,
    rtol: float = 1e-4,
) -> list[str]:
    """Check a task with one model on a dataset.

    Preparation, state, model building, loss as ratios and its gradient, prediction, metrics and their merging,
    baselines, pictures, written predictions; then the model by ``check_model``'s rules.

    Args:
        task: ``"plugin/task"``, or a class.
        data: an opened dataset; the first embedded one of a registered task if None.
        settings: the ``task`` section; the defaults of a registered task if None.
        model: the model's name; the first one of a registered task if empty.
        config: the user's values of the model's config; the smallest preset of a registered model if None.
        predict_settings: the ``predict`` section; the defaults of a registered task if None.
        unused: patterns of the names of parameters that may stay without gradient.
        additive: the loss of a batch is made of sums over its samples, as for all but contrastive losses.
        rtol: relative tolerance of sums.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: a rule is broken; names all that are.
    """
    if isinstance(task, str):
        owner, _, name = task.partition("/")
        plugin, spec = plugins.find_task(owner, name)
        defaults = resolve(spec.settings)()
        if data is None:
            dataset = _first_embedded(spec)
            data = open_dataset(plugins.find_dataset(dataset)[1], None, data_settings(plugin, dataset))
        settings = defaults.task if settings is None else settings
        predict_settings = defaults.predict if predict_settings is None else predict_settings
        model = model or spec.models[0]
        config = smallest_preset(model) if config is None else config
        cls: type[Task] = resolve(spec.target)
    else:
        cls = task
    if data is None:
        raise TypeError("check_task needs data for a task that is given as a class.")
    report = report_task(
        cls,
        data,
        settings=settings,
        model=model,
        config=config or {},
        predict_settings=predict_settings,
        unused=unused,
        additive=additive,
        rtol=rtol,
    )
    return report.finish()


def smallest_preset(model: str) -> Mapping[str, Any]:
    """Return the preset "tiny" of a registered model, else its first one, else no values."""
    presets = plugins.find_model(model)[1].presets
    return presets.get("tiny") or next(iter(presets.values()), {})


def report_task(
    task: type[Task],
    data: Data,
    *,
    settings: Any,
    model: str,
    config: Mapping[str, Any],
    predict_settings: Any = None,
    unused: Sequence[str] = (),
    additive: bool = True,
    rtol: float = 1e-4,
) -> Report:
    """Do what ``check_task`` does for a task class, and return the report."""
    report = Report(f'task {task.__name__} with model "{model}"')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prepared: Task | None = None
        with report.check("it prepares itself from data, the same way for the same seed", f"{_TASK}.prepare"):
            prepared = task.prepare(data, settings, seed=0)
            if text := difference(prepared.state(), task.prepare(data, settings, seed=0).state()):
                raise RuleError(f"{text}. Draw what is random from a generator seeded with seed.")
        built: nn.Module | None = None
        if prepared is not None:
            with report.check("it builds the model and refuses unknown settings", f"{_TASK}.build_model"):
                built = prepared.build_model(model, config)
                if not isinstance(built, nn.Module):
                    raise RuleError(f"build_model returned {type(built).__name__}. Return an nn.Module.")
                _expect_refusal(prepared, model, config)
        if prepared is None or built is None:
            return report
        with report.check("it accepts the data it was prepared from", f"{_TASK}.check"):
            prepared.check(data)
        batch = _batch(data, [0, 1, 2, 3])
        _check_loss(report, prepared, built, data, unused, additive, rtol)
        _check_state(report, task, prepared, built, batch)
        _check_metric(report, prepared, built, data, rtol)
        _check_baselines(report, prepared, data)
        _check_outputs(report, prepared, built, data, predict_settings)
        report.include(
            report_model(built, dict(batch), forward=prepared.predict, gradients=False, rtol=1e-3, atol=1e-3)
        )
    return report


def _first_embedded(spec: TaskSpec) -> str:
    for name in spec.datasets:
        if plugins.find_dataset(name)[1].embedded:
            return name
    raise TypeError(f'Task "{spec.name}" has no embedded dataset: give check_task its data.')


def _batch(data: Data, indices: list[int]) -> Batch:
    """Return some samples of the training split, fewer if it has fewer."""
    source = data.source("train")
    length = max(indices) + 1 if getattr(source, "endless", False) else len(source)  # type: ignore[arg-type]
    return source.fetch([i for i in indices if i < length] or [0], seed=0, epoch=0)


def _expect_refusal(task: Task, model: str, config: Mapping[str, Any]) -> None:
    try:
        task.build_model(model, {**config, "no_such_setting": 1})
    except ConfigError as error:
        if "no_such_setting" in str(error):
            return
        raise RuleError(f"the error for an unknown setting does not name it: {error}") from error
    raise RuleError("an unknown setting is accepted. Build the config with polyhead.models.config_from_dict.")


def _check_loss(
    report: Report, task: Task, model: nn.Module, data: Data, unused: Sequence[str], additive: bool, rtol: float
) -> None:
    with report.check("its loss is finite ratios whose gradient reaches every parameter", f"{_TASK}.loss"):
        trained = copy.deepcopy(model).train()
        trained.zero_grad(set_to_none=True)
        terms = task.loss(trained, _batch(data, [0, 1, 2, 3]))
        if not isinstance(terms, Mapping) or not terms:
            raise RuleError(f"it is {type(terms).__name__}. Return a mapping from names to Ratio(total, count).")
        for name, term in terms.items():
            _check_ratio(name, term)
        loss = torch.stack([term.total / term.count.clamp(min=1) for term in terms.values()]).sum()
        if not loss.requires_grad:
            raise RuleError("it depends on no parameter. Look for detach, item and no_grad.")
        loss.backward()
        expect_gradients(trained, unused)
    if additive:
        with report.check("the loss of a batch is the sum over its parts", "polyhead.protocols.Ratio"):
            with torch.no_grad():
                whole, *halves = (
                    task.loss(model.eval(), _batch(data, part)) for part in ([0, 1, 2, 3], [0, 1], [2, 3])
                )
            for name, term in whole.items():
                summed = Ratio(*(sum(getattr(half[name], key) for half in halves) for key in Ratio._fields))
                if text := difference(_plain(term), _plain(summed), rtol=rtol, atol=1e-5):
                    raise RuleError(f"{name}: {text}. Give total and count as sums over elements, not as means.")


def _plain(ratio: Ratio) -> dict[str, Tensor]:
    return {key: torch.as_tensor(value, dtype=torch.float64) for key, value in ratio._asdict().items()}


def _check_ratio(name: str, term: Any) -> None:
    if not isinstance(term, Ratio):
        raise RuleError(f'"{name}" is {type(term).__name__}. Return polyhead.protocols.Ratio(total, count).')
    for key, value in term._asdict().items():
        if not isinstance(value, Tensor) or value.ndim != 0 or not bool(torch.isfinite(value)):
            raise RuleError(f"{key} of {name} is {value!r}. Return a finite scalar tensor.")
    if term.count.requires_grad or term.count < 0:
        raise RuleError(f"count of {name} is {term.count!r}. Return a number of elements without gradient.")


def _check_state(report: Report, task: type[Task], prepared: Task, model: nn.Module, batch: Batch) -> None:
    with report.check("its state travels as JSON and restores it", f"{_TASK}.restore"):
        state = prepared.state()
        again = task.restore(json.loads(json.dumps(state, allow_nan=False)))
        if text := difference(json.loads(json.dumps(state)), json.loads(json.dumps(again.state()))):
            raise RuleError(f"{text}.")
        with _evaluating(model):
            if text := difference(prepared.predict(model, batch), again.predict(model, batch)):
                raise RuleError(f"restored, it predicts something else: {text}. Keep what predict uses in state().")


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _check_metric(report: Report, task: Task, model: nn.Module, data: Data, rtol: float) -> None:
    batches = [_batch(data, [0, 1]), _batch(data, [2, 3])]
    figures: Mapping[str, float] = {}
    with report.check("its metrics are finite figures by name", f"{_METRIC}.compute"), _evaluating(model):
        whole = task.metric()
        for batch in batches:
            whole.update(task.predict(model, batch), batch)
        figures = dict(whole.compute())
        _check_figures(figures)
        if text := difference(figures, dict(whole.compute())):
            raise RuleError(f"computed twice they differ: {text}.")
    with report.check("its monitor is one of its metrics", f"{_TASK}.monitor"):
        if task.monitor.name not in figures or task.monitor.direction not in ("min", "max"):
            raise RuleError(f"{task.monitor} is not among {', '.join(figures) or 'none'}, or neither min nor max.")
    with report.check("metrics of two processes merge into those of one", f"{_METRIC}.merge"), _evaluating(model):
        parts: list[Metric] = [task.metric(), task.metric()]
        for part, batch in zip(parts, batches, strict=True):
            part.update(task.predict(model, batch), batch)
        parts[0].merge([part.state() for part in parts])
        merged = {name: torch.tensor(value, dtype=torch.float64) for name, value in parts[0].compute().items()}
        single = {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}
        if text := difference(single, merged, rtol=rtol, atol=1e-6):
            raise RuleError(f"{text}. merge replaces the own state by the union of all, the own one included.")


def _check_figures(figures: Mapping[str, float]) -> None:
    if not figures:
        raise RuleError("there are none.")
    for name, value in figures.items():
        if not isinstance(name, str) or not isinstance(value, int | float) or not math.isfinite(value):
            raise RuleError(f"{name!r} is {value!r}. Return finite Python numbers.")


def _check_baselines(report: Report, task: Task, data: Data) -> None:
    with report.check("its baselines predict what the metrics take", f"{_TASK}.baselines"):
        baselines = task.baselines(data)
        if not baselines:
            raise RuleError("there are none. Give at least the simplest honest guess.")
        batch = data.source("test").fetch([0], seed=0, epoch=0)
        for name, predict in baselines.items():
            metric = task.metric()
            metric.update(predict(batch), batch)
            try:
                _check_figures(dict(metric.compute()))
            except RuleError as error:
                raise RuleError(f'"{name}": {error}') from error


def _check_outputs(report: Report, task: Task, model: nn.Module, data: Data, settings: Any) -> None:
    with report.check("its predictions are finite", f"{_TASK}.predict"), _evaluating(model):
        for name, leaf in leaves(task.predict(model, _batch(data, [0, 1]))):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
                raise RuleError(f"{name} is not.")
    with report.check("its pictures are PNG with title and caption", f"{_TASK}.pictures"):
        for picture in task.pictures(model, data):
            if not picture.title or not picture.caption or picture.png[:8] != b"\x89PNG\r\n\x1a\n":
                raise RuleError(f'"{picture.title}" is not. Return polyhead.protocols.Picture(title, caption, png).')
    with (
        report.check("it writes predictions to the folder it is given", f"{_TASK}.write_predictions"),
        tempfile.TemporaryDirectory() as temporary,
    ):
        out = Path(temporary)
        files = task.write_predictions(model.eval(), data, out, settings)
        present = {path for path in out.rglob("*") if path.is_file() and path.stat().st_size}
        if not files or {Path(file) for file in files} != present:
            said, made = sorted(str(file) for file in files), sorted(str(file) for file in present)
            raise RuleError(f"it names {said} and made {made}. Return the files made, and leave none empty.")
