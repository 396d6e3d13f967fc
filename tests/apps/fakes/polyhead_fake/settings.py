from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from polyhead_apps.config import Section, TaskSettings, TrainSettings


class PointSettings(Section):
    of_files: ClassVar[tuple[str, ...]] = ("decimal",)

    decimal: Annotated[Literal["point", "comma"], Field(description="decimal mark [of the file]")] = "point"
    scale: Annotated[float, Field(gt=0, description="factor on all columns")] = 1.0
    shuffle_rows: Annotated[bool, Field(description="shuffle the rows before they are split")] = False
    columns: Annotated[tuple[str, ...], Field(description="columns to use")] = ("a", "b")
    limit: Annotated[int | None, Field(gt=0, description="rows to read")] = None


class LineTaskSettings(Section):
    power: Annotated[int, Field(description="power of the error")] = 2


class WriteSettings(Section):
    digits: Annotated[int, Field(ge=0, description="decimals")] = 3
    parts: Annotated[int, Field(gt=0, description="files to write")] = 1


class LineSettings(TaskSettings):
    data: PointSettings = PointSettings(scale=1.5)
    task: LineTaskSettings = LineTaskSettings()
    train: TrainSettings = TrainSettings(epochs=2, batch_size=8, lr=0.05)
    predict: WriteSettings = WriteSettings()


class SignSettings(TaskSettings):
    pass
