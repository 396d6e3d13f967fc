"""Settings of `table-classify`; the command line is built from them."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from polyhead_apps.config import ModelSettings, Section, TaskSettings, TrainSettings


class TableSettings(Section):
    """How a table is read."""

    of_files: ClassVar[tuple[str, ...]] = ("delimiter",)

    target: Annotated[str, Field(description="column of the classes; the last one if empty")] = ""
    delimiter: Annotated[str, Field(min_length=1, max_length=1, description="between cells")] = ","


class WriteSettings(Section):
    """What `predict` writes."""

    digits: Annotated[int, Field(ge=0, le=9, description="decimals of the probabilities")] = 4


class ClassifySettings(TaskSettings):
    """All settings of the task `classify`."""

    data: TableSettings = TableSettings()
    model: ModelSettings = ModelSettings(name="table-attention")
    train: TrainSettings = TrainSettings(epochs=100, batch_size=32, lr=3e-3, schedule="cosine", patience=20)
    predict: WriteSettings = WriteSettings()
