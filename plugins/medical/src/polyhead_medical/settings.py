"""Settings of `tumor-segment`; imports no torch, the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings

__all__ = ["ScanSettings", "TumorPredictSettings", "TumorSettings", "TumorTaskSettings"]

Axis = Annotated[int, Field(ge=0, le=2)]
Size = Annotated[int, Field(ge=8, le=512)]


class ScanSettings(Section):
    """How scans are read, brought to the network's size and split; which volumes are generated."""

    of_files: ClassVar[tuple[str, ...]] = ("layout", "labels")

    size: Annotated[
        tuple[Size, Size, Size],
        Field(description="voxels the whole head is resized to: right-left, back-front, down-up"),
    ] = (64, 64, 64)
    channels: Annotated[
        tuple[str, ...], Field(description="sequences the network sees, such as t1c,flair (default: the first found)")
    ] = ()
    layout: Annotated[
        Literal["auto", "brats", "decathlon", "raidionics", "folders", "scans", "dicom"],
        Field(description="how the folder is laid out; auto looks at it"),
    ] = "auto"
    labels: Annotated[
        tuple[Annotated[int, Field(ge=1, le=255)], ...],
        Field(description="values of the masks that count as tumour (default: all but 0)"),
    ] = ()
    crop: Annotated[bool, Field(description="cut away the air around the head first")] = True
    percentiles: Annotated[
        tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0, le=100)]],
        Field(description="intensities that become 0 and 1"),
    ] = (0.5, 99.5)
    folds: Annotated[int, Field(ge=3, le=20, description="parts that patients are split into")] = 5
    fold: Annotated[int, Field(ge=0, description="part that is tested; the next one validates")] = 0
    flips: Annotated[tuple[Axis, ...], Field(description="axes along which training volumes are mirrored")] = (0, 1, 2)
    rotation_deg: Annotated[
        float, Field(ge=0, le=180, description="largest rotation of training volumes about each axis, degrees")
    ] = 20.0
    translation: Annotated[
        float, Field(ge=0, le=0.5, description="largest shift of training volumes, as a share of the axis")
    ] = 0.1
    max_voxels: Annotated[int, Field(gt=0, description="largest scan that is read, voxels")] = 512**3
    cache_mb: Annotated[float, Field(ge=0, description="memory for volumes that were read before, MB")] = 1024.0
    train_cases: Annotated[int, Field(gt=0, le=100_000, description="generated: volumes to learn from")] = 160
    validation_cases: Annotated[int, Field(gt=0, le=10_000, description="generated: volumes for validation")] = 20
    test_cases: Annotated[int, Field(gt=0, le=10_000, description="generated: volumes for the test")] = 60


class TumorTaskSettings(Section):
    """What is learnt and how it is measured."""

    loss: Annotated[
        Literal["dice", "dice_ce"], Field(description="soft Dice of the tumour, or that and cross-entropy")
    ] = "dice_ce"
    slab: Annotated[
        int | None,
        Field(ge=2, description="train on slabs of so many voxels, right-left, instead of the whole volume"),
    ] = None
    threshold_for: Annotated[
        Literal["dice", "volume"],
        Field(description="what the threshold is best for on validation: overlap, or the error of the volume"),
    ] = "dice"
    smallest_voxels: Annotated[
        int, Field(ge=0, description="objects below this are left out where objects are counted, voxels")
    ] = 50


class TumorTrainSettings(TrainSettings):
    """The recipe's defaults: Adam 1e-3 as in the group's recipe, and a cosine schedule."""

    epochs: Annotated[float | None, Field(gt=0, description="passes over the training split")] = 60
    batch_size: Annotated[int, Field(gt=0, description="volumes per optimiser step, over all processes")] = 4
    optimizer: Annotated[Literal["adam", "adamw", "sgd"], Field(description="optimiser")] = "adam"
    schedule: Annotated[
        Literal["constant", "cosine", "linear", "step", "inverse_sqrt"],
        Field(description="learning-rate schedule after warm-up"),
    ] = "cosine"
    clip_norm: Annotated[float | None, Field(gt=0, description="largest gradient norm")] = 1.0


class TumorPredictSettings(Section):
    """What `predict` writes and says."""

    files: Annotated[
        tuple[Literal["seg", "prob", "csv", "png"], ...],
        Field(description="what is written: seg, prob, csv, png (default: seg; of several scans seg and csv)"),
    ] = ()
    threshold: Annotated[
        float | None, Field(gt=0, lt=1, description="probability from which on it is tumour (default: the model's)")
    ] = None
    smallest_ml: Annotated[float, Field(ge=0, description="components below this volume are dropped, ml")] = 0.0
    compare: Annotated[str, Field(description="an earlier scan of the same patient: print the growth")] = ""
    compare_days: Annotated[
        float | None, Field(gt=0, description="days between the two scans, for growth in a year")
    ] = None
    stable_percent: Annotated[
        float, Field(ge=0, le=100, description="change of volume below which it is called stable, %")
    ] = 20.0


class TumorSettings(TaskSettings):
    """All settings of the task `tumor`."""

    data: ScanSettings = ScanSettings()
    task: TumorTaskSettings = TumorTaskSettings()
    model: ModelSettings = ModelSettings(name="daunet", preset="small")
    train: TumorTrainSettings = TumorTrainSettings()
    predict: TumorPredictSettings = TumorPredictSettings()
