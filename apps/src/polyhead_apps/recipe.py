"""The training recipe: one loop that reads from top to bottom, for one process and for several.

Accelerate wraps the model (DDP, FSDP), scales fp16 losses and casts; everything else stands here. A task may have two
methods beyond the protocol:

- ``before_step(model, progress)`` is called before every step, with `Progress`: for schedules inside the model.
- ``counts(batch)`` returns the counts of ``loss`` by name without running the model: with several loss terms and
  ``train.accumulate`` above 1 the recipe has to know them before the first backward pass.

In several processes a share of the last batch of an epoch may be empty; ``loss`` then gets a batch of zero rows and
returns totals and counts of 0, as sums over no element are.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polyhead.errors import CheckpointError, ConfigError, PluginError
from polyhead.nn import after_step
from polyhead.protocols import Batch, Metric, Predictor, Ratio, Source, Task
from polyhead_apps import distributed
from polyhead_apps.checkpoints import Best, Checkpoints, Training
from polyhead_apps.config import TrainSettings
from polyhead_apps.console import Console, format_figure
from polyhead_apps.guard import non_finite
from polyhead_apps.interrupts import StopWish
from polyhead_apps.locks import run_lock
from polyhead_apps.logs import RunLog, read_log
from polyhead_apps.optim import AveragedWeights, learning_rate, make_optimizer
from polyhead_apps.sampling import Plan, Progress, load_steps, load_through, to_device

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["FitResult", "Progress", "evaluate", "fit", "predictor"]

Stopped = Literal["done", "patience", "time", "interrupted"]

SMALLEST_SCALE = 2.0**-14
"""Loss scale of fp16, from which gradients that are still infinite are taken for broken."""

# A resumed run may have other values of these; of all other settings it may not.
FREE_SETTINGS = {"epochs", "steps", "patience", "keep", "workers", "checkpoint_steps", "log_steps"}


class FitResult(NamedTuple):
    """A fitted model."""

    model: nn.Module
    """With the weights of the best validation; without one, the last (averaged) ones."""
    steps: int
    best_metric: float | None
    history: Sequence[Mapping[str, Any]]
    """The lines of ``log.jsonl``."""
    stopped: Stopped


def fit(
    model: nn.Module,
    task: Task,
    *,
    train: Source,
    validation: Source | None,
    settings: TrainSettings,
    seed: int,
    folder: Path,
    resume: str | None = None,
    fingerprint: str = "",
    time_limit: float | None = None,
    console: Console,
    device: str = "auto",
) -> FitResult:
    """Train a model; stopped in any way, it goes on with ``resume`` and ends as if it had never been stopped.

    Started by torchrun, all processes call this alike; sizes in the settings are those of all processes together.
    The global random generators are seeded. SIGINT and SIGTERM end the run after the step with a checkpoint.

    Args:
        model: what to train; its weights are changed in place.
        task: loss, prediction and metric.
        train: samples to learn from, finite or endless.
        validation: samples that pick the best weights; without them the last weights are taken.
        settings: the recipe's settings.
        seed: of the order of samples and of everything random.
        folder: the run's folder: ``checkpoints/``, ``log.jsonl``, ``tensorboard/``.
        resume: "last" or a checkpoint such as "step-800"; None starts a run.
        fingerprint: of the data; a checkpoint made on others is refused.
        time_limit: seconds after which to stop, with a checkpoint.
        console: to speak to.
        device: "auto", "cpu", or a device such as "cuda:1".

    Raises:
        ConfigError: settings that do not fit together, the data, the task or the device.
        CheckpointError: a checkpoint is missing, damaged or of another run, or another process writes the folder.
        NonFiniteError: a loss or gradient is NaN or infinite; names the step and the first such tensor.
        StorageError: the disk is full or the folder cannot be written.
    """
    began = time.monotonic()
    plan = Plan.make(train, settings, seed=seed)
    accelerator = distributed.start(settings.precision, device, model)
    rank, world = distributed.rank(), distributed.world()
    console = console if rank == 0 else Console(quiet=True)

    # What is trained. Accelerate moves it to the device and wraps it; `model` stays the plain module inside.
    optimizer = make_optimizer(model, settings)
    unsharded = copy.deepcopy(model) if accelerator.is_fsdp2 else None
    inner = cast(nn.Module, torch.compile(model)) if settings.compile else model
    passes, optimizer = distributed.wrap(accelerator, _Passes(inner, task).train(), optimizer)
    averaged = AveragedWeights(model, settings.ema_decay) if settings.ema_decay else None
    training = Training(model, optimizer, averaged, accelerator.scaler, accelerator.device)
    identity = _identity(settings, plan, model, seed=seed, fingerprint=fingerprint)
    checkpoints = Checkpoints(folder / "checkpoints", identity=identity, keep=settings.keep)

    with ExitStack() as stack:
        # Where the run starts: at step 0, or exactly where a checkpoint was written.
        distributed.on_main(lambda: stack.enter_context(run_lock(folder)))
        start = distributed.on_main(lambda: _starting_point(checkpoints, resume))
        if resume and not start:
            console.line(f"No checkpoint in {checkpoints.folder} yet: the run starts at step 0.")
        _seed_everything(seed, rank)
        position = checkpoints.read(start, training, console) if start else 0
        logs: list[RunLog] = []  # one in the main process, none in the others
        distributed.on_main(lambda: logs.append(RunLog(folder, position=position, step=training.step)))
        for log in logs:
            stack.callback(log.close)
        steps = load_steps(
            train,
            plan,
            first=training.step,
            rank=rank,
            world=world,
            workers=settings.workers,
            pin=accelerator.device.type == "cuda",
        )
        stop = stack.enter_context(StopWish())
        bar = stack.enter_context(console.progress("fit", plan.steps_total, done=training.step, unit="step"))
        timer = _Timer(training.step)

        while True:
            if training.step >= plan.steps_total:
                stopped: Stopped = "done"
                break
            if _out_of_patience(training, settings):
                stopped = "patience"
                break

            # The step: learning rate, gradients of the loss over the global batch, guard, update.
            progress = plan.progress(training.step)
            lr = learning_rate(
                progress.step, settings, steps_total=plan.steps_total, steps_per_epoch=plan.steps_per_epoch
            )
            for group in optimizer.param_groups:
                group["lr"] = lr * group["share"]
            if hasattr(task, "before_step"):
                task.before_step(model, progress)
            optimizer.zero_grad()
            micro = to_device(next(steps), accelerator.device)
            late = time_limit is not None and time.monotonic() - began > time_limit
            step = _compute_gradients(passes, task, micro, accelerator, optimizer, wishes=(stop.wanted, late))
            if _is_broken(step.figures, accelerator.scaler):
                raise non_finite(progress.step + 1, step.figures, model, micro, lambda batch: passes("loss", batch))
            if settings.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(model.parameters(), settings.clip_norm, step.norm)
            optimizer.step()
            if not optimizer.step_was_skipped:
                after_step(model)
            distributed.share_buffers(model)
            training.step += 1
            if averaged is not None and not optimizer.step_was_skipped:
                averaged.update(training.step)

            # The record.
            bar.advance(1, loss=step.figures["loss"])
            epoch = plan.progress(training.step).epoch
            if training.step % settings.log_steps == 0:
                times = {"steps_per_s": timer.rate(training.step)}
                for log in logs:
                    log.training(training.step, epoch, {**step.figures, "lr": lr}, times)

            # Validation, which picks the best weights.
            improved = False
            at_validation = plan.due(training.step, settings.validate_epochs)
            if validation is not None and at_validation:
                metrics = _validate(passes, training, task, validation, settings, seed=seed, console=console)
                for log in logs:
                    log.validation(training.step, epoch, metrics)
                improved = _is_better(metrics[task.monitor.name], training.best, task.monitor.direction)
                training.waited = 0 if improved else training.waited + 1
                if improved:
                    training.best = Best(training.step, metrics[task.monitor.name])
                figure = f"{task.monitor.name} {format_figure(metrics[task.monitor.name])}"
                console.line(f"step {training.step:,}: validation {figure}{', the best so far' if improved else ''}")

            # The checkpoint: when it is due, when it is the best, and when the run ends here.
            every = settings.checkpoint_steps
            due = at_validation if every is None else training.step % every == 0
            ends = training.step == plan.steps_total or _out_of_patience(training, settings)
            broken_off = step.interrupted or step.late
            if due or improved or ends or broken_off:
                checkpoints.write(training, log_position=distributed.on_main(lambda: logs[0].position()))
            if broken_off and not ends:
                stopped = "interrupted" if step.interrupted else "time"
                break

        # The best weights, or the last ones where nothing was validated.
        if training.best is not None:
            checkpoints.read_weights(f"step-{training.best.step}", training)
        elif averaged is not None:
            averaged.copy_to_model()
        history = distributed.on_main(lambda: read_log(folder))

    if unsharded is not None:
        unsharded.load_state_dict({name: distributed.whole(value) for name, value in model.state_dict().items()})
        model = unsharded
    return FitResult(model.eval(), training.step, training.best.value if training.best else None, history, stopped)


def evaluate(
    predictor: Predictor,
    task: Task,
    source: Source,
    *,
    batch_size: int,
    seed: int,
    workers: int = 0,
    console: Console,
    label: str = "evaluate",
    metric: Metric | None = None,
) -> dict[str, float]:
    """Return the task's metrics of a predictor on all samples of a source; the same figures in every process.

    Args:
        predictor: maps a batch to a prediction; see `predictor` for that of a model.
        task: gives the metric.
        source: the samples, finite.
        batch_size: samples at a time, over all processes.
        seed: handed to the source.
        workers: processes that load data.
        console: shows how far it is.
        label: what the bar is called.
        metric: a fresh accumulator, instead of the task's.

    Raises:
        ConfigError: the source is endless.
    """
    distributed.join_group()
    rank, world = distributed.rank(), distributed.world()
    console = console if rank == 0 else Console(quiet=True)
    total, batches = load_through(source, batch_size=batch_size, seed=seed, rank=rank, world=world, workers=workers)
    metric = task.metric() if metric is None else metric
    with torch.no_grad(), console.progress(label, total) as bar:
        for batch, counts in batches:
            prediction = predictor(batch)
            if counts:
                metric.update(to_device(prediction, "cpu"), batch)
            bar.advance(1)
    if world > 1:
        metric.merge(distributed.gather_objects(metric.state()))
    return {name: float(value) for name, value in metric.compute().items()}


def predictor(model: nn.Module, task: Task) -> Predictor:
    """Return a model as a predictor for `evaluate`: in evaluation mode, without gradients, batches on its device."""
    model.eval()
    device = next(itertools.chain(model.parameters(), model.buffers())).device

    @torch.no_grad()
    def predict(batch: Batch) -> Any:
        return task.predict(model, to_device(batch, device))

    return predict


class _Passes(nn.Module):
    """Runs a task's methods inside one forward call, which DDP, FSDP and autocast hook into.

    So a loss may run its model several times, or parts of it.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self._task = (task,)  # in a tuple, because a task that is itself a module would become part of this one

    def forward(self, method: Literal["loss", "predict"], batch: Batch) -> Any:
        return getattr(self._task[0], method)(self.model, batch)


