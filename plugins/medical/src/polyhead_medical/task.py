"""The task `tumor`: what a model is trained for, measured by and asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.models import load
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_medical.baselines import baselines
from polyhead_medical.grids import Grid
from polyhead_medical.losses import cross_entropy, one_hot_of_share, shrink, soft_dice
from polyhead_medical.metrics import TumorMetric, on_scan
from polyhead_medical.raidionics import Score, best_threshold
from polyhead_medical.settings import TumorTaskSettings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["THRESHOLDS", "TumorTask", "scores_at"]

THRESHOLDS = tuple(round(0.025 * i, 3) for i in range(4, 37))
"""What the threshold is chosen from, on the validation volumes."""


@dataclass(frozen=True)
class TumorTask:
    """Find a tumour in a volume; implements ``polyhead.protocols.Task``.

    A batch has ``image`` (B, C, D, H, W) and ``target`` (B, D, H, W), see ``cases.collate``. A prediction is the
    probability of tumour (B, D, H, W) on the network's grid; it is measured on the scan's own voxels.
    """

    monitor: ClassVar[Monitor] = Monitor("dice", "max")
    directions: ClassVar[Mapping[str, Direction]] = {
        "volume_error": "min",
        "volume_bias_ml": "min",
        "false_ml": "min",
        "hd95_mm": "min",
    }
    headline: ClassVar[Sequence[str]] = (
        "dice",
        "voxel_recall",
        "voxel_precision",
        "patient_recall",
        "patient_precision",
        "volume_error",
    )

    channels: tuple[str, ...]
    size: tuple[int, int, int]
    threshold: float = 0.5
    loss_name: str = "dice_ce"
    slab: int | None = None
    smallest_voxels: int = 50
    threshold_for: str = "dice"

    @classmethod
    def prepare(cls, data: Any, settings: TumorTaskSettings, *, seed: int) -> Self:
        """Make the task for some data.

        Raises:
            DataError: there is too little to learn from.
        """
        del seed
        data.check_trainable()
        return cls(
            channels=tuple(data.channels),
            size=tuple(data.size),
            loss_name=settings.loss,
            slab=settings.slab,
            smallest_voxels=settings.smallest_voxels,
            threshold_for=settings.threshold_for,
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
            raise CheckpointError(f"The state of the task tumor does not fit this version: {odd}. Fit again.")
        return cls(**{**state, "channels": tuple(state["channels"]), "size": tuple(state["size"])})

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return {**dataclasses.asdict(self), "channels": list(self.channels), "size": list(self.size)}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for the channels of the data.

        Raises:
            ConfigError: ``config`` asks for other channels or classes, or its levels do not fit the size.
        """
        determined = {"in_channels": len(self.channels), "classes": 2, "spatial_dims": 3}
        for key, value in determined.items():
            if config.get(key, value) != value:
                raise ConfigError(f"model.{key} is {config[key]}, but the data ask for {value}. Leave it out.")
        model: Any = load(name, **{**config, **determined})
        multiple = model.size_multiple
        for what, sizes in (("data.size", self.size), ("task.slab", (self.slab or multiple,))):
            if any(size % multiple for size in sizes):
                raise ConfigError(
                    f"{what} is {' × '.join(map(str, sizes))}: with {len(model.config.filters)} levels "
                    f"(model.filters) sizes must be multiples of {multiple}."
                )
        built: nn.Module = model
        return built

    def check(self, data: Any) -> None:
        """Refuse data with other channels.

        Raises:
            DataError: names both.
        """
        if len(data.channels) != len(self.channels):
            raise DataError(
                f"{data.name} has the channels {', '.join(data.channels)}; the model was fitted on "
                f"{', '.join(self.channels)}. Choose as many, in that order: --channels."
            )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return soft Dice, and cross-entropy if asked, summed over the network's heads."""
        inner: Any = model
        image, target = batch["image"], batch["target"]
        if not len(image):
            nothing = sum(parameter.sum() for parameter in model.parameters()) * 0.0
            none = torch.zeros((), device=image.device)
            return {name: Ratio(nothing, none) for name in self._terms()}  # type: ignore[arg-type]
        if self.slab is not None and self.slab < image.shape[2]:
            start = int(torch.randint(image.shape[2] - self.slab + 1, ()))
            image, target = (x.narrow(-3, start, self.slab) for x in (image, target))
        shares = one_hot_of_share(target)
        totals = dict.fromkeys(self._terms(), torch.zeros((), device=image.device))
        for logits in inner.scales(image):
            while shares.shape[2:] != logits.shape[2:]:
                shares = shrink(shares)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            totals["dice"] = totals["dice"] + soft_dice(logits.softmax(1), shares).sum()
            if "cross_entropy" in totals:
                totals["cross_entropy"] = totals["cross_entropy"] + cross_entropy(logits, shares).sum()
        count = torch.tensor(float(len(image)), device=image.device)
        return {name: Ratio(total, count) for name, total in totals.items()}

    def counts(self, batch: Batch) -> Mapping[str, Any]:
        """Return the counts of ``loss`` without running the model."""
        return dict.fromkeys(self._terms(), float(len(batch["image"])))

    def _terms(self) -> tuple[str, ...]:
        return ("dice", "cross_entropy") if self.loss_name == "dice_ce" else ("dice",)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the probability of tumour (B, D, H, W); a model of slabs slides over the volume."""
        image: Tensor = batch["image"]
        if self.slab is None or self.slab >= image.shape[2]:
            logits: Tensor = model(image)
        else:
            from monai.inferers.utils import sliding_window_inference

            window = (self.slab, *image.shape[3:])
            logits = sliding_window_inference(image, window, 4, model, overlap=0.5, mode="gaussian")  # type: ignore[assignment]
        return (logits if logits.dtype == torch.float64 else logits.float()).softmax(1)[:, 1]

    def metric(self) -> TumorMetric:
        """Return a fresh accumulator of the literature's metrics."""
        return TumorMetric(self.threshold, smallest=self.smallest_voxels)

    def model_metric(self) -> TumorMetric:
        """Return one that measures surfaces too."""
        return TumorMetric(self.threshold, smallest=self.smallest_voxels, surfaces=True)

    def calibrate(self, model: nn.Module, data: Any) -> Self:
        """Return the task with the threshold that is best on the validation volumes.

        For Dice by ``best_threshold``; for volume the one with the least median error of volumes, if any volume has a
        tumour.
        """
        from polyhead_apps.recipe import predictor

        own: Any = self
        predict = predictor(model, own)
        source = data.source("validation")
        scores: dict[str, list[Score]] = {}
        for index in range(len(source)):
            batch = source.fetch([index], seed=0, epoch=0)
            truth = np.asarray(batch["label"][0]) > 0
            scores[str(index)] = scores_at(on_scan(predict(batch)[0], batch["grid"][0]), truth, batch["grid"][0])
        ill = [each for each in scores.values() if each[0].truth_ml > 0]
        if self.threshold_for == "dice" or not ill:
            return dataclasses.replace(self, threshold=best_threshold(scores)[1])
        errors = np.median([[abs(s.found_ml - s.truth_ml) / s.truth_ml for s in each] for each in ill], axis=0)
        return dataclasses.replace(self, threshold=THRESHOLDS[int(np.argmin(errors))])

    def baselines(self, data: Any) -> Mapping[str, Predictor]:
        """Return thresholds on intensity by name."""
        return baselines(data)

    def example_inputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the inputs that an export is traced with."""
        del model
        shape = (2, len(self.channels), *self.size)
        return {"image": torch.rand(shape, generator=torch.Generator().manual_seed(0))}

    def pictures(self, model: nn.Module, data: Any) -> Sequence[Picture]:
        """Return the report's figures: test volumes in three views, and volumes found against true ones."""
        from polyhead_medical.report import pictures

        return pictures(self, model, data)

    def write_predictions(self, model: nn.Module, data: Any, out: Path, settings: Any) -> Sequence[Path]:
        """Write masks, probabilities, volumes or pictures; see ``predicting``."""
        from polyhead_medical.predicting import write

        return write(self, model, data, out, settings)


def scores_at(probability: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], grid: Grid) -> list[Score]:
    """Return one patient's scores at all thresholds, by counting voxels between them once."""
    edges = [*THRESHOLDS, np.inf]
    found = np.histogram(probability, edges)[0][::-1].cumsum()[::-1]
    both = np.histogram(probability[truth], edges)[0][::-1].cumsum()[::-1]
    true = int(truth.sum())
    return [
        Score(threshold, 2 * int(b) / (int(f) + true) if b else 0.0, true * grid.voxel_ml, int(f) * grid.voxel_ml)
        for threshold, f, b in zip(THRESHOLDS, found, both, strict=True)
    ]
