"""Settings of `traffic-forecast`; imports no torch, the command line is built from them."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = ["ForecastSettings", "ForecastTaskSettings", "PredictSettings", "SensorSettings", "parse_step"]

_SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600, "d": 86400}


def parse_step(text: str) -> int:
    """Return the seconds of a step such as "5min", "30s", "1h" or "1d".

    >>> parse_step("15min")
    900

    Raises:
        ValueError: not of that form.
    """
    match = re.fullmatch(r"\s*(\d{1,6})\s*([a-z]+)\s*", text.lower())
    if match is None or match[2] not in _SECONDS or int(match[1]) == 0:
        raise ValueError("not a number with a unit: write it as 30s, 5min, 1h or 1d")
    return int(match[1]) * _SECONDS[match[2]]


class SensorSettings(Section):
    """How a folder of sensor readings is read and cut into windows."""

    of_files: ClassVar[tuple[str, ...]] = ("format", "start", "timezone", "graph", "coordinates", "axes")

    format: Annotated[
        Literal["auto", "h5", "npz", "dcrnn", "basicts", "tgcn", "mat", "long", "wide"],
        Field(description="on-disk layout; auto looks at the files"),
    ] = "auto"
    start: Annotated[str, Field(description="time of the first row where the file has none, e.g. 2012-03-01")] = ""
    step: Annotated[str, Field(description="time between rows where the file has none, e.g. 5min")] = ""
    timezone: Annotated[
        str, Field(description="convert times that carry an offset to this zone, e.g. America/Los_Angeles")
    ] = ""
    graph: Annotated[
        str, Field(description="file of the sensor graph; auto: the one beside the readings; none: without")
    ] = "auto"
    graph_ids: Annotated[
        Literal["strict", "common"],
        Field(description="sensors that only the graph or only the readings have: refused, or left out of the graph"),
    ] = "strict"
    coordinates: Annotated[
        str, Field(description="file of latitudes and longitudes; auto: the one beside the readings; none: without")
    ] = "auto"
    sigma: Annotated[
        float, Field(ge=0, description="width of the kernel on distances; 0: their standard deviation")
    ] = 0.0
    threshold: Annotated[float, Field(ge=0, lt=1, description="edges with a smaller weight are dropped")] = 0.1
    missing: Annotated[
        Literal["auto", "zero", "none"],
        Field(
            description="zero: a reading of 0 is a missing one; auto: so for speeds; none: only empty cells are missing"
        ),
    ] = "auto"
    fill: Annotated[
        Literal["zero", "last"],
        Field(description="missing inputs: 0 as in the literature, or the sensor's last reading"),
    ] = "zero"
    gaps: Annotated[
        Literal["mend", "ignore", "refuse"],
        Field(description="jumps in time: short ones become missing rows, long ones split the series"),
    ] = "mend"
    fill_gaps: Annotated[int, Field(ge=0, description="gaps of up to this many steps become missing rows")] = 12
    duplicates: Annotated[
        Literal["refuse", "first", "mean"],
        Field(description="rows with the same time: refused, the first kept, or averaged"),
    ] = "refuse"
    unsorted: Annotated[Literal["refuse", "sort"], Field(description="rows out of order: refused, or sorted")] = (
        "refuse"
    )
    holidays: Annotated[
        str,
        Field(description="days that count as Sundays: a country such as US or US-CA, or a file with a date a line"),
    ] = ""
    channel: Annotated[
        int, Field(ge=0, description="which value of a reading that has several; PEMS: 0 flow, 1 occupancy, 2 speed")
    ] = 0
    axes: Annotated[
        Literal["sensor-day-slot", "origin-destination-time"], Field(description="what the axes of a .mat tensor are")
    ] = "sensor-day-slot"
    unit: Annotated[str, Field(description="unit of the readings, e.g. mph, km/h, veh/h")] = ""
    history: Annotated[int, Field(gt=0, le=4096, description="past steps a forecast looks at")] = 12
    horizon: Annotated[int, Field(gt=0, le=4096, description="steps it looks ahead")] = 12
    protocol: Annotated[
        Literal["gman", "dcrnn", "pems-6-2-2", "tgcn"],
        Field(description="split and normalisation, as in the literature"),
    ] = "gman"

    @field_validator("start")
    @classmethod
    def _start_is_a_time(cls, text: str) -> str:
        if text:
            try:
                start = datetime.fromisoformat(text)
            except ValueError:
                raise ValueError("not a time: write it as 2012-03-01 or 2012-03-01T00:05") from None
            if start.tzinfo is not None:
                raise ValueError("it has a time zone: give local time without one")
        return text

    @field_validator("step")
    @classmethod
    def _step_is_a_duration(cls, text: str) -> str:
        if text:
            parse_step(text)
        return text


class ForecastTaskSettings(Section):
    """What the model is told and how it is trained."""

    embedding: Annotated[
        Literal["auto", "node2vec", "laplacian", "file"],
        Field(
            description="where sensors are: from the graph or a file; auto: the file in the folder, else node2vec, "
            "or laplacian for more than 2,000 sensors"
        ),
    ] = "auto"
    use_day_of_week: Annotated[
        Literal["auto", "on", "off"], Field(description="auto: on if the training part has all seven days")
    ] = "auto"
    norm_epochs: Annotated[float, Field(gt=0, description="epochs after which the batch-norm momentum is halved")] = 5


class ForecastTrainSettings(TrainSettings):
    """The recipe's defaults for GMAN: those of its authors, with a bound on the epochs."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 50
    batch_size: Annotated[int, Field(gt=0, description="windows per optimiser step, over all processes")] = 16
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "step"
    lr_floor: Annotated[float, Field(ge=0, description="smallest learning rate of the schedule")] = 1e-5
    patience: Annotated[int | None, Field(gt=0, description="validations without a better one before stopping")] = 10


class PredictSettings(Section):
    """What `predict` writes."""

    split: Annotated[
        Literal["latest", "train", "validation", "test"],
        Field(description="latest: the steps after the last row; else every window of that split, with its truth"),
    ] = "latest"
    level: Annotated[
        float,
        Field(ge=0.5, le=0.99, description="share of readings that are to lie between the columns lower and upper"),
    ] = 0.8


class ForecastSettings(TaskSettings):
    """All settings of the task `forecast`."""

    data: SensorSettings = SensorSettings()
    task: ForecastTaskSettings = ForecastTaskSettings()
    model: ModelSettings = ModelSettings(name="gman", preset="small")
    train: ForecastTrainSettings = ForecastTrainSettings()
    predict: PredictSettings = PredictSettings()
