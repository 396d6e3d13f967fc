"""Settings of `agent-train`; imports no torch, the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = [
    "ClassifySettings",
    "EpisodeSettings",
    "EventSettings",
    "EventTaskSettings",
    "ForecastSettings",
    "OfflineSettings",
    "OfflineTaskSettings",
    "PlaySettings",
    "SeriesSettings",
    "TableSettings",
]


class EpisodeSettings(Section):
    """How recorded episodes are read, cut into windows and played."""

    of_files: ClassVar[tuple[str, ...]] = ("format", "env")

    format: Annotated[
        Literal["auto", "minari", "d4rl"], Field(description="layout of the HDF5 file; auto looks at it")
    ] = "auto"
    env: Annotated[
        str, Field(description="environment to play, e.g. CartPole-v1, your own package:Id; without one none is played")
    ] = ""
    context: Annotated[int, Field(ge=1, le=4096, description="time steps of a window")] = 20
    play_episodes: Annotated[int, Field(ge=1, le=10_000, description="episodes played for the test")] = 20


class OfflineTaskSettings(Section):
    """What the agent is asked for."""

    target_return: Annotated[
        float | None,
        Field(description="return it is asked for (default: as in the literature, else the largest recorded one)"),
    ] = None


class OfflineTrainSettings(TrainSettings):
    """The recipe's defaults for decision models: those of min-decision-transformer."""

    steps: Annotated[int | None, Field(gt=0, description="optimiser steps; the smaller of both ends the run")] = 20_000
    batch_size: Annotated[int, Field(gt=0, description="windows per optimiser step, over all processes")] = 64
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 1e-4
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, not on biases and norms")] = 1e-4
    warmup_steps: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 10_000
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = 0.25


class PlaySettings(Section):
    """What `predict` plays."""

    episodes: Annotated[int, Field(ge=1, le=10_000, description="episodes to play")] = 10
    memory: Annotated[
        Literal["window", "episode"],
        Field(description="act on the last steps, computed anew; or on a state carried since the episode began"),
    ] = "window"
    render: Annotated[bool, Field(description="write the first episode as a GIF")] = False


class OfflineSettings(TaskSettings):
    """All settings of the task `offline-rl`."""

    data: EpisodeSettings = EpisodeSettings()
    task: OfflineTaskSettings = OfflineTaskSettings()
    model: ModelSettings = ModelSettings(name="decision-aaren", preset="small")
    train: OfflineTrainSettings = OfflineTrainSettings()
    predict: PlaySettings = PlaySettings()


class SeriesSettings(Section):
    """Which labelled series are read."""

    of_files: ClassVar[tuple[str, ...]] = ("series",)

    series: Annotated[str, Field(description="name of the dataset where there are several: NAME_TRAIN.ts")] = ""


class ClassifyTrainSettings(TrainSettings):
    """The recipe's defaults for classification: those of Time-Series-Library, with Adam warmed up for its RAdam."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 100
    batch_size: Annotated[int, Field(gt=0, description="series per optimiser step, over all processes")] = 16
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    warmup_steps: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 100
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = 4.0
    patience: Annotated[int | None, Field(gt=0, description="validations without a better one before stopping")] = 20


class ClassifySettings(TaskSettings):
    """All settings of the task `classify`."""

    data: SeriesSettings = SeriesSettings()
    model: ModelSettings = ModelSettings(name="series-classifier", preset="small")
    train: ClassifyTrainSettings = ClassifyTrainSettings()


class TableSettings(Section):
    """How a table of readings is read and cut into windows."""

    of_files: ClassVar[tuple[str, ...]] = ("table", "split")

    table: Annotated[str, Field(description="name of the CSV file where there are several")] = ""
    history: Annotated[int, Field(ge=2, le=10_000, description="steps that a forecast sees")] = 96
    horizon: Annotated[int, Field(ge=1, le=10_000, description="steps that are forecast")] = 96
    split: Annotated[
        Literal["ratio", "ett"],
        Field(description="rows for training, validation, test: 70/10/20, or 12/4/4 months as for ETT"),
    ] = "ratio"


class ForecastTrainSettings(TrainSettings):
    """The recipe's defaults for forecasting: those of Time-Series-Library."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 10
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 1e-4
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "step"
    step_epochs: Annotated[float, Field(gt=0, description="schedule `step`: epochs between drops")] = 1
    step_factor: Annotated[float, Field(gt=0, le=1, description="schedule `step`: factor of each drop")] = 0.5
    patience: Annotated[int | None, Field(gt=0, description="validations without a better one before stopping")] = 3


class ForecastSettings(TaskSettings):
    """All settings of the task `forecast`."""

    data: TableSettings = TableSettings()
    model: ModelSettings = ModelSettings(name="series-forecaster", preset="small")
    train: ForecastTrainSettings = ForecastTrainSettings()


class EventSettings(Section):
    """How sequences of events are read: there is nothing to set."""


class EventTrainSettings(TrainSettings):
    """The recipe's defaults for events: Adam and batch as published, a larger rate for fewer epochs."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 100
    batch_size: Annotated[int, Field(gt=0, description="sequences per optimiser step, over all processes")] = 16
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    weight_decay: Annotated[float, Field(ge=0, description="weight decay, not on biases and norms")] = 1e-4
    patience: Annotated[int | None, Field(gt=0, description="validations without a better one before stopping")] = 20


class EventTaskSettings(TaskSettings):
    """All settings of the task `events`."""

    data: EventSettings = EventSettings()
    model: ModelSettings = ModelSettings(name="event-model", preset="small")
    train: EventTrainSettings = EventTrainSettings()