class _Step(NamedTuple):
    """What came of a forward and backward pass, over all processes."""

    figures: dict[str, float]
    """loss, its terms and grad_norm."""
    norm: Tensor
    interrupted: bool
    late: bool


def _compute_gradients(
    passes: nn.Module,
    task: Task,
    micro: Sequence[Batch],
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    *,
    wishes: tuple[bool, bool],
) -> _Step:
    """Leave in ``.grad`` the gradient of Σ terms (Σ totals / Σ counts) over all processes and micro-batches.

    DDP and FSDP average gradients over processes, so totals are multiplied by the number of processes. The counts of
    all micro-batches have to be known before the first backward pass: they are with one micro-batch, or from
    ``task.counts``; with a single term they are guessed from the first micro-batch and gradients corrected at the end.

    Raises:
        ConfigError: several micro-batches, several terms, and a task without ``counts``.
        PluginError: ``counts`` and ``loss`` of the task name different terms.
    """
    device = accelerator.device
    exact = {"dtype": torch.float32 if device.type == "mps" else torch.float64, "device": device}
    parts: list[Tensor] = []
    known = guess = None
    if len(micro) > 1 and hasattr(task, "counts"):
        known = [task.counts(batch) for batch in micro]
    for number, batch in enumerate(micro):
        last = number == len(micro) - 1
        with nullcontext() if last else accelerator.no_sync(passes):
            terms: Mapping[str, Ratio] = passes("loss", batch)
            totals = torch.stack([ratio.total.reshape(()) for ratio in terms.values()])
            counts = torch.stack([torch.as_tensor(ratio.count, **exact).reshape(()) for ratio in terms.values()])
            # One small all-reduce: totals, counts, and who wants to stop.
            own = torch.cat([totals.detach().to(**exact), counts, torch.tensor(wishes, **exact)])
            reduced = distributed.sum_over_processes(own)
            parts.append(reduced)
            if len(micro) == 1:
                divisors = reduced[len(terms) : 2 * len(terms)]
            elif known is not None:
                if number == 0:
                    divisors = distributed.sum_over_processes(_add_counts(known, list(terms), exact))
            elif len(terms) == 1:
                if guess is None:
                    guess = divisors = reduced[1:2].clamp(min=1) * len(micro)
            else:
                raise ConfigError(
                    f"train.accumulate is {len(micro)} and the loss has {len(terms)} terms ({', '.join(terms)}), whose "
                    f"counts are not known in advance: set train.accumulate to 1, or give the task counts(batch)."
                )
            scale = torch.where(divisors > 0, distributed.world() / divisors, 0.0)
            accelerator.backward((totals * scale.to(totals.dtype)).sum())
    totals, counts, wanted = torch.stack(parts).sum(0).split([len(terms), len(terms), len(wishes)])
    accelerator.unscale_gradients(optimizer)
    gradients = [p.grad for p in passes.parameters() if p.grad is not None]
    if guess is not None and (factor := (guess / counts.clamp(min=1)).item()) != 1:
        for gradient in gradients:
            gradient.mul_(factor)
    norm = torch.nn.utils.get_total_norm(gradients)
    plain_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    means = torch.where(counts > 0, totals / counts, totals * 0)
    # The one moment of a step at which a GPU is waited for.
    *values, grad_norm, interrupted, late = torch.cat([means, plain_norm.reshape(1).to(**exact), wanted]).tolist()
    figures = {"loss": sum(values)}
    if len(values) > 1:
        figures |= {f"loss/{name}": value for name, value in zip(terms, values, strict=True)}
    return _Step({**figures, "grad_norm": grad_norm}, norm, interrupted > 0, late > 0)


