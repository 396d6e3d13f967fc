"""Settings of `tumor-segment --task organs`; imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = ["OrganDataSettings", "OrganPredictSettings", "OrganSettings", "OrganTaskSettings"]

Side = Annotated[int, Field(ge=16, le=1024)]


class OrganDataSettings(Section):
    """How volumes are read, sliced and split; how many images are generated."""

    of_files: ClassVar[tuple[str, ...]] = ("layout",)

    size: Annotated[
        tuple[Side, Side], Field(description="pixels each axial slice is resized to: right-left, back-front")
    ] = (256, 256)
    organs: Annotated[
        tuple[str, ...], Field(min_length=1, description="what the labels 1, 2, ... of the masks are called")
    ] = ("liver", "right kidney", "left kidney", "spleen")
    layout: Annotated[
        Literal["auto", "brats", "decathlon", "raidionics", "folders", "scans", "dicom"],
        Field(description="how the folder is laid out; auto looks at it"),
    ] = "auto"
    folds: Annotated[int, Field(ge=3, le=20, description="parts that subjects are split into")] = 5
    fold: Annotated[int, Field(ge=0, description="part that is tested; the next one validates")] = 0
    flip: Annotated[bool, Field(description="mirror training slices, each axis with probability 1/2")] = True
    rotation_deg: Annotated[
        float, Field(ge=0, le=180, description="largest rotation of training slices, with probability 1/2, degrees")
    ] = 30.0
    max_voxels: Annotated[int, Field(gt=0, description="largest volume that is read, voxels")] = 512**3
    train_cases: Annotated[int, Field(gt=0, le=100_000, description="generated: images to learn from")] = 600
    validation_cases: Annotated[int, Field(gt=0, le=10_000, description="generated: images for validation")] = 40
    test_cases: Annotated[int, Field(gt=0, le=10_000, description="generated: images for the test")] = 80


class OrganTaskSettings(Section):
    """How the parts of the loss are weighed."""

    guidance: Annotated[float, Field(ge=0, description="weight of the tie between the two steps' latents")] = 0.25
    reconstruction: Annotated[float, Field(ge=0, description="weight of the auto-encoders' reconstruction")] = 0.1
    detach_targets: Annotated[
        bool, Field(description="keep maps from being made easy to rebuild; the release does not")
    ] = False


class OrganTrainSettings(TrainSettings):
    """The paper's recipe: Adam 1e-3 with betas 0.9 and 0.99, batches of 8, halved every 50 epochs."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 500
    batch_size: Annotated[int, Field(gt=0, description="slices per optimiser step, over all processes")] = 8
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    betas: Annotated[tuple[float, float], Field(description="Adam's decay rates")] = (0.9, 0.99)
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "step"
    step_epochs: Annotated[float, Field(gt=0, description="schedule `step`: epochs between drops")] = 50
    step_factor: Annotated[float, Field(gt=0, le=1, description="schedule `step`: factor of each drop")] = 0.5
    validate_epochs: Annotated[float, Field(gt=0, description="epochs between validations")] = 5


class OrganPredictSettings(Section):
    """What `predict --task organs` writes."""

    files: Annotated[
        tuple[Literal["seg", "csv"], ...],
        Field(description="what is written: seg, csv (default: seg; of several volumes both)"),
    ] = ()


class OrganSettings(TaskSettings):
    """All settings of the task `organs`."""

    data: OrganDataSettings = OrganDataSettings()
    task: OrganTaskSettings = OrganTaskSettings()
    model: ModelSettings = ModelSettings(name="self-guided", preset="small")
    train: OrganTrainSettings = OrganTrainSettings()
    predict: OrganPredictSettings = OrganPredictSettings()
