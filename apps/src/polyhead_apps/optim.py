"""Optimisers, learning rates as a function of the step, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead_apps.config import TrainSettings

__all__ = ["AveragedWeights", "learning_rate", "make_optimizer"]


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimiser of the settings; biases, norms and all that has one axis or none keep their size.

    ``sgd`` takes the first of ``betas`` as its momentum. A model may have an attribute ``learning_rates``, a mapping
    such as ``{"backbone.": 0.1}``: parameters whose names begin so have that share of the learning rate.

    Raises:
        ConfigError: the model has no parameter to train.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError(f"{type(model).__name__} has no parameter to train.")
    shares: Mapping[str, float] = getattr(model, "learning_rates", {})
    own = {name: next((share for start, share in shares.items() if name.startswith(start)), 1.0) for name, _ in trained}
    groups = [
        {
            "params": [p for name, p in trained if own[name] == share and _decays(name, p) == decays],
            "weight_decay": settings.weight_decay if decays else 0.0,
            "lr": settings.lr * share,
            "share": share,
        }
        for share in dict.fromkeys(own.values())
        for decays in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.betas[0])
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas)


def _decays(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and name.rpartition(".")[2] != "bias"


def learning_rate(step: int, settings: TrainSettings, *, steps_total: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step, counted from 0.

    Warm-up is linear and reaches ``lr`` in its last step. After it, ``cosine`` and ``linear`` go from ``lr`` to
    ``lr_floor`` at ``steps_total``; ``inverse_sqrt`` falls with the square root of the step (Vaswani et al. 2017,
    arXiv:1706.03762, eq. 3, scaled to peak at ``lr``). ``step`` is a staircase over all epochs, warm-up included.

    >>> settings = TrainSettings(lr=0.1, schedule="linear", warmup_steps=2)
    >>> [learning_rate(step, settings, steps_total=6, steps_per_epoch=1) for step in range(6)]
    [0.05, 0.1, 0.1, 0.07500000000000001, 0.05, 0.025]
    """
    peak, floor, warmup = settings.lr, settings.lr_floor, settings.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    share = (step - warmup) / max(1, steps_total - warmup)
    match settings.schedule:
        case "constant":
            return peak
        case "cosine":
            return floor + (peak - floor) * (1 + math.cos(math.pi * share)) / 2
        case "linear":
            return floor + (peak - floor) * (1 - share)
        case "step":
            drops = math.floor(step / (settings.step_epochs * steps_per_epoch) + 1e-9)
            return max(floor, peak * settings.step_factor**drops)
        case "inverse_sqrt":
            start = max(1, warmup)
            return max(floor, peak * math.sqrt(start / max(start, step + 1)))


class AveragedWeights:
    """An exponential moving average of a model's trained parameters; buffers stay those of the model.

    The decay grows with the steps, ``min(decay, (1 + step) / (10 + step))``, so that the first weights, which are
    random, do not linger in short runs.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start with the model's weights."""
        self.decay = decay
        self.live = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.tensors = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` optimiser steps."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            average.lerp_(self.live[name].detach(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights inside the block, and its own again after it."""
        kept = {name: p.detach().clone() for name, p in self.live.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.live.items():
                    parameter.copy_(kept[name])

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the model's weights by their averages."""
        for name, parameter in self.live.items():
            parameter.copy_(self.tensors[name])
