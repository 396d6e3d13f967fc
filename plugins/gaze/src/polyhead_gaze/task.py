"""The task `scanpath`: what a model is trained for, measured by and asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.models import load
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_gaze.appearance import BackboneEncoder
from polyhead_gaze.baselines import baselines
from polyhead_gaze.decoding import scanpaths
from polyhead_gaze.metrics import ScanpathMetric
from polyhead_gaze.settings import ScanpathTaskSettings

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ScanpathTask"]

SPARE_CELLS = 2
"""Object spacings by which displays may be larger than those of training."""
FEWEST_CELLS = 16


@dataclass(frozen=True)
class ScanpathTask:
    """Predict the fixated objects and the end of a search; implements ``polyhead.protocols.Task``.

    Batches are those of `polyhead_gaze.displays.collate`, predictions those of `polyhead_gaze.metrics.ScanpathMetric`.
    """

    monitor: ClassVar[Monitor] = Monitor("nll", "min")
    directions: ClassVar[Mapping[str, Direction]] = dict.fromkeys(
        (
            "probability",
            "sequence_score",
            "multimatch_shape",
            "multimatch_direction",
            "multimatch_length",
            "multimatch_position",
            "scanmatch",
            "nss",
        ),
        "max",
    )
    headline: ClassVar[Sequence[str]] = ("nll", "sequence_score", "multimatch_position", "scanmatch", "nss", "delta")

    appearance: str
    """What is seen of objects: "none", "features" or "crops"."""
    features: int
    crop: tuple[int, int]
    """Height and width of crops, pixels."""
    cells: int
    most_steps: int
    """Fixations after which a scanpath ends at the latest: the most of any training trial."""
    target_location: str = "given"
    samples: int = 10
    pretrained: bool = False

    @classmethod
    def prepare(cls, data: Any, settings: ScanpathTaskSettings, *, seed: int) -> Self:
        """Make the task for some data.

        Raises:
            DataError: the data hold no trials to learn from.
            ConfigError: the target's place is to be hidden, and nothing else is known of objects.
        """
        del seed
        data.check_trainable()
        seen = data.appearance if settings.appearance else "none"
        if settings.target_location == "hidden" and seen == "none":
            raise ConfigError(
                f"task.target_location is hidden, but of the objects of {data.name} only their places are known: "
                "nothing would tell what is searched for. Give their pictures (--images), or leave it at given."
            )
        return cls(
            appearance=seen,
            features=data.features if seen == "features" else 0,
            crop=tuple(data.crop) if seen == "crops" else (0, 0),
            cells=max(FEWEST_CELLS, data.cells + SPARE_CELLS),
            most_steps=data.most_steps,
            target_location=settings.target_location,
            samples=settings.samples,
            pretrained=settings.pretrained,
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
            raise CheckpointError(f"The state of the task scanpath does not fit this version: {odd}. Fit again.")
        return cls(**{**state, "crop": tuple(state["crop"])})

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return {**dataclasses.asdict(self), "crop": list(self.crop)}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for what the data show of objects, and for how large displays are.

        Raises:
            ConfigError: ``config`` has an unknown setting, or one that the data determine otherwise.
        """
        determined: dict[str, Any] = {
            "appearance": self.appearance,
            "features": self.features,
            "target_location": self.target_location,
        }
        if self.appearance == "crops":
            determined |= {"crop_height": self.crop[0], "crop_width": self.crop[1]}
        for key, value in determined.items():
            if config.get(key, value) != value:
                raise ConfigError(f"model.{key} is {config[key]}, and with these data and settings it is {value}.")
        model = load(name, **{"cells": self.cells, **config, **determined})
        if self.pretrained:
            encoder = getattr(model, "seen", None)
            if not isinstance(encoder, BackboneEncoder):
                raise ConfigError(
                    "task.pretrained is on, and there is no backbone of crops to begin with. Set model.backbone and "
                    "give --images, or leave it off."
                )
            encoder.load_public_weights()
        return model

    def check(self, data: Any) -> None:
        """Refuse data that the model cannot be used on.

        Raises:
            DataError: objects are known by something else than in training, or displays are larger; says which.
        """
        if self.appearance != "none" and data.appearance != self.appearance:
            raise DataError(
                f"The model was fitted with {self.appearance} of objects, and {data.name} has {data.appearance}. "
                + ("Give --images." if self.appearance == "crops" else "Use data of the same kind.")
            )
        if self.appearance == "features" and data.features != self.features:
            raise DataError(
                f"{data.name} has {data.features} features of an object; the model was fitted with {self.features}."
            )
        if data.cells > self.cells:
            raise DataError(
                f"{data.name} has displays of {data.cells} object spacings; the model was fitted for up to "
                f"{self.cells}. Fit on such displays, or with --set model.cells={data.cells}."
            )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return -log p of the viewers' fixations and stops, over their number."""
        if not len(batch["place"]):
            nothing = sum(parameter.sum() for parameter in model.parameters()) * 0.0
            return {"nll": Ratio(nothing, torch.zeros((), device=batch["place"].device))}  # type: ignore[arg-type]
        chances, real = self._log_probabilities(model, batch)
        return {"nll": Ratio(-chances[real].sum(), real.sum())}

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return how probable the viewers' scanpaths are, and scanpaths that are drawn from the model."""
        inner: Any = model
        with torch.no_grad():
            chances, real = self._log_probabilities(model, batch)
            chances = torch.where(real, chances.double(), 0.0)
            scene = inner.encode(**_scene(batch, self.appearance))
            drawn = scanpaths(inner, scene, most=self.most_steps, samples=self.samples, streams=batch["stream"])
        paths = drawn.paths
        whole = F.pad(paths, (0, self.most_steps - paths.shape[-1]), value=-1)
        return {"nll": -chances.sum(1), "probability": (chances.exp() * real).sum(1), "paths": whole}

    def _log_probabilities(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return log p of each fixation and of the stop, (B, T + 1), and which of them there are."""
        fixations = batch["fixations"]
        steps = max(1, int((fixations >= 0).sum(1).max()))
        fixations = fixations[:, :steps]
        logits = model(**_scene(batch, self.appearance), fixations=fixations)
        count = (fixations >= 0).sum(1, keepdim=True)
        at = torch.arange(steps + 1, device=fixations.device)
        stop = batch["objects"].shape[1]
        truth = F.pad(fixations, (0, 1), value=-1)
        truth = torch.where(at == count, stop, truth)
        chances = logits.log_softmax(-1).gather(-1, truth.clamp(min=0).unsqueeze(-1))[..., 0]
        return chances, at <= count

    def metric(self) -> ScanpathMetric:
        """Return a fresh accumulator of the literature's metrics."""
        return ScanpathMetric()

    def baselines(self, data: Any) -> Mapping[str, Predictor]:
        """Return simple viewers by name, and other people."""
        return baselines(data, most=self.most_steps, samples=self.samples)

    def example_inputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the inputs that an export is traced with."""
        del model
        count = 12
        at = torch.arange(count)
        inputs = {
            "place": torch.stack([at // 4, at % 4], -1).float().expand(2, -1, -1).contiguous(),
            "objects": torch.ones(2, count, dtype=torch.bool),
            "target": torch.tensor([3, 7]),
            "start": torch.tensor([[1.0, 1.5]]).expand(2, -1).contiguous(),
            "fixations": torch.tensor([[1, 2, 3], [4, 5, 7]]),
        }
        if self.appearance == "features":
            generator = torch.Generator().manual_seed(0)
            inputs["appearance"] = torch.randn(2, count, self.features, generator=generator)
        elif self.appearance == "crops":
            inputs["appearance"] = torch.zeros(2, count, *self.crop, 3)
        return inputs

    def pictures(self, model: nn.Module, data: Any) -> Sequence[Picture]:
        """Return the report's figures."""
        from polyhead_gaze.report import pictures

        return pictures(self, model, data)

    def write_predictions(self, model: nn.Module, data: Any, out: Path, settings: Any) -> Sequence[Path]:
        """Write drawn scanpaths; see `polyhead_gaze.predicting`."""
        from polyhead_gaze.predicting import write

        return write(self, model, data, out, settings)


def _scene(batch: Batch, appearance: str) -> dict[str, Tensor]:
    """Return what the model sees of a batch."""
    names = ["place", "objects", "target", "start", *(["appearance"] if appearance != "none" else [])]
    return {name: batch[name] for name in names}
