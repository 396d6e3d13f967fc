"""The task `organs`: slices of a volume, one class for each pixel."""

from __future__ import annotations

import csv
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
from polyhead.protocols import Batch, Direction, Files, Monitor, Picture, Predictor, Ratio
from polyhead_medical.nifti import write_nifti
from polyhead_medical.organ_loss import WEIGHTS, organ_loss
from polyhead_medical.organ_metrics import OrganMetric
from polyhead_medical.organ_settings import OrganPredictSettings, OrganTaskSettings
from polyhead_medical.predicting import DISCLAIMER
from polyhead_medical.slices import Slices

if TYPE_CHECKING:
    from torch import nn

__all__ = ["OrganTask"]

_AT_ONCE = 8
"""Slices that are segmented together."""


@dataclass(frozen=True)
class OrganTask:
    """Name every pixel of a slice; implements ``polyhead.protocols.Task``.

    A batch has ``image`` (B, 1, H, W), ``target`` (B, H, W) and, of each slice, ``subject``, ``slice`` and ``spacing``.
    A prediction is classes (B, H, W).
    """

    monitor: ClassVar[Monitor] = Monitor("dice", "max")
    directions: ClassVar[Mapping[str, Direction]] = {"surface_mm": "min"}

    organs: tuple[str, ...]
    size: tuple[int, int]
    guidance: float = 0.25
    reconstruction: float = 0.1
    detach_targets: bool = False

    @classmethod
    def prepare(cls, data: Any, settings: OrganTaskSettings, *, seed: int) -> Self:
        """Make the task for some data.

        Raises:
            DataError: there is too little to learn from.
        """
        del seed
        data.check_trainable()
        return cls(
            organs=tuple(data.organs),
            size=tuple(data.size),
            guidance=settings.guidance,
            reconstruction=settings.reconstruction,
            detach_targets=settings.detach_targets,
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
            raise CheckpointError(f"The state of the task organs does not fit this version: {odd}. Fit again.")
        return cls(**{**state, "organs": tuple(state["organs"]), "size": tuple(state["size"])})

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return {**dataclasses.asdict(self), "organs": list(self.organs), "size": list(self.size)}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for the organs of the data.

        Raises:
            ConfigError: ``config`` asks for other channels or classes, or does not fit the size of the slices.
        """
        determined = {"in_channels": 1, "classes": len(self.organs) + 1}
        for key, value in determined.items():
            if config.get(key, value) != value:
                raise ConfigError(f"model.{key} is {config[key]}, but the data ask for {value}. Leave it out.")
        model: Any = load(name, **{**config, **determined})
        if any(side % model.size_multiple for side in self.size):
            raise ConfigError(
                f"data.size is {self.size[0]} × {self.size[1]}: with model.stride {model.config.stride} it must be a "
                f"multiple of {model.size_multiple}."
            )
        built: nn.Module = model
        return built

    def check(self, data: Any) -> None:
        """Refuse data with other organs.

        Raises:
            DataError: names both.
        """
        if tuple(data.organs) != self.organs:
            raise DataError(
                f"{data.name} has the organs {', '.join(data.organs)}; "
                f"the model was fitted on {', '.join(self.organs)}."
            )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the published sum's terms, weighted, over the slices."""
        inner: Any = model
        image, target = batch["image"], batch["target"]
        if not len(image):
            nothing = sum(parameter.sum() for parameter in model.parameters()) * 0.0
            none = torch.zeros((), device=image.device)
            return {name: Ratio(nothing, none) for name in WEIGHTS}  # type: ignore[arg-type]
        terms = organ_loss(inner.passes(image), target, detach_targets=self.detach_targets)
        weights = {"segmentation": 1.0, "guidance": self.guidance, "reconstruction": self.reconstruction}
        count = torch.tensor(float(len(image)), device=image.device)
        return {name: Ratio(weights[name] * term * count, count) for name, term in terms.items()}

    def counts(self, batch: Batch) -> Mapping[str, Any]:
        """Return the counts of ``loss`` without running the model."""
        return dict.fromkeys(WEIGHTS, float(len(batch["image"])))

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the likeliest class of each pixel, (B, H, W), uint8."""
        logits: Tensor = model(batch["image"])
        return logits.argmax(1).to(torch.uint8)

    def metric(self) -> OrganMetric:
        """Return a fresh accumulator of the literature's metrics."""
        return OrganMetric(self.organs)

    def model_metric(self) -> OrganMetric:
        """Return one that measures surfaces too."""
        return OrganMetric(self.organs, surfaces=True)

    def baselines(self, data: Any) -> Mapping[str, Predictor]:
        """Return the likeliest class at each place, whatever the image shows, learnt on the training slices."""
        source = data.source("train")
        counts = torch.zeros(len(self.organs) + 1, *self.size)
        for start in range(0, len(source), 64):
            target = source.fetch(range(start, min(start + 64, len(source))), seed=0, epoch=0)["target"]
            for number in range(len(counts)):
                counts[number] += (target == number).sum(0)
        usual = counts.argmax(0).to(torch.uint8)
        return {"usual place": lambda batch: usual.expand(len(batch["image"]), -1, -1)}

    def example_inputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the inputs that an export is traced with."""
        del model
        return {"image": torch.rand((2, 1, *self.size), generator=torch.Generator().manual_seed(0))}

    def pictures(self, model: nn.Module, data: Any) -> Sequence[Picture]:
        """Return the report's figure: test slices with the expert's classes and the network's."""
        from polyhead_medical.report import organ_picture

        return [organ_picture(self, model, data)]

    def write_predictions(
        self, model: nn.Module, data: Any, out: Path, settings: OrganPredictSettings
    ) -> Sequence[Path]:
        """Write ``NAME-seg.nii.gz`` on each volume's own grid and ``organs.csv``; say each organ's volume in ml."""
        files = Files()
        rows: list[dict[str, Any]] = []
        wanted = settings.files or ("seg",)
        for number, (slices, scan) in enumerate(data.to_predict()):
            if number == 1 and not settings.files:
                wanted = ("seg", "csv")
            classes = self.segment(model, slices)
            if "seg" in wanted:
                files.append(out / f"{slices.name}-seg.nii.gz")
                write_nifti(files[-1], classes, slices.grid.affine, scan)
            counts = np.bincount(classes.ravel(), minlength=len(self.organs) + 1)
            volumes = {
                organ: round(float(n * slices.grid.voxel_ml), 4)
                for organ, n in zip(self.organs, counts[1:], strict=True)
            }
            rows.append({"volume": slices.name, **{f"{organ}_ml": ml for organ, ml in volumes.items()}})
        if "csv" in wanted:
            files.append(out / "organs.csv")
            with files[-1].open("w", newline="", encoding="utf-8") as stream:
                table = csv.DictWriter(stream, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
        for row in rows:
            parts = [f"{name.removesuffix('_ml')} {value:.2f} ml" for name, value in row.items() if name != "volume"]
            files.lines = [*files.lines, f"{row['volume']}: {', '.join(parts)}"]
        files.lines = [*files.lines, DISCLAIMER]
        files.figures = {"volumes": rows, "note": DISCLAIMER}
        return files

    def segment(self, model: nn.Module, slices: Slices) -> np.ndarray[Any, Any]:
        """Return the classes of a volume on its own voxels, uint8."""
        device = next(model.parameters()).device
        with torch.inference_mode():
            found = [model(part.to(device)).float().softmax(1).cpu() for part in slices.image.split(_AT_ONCE)]
        return slices.stored(torch.cat(found))
