"""The task `detect`: what a model is trained for, measured by and asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.errors import CheckpointError, ConfigError, DataError
from polyhead.manifest import resolve
from polyhead.models import load
from polyhead.plugins import find_model
from polyhead.protocols import Batch, Direction, Monitor, Picture, Predictor, Ratio
from polyhead_actions.bmn import Maps
from polyhead_actions.data import VideoData
from polyhead_actions.decoding import Decoder
from polyhead_actions.losses import Targets, loss_terms, released_loss
from polyhead_actions.metrics import NAMED, DetectionMetric
from polyhead_actions.settings import DetectTaskSettings, PredictSettings
from polyhead_actions.targets import boundary_targets, iou_targets

if TYPE_CHECKING:
    from torch import nn

__all__ = ["DetectTask"]

_BASELINES: MutableMapping[VideoData, Mapping[str, Predictor]] = WeakKeyDictionary()
"""Fitted once for the data they belong to."""


@dataclass(frozen=True)
class DetectTask:
    """Find actions in sequences of features; implements ``polyhead.protocols.Task``.

    A batch is that of `data.Sequences`. A model takes ``features`` (B, C, T) and ``mask`` (B, T) and returns
    `bmn.Maps`; its config has ``channels``, ``length``, ``durations`` and ``classes``. A prediction is the maps by
    name, which `decoding.Decoder` turns into detections.
    """

    monitor: ClassVar[Monitor] = Monitor("mAP", "max")
    directions: ClassVar[Mapping[str, Direction]] = {}

    classes: tuple[str, ...]
    channels: int
    length: int
    durations: int
    sampling: str
    loss_form: str
    score: str
    alpha: float
    keep: int
    thresholds: str
    class_top: int
    backbone: str
    """What made the features, as far as it is known; and at how many frames per second, how many a row."""
    fps: float
    stride: float
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def headline(self) -> Sequence[str]:
        """The figures of the table."""
        named = [f"mAP@{level:g}" for level in NAMED[self.thresholds]]
        return ["mAP", *named, "AP@0.5", "AP@0.7", "AR@1", "AR@10", "AR@100", "AUC"]

    @classmethod
    def prepare(cls, data: VideoData, settings: DetectTaskSettings, *, seed: int) -> Self:
        """Make the task for some data; fits the normaliser on the training videos.

        Raises:
            DataError: no training video has an action, or a split is empty.
        """
        del seed
        for split in ("train", "test"):
            data.source(split)
        if not any(data.videos[video].labels for video in data.splits["train"]):
            raise DataError(
                f"{data.name}: none of the {len(data.splits['train'])} training videos has an action. Annotate some."
            )
        mean, std = data.normaliser() if settings.normalise else (None, None)
        return cls(
            classes=data.classes,
            channels=data.channels,
            length=data.length,
            durations=data.durations,
            sampling=data.sampling,
            loss_form=settings.loss,
            score=settings.score,
            alpha=settings.alpha,
            keep=settings.keep,
            thresholds=settings.thresholds,
            class_top=data.class_top,
            backbone=data.backbone,
            fps=data.timing[0],
            stride=data.timing[1],
            mean=None if mean is None else tuple(mean.tolist()),
            std=None if std is None else tuple(std.tolist()),
        )

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        """Make the task of a saved model.

        Raises:
            CheckpointError: the state is that of another version.
        """
        names = {field.name for field in dataclasses.fields(cls)} - {"mean", "std"}
        if set(state) != names:
            odd = ", ".join(sorted(set(state) ^ names))
            raise CheckpointError(
                f"The state of the task detect does not fit this version: {odd}. Fit the model again."
            )
        return cls(**{**state, "classes": tuple(state["classes"])})

    def state(self) -> Mapping[str, Any]:
        """Return what ``restore`` needs, as JSON values; the model carries the normaliser."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["mean"], fields["std"]
        return {**fields, "classes": list(self.classes)}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        """Build a fresh model for these features and classes.

        Raises:
            ConfigError: ``config`` sets what the data determine to something else, or has an unknown setting.
        """
        cls = resolve(find_model(name)[1].target)
        known = {field.name for field in dataclasses.fields(cls.Config)}
        determined = {
            "channels": self.channels,
            "length": self.length,
            "durations": self.durations,
            "classes": len(self.classes),
        }
        for key, value in determined.items():
            if config.get(key, value) != value:
                raise ConfigError(f"model.{key} is {config[key]}, but the data have {value}. Leave it out.")
        model = load(
            name, **{key: value for key, value in {**config, **determined}.items() if key in known | {*config}}
        )
        set_data: Any = getattr(model, "set_data", None)
        if set_data is not None and self.mean is not None:
            set_data(torch.tensor(self.mean), torch.tensor(self.std))
        return model

    def check(self, data: VideoData) -> None:
        """Refuse data of other features or classes.

        Raises:
            DataError: names what differs.
        """
        if data.channels != self.channels:
            raise DataError(
                f"{data.name} has features of {data.channels} channels, the model was fitted on {self.channels}. "
                "Make them by the same feature model."
            )
        for what, have, want in (
            ("backbone", data.backbone, self.backbone),
            ("fps", data.timing[0], self.fps),
            ("stride", data.timing[1], self.stride),
        ):
            if have and want and have != want:
                raise DataError(
                    f"The features of {data.name} have {what} {have}, the model was fitted with {want}. "
                    "Make them in the same way."
                )
        for what, have, want in (
            ("length", data.length, self.length),
            ("durations", data.durations, self.durations),
            ("sampling", data.sampling, self.sampling),
        ):
            if have != want:
                raise DataError(
                    f"{data.name} has {what} {have}, the model was fitted with {want}. Use --{what} {want}."
                )
        unknown = [name for name in data.classes if name not in self.classes]
        if unknown and data.classes != self.classes:
            raise DataError(
                f'{data.name} has {len(unknown)} classes that the model does not know ("{unknown[0]}"). Fit it again.'
            )
        if data.classes and data.classes != self.classes:
            raise DataError(
                f"{data.name} has {len(data.classes)} of the model's {len(self.classes)} classes. Name them all in the "
                'annotations under "classes".'
            )

    def targets(self, batch: Batch) -> Targets:
        """Return what the maps of a batch are to be."""
        mask, features = batch["mask"], batch["features"]
        segments, present = batch["segments"].to(features.dtype), batch["labels"] >= 0
        start, end = boundary_targets(segments, present, self.length)
        iou = iou_targets(segments, present, self.length, self.durations)
        steps = torch.arange(self.length, device=mask.device)
        lasts = steps + torch.arange(self.durations, device=mask.device).unsqueeze(-1)
        return Targets(start, end, iou, mask, lasts < mask.sum(-1).view(-1, 1, 1))

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        """Return the terms of `losses`, and the cross entropy of the classes of the actions."""
        logits: Maps = model(batch["features"], batch["mask"], logits=True)
        targets = self.targets(batch)
        if self.loss_form == "balanced":
            terms = dict(loss_terms(logits, targets))
        else:
            start, end, conf = (torch.sigmoid(part) for part in logits[:3])
            maps = Maps(start, end, conf, logits.classes)
            released = released_loss(maps, targets) if len(batch["mask"]) else {}
            count = torch.tensor(len(batch["mask"]), device=batch["mask"].device)
            zero = logits.start.sum() * 0
            names = ("boundary", "match", "iou")
            terms = {name: Ratio(released[name] * count if released else zero, count) for name in names}
        if logits.classes.shape[1]:
            terms["class"] = _class_loss(logits.classes, batch)
        return terms

    def counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the counts of ``loss`` without the model."""
        mask = batch["mask"]
        named = {"class": (batch["labels"] >= 0).sum()}
        if self.loss_form != "balanced":
            count = torch.tensor(len(mask), device=mask.device)
            return {"boundary": count, "match": count, "iou": count, **named}
        targets = self.targets(batch)
        nothing = Maps(targets.start, targets.end, targets.iou.unsqueeze(1).expand(-1, 2, -1, -1), targets.start)
        return {**{name: ratio.count for name, ratio in loss_terms(nothing, targets).items()}, **named}

    def predict(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the maps by name."""
        maps: Maps = model(batch["features"], batch["mask"])
        return maps._asdict()

    @property
    def decoder(self) -> Decoder:
        """What makes detections of maps."""
        score: Any = self.score
        return Decoder(score=score, alpha=self.alpha, keep=self.keep, class_top=self.class_top)

    def metric(self) -> DetectionMetric:
        """Return a fresh accumulator of mAP and average recall."""
        protocol: Any = self.thresholds
        return DetectionMetric(self.decoder, protocol)

    def baselines(self, data: VideoData) -> Mapping[str, Predictor]:
        """Return the usual segments, a threshold on one channel, and a classifier of single steps."""
        from polyhead_actions.baselines import fit_baselines

        if data not in _BASELINES:
            _BASELINES[data] = fit_baselines(data)
        return _BASELINES[data]

    def example_inputs(self, model: nn.Module) -> Mapping[str, Tensor]:
        """Return the inputs that an export is traced with."""
        del model
        features = torch.randn(2, self.channels, self.length, generator=torch.Generator().manual_seed(0))
        return {"features": features, "mask": torch.ones(2, self.length, dtype=torch.bool)}

    def pictures(self, model: nn.Module, data: VideoData) -> Sequence[Picture]:
        """Return the report's figures: timelines of test videos, and recall against the number of proposals."""
        from polyhead_actions.report import pictures

        return pictures(self, model, data)

    def write_predictions(
        self, model: nn.Module, data: VideoData, out: Path, settings: PredictSettings
    ) -> Sequence[Path]:
        """Write detections; see `writing`."""
        from polyhead_actions.writing import write

        return write(self, model, data, out, settings)


def _class_loss(logits: Tensor, batch: Batch) -> Ratio:
    """Return the cross entropy of the mean logits (B, K, T) over each action of a batch."""
    row, number = (batch["labels"] >= 0).nonzero(as_tuple=True)
    ends = batch["segments"][row, number].to(logits.dtype)
    steps = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    # The share of each step that an action covers; a fraction at its ends.
    cover = (torch.minimum(steps + 1, ends[:, 1:]) - torch.maximum(steps, ends[:, :1])).clamp(min=0)
    means = (logits[row] * cover.unsqueeze(1)).sum(-1) / cover.sum(-1, keepdim=True).clamp(min=1e-6)
    total = F.cross_entropy(means, batch["labels"][row, number], reduction="sum") if len(row) else logits.sum() * 0
    return Ratio(total, torch.tensor(len(row), device=logits.device))
