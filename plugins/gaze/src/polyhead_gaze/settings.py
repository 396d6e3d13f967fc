"""Settings of `gaze-scanpath`; imports no torch, the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = ["DisplaySettings", "PredictSettings", "ScanpathSettings", "ScanpathTaskSettings"]


class DisplaySettings(Section):
    """How files are read and split, and how many displays are simulated."""

    of_files: ClassVar[tuple[str, ...]] = ("format", "boxes", "images", "distance_cm", "width_cm")

    format: Annotated[
        Literal["auto", "display", "amazon", "coco-search18", "shelf", "csv"],
        Field(description="layout of the files; auto looks at them"),
    ] = "auto"
    boxes: Annotated[
        str, Field(description="boxes of the objects: CSV or COCO JSON (default: beside the fixations)")
    ] = ""
    images: Annotated[str, Field(description="folder of the displays' pictures, from which objects are cut out")] = ""
    split: Annotated[
        Literal["display", "trial"],
        Field(description="display: tests are on displays that training has not seen; trial: 80/10/10, as published"),
    ] = "display"
    outside: Annotated[
        Literal["refuse", "drop"], Field(description="what happens to fixations outside of the screen")
    ] = "refuse"
    nearest_px: Annotated[
        float, Field(ge=0, description="how far from the nearest box a fixation still counts as on it, pixels")
    ] = 1e9
    longest_sd: Annotated[
        float,
        Field(ge=0, description="trials longer than the mean and so many standard deviations are left out; 0: none"),
    ] = 3.0
    flip: Annotated[bool, Field(description="turn training displays upside down and left to right at random")] = True
    turn_features: Annotated[
        bool,
        Field(
            description="simulated: turn the features of training displays at random, so that likeness is what counts"
        ),
    ] = True
    distance_cm: Annotated[float, Field(ge=0, description="distance of the eyes to the screen, cm; 0: unknown")] = 0.0
    width_cm: Annotated[float, Field(ge=0, description="width of the screen, cm; 0: unknown")] = 0.0
    displays: Annotated[int, Field(ge=4, le=100_000, description="simulated: displays to train on")] = 2000
    test_displays: Annotated[int, Field(ge=2, le=10_000, description="simulated: displays of the test split")] = 300
    viewers: Annotated[int, Field(ge=1, le=20, description="simulated: viewers of a held-out display")] = 2


class ScanpathTaskSettings(Section):
    """What the model is told, and how it is measured."""

    target_location: Annotated[
        Literal["given", "hidden"],
        Field(description="given, as published: the model knows where the target is; hidden: it has to search"),
    ] = "given"
    appearance: Annotated[
        bool, Field(description="use what objects look like, where the data have it; else their places only")
    ] = True
    pretrained: Annotated[
        bool, Field(description="begin with the public weights of model.backbone, which timm fetches")
    ] = False
    samples: Annotated[
        int, Field(ge=1, le=1000, description="scanpaths drawn for each trial when the model is measured")
    ] = 10


class ScanpathTrainSettings(TrainSettings):
    """The recipe's defaults for scanpaths."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 40
    batch_size: Annotated[int, Field(gt=0, description="trials per optimiser step, over all processes")] = 32
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adamw"
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, description="steps of linear warm-up")] = 50
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = 1.0
    validate_epochs: Annotated[float, Field(gt=0, description="epochs between validations")] = 4


class PredictSettings(Section):
    """What `predict` writes."""

    target: Annotated[str, Field(description="name of the object that is searched for (default: as the data say)")] = ""
    samples: Annotated[int, Field(ge=1, le=100_000, description="scanpaths drawn for each display")] = 100
    temperature: Annotated[
        float, Field(gt=0, le=10, description="above 1 scanpaths differ more than people's, below 1 less")
    ] = 1.0
    draw: Annotated[int, Field(ge=0, description="another number, other scanpaths")] = 0
    files: Annotated[
        tuple[Literal["scanpaths", "areas", "picture"], ...],
        Field(description="what is written: scanpaths, areas, picture; --out FILE takes one, a folder several"),
    ] = ("scanpaths",)
    plot: Annotated[str, Field(description="draw the scanpaths over the display into this PNG, too")] = ""


class ScanpathSettings(TaskSettings):
    """All settings of the task `scanpath`."""

    data: DisplaySettings = DisplaySettings()
    task: ScanpathTaskSettings = ScanpathTaskSettings()
    model: ModelSettings = ModelSettings(name="oat", preset="small")
    train: ScanpathTrainSettings = ScanpathTrainSettings()
    predict: PredictSettings = PredictSettings()
