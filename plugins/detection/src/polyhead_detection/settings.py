"""Settings of `object-detect`; imports no torch, the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = ["DetectSettings", "DetectTaskSettings", "PictureSettings", "PredictSettings"]


class PictureSettings(Section):
    """How pictures and their boxes are read."""

    of_files: ClassVar[tuple[str, ...]] = ("format", "images", "every")

    format: Annotated[
        Literal["auto", "coco", "yolo", "voc", "images", "video"],
        Field(description="layout of the files; auto looks at them"),
    ] = "auto"
    images: Annotated[str, Field(description="folder of the pictures of a COCO JSON (default: looked for)")] = ""
    short_side: Annotated[int, Field(ge=32, le=4096, description="pixels of the shorter side after resizing")] = 800
    long_side: Annotated[int, Field(ge=32, le=8192, description="most pixels of the longer side")] = 1333
    train_sides: Annotated[
        tuple[Annotated[int, Field(ge=32, le=4096)], ...],
        Field(description="shorter sides that training draws from (default: --short-side)"),
    ] = ()
    flip: Annotated[bool, Field(description="mirror half of the training pictures")] = True
    crop: Annotated[bool, Field(description="cut a random part out of half of the training pictures")] = False
    bad_boxes: Annotated[
        Literal["refuse", "clip"],
        Field(description="boxes outside of their picture or without size: refused, or clipped and dropped if empty"),
    ] = "refuse"
    empty: Annotated[
        Literal["keep", "drop"], Field(description="training pictures without a box: kept as background, or dropped")
    ] = "keep"
    every: Annotated[int, Field(ge=1, description="video: take every so many frames")] = 1
    scenes: Annotated[
        int, Field(ge=4, le=100_000, description="generated: test scenes; a fifth as many for validation")
    ] = 320


class DetectTaskSettings(Section):
    """How the detector is trained."""

    pretrained_backbone: Annotated[
        bool, Field(description="begin with the backbone's ImageNet weights, which timm downloads")
    ] = False


class DetectTrainSettings(TrainSettings):
    """The recipe's defaults for DETRs: those of the publication."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = None
    steps: Annotated[int | None, Field(gt=0, description="optimiser steps; the smaller of both ends the run")] = 90_000
    batch_size: Annotated[int, Field(gt=0, description="pictures per optimiser step, over all processes")] = 16
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, not on biases and norms")] = 1e-4
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "cosine"
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = 0.1


class PredictSettings(Section):
    """What `predict` writes."""

    split: Annotated[Literal["train", "validation", "test"], Field(description="of annotated data: which pictures")] = (
        "test"
    )
    threshold: Annotated[float, Field(ge=0, le=1, description="least score of a detection")] = 0.3
    top: Annotated[int, Field(ge=1, le=10_000, description="most detections of a picture")] = 100
    files: Annotated[
        tuple[Literal["coco", "results", "yolo", "voc", "pictures", "keep-maps"], ...],
        Field(
            description="what is written: coco, results, yolo, voc, pictures, keep-maps; --out FILE.json takes coco or "
            "results alone"
        ),
    ] = ("coco", "results", "pictures", "keep-maps")


class DetectSettings(TaskSettings):
    """All settings of the task `detect`."""

    data: PictureSettings = PictureSettings()
    task: DetectTaskSettings = DetectTaskSettings()
    model: ModelSettings = ModelSettings(name="focus-detr", preset="resnet50")
    train: DetectTrainSettings = DetectTrainSettings()
    predict: PredictSettings = PredictSettings()
