"""The task `detect`: what a model is trained for, measured by and asked for."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.manifest import resolve
from polyhead.models import load
from polyhead.plugins import find_model
from polyhead.protocols import Batch, Direction, Metric, Monitor, Picture, Predictor, Ratio
from polyhead_detection.baselines import usual_boxes
from polyhead_detection.costs import encoder_macs
from polyhead_detection.denoising import denoising_queries
from polyhead_detection.focus_detr import Detected
from polyhead_detection.inference import best_boxes
from polyhead_detection.losses import WEIGHTS, Targets, detection_losses
from polyhead_detection.metrics import CocoMetric, ObjectsFound, TokenMetric
from polyhead_detection.pictures import Category
from polyhead_detection.settings import DetectTaskSettings, PredictSettings
from polyhead_detection.targets import foreground_targets, size_ranges

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DetectTask"]

MOST = 100
"""Detections of a picture that are measured: COCO counts no more."""
_BASELINES: MutableMapping[Any, Mapping[str, Predictor]] = WeakKeyDictionary()
"""Fitted once for the data they belong to."""


@dataclass(frozen=True)
class DetectTask:
    """Find the objects of some categories; implements ``polyhead.protocols.Task``.

    A model takes a list of pictures and gives a `Detected`; a batch is that of ``pictures.collate``.
    """

    monitor: ClassVar[Monitor] = Monitor("ap", "max")
    directions: ClassVar[Mapping[str, Direction]] = {"token_share": "min", "encoder_mmac": "min"}

    categories: tuple[Category, ...]
    short_side: int
    """Pixels that the shorter side of a picture is brought to; 0: pictures are taken as they are."""
    long_side: int
    pretrained_backbone: bool = False

    @property
    def headline(self) -> Sequence[str]:
        """The figures that tables show: those of sizes belong to photographs."""
        sizes = ("ap_small", "ap_medium", "ap_large") if self.short_side else ()
        return ("ap", "ap50", "ap75", *sizes, "ar100", "token_recall", "encoder_mmac")

    @classmethod
    def prepare(cls, data: Any, settings: DetectTaskSettings, *, seed: int) -> Self:
        """Make the task for annotated data.

        Raises:
            DataError: they have no annotations, or no box to learn from.
        """
        del seed
        data.source("train")
        resized = getattr(data, "splits", None) is not None
        return cls(
            tuple(data.categories),
            data.settings.short_side if resized else 0,
            data.settings.long_side if resized else 0,
            settings.pretrained_backbone,
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        try:
            categories = tuple(Category(int(number), str(name)) for number, name in state["categories"])
            return cls(categories, int(state["short_side"]), int(state["long_side"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The state of the task detect does not fit this version ({error}). Fit again."
            ) from error

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values."""
        return {
            "categories": [list(category) for category in self.categories],
            "short_side": self.short_side,
            "long_side": self.long_side,
        }

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model with a class for each category.

        Raises:
            ConfigError: ``config`` has another number of classes, or values that do not fit.
        """
        count = len(self.categories)
        if config.get("classes", count) != count:
            raise ConfigError(
                f"model.classes is {config['classes']}, but the data have {count} categories. Leave it out."
            )
        values = {**config, "classes": count}
        if not self.pretrained_backbone:
            return load(name, **values)
        from polyhead.configs import config_from_dict

        model = resolve(find_model(name)[1].target)
        built: nn.Module = model(config_from_dict(model.Config, values), pretrained_backbone=True)
        return built

    def check(self, data: Any) -> None:
        """Refuse data of other categories; pictures without annotations are taken.

        Raises:
            DataError: says which categories differ, by id and name.
        """
        theirs = data.categories
        if theirs is None or tuple(theirs) == self.categories:
            return
        new = [f"{c.id} {c.name}" for c in theirs if c not in self.categories][:5]
        lost = [f"{c.id} {c.name}" for c in self.categories if c not in theirs][:5]
        raise DataError(
            f"{data.name} has {len(theirs)} categories and the model {len(self.categories)}; they are not the same. "
            f"Only in the data: {', '.join(new) or 'none'}; only in the model: {', '.join(lost) or 'none'}. Give both "
            "the same ids and names, or fit on these data: fit --init-from RUN starts from the weights."
        )

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the weighted terms: of matched queries, proposals and denoising queries, and of the foreground.

        Denoising queries are random and belong to training: in evaluation mode there are none.
        """
        config: Any = model.config
        if not batch["image"]:
            return {name: Ratio(_nothing(model), count) for name, count in self.counts(batch).items()}
        targets = Targets(batch["labels"], batch["boxes"])
        queries = (
            None
            if not model.training
            else denoising_queries(
                targets.labels,
                targets.boxes,
                classes=config.classes,
                number=config.denoising,
                label_noise=config.label_noise,
                box_noise=config.box_noise,
            )
        )
        detected: Detected = model(batch["image"], None, queries)
        found = detection_losses(
            detected,
            targets,
            queries,
            sizes=[(image.shape[-2], image.shape[-1]) for image in batch["image"]],
            ranges=self._ranges(model) if config.fts == "score" else None,
            mask_padding=config.padding == "exact",
        )
        # Without a box there are no denoising queries; every process has the same terms and gradients all the same.
        terms = self.counts(batch)
        if len(found) == len(terms):
            return found
        zero = _nothing(model)
        return {name: found.get(name, Ratio(zero, count)) for name, count in terms.items()}

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the counts of ``loss`` by name: boxes, and pictures for the foreground."""
        rows, boxes = len(batch["labels"]), sum(len(each) for each in batch["labels"])
        count = torch.tensor(float(max(boxes, 1) if rows else 0))
        kinds = [name for name in WEIGHTS if name != "foreground"]
        named = {f"{prefix}{kind}": count for prefix in ("", "proposal_", "denoising_") for kind in kinds}
        return {**named, "foreground": torch.tensor(float(rows))}

    def predict(self, model: nn.Module, batch: Batch) -> ObjectsFound:
        """Return the best 100 detections of each picture, in pixels of the original."""
        detected: Detected = model(batch["image"])
        sizes = [(int(h), int(w)) for h, w in batch["original_size"].tolist()]
        found = best_boxes(detected, sizes, count=MOST)
        return ObjectsFound(
            [each.scores for each in found],
            [each.labels for each in found],
            [each.boxes for each in found],
            self._tokens(model, detected, batch),
        )

    def metric(self) -> Metric:
        """Return a fresh accumulator of COCO's figures."""
        return CocoMetric(self.categories)

    def model_metric(self) -> Metric:
        """Return one that also tells how well tokens were chosen."""
        return TokenMetric(self.categories)

    def baselines(self, data: Any) -> Mapping[str, Predictor]:
        """Return the usual boxes of each class."""
        if data not in _BASELINES:
            _BASELINES[data] = {"usual boxes": usual_boxes(data)}
        return _BASELINES[data]

    def pictures(self, model: nn.Module, data: Any) -> Sequence[Picture]:
        """Return test pictures with detections, and the tokens that the encoder's layers kept."""
        from polyhead_detection.report import pictures

        return pictures(self, model, data)

    def write_predictions(self, model: nn.Module, data: Any, out: Path, settings: PredictSettings) -> Sequence[Path]:
        """Write detections in the formats of ``settings.files``."""
        from polyhead_detection.predicting import write

        return write(self, model, data, out, settings)

    def example_inputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return what ``export`` traces: two pictures of the trained size."""
        device = next(model.parameters()).device
        height, width = (self.short_side, self.long_side) if self.short_side else (64, 64)
        return {"image": torch.zeros(2, 3, height, width, device=device)}

    def _ranges(self, model: nn.Module) -> Any:
        config: Any = model.config
        strides: Any = model.strides
        return size_ranges(strides, config.ranges)

    def _tokens(self, model: nn.Module, detected: Detected, batch: Batch) -> Tensor:
        """Return the figures of ``ObjectsFound.tokens``."""
        rows = []
        config: Any = model.config
        for row, (image, boxes) in enumerate(zip(batch["image"], batch["boxes"], strict=True)):
            size = (image.shape[-2], image.shape[-1])
            real = detected.token_mask[row]
            truth = foreground_targets(detected.places[row], boxes, size, self._ranges(model)) & real
            kept = torch.stack([layer[row] for layer in detected.kept]) if detected.kept else real[None]
            macs = encoder_macs(config, int(real.sum())).total / 1e6
            counts = [(kept[0] & truth).sum(), truth.sum(), kept.sum(), real.sum() * len(kept)]
            rows.append(torch.stack([*(count.double() for count in counts), torch.tensor(macs).to(counts[0].device)]))
        return torch.stack(rows).to(detected.boxes.dtype)


def _nothing(model: nn.Module) -> Tensor:
    """Return zero, with a gradient of zero for every parameter that is trained."""
    return torch.stack([p.sum() * 0.0 for p in model.parameters() if p.requires_grad]).sum()
