"""``check_dataset`` passes a sound dataset and says of each unsound one what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from polyhead import DatasetSpec, Plugin, TaskSpec, hookimpl, plugins
from polyhead.errors import DataError, UnknownNameError
from polyhead.protocols import Data
from polyhead.testing import CheckError, check_dataset


class Rows:
    """Twenty numbers with seeded noise, a ragged part and a nested one."""

    def __init__(self) -> None:
        self.x = torch.arange(20.0)

    def __len__(self) -> int:
        return len(self.x)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Mapping[str, Any]:
        noise = [np.random.default_rng((seed, epoch, i)).normal() for i in indices]
        x = self.x[list(indices)]
        return {
            "x": x,
            "noisy": x + torch.tensor(noise),
            "gap": torch.where(x > 3, torch.nan, x),
            "boxes": [torch.full((i % 3, 4), float(i)) for i in indices],
            "names": [f"row {i}" for i in indices],
            "more": {"array": x.numpy().copy()},
        }


class Points:
    name = "points"
    provenance = "drawn"
    licence = "CC0-1.0"
    rows: type = Rows

    def source(self, split: str) -> Any:
        return self.rows()

    def summary(self) -> Mapping[str, Any]:
        return {"rows": 20}

    def fingerprint(self) -> str:
        return "abc"


def points(**fields: Any) -> Data:
    return cast(Data, type("Points", (Points,), fields)())


def rows(**methods: Any) -> Data:
    kind = type("Changed", (Rows,), methods)
    globals()["Changed"] = kind  # where pickle looks for it
    kind.__module__ = __name__
    return points(rows=kind)


def test_a_sound_dataset_passes() -> None:
    kept = check_dataset(points())
    assert "it says its licence" in kept
    for split in ("train", "validation", "test"):
        assert f'split "{split}": it can be sent to a loader\'s worker' in kept


def test_an_endless_source_passes() -> None:
    def endless(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Mapping[str, Any]:
        return {"x": torch.tensor([float(seed + epoch + i) for i in indices])}

    assert check_dataset(rows(endless=True, __len__=None, fetch=endless))


def missing(self: Points, split: str) -> Any:
    if split == "test":
        raise KeyError(split)
    return Rows()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"licence": " "},
            "it says its licence: licence is ' '. Set it to a text. (rule: polyhead.protocols.Data.licence)",
        ),
        ({"provenance": None}, "it says its provenance: provenance is None. Set it to a text."),
        ({"fingerprint": lambda self: str(torch.rand(1))}, "and then 'tensor("),
        ({"fingerprint": lambda self: ""}, "it is '' and then ''. Return a digest of the content."),
        (
            {"summary": lambda self: {"rows": torch.ones(1)}},
            "summary is a JSON object: raised TypeError: Object of type",
        ),
        ({"summary": lambda self: {"low": float("nan")}}, "summary is a JSON object: raised ValueError: "),
        ({"summary": lambda self: {}}, "it is {}. Say sizes, ranges and the share of missing values."),
        ({"source": missing}, "split \"test\": it exists and has a length: raised KeyError: 'test'"),
    ],
)
def test_what_is_wrong_with_a_dataset_is_said(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckError, match=re.escape(message)):
        check_dataset(points(**fields))


def fetch_list(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return [1, 2]


def fetch_first(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return {"x": self.x[:3]}


def fetch_scalar(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return {"more": {"x": torch.tensor(1.0)}}


def fetch_meta(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return {"x": torch.ones(len(indices), device="meta")}


def fetch_random(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return {"x": torch.rand(len(indices))}


def fetch_counted(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return {"x": self.x[list(indices)] - self.x[list(indices)].mean()}


def fetch_stream(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    generator = np.random.default_rng((seed, epoch))
    return {"x": torch.from_numpy(generator.normal(size=len(indices)))}


def fetch_view(self: Rows, indices: Sequence[int], *, seed: int, epoch: int) -> Any:
    return {"x": [self.x[i : i + 1] for i in indices]}


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"__len__": lambda self: 0}, "it has no sample. Every split needs one, or raise DataError when opening."),
        ({"fetch": fetch_list}, "it is list. Return a mapping with at least one entry."),
        ({"fetch": fetch_first}, '"x" has first axis 3 for 4 indices.'),
        ({"fetch": fetch_scalar}, '"x" has first axis None for 4 indices.'),
        ({"fetch": fetch_meta}, '"x" is on meta. The recipe moves batches; return CPU tensors.'),
        ({"fetch": fetch_random}, "fetching twice gives the same: x differs in 4 of 4 elements, first at (0,): "),
        ({"fetch": fetch_random}, "it moves them. Use a generator of your own, seeded by (seed, epoch, index)."),
        ({"fetch": fetch_counted}, "Index 0 alone must equal its row in a batch."),
        ({"fetch": fetch_stream}, "A sample depends on its own index only."),
        ({"fetch": fetch_view}, "Return copies, not views of what the source keeps."),
        ({"__reduce__": lambda self: 1 / 0}, "it can be sent to a loader's worker: raised ZeroDivisionError: "),
    ],
)
def test_what_is_wrong_with_a_source_is_said(methods: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckError, match=re.escape(message)):
        check_dataset(rows(**methods))


@dataclass(frozen=True)
class Section:
    scale: float = 1.0


@dataclass(frozen=True)
class Settings:
    data: Section = Section()


OPENED: list[Any] = []


def open_points(path: Path | None, settings: Section) -> Points:
    OPENED.append(settings)
    if path is not None and (not path.is_file() or not path.read_bytes()):
        raise DataError(f"{path} cannot be read. Give a file.")
    return Points()


def open_anything(path: Path | None, settings: Section) -> Points:
    return Points()


def open_mutely(path: Path | None, settings: Section) -> Points:
    raise DataError("no")


def open_drifting(path: Path | None, settings: Section) -> Data:
    OPENED.append(path)
    number = str(len(OPENED))
    return points(fingerprint=lambda self: number)


class Catalogue:
    @hookimpl
    def polyhead_plugin(self) -> Plugin:
        kinds = {"points": False, "anything": False, "mutely": False, "drifting": True}
        specs = tuple(
            DatasetSpec(name=name, target=f"{__name__}:open_{name}", summary="s", embedded=embedded)
            for name, embedded in kinds.items()
        )
        task = TaskSpec("t", target="", settings=f"{__name__}:Settings", summary="", models=(), datasets=("points",))
        return Plugin("points", "points", datasets=specs, tasks=(task,))


@pytest.fixture
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("POLYHEAD_PLUGINS", "")
    plugins.reload()
    plugins.register(Catalogue(), "points")
    OPENED.clear()
    yield
    monkeypatch.undo()
    plugins.reload()


@pytest.mark.usefixtures("_catalogue")
def test_a_registered_adapter_is_checked_with_files_and_without(tmp_path: Path) -> None:
    kept = check_dataset("points")
    assert 'adapter "points": an empty file is refused with its name' in kept
    assert not any("split" in line for line in kept)
    (tmp_path / "a.csv").write_text("1")
    kept = check_dataset("points", tmp_path / "a.csv", settings={"scale": 3.0})
    assert any('split "test"' in line for line in kept)
    assert OPENED[-1] == Section(3.0)
    check_dataset("points", tmp_path / "a.csv", settings=Section(4.0))
    assert OPENED[-1] == Section(4.0)


@pytest.mark.usefixtures("_catalogue")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "anything",
            "a missing path is refused with its name: it opens. Raise polyhead.errors.DataError with the path",
        ),
        ("mutely", 'an empty folder is refused with its name: the error does not name "empty": no'),
        (
            "drifting",
            "it opens, twice with the same fingerprint: the fingerprints differ. Make it of the content only.",
        ),
    ],
)
def test_what_is_wrong_with_an_adapter_is_said(name: str, message: str) -> None:
    with pytest.raises(CheckError, match=re.escape(message)):
        check_dataset(name)


@pytest.mark.usefixtures("_catalogue")
def test_an_unknown_dataset_is_named() -> None:
    with pytest.raises(UnknownNameError, match='No dataset "pionts"\\. Did you mean "points"'):
        check_dataset("pionts")
