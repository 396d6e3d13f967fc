"""Which samples a step takes, and how they are loaded: functions of (seed, step), so that a run resumes anywhere.

A *global batch* is what one optimiser step sees: over all processes, over all micro-batches. It is cut into
micro-batches first and each of these into one contiguous share per process, so that every micro-batch holds the same
samples on one process as on several.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from polyhead.errors import ConfigError, DataError
from polyhead.protocols import Batch, Source
from polyhead_apps.config import TrainSettings

__all__ = ["Plan", "Progress", "draw_order", "load_steps", "load_through", "to_device"]

Indices = np.ndarray[tuple[int], np.dtype[np.int64]]
Nest = TypeVar("Nest")


class Progress(NamedTuple):
    """Where a run is before an optimiser step; what a task's ``before_step`` gets."""

    step: int
    """Optimiser steps done."""
    epoch: float
    """Passes over the training split done."""
    steps_total: int
    steps_per_epoch: int


@dataclass(frozen=True)
class Plan:
    """The samples of every step of a run."""

    length: int | None
    """Samples of the source; None if it is endless."""
    batch_size: int
    accumulate: int
    seed: int
    steps_total: int
    steps_per_epoch: int
    """Of an endless source: all steps, for it has no passes to count."""

    @classmethod
    def make(cls, source: Source, settings: TrainSettings, *, seed: int) -> Plan:
        """Plan a run.

        Raises:
            ConfigError: the run has no end, an endless source is to be passed epochs times, or a batch is to be cut
                into more micro-batches than it has samples.
            DataError: the source is empty.
        """
        if settings.accumulate > settings.batch_size:
            raise ConfigError(
                f"train.accumulate is {settings.accumulate} and train.batch_size {settings.batch_size}: "
                f"a batch cannot be cut into more micro-batches than it has samples."
            )
        length = source_length(source)
        if length is None and settings.epochs is not None:
            raise ConfigError("This source is endless and has no epochs: set train.steps instead of train.epochs.")
        if settings.epochs is None and settings.steps is None:
            raise ConfigError("The run has no end: set train.steps or train.epochs.")
        if length == 0:
            raise DataError("The training split has no samples.")
        ends = []
        if settings.steps is not None:
            ends.append(settings.steps)
        steps_per_epoch = math.ceil(length / settings.batch_size) if length is not None else ends[0]
        if settings.epochs is not None:
            ends.append(max(1, math.ceil(settings.epochs * steps_per_epoch - 1e-9)))
        return cls(length, settings.batch_size, settings.accumulate, seed, min(ends), steps_per_epoch)

    def progress(self, step: int) -> Progress:
        """Return where a run is that has done ``step`` steps."""
        return Progress(step, step / self.steps_per_epoch, self.steps_total, self.steps_per_epoch)

    def due(self, step: int, every_epochs: float) -> bool:
        """Return whether something that happens every so many epochs happens after ``step`` steps; at the end, yes."""
        every = every_epochs * self.steps_per_epoch
        return step == self.steps_total or math.floor(step / every + 1e-9) > math.floor((step - 1) / every + 1e-9)

    def epoch(self, step: int) -> int:
        """Return the pass that a step belongs to; an endless source has only pass 0."""
        return 0 if self.length is None else step // self.steps_per_epoch

    def batch(self, step: int, order: Indices | None = None) -> Indices:
        """Return the samples of a step.

        Args:
            step: number of the step, from 0.
            order: ``draw_order`` of the step's epoch, if it is at hand.
        """
        if self.length is None:
            return np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        if order is None:
            order = draw_order(self.length, seed=self.seed, epoch=self.epoch(step))
        first = step % self.steps_per_epoch * self.batch_size
        return order[first : first + self.batch_size]


def source_length(source: Source) -> int | None:
    """Return the number of samples, None for an endless source."""
    return None if getattr(source, "endless", False) else len(source)  # type: ignore[arg-type]


def draw_order(length: int, *, seed: int, epoch: int) -> Indices:
    """Return a permutation of ``range(length)``: a function of its arguments alone.

    >>> draw_order(5, seed=0, epoch=1).tolist() == draw_order(5, seed=0, epoch=1).tolist()
    True
    """
    # NumPy promises the raw stream for ever, and what its generators make of it for one version only.
    return np.argsort(np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(length), kind="stable")


def cut(indices: Indices, pieces: int) -> list[Indices]:
    """Return contiguous pieces, the first ones longer by one; the last ones are empty if there are too few indices.

    >>> [piece.tolist() for piece in cut(np.arange(5), 3)]
    [[0, 1], [2, 3], [4]]
    """
    return np.array_split(indices, pieces)


