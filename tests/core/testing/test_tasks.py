"""``check_task`` passes a sound task and says of each unsound one what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, cast

import pytest
import torch
from torch import Tensor, nn

from polyhead import DatasetSpec, ModelSpec, Plugin, TaskSpec, hookimpl, plugins
from polyhead.errors import ConfigError, DataError, UnknownNameError
from polyhead.models import config_from_dict
from polyhead.protocols import Batch, Data, Monitor, Picture, Predictor, Ratio, Task
from polyhead.testing import CheckError, check_task
from polyhead.testing.tasks import smallest_preset

PNG = b"\x89PNG\r\n\x1a\n..."


class Line(nn.Module):
    @dataclass(frozen=True)
    class Config:
        width: int = 2
        bias: bool = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 1, config.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).squeeze(-1)


class Rows:
    def __len__(self) -> int:
        return 6

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        i = torch.tensor(list(indices), dtype=torch.float32)
        return {"x": torch.stack([i, i**2], 1), "y": 2 * i}


class Points:
    name, provenance, licence = "points", "drawn", "CC0-1.0"

    def source(self, split: str) -> Rows:
        return Rows()

    def summary(self) -> Mapping[str, Any]:
        return {"rows": 6}

    def fingerprint(self) -> str:
        return "abc"


class Errors:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, prediction: Tensor, batch: Batch) -> None:
        self.total += float((prediction - batch["y"]).abs().sum())
        self.count += len(batch["y"])

    def state(self) -> tuple[float, int]:
        return self.total, self.count

    def merge(self, states: Sequence[tuple[float, int]]) -> None:
        self.total, self.count = sum(s[0] for s in states), sum(s[1] for s in states)

    def compute(self) -> Mapping[str, float]:
        return {"mae": self.total / self.count}


class LineTask:
    monitor = Monitor("mae", "min")

    def __init__(self, offset: float = 0.5) -> None:
        self.offset = offset

    @classmethod
    def prepare(cls, data: Data, settings: Any, *, seed: int) -> Self:
        return cls()

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> Self:
        return cls(**state)

    def state(self) -> Mapping[str, Any]:
        return {"offset": self.offset}

    def build_model(self, name: str, config: Mapping[str, Any]) -> nn.Module:
        return Line(config_from_dict(Line.Config, config))

    def check(self, data: Data) -> None:
        return None

    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        error = (model(batch["x"]) - batch["y"]).square()
        return {"mse": Ratio(error.sum(), torch.tensor(float(len(error))))}

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["x"]) + self.offset

    def metric(self) -> Errors:
        return Errors()

    def baselines(self, data: Data) -> Mapping[str, Predictor]:
        return {"zero": lambda batch: torch.zeros_like(batch["y"])}

    def pictures(self, model: nn.Module, data: Data) -> Sequence[Picture]:
        return [Picture("Line", "A line.", PNG)]

    def write_predictions(self, model: nn.Module, data: Data, out: Path, settings: Any) -> Sequence[Path]:
        path = out / f"line{settings or ''}.csv"
        path.write_text("y\n1\n")
        return [path]


def check(kind: type = LineTask, **options: Any) -> list[str]:
    return check_task(cast(type[Task], kind), cast(Data, Points()), model="line", **options)


def changed(**fields: Any) -> type:
    return type("LineTask", (LineTask,), fields)


def test_a_sound_task_passes() -> None:
    kept = check()
    assert "metrics of two processes merge into those of one" in kept
    assert 'model "Line": a batch equals its rows one by one' in kept
    assert check(config={"bias": False}, predict_settings=1) == kept


def metric(**fields: Any) -> dict[str, Any]:
    kind = type("Errors", (Errors,), fields)
    return {"metric": lambda self: kind()}


def loss(make: Any) -> dict[str, Any]:
    return {"loss": lambda self, model, batch: make(LineTask.loss(self, model, batch)["mse"])}


def refuse(self: LineTask, data: Data) -> None:
    raise DataError("other columns")


def build_anything(self: LineTask, name: str, config: Mapping[str, Any]) -> nn.Module:
    return Line(Line.Config())


def build_mutely(self: LineTask, name: str, config: Mapping[str, Any]) -> nn.Module:
    if config:
        raise ConfigError("no")
    return Line(Line.Config())


def write_elsewhere(self: LineTask, model: nn.Module, data: Data, out: Path, settings: Any) -> Sequence[Path]:
    (out / "extra.csv").write_text("1")
    return LineTask.write_predictions(self, model, data, out, settings)


class Idle(Line):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.idle = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {
                "prepare": classmethod(lambda cls, data, settings, *, seed: cls(float(torch.rand(())))),
            },
            "it prepares itself from data, the same way for the same seed: offset is 0.",
        ),
        ({"build_model": lambda self, name, config: Line}, "build_model returned type. Return an nn.Module."),
        (
            {"build_model": build_anything},
            "an unknown setting is accepted. Build the config with polyhead.models.config",
        ),
        ({"build_model": build_mutely}, "the error for an unknown setting does not name it: no"),
        ({"check": refuse}, "it accepts the data it was prepared from: raised DataError: other columns"),
        (loss(lambda term: term.total), "it is Tensor. Return a mapping from names to Ratio(total, count)."),
        (loss(lambda term: {}), "it is dict. Return a mapping from names to Ratio(total, count)."),
        (loss(lambda term: {"mse": tuple(term)}), '"mse" is tuple. Return polyhead.protocols.Ratio(total, count).'),
        (
            loss(lambda term: {"mse": Ratio(term.total, cast(Tensor, 3))}),
            "count of mse is 3. Return a finite scalar tensor.",
        ),
        (loss(lambda term: {"mse": Ratio(term.total / 0, term.count)}), "total of mse is tensor(inf"),
        (loss(lambda term: {"mse": Ratio(term.total, -term.count)}), "Return a number of elements without gradient."),
        (
            loss(lambda term: {"mse": Ratio(term.total.detach(), term.count)}),
            "it depends on no parameter. Look for deta",
        ),
        (
            loss(lambda term: {"mse": Ratio(term.total / term.count, torch.tensor(1.0))}),
            "the loss of a batch is the sum over its parts: mse: total differs in 1 of 1 elements",
        ),
        (
            {"build_model": lambda self, name, config: Idle(config_from_dict(Idle.Config, config))},
            "not these: idle (none)",
        ),
        (
            {"state": lambda self: {"offset": torch.tensor(1.0)}},
            "its state travels as JSON and restores it: raised TypeErr",
        ),
        (
            {"restore": classmethod(lambda cls, state: cls(7.0))},
            "its state travels as JSON and restores it: offset is 0.5",
        ),
        (
            {"state": lambda self: {}, "restore": classmethod(lambda cls, state: cls(7.0))},
            "restored, it predicts something else: value differs in 4 of 4 elements",
        ),
        (metric(compute=lambda self: {}), "its metrics are finite figures by name: there are none."),
        (metric(compute=lambda self: {"mae": torch.ones(())}), "'mae' is tensor(1.). Return finite Python numbers."),
        (metric(compute=lambda self: {"mae": float("nan")}), "'mae' is nan. Return finite Python numbers."),
        (metric(compute=lambda self: {"mae": float(torch.rand(()))}), "computed twice they differ: mae is 0."),
        (
            metric(compute=lambda self: {"mse": 1.0}),
            "Monitor(name='mae', direction='min') is not among mse, or neither",
        ),
        (metric(merge=lambda self, states: None), "metrics of two processes merge into those of one: mae differs in"),
        ({"baselines": lambda self, data: {}}, "there are none. Give at least the simplest honest guess."),
        (
            {"baselines": lambda self, data: {"lost": lambda batch: batch["y"] / 0}},
            "its baselines predict what the metrics take: \"lost\": 'mae' is nan. Return finite Python numbers.",
        ),
        ({"predict": lambda self, model, batch: model(batch["x"]) / 0}, "its predictions are finite: value is not."),
        (
            {"pictures": lambda self, model, data: [Picture("A", "b", b"GIF")]},
            '"A" is not. Return polyhead.protocols.Pict',
        ),
        ({"write_predictions": lambda *a: []}, "it names [] and made []. Return the files made, and leave none empty."),
        ({"write_predictions": write_elsewhere}, "extra.csv"),
    ],
)
def test_what_is_wrong_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckError, match=re.escape(message)):
        check(changed(**fields))


def test_exceptions_are_allowed() -> None:
    class Contrastive(LineTask):
        def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
            error = (model(batch["x"]) - batch["y"]).std()
            return {"spread": Ratio(error, torch.tensor(1.0))}

    assert check(Contrastive, additive=False, unused=["layer.bias"])


def test_a_class_needs_data() -> None:
    with pytest.raises(TypeError, match="check_task needs data for a task that is given as a class"):
        check_task(cast(type[Task], LineTask))


@dataclass(frozen=True)
class Settings:
    data: None = None
    task: None = None
    predict: int = 7


def open_points(path: Path | None, settings: Any) -> Points:
    return Points()


class Catalogue:
    @hookimpl
    def polyhead_plugin(self) -> Plugin:
        here = __name__
        dataset = DatasetSpec("points", target=f"{here}:open_points", summary="s", embedded=True)
        file = DatasetSpec("file", target=f"{here}:open_points", summary="s")
        line = ModelSpec("line", target=f"{here}:Line", summary="s", presets={"wide": {}, "tiny": {"bias": False}})
        bare = ModelSpec("bare", target=f"{here}:Line", summary="s")
        tasks = tuple(
            TaskSpec(name, f"{here}:LineTask", f"{here}:Settings", "s", models=("line",), datasets=datasets)
            for name, datasets in (("fit", ("file", "points")), ("homeless", ("file",)))
        )
        return Plugin("lines", "lines", models=(line, bare), datasets=(dataset, file), tasks=tasks)


@pytest.fixture
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POLYHEAD_PLUGINS", "")
    plugins.reload()
    plugins.register(Catalogue(), "lines")
    yield
    monkeypatch.undo()
    plugins.reload()


@pytest.mark.usefixtures("_catalogue")
def test_a_registered_task_brings_its_defaults() -> None:
    assert 'model "line": it works in float64' in check_task("lines/fit")
    assert smallest_preset("line") == {"bias": False}
    assert smallest_preset("bare") == {}
    with pytest.raises(TypeError, match='Task "homeless" has no embedded dataset: give check_task its data'):
        check_task("lines/homeless")
    assert check_task("lines/homeless", cast(Data, Points()))
    with pytest.raises(UnknownNameError, match='No task of plugin "lines" "fi"'):
        check_task("lines/fi")