def _add_counts(known: Sequence[Mapping[str, Any]], names: Sequence[str], exact: Mapping[str, Any]) -> Tensor:
    if set(known[0]) != set(names):
        raise PluginError(
            f"The task's counts(batch) names {', '.join(known[0])} and its loss {', '.join(names)}: "
            f"they have to name the same terms."
        )
    rows = [[torch.as_tensor(counts[name], **exact).reshape(()) for name in names] for counts in known]
    return torch.stack([torch.stack(row) for row in rows]).sum(0)


def _is_broken(figures: Mapping[str, float], scaler: Any) -> bool:
    """Say whether a step must not be taken. In fp16 infinite gradients are normal until the scale has become tiny."""
    *losses, norm = figures.values()
    if not all(math.isfinite(loss) for loss in losses):
        return True
    return not math.isfinite(norm) and (scaler is None or scaler.get_scale() < SMALLEST_SCALE)


def _validate(
    passes: nn.Module,
    training: Training,
    task: Task,
    source: Source,
    settings: TrainSettings,
    *,
    seed: int,
    console: Console,
) -> dict[str, float]:
    """Return the metrics of the model as it would be saved now.

    Raises:
        PluginError: the monitored metric is not among them.
    """
    modes = [(module, module.training) for module in passes.modules()]
    passes.eval()
    with training.averaged.in_place() if training.averaged else nullcontext():
        metrics = evaluate(
            lambda batch: passes("predict", to_device(batch, training.device)),
            task,
            source,
            batch_size=settings.batch_size,
            seed=seed,
            workers=settings.workers,
            console=console,
            label="validate",
        )
    for module, mode in modes:
        module.training = mode
    if task.monitor.name not in metrics:
        raise PluginError(
            f'The task monitors "{task.monitor.name}", and its metric computes {", ".join(metrics) or "nothing"}.'
        )
    return metrics