def load_steps(
    source: Source, plan: Plan, *, first: int, rank: int, world: int, workers: int, pin: bool
) -> Iterator[list[Batch]]:
    """Return an iterator over the steps from ``first`` on: this process's share of each micro-batch of a step.

    A share may be empty at the end of an epoch: it is a batch of zero rows, because every process has to take part in
    every step. Processes agree about how many micro-batches a step has.
    """
    return iter(_loader(_Steps(source, plan, rank, world), range(first, plan.steps_total), workers, pin))


def load_through(
    source: Source, *, batch_size: int, seed: int, rank: int, world: int, workers: int
) -> tuple[int, Iterator[tuple[Batch, bool]]]:
    """Return the number of batches and an iterator over them, in order: this process's share of each.

    A batch comes with True if it counts; where a share is empty, one sample of another process stands in.

    Raises:
        ConfigError: the source is endless.
    """
    length = source_length(source)
    if length is None:
        raise ConfigError("An endless source cannot be evaluated: the split needs a source with a length.")
    batches = math.ceil(length / batch_size)
    through = _Through(source, length, batch_size, seed, rank, world)
    return batches, iter(_loader(through, range(batches), workers, pin=False))


class _Steps(Dataset[list[Batch]]):
    """Maps a step to the batches of one process; lives in the loader's workers."""

    def __init__(self, source: Source, plan: Plan, rank: int, world: int) -> None:
        self.source, self.plan, self.rank, self.world = source, plan, rank, world
        self.order: Indices | None = None
        self.order_epoch = -1

    def __getitem__(self, step: int) -> list[Batch]:
        plan, epoch = self.plan, self.plan.epoch(step)
        if plan.length is not None and epoch != self.order_epoch:
            self.order, self.order_epoch = draw_order(plan.length, seed=plan.seed, epoch=epoch), epoch
        micro = [piece for piece in cut(plan.batch(step, self.order), plan.accumulate) if len(piece)]
        return [self._fetch(piece, epoch) for piece in micro]

    def _fetch(self, micro: Indices, epoch: int) -> Batch:
        own = cut(micro, self.world)[self.rank]
        if len(own):
            return self.source.fetch(own.tolist(), seed=self.plan.seed, epoch=epoch)
        return _no_rows(self.source.fetch([int(micro[0])], seed=self.plan.seed, epoch=epoch))


class _Through(Dataset[tuple[Batch, bool]]):
    """Maps the number of a batch to one process's share of it."""

    def __init__(self, source: Source, length: int, batch_size: int, seed: int, rank: int, world: int) -> None:
        self.source, self.length, self.batch_size, self.seed = source, length, batch_size, seed
        self.rank, self.world = rank, world

    def __getitem__(self, number: int) -> tuple[Batch, bool]:
        first = number * self.batch_size
        batch = np.arange(first, min(first + self.batch_size, self.length))
        own = cut(batch, self.world)[self.rank]
        taken = own if len(own) else batch[:1]
        return self.source.fetch(taken.tolist(), seed=self.seed, epoch=0), bool(len(own))


def _loader(dataset: Dataset[Nest], numbers: range, workers: int, pin: bool) -> DataLoader[Nest]:
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        # torch's default would turn arrays into tensors, where the source said what it gives.
        collate_fn=_as_it_is,
        pin_memory=pin,
        # Without a generator of its own, every iterator would draw a seed from the global one.
        generator=torch.Generator(),
        worker_init_fn=_leave_group,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )


def _as_it_is(item: Nest) -> Nest:
    return item


def _leave_group(_: int) -> None:
    """Ctrl-C and `timeout` signal the whole process group; workers must live until the main process has stopped."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def _no_rows(batch: Batch) -> Batch:
    """Return the batch without its samples: a ``[:0]`` of everything that has rows."""
    return {name: _first_none(value) for name, value in batch.items()}


def _first_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _no_rows(value)
    if isinstance(value, torch.Tensor | np.ndarray) and value.ndim:
        return value[:0]
    return value[:0] if isinstance(value, list | tuple) else value


def to_device(value: Any, device: torch.device | str) -> Any:
    """Return nested mappings, lists and tuples with their tensors moved to a device."""
    if isinstance(value, torch.Tensor):
        # Towards the CPU a copy that is not waited for could be read before it has arrived.
        return value.to(device, non_blocking=str(device) != "cpu")
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(to_device(item, device) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(to_device(item, device) for item in value)
    return value
