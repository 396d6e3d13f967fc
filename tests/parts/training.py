"""A model, a source and a task that are quick to train: for tests of the recipe, in this process and in others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.nn import ReducedBatchNorm
from polyhead.protocols import Batch, Monitor, Ratio

WIDTH = 3


class Numbers:
    """Samples of ``y = x · (1, 2, 3)``, with noise on x that is drawn anew in every epoch."""

    def __init__(self, length: int = 22, *, noise: float = 0.01, endless: bool = False) -> None:
        self.length, self.noise, self.endless = length, noise, endless

    def __len__(self) -> int:
        if self.endless:
            raise TypeError("an endless source has no length")
        return self.length

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> dict[str, Any]:
        rows = [self._sample(index, seed, epoch) for index in indices]
        x, y = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])
        return {"x": x, "y": y, "index": torch.tensor(list(indices)), "names": [f"#{index}" for index in indices]}

    def _sample(self, index: int, seed: int, epoch: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(1000 + index))
        noise = torch.randn(WIDTH, generator=torch.Generator().manual_seed(hash((seed, epoch, index)) % 2**63))
        return x + self.noise * noise, (x * torch.arange(1.0, WIDTH + 1)).sum()


class Net(nn.Module):
    """Two layers, with dropout and batch norm if asked for."""

    @dataclass(frozen=True)
    class Config:
        hidden: int = 8
        dropout: float = 0.0
        batch_norm: bool = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inner = nn.Linear(WIDTH, config.hidden)
        self.norm: nn.Module = ReducedBatchNorm(config.hidden) if config.batch_norm else nn.Identity()
        self.dropout: nn.Module = nn.Dropout(config.dropout)
        self.outer = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(torch.tanh(self.norm(self.inner(x))))).squeeze(-1)


def make_net(seed: int = 0, **config: Any) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(Net.Config(**config))


class Errors:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, prediction: Tensor, batch: Batch) -> None:
        self.total += float((prediction - batch["y"]).abs().double().sum())
        self.count += len(prediction)

    def state(self) -> tuple[float, int]:
        return self.total, self.count

    def merge(self, states: Sequence[tuple[float, int]]) -> None:
        self.total, self.count = sum(total for total, _ in states), sum(count for _, count in states)

    def compute(self) -> Mapping[str, float]:
        return {"mae": self.total / self.count, "count": float(self.count)}


class Regression:
    """Squared error; with ``terms=2``, absolute error of the samples with positive y as well."""

    monitor = Monitor("mae", "min")

    def __init__(self, terms: int = 1) -> None:
        self.terms = terms

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        error = model(batch["x"]) - batch["y"]
        terms = {"square": Ratio(error.square().sum(), torch.tensor(error.numel()))}
        if self.terms == 2:
            positive = batch["y"] > 0
            terms["absolute"] = Ratio((error.abs() * positive).sum(), positive.sum())
        return terms

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"])

    def metric(self) -> Errors:
        return Errors()


class CountingRegression(Regression):
    """Knows its counts without running the model."""

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        known = {"square": torch.tensor(len(batch["y"])), "absolute": (batch["y"] > 0).sum()}
        return {name: known[name] for name in list(known)[: self.terms]}
