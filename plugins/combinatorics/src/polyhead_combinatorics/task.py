"""The tasks `tsp`, `hull` and `delaunay`: what a model is trained for, measured by and asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.models import load
from polyhead.plugins import find_model
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_combinatorics.baselines import baselines
from polyhead_combinatorics.decoding import Rule, allowed_tokens, beam_search
from polyhead_combinatorics.instances import Kind, most_tokens
from polyhead_combinatorics.metrics import SolveMetric
from polyhead_combinatorics.sequence_models import IGNORED
from polyhead_combinatorics.settings import SolveTaskSettings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DelaunayTask", "HullTask", "SolveTask", "TourTask"]

_RULES: Mapping[Kind, Rule] = {"tsp": "tour", "hull": "hull", "delaunay": "triangles"}


@dataclass(frozen=True)
class SolveTask:
    """Order points; what the three tasks share. Implements ``polyhead.protocols.Task``.

    A batch has ``points`` (B, n, 2) in the unit square, ``lengths`` (B,) and ``target`` (B, M), see
    ``instances.collate``. A prediction is tokens (B, M): 1-based points, zeros behind the end.
    """

    kind: ClassVar[Kind]
    monitor: ClassVar[Monitor]
    directions: ClassVar[Mapping[str, Direction]] = {}
    headline: ClassVar[Sequence[str]] = ()

    most_points: int
    """The most points of a training instance."""
    beam: int = 1
    constrained: bool = True
    masked: bool = True

    @classmethod
    def prepare(cls, data: Any, settings: SolveTaskSettings, *, seed: int) -> Self:
        """Make the task for some data.

        Raises:
            DataError: the data are those of another task, or hold no instances to learn from.
        """
        del seed
        if data.kind != cls.kind:
            raise DataError(f"{data.name} holds instances of {data.kind}, not of {cls.kind}: use --task {data.kind}.")
        data.check_trainable()
        return cls(
            most_points=data.most_points, beam=settings.beam, constrained=settings.constrained, masked=settings.masked
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(state) != names:
            odd = ", ".join(sorted(set(state) ^ names))
            raise CheckpointError(f"The state of the task {cls.kind} does not fit this version: {odd}. Fit again.")
        return cls(**state)

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return dataclasses.asdict(self)

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model; a fixed dictionary gets the size of the training instances.

        Raises:
            ConfigError: ``config`` has a smaller dictionary than the instances need, or an unknown setting.
        """
        from polyhead.manifest import resolve

        fields = {field.name for field in dataclasses.fields(resolve(find_model(name)[1].target).Config)}
        determined = {"max_points": self.most_points} if "max_points" in fields else {}
        for key, value in determined.items():
            if config.get(key, value) < value:
                raise ConfigError(f"model.{key} is {config[key]}, but the data have {value} points. Leave it out.")
        return load(name, **{**determined, **config})

    def check(self, data: Any) -> None:
        """Refuse data of another task.

        Raises:
            DataError: names both.
        """
        if data.kind != self.kind:
            raise DataError(f"{data.name} holds instances of {data.kind}; the model was fitted for {self.kind}.")

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return -log p of the right answer, over its tokens."""
        inner: Any = model
        points, target, lengths = _trimmed(batch)
        if not len(points):
            nothing = sum(parameter.sum() for parameter in model.parameters()) * 0.0
            return {"nll": Ratio(nothing, torch.zeros((), device=points.device))}  # type: ignore[arg-type]
        allowed = None
        if self.masked:
            allowed = allowed_tokens(target, points.shape[1], lengths, rule=_RULES[self.kind])
            # The end stays a choice at every step, or where there is none but one it would never be learned.
            allowed[..., 0] = target != IGNORED
        return {"nll": Ratio(inner.nll(points, target, lengths, allowed).sum(), (target != IGNORED).sum())}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return tokens (B, M); an instance of more points than the model can take has no answer, all zeros."""
        inner: Any = model
        points, lengths = batch["points"], batch["lengths"]
        width = most_tokens(self.kind, points.shape[1])
        tokens = torch.zeros(len(points), width, dtype=torch.int64, device=points.device)
        most = inner.max_points
        for rows in _same_size(lengths, most):
            count = int(lengths[rows].max())
            rule: Rule = _RULES[self.kind] if self.constrained else "free"
            found = beam_search(inner, points[rows, :count], lengths[rows], rule=rule, beam=self.beam).tokens[:, 0]
            found = found[:, :width]
            tokens[rows, : found.shape[1]] = found
        return tokens

    def metric(self) -> SolveMetric:
        """Return a fresh accumulator of the literature's metrics."""
        return SolveMetric(self.kind)

    def baselines(self, data: Any) -> Mapping[str, Predictor]:
        """Return classical answers by name."""
        del data
        return baselines(self.kind)

    def example_inputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the inputs that an export is traced with: instances of the largest size, teacher-forced."""
        config: Any = model.config
        points = torch.rand(2, self.most_points, config.features, generator=torch.Generator().manual_seed(0))
        return {"points": points, "target": torch.arange(1, self.most_points + 1).expand(2, -1).contiguous()}

    def pictures(self, model: nn.Module, data: Any) -> Sequence[Picture]:
        """Return the report's figures: test instances with the true and the predicted answer."""
        from polyhead_combinatorics.report import pictures

        return pictures(self, model, data)

    def write_predictions(self, model: nn.Module, data: Any, out: Path, settings: Any) -> Sequence[Path]:
        """Write the answers for the instances of a file, or for generated test instances; see ``predicting``."""
        from polyhead_combinatorics.predicting import write

        return write(self, model, data, out, settings)


class TourTask(SolveTask):
    """A short tour through all points."""

    kind = "tsp"
    monitor = Monitor("gap", "min")
    directions: ClassVar[Mapping[str, Direction]] = {"valid": "max"}
    headline = ("gap", "length", "shortest", "valid")


class HullTask(SolveTask):
    """The convex hull from the lowest index, counter-clockwise."""

    kind = "hull"
    monitor = Monitor("accuracy", "max")


class DelaunayTask(SolveTask):
    """The Delaunay triangulation."""

    kind = "delaunay"
    monitor = Monitor("accuracy", "max")


def _trimmed(batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
    """Cut padding that no instance of the batch needs; lengths are None where nothing is padded."""
    points, target, lengths = batch["points"], batch["target"], batch["lengths"]
    if not len(points):
        return points, target, lengths
    count = int(lengths.max())
    steps = int((target != IGNORED).sum(1).max())
    points, target = points[:, :count], target[:, :steps]
    whole = int(lengths.min()) == count and bool((target != IGNORED).all())
    return points, target, None if whole else lengths


def _same_size(lengths: Tensor, most: int | None) -> list[Tensor]:
    """Return the rows that are decoded together, those that cannot be answered left out.

    Instances of one size go together: the work of a batch is that of its largest instance.
    """
    sizes = [size for size in lengths.unique().tolist() if most is None or size <= most]
    return [(lengths == size).nonzero()[:, 0] for size in sizes]