def _is_better(value: float, best: Best | None, direction: Literal["min", "max"]) -> bool:
    if not math.isfinite(value):
        return False
    return best is None or (value < best.value if direction == "min" else value > best.value)


def _out_of_patience(training: Training, settings: TrainSettings) -> bool:
    return settings.patience is not None and training.waited >= settings.patience


def _starting_point(checkpoints: Checkpoints, resume: str | None) -> str | None:
    """Return the checkpoint to start from, None for step 0; removes what a killed writer left."""
    if resume is None and (names := checkpoints.names()):
        raise CheckpointError(
            f"{checkpoints.folder} holds checkpoints up to {names[-1]}: go on with --resume, or choose another folder."
        )
    checkpoints.clean()
    return checkpoints.choose(resume) if resume else None


def _identity(settings: TrainSettings, plan: Plan, model: nn.Module, *, seed: int, fingerprint: str) -> dict[str, Any]:
    """Return what has to be the same when a run is resumed, as JSON values."""
    fixed = settings.model_dump(exclude=FREE_SETTINGS)
    if settings.schedule in ("cosine", "linear"):
        fixed["steps_total"] = plan.steps_total
    config = getattr(model, "config", None)
    values = dataclasses.asdict(config) if dataclasses.is_dataclass(config) and not isinstance(config, type) else {}
    identity = {
        "seed": seed,
        "train": fixed,
        "data": {"fingerprint": fingerprint, "samples": plan.length},
        "model": {"class": type(model).__name__, **values},
    }
    return json.loads(json.dumps(identity, default=str))


def _seed_everything(seed: int, rank: int) -> None:
    """Seed Python, NumPy and torch, differently in every process."""
    python, numpy, torch_ = np.random.SeedSequence([seed, rank]).generate_state(3).tolist()
    random.seed(python)
    np.random.seed(numpy)
    torch.manual_seed(torch_)


class _Timer:
    """Steps per second since it was last asked."""

    def __init__(self, step: int) -> None:
        self.step, self.time = step, time.monotonic()

    def rate(self, step: int) -> float:
        now = time.monotonic()
        rate = (step - self.step) / max(now - self.time, 1e-9)
        self.step, self.time = step, now
        return rate
