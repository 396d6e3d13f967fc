"""What a plugin's dataset, task and metric must offer: small protocols, no base class to inherit.

A *source* yields batches by index, a *data* object is an opened dataset with three sources, a *task* knows loss,
prediction and metrics. The training recipe, the evaluation and the conformance kit use these methods and no others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "Batch",
    "Data",
    "Direction",
    "Files",
    "Metric",
    "Monitor",
    "Picture",
    "Predictor",
    "Ratio",
    "Source",
    "Split",
    "Task",
]

Split = Literal["train", "validation", "test"]
Direction = Literal["min", "max"]
Batch = Mapping[str, Any]
"""Named tensors (or lists, for ragged parts) whose first axis is the batch."""
Predictor = Callable[[Batch], Any]
"""Maps a batch to a prediction of the same form as ``Task.predict``: what a baseline is."""


class Ratio(NamedTuple):
    """A mean kept as its two halves, so that it is reduced over micro-batches and processes before dividing."""

    total: Tensor
    """Scalar, differentiable: the sum over elements."""
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody means here
    """Scalar, no gradient: the number (or weight) of elements; 0 is allowed and gives a loss of 0."""


class Files(list[Path]):
    """The files of ``Task.write_predictions``, with what else there is to say about them."""

    lines: Sequence[str] = ()
    """Sentences that `predict` prints before the names of the files."""
    figures: Mapping[str, Any] = MappingProxyType({})
    """The same as JSON values, for ``predict --json``."""


class Monitor(NamedTuple):
    """The validation metric that picks the best checkpoint."""

    name: str
    direction: Direction


class Picture(NamedTuple):
    """One figure of a report."""

    title: str
    caption: str
    png: bytes


@runtime_checkable
class Source(Protocol):
    """Samples by index. ``len(source)`` is their number; an endless source has ``endless = True`` instead."""

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return the samples ``indices`` as one batch.

        A pure function of its arguments: whatever is random (augmentation, generation) is seeded by
        ``(seed, epoch, index)``, so that workers, resumption and several processes change nothing.
        """
        ...


@runtime_checkable
class Data(Protocol):
    """An opened, validated dataset."""

    name: str
    provenance: str
    """One sentence for every output: where the data come from; says so if they are simulated."""
    licence: str

    def source(self, split: Split) -> Source:
        """Return the samples of a split, split as the literature does."""
        ...

    def summary(self) -> Mapping[str, Any]:
        """Return what ``data check`` prints: JSON values, such as sizes, ranges, share of missing values."""
        ...

    def fingerprint(self) -> str:
        """Return a digest of the content, recorded in the run folder and compared on resume."""
        ...


@runtime_checkable
class Metric(Protocol):
    """An accumulator over batches; several processes gather ``state()`` and ``merge`` it."""

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add one batch."""
        ...

    def state(self) -> Any:
        """Return what ``merge`` of another process takes; picklable."""
        ...

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states`` (one of a process, this one's included)."""
        ...

    def compute(self) -> Mapping[str, float]:
        """Return the figures by name."""
        ...


@runtime_checkable
class Task(Protocol):
    """Loss, prediction, metrics. Optional: ``before_step(model, progress)``, ``counts(batch)``, see the recipe.

    Optional too: ``calibrate(model, data) -> Task``, called once after training: the task it returns is the one that is
    saved and measured; ``model_metric() -> Metric``, an accumulator that tells more of the model than of baselines.
    """

    monitor: Monitor

    @classmethod
    def prepare(cls, data: Data, settings: Any, *, seed: int) -> Self:
        """Make a task: fit normalisers and the like on the training split; ``settings`` is the ``task`` section."""
        ...

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model from ``state()``."""
        ...

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        ...

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model; the task adds what the data determine (sizes, embeddings, normalisation)."""
        ...

    def check(self, data: Data) -> None:
        """Raise DataError if this task's model cannot be used on ``data`` (other sensors, other classes)."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the terms of the loss, which is the sum of their ratios. May run the model several times."""
        ...

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Return predictions in the user's units."""
        ...

    def metric(self) -> Metric:
        """Return a fresh accumulator of the literature's metrics."""
        ...

    def baselines(self, data: Data) -> Mapping[str, Predictor]:
        """Return honest baselines by name, fitted on the training split (tuned on validation)."""
        ...

    def pictures(self, model: nn.Module, data: Data) -> Sequence[Picture]:
        """Return the report's figures."""
        ...

    def write_predictions(self, model: nn.Module, data: Data, out: Path, settings: Any) -> Sequence[Path]:
        """Write predictions in the formats people use; ``settings`` is the ``predict`` section.

        Return the files; a `Files` says more of them.
        """
        ...
