"""Settings of `geometry-solve`; imports no torch, the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = [
    "DelaunaySettings",
    "HullSettings",
    "InstanceSettings",
    "PredictSettings",
    "SolveTaskSettings",
    "TourPredictSettings",
    "TourSettings",
]


class InstanceSettings(Section):
    """Which instances are generated, and how files are read."""

    of_files: ClassVar[tuple[str, ...]] = ("format", "member", "x", "y", "id", "metric", "ignore")

    min_points: Annotated[int, Field(ge=3, le=1000, description="generated: fewest points")] = 5
    max_points: Annotated[int, Field(ge=3, le=1000, description="generated: most points")] = 10
    curriculum: Annotated[
        int, Field(ge=0, description="generated: training samples over which sizes grow from --curriculum-from")
    ] = 0
    curriculum_from: Annotated[int, Field(ge=3, description="generated: points the curriculum begins with")] = 4
    block: Annotated[
        int, Field(gt=0, description="generated: neighbouring samples that have the same number of points")
    ] = 128
    solved: Annotated[
        int,
        Field(
            ge=0,
            description="generated tours: instances of each size that are solved; further ones are these turned, "
            "mirrored and renumbered (0: all are solved)",
        ),
    ] = 20_000
    test_points: Annotated[
        tuple[Annotated[int, Field(ge=3, le=1000)], ...],
        Field(description="generated: sizes of validation and test instances (default: the largest)"),
    ] = ()
    held_out: Annotated[
        int, Field(ge=4, le=100_000, description="generated: validation and test instances of each size")
    ] = 1000
    format: Annotated[
        Literal["auto", "released", "tsplib", "csv", "matrix", "geojson"],
        Field(description="layout of the file; auto looks at it"),
    ] = "auto"
    member: Annotated[str, Field(description="file inside a zip (default: all of them, one after the other)")] = ""
    x: Annotated[str, Field(description="column of x or longitude")] = ""
    y: Annotated[str, Field(description="column of y or latitude")] = ""
    id: Annotated[str, Field(description="column of names (default: id, else name, else row numbers)")] = ""
    metric: Annotated[
        Literal["auto", "euclidean", "haversine"],
        Field(description="distances; auto: haversine in km for lat/lon, else euclidean in the unit of x and y"),
    ] = "auto"
    ignore: Annotated[
        tuple[str, ...], Field(description="columns of capacities or time windows that may be left out of account")
    ] = ()

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        if self.min_points > self.max_points:
            raise ValueError(f"min_points {self.min_points} is above max_points {self.max_points}")
        return self


class SolveTaskSettings(Section):
    """How answers are decoded when they are measured."""

    beam: Annotated[int, Field(ge=1, le=1000, description="answers kept by beam search; 1 is greedy")] = 1
    constrained: Annotated[bool, Field(description="only answers that are tours, polygons or triangles")] = True
    masked: Annotated[
        bool,
        Field(description="train on the points that those rules leave, such as those not visited yet"),
    ] = True


class SolveTrainSettings(TrainSettings):
    """The recipe's defaults for Pointer Networks: Adam instead of the paper's SGD, with its batch and clip."""

    steps: Annotated[int | None, Field(gt=0, description="optimiser steps; the smaller of both ends the run")] = 5_000
    batch_size: Annotated[int, Field(gt=0, description="instances per optimiser step, over all processes")] = 128
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    lr: Annotated[float, Field(gt=0, description="peak learning rate")] = 3e-3
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "cosine"
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = 2.0
    validate_epochs: Annotated[float, Field(gt=0, description="epochs between validations")] = 0.1


class PredictSettings(Section):
    """What `predict` writes."""

    beam: Annotated[int, Field(ge=1, le=1000, description="answers kept by beam search; 1 is greedy")] = 1
    files: Annotated[
        tuple[Literal["csv", "geojson", "png"], ...],
        Field(description="what is written: csv, geojson, png; --out FILE takes one, a folder several"),
    ] = ("csv",)


class TourPredictSettings(PredictSettings):
    """What `predict --task tsp` writes."""

    start: Annotated[str, Field(description="name of the stop the tour starts at (default: the first row)")] = ""
    end: Annotated[str, Field(description="name of the stop the tour ends at; the way back does not count")] = ""
    open: Annotated[bool, Field(description="no way back: the tour ends at its last stop")] = False
    polish: Annotated[Literal["none", "2opt"], Field(description="improvement of the network's tour")] = "none"
    solver: Annotated[
        Literal["auto", "network", "classical", "warm"],
        Field(
            description="whose tour is written; auto: the network's up to 3 times the points it was trained on, else "
            "the classical one; warm: the classical solver's, begun from the network's tour"
        ),
    ] = "auto"
    search_steps: Annotated[int, Field(ge=1, le=1_000_000, description="iterations of the classical solver")] = 500


class TourSettings(TaskSettings):
    """All settings of the task `tsp`."""

    data: InstanceSettings = InstanceSettings(min_points=5, max_points=10)
    task: SolveTaskSettings = SolveTaskSettings()
    model: ModelSettings = ModelSettings(name="pointer-network", preset="small")
    train: SolveTrainSettings = SolveTrainSettings()
    predict: TourPredictSettings = TourPredictSettings()


class HullSettings(TaskSettings):
    """All settings of the task `hull`."""

    data: InstanceSettings = InstanceSettings(min_points=5, max_points=20)
    task: SolveTaskSettings = SolveTaskSettings()
    model: ModelSettings = ModelSettings(name="pointer-network", preset="small")
    train: SolveTrainSettings = SolveTrainSettings()
    predict: PredictSettings = PredictSettings()


class DelaunaySettings(TaskSettings):
    """All settings of the task `delaunay`."""

    data: InstanceSettings = InstanceSettings(min_points=5, max_points=5)
    task: SolveTaskSettings = SolveTaskSettings()
    model: ModelSettings = ModelSettings(name="pointer-network", preset="small")
    train: SolveTrainSettings = SolveTrainSettings()
    predict: PredictSettings = PredictSettings()
