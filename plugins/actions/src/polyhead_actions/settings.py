"""Settings of `action-detect`; imports no torch, the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = ["DetectSettings", "DetectTaskSettings", "PredictSettings", "VideoSettings"]


class VideoSettings(Section):
    """How features and annotations are read and cut into sequences."""

    of_files: ClassVar[tuple[str, ...]] = ("annotations", "features", "fps", "stride", "offset", "class_scores")

    annotations: Annotated[
        str, Field(description="JSON of annotations; auto: the one in the folder, none: features only")
    ] = "auto"
    features: Annotated[
        str, Field(description="folder or file of features; auto: the folder, or the one folder in it that has some")
    ] = "auto"
    sampling: Annotated[
        Literal["auto", "rescale", "window"],
        Field(
            description="rescale: a whole video becomes `length` steps (ActivityNet); window: pieces of `length` rows "
            "(THUMOS); auto: window where fps and stride are known and a video is longer than `length`"
        ),
    ] = "auto"
    length: Annotated[int, Field(gt=0, le=4096, description="steps of a sequence, T")] = 100
    durations: Annotated[int, Field(ge=0, le=4096, description="longest action in steps, D; 0: the length")] = 0
    overlap: Annotated[float, Field(ge=0, lt=1, description="share of a window that the next one repeats")] = 0.5
    least_inside: Annotated[
        float, Field(gt=0, le=1, description="share of an action that must lie in a window to count there")
    ] = 0.9
    fps: Annotated[
        float, Field(ge=0, description="frames per second the features were made at; 0: from features.json")
    ] = 0.0
    stride: Annotated[float, Field(ge=0, description="frames between feature rows; 0: from features.json")] = 0.0
    offset: Annotated[float, Field(ge=0, description="frames before the first row's time")] = 0.0
    segments: Annotated[
        Literal["refuse", "mend"],
        Field(description="annotations that are reversed or outside of their video: refused, or dropped and cut"),
    ] = "refuse"
    blocked: Annotated[str, Field(description="file with ids of videos to leave out: a JSON list, or one a line")] = ""
    held_out: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            description="share of the training videos that picks the best weights, where no subset of the files does",
        ),
    ] = 0.1
    class_scores: Annotated[
        str, Field(description="JSON with class scores of whole videos, {video: {class: score}}; instead of the head's")
    ] = ""
    class_top: Annotated[int, Field(gt=0, le=100, description="classes a proposal is given, the best of its video")] = 2
    train_videos: Annotated[int, Field(gt=0, description="made-up videos to train on")] = 480
    test_videos: Annotated[int, Field(gt=0, description="made-up videos to test on; half as many to validate")] = 200
    content_seed: Annotated[int, Field(ge=0, description="seed of the made-up videos")] = 0


class DetectTaskSettings(Section):
    """What is learnt, and how maps become detections."""

    loss: Annotated[
        Literal["balanced", "released"],
        Field(description="balanced: exact over processes; released: the ports' means and random subset"),
    ] = "balanced"
    normalise: Annotated[
        bool, Field(description="give features mean 0 and deviation 1 over the training part; off: as released")
    ] = True
    score: Annotated[
        Literal["all", "conf", "boundary"],
        Field(description="what a proposal's score is: start × end × both confidences, the latter, or the former"),
    ] = "all"
    alpha: Annotated[float, Field(ge=0, description="softness of suppression, exp(-IoU²/alpha); 0: hard")] = 0.4
    keep: Annotated[int, Field(gt=0, le=10000, description="proposals kept of a sequence, and of a video")] = 100
    thresholds: Annotated[
        Literal["activitynet", "thumos"],
        Field(description="temporal IoU of mAP: 0.5 to 0.95 by 0.05, or 0.3 to 0.7 by 0.1"),
    ] = "activitynet"


class DetectTrainSettings(TrainSettings):
    """The recipe's defaults for BMN: those of its authors."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 10
    batch_size: Annotated[int, Field(gt=0, description="sequences per optimiser step, over all processes")] = 16
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, not on biases and norms")] = 1e-4
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "step"
    step_epochs: Annotated[float, Field(gt=0, description="schedule `step`: epochs between drops")] = 7
    step_factor: Annotated[float, Field(gt=0, le=1, description="schedule `step`: factor of each drop")] = 0.1


class PredictSettings(Section):
    """What `predict` writes."""

    split: Annotated[
        Literal["all", "train", "validation", "test"], Field(description="the videos that are looked at")
    ] = "all"
    files: Annotated[
        Literal["all", "json", "csv"],
        Field(description="all: results, CSV, subtitles and pictures; json or csv: that file alone"),
    ] = "all"
    least_score: Annotated[float, Field(ge=0, le=1, description="detections below this score are left out")] = 0.0
    subtitles: Annotated[
        float, Field(ge=0, le=1, description="least score, relative to the best of its video, of what the SRT says")
    ] = 0.3
    pictures: Annotated[int, Field(ge=0, le=1000, description="videos that get a picture of their timeline")] = 20


class DetectSettings(TaskSettings):
    """All settings of the task `detect`."""

    data: VideoSettings = VideoSettings()
    task: DetectTaskSettings = DetectTaskSettings()
    model: ModelSettings = ModelSettings(name="bmn", preset="medium")
    train: DetectTrainSettings = DetectTrainSettings()
    predict: PredictSettings = PredictSettings()
