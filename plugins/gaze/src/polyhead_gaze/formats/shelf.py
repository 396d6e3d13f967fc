"""The shelf data set of OAT's authors: wine and yogurt, tables of fixations by product."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError, MissingExtraError
from polyhead_gaze.formats.checks import Fixations, Read, Scene, number, rows
from polyhead_gaze.settings import DisplaySettings

__all__ = ["LAYOUTS", "Layout", "matches", "read"]

SCREEN = (1680.0, 1050.0)
COLUMNS = ("id", "question", "target", "t_package", "choice", "x", "y", "sub_id")
MOST_ROWS = 2_000_000


@dataclass(frozen=True)
class Layout:
    """How the products of a question stand on the shelf."""

    product: str
    rows: int
    columns: int
    height: float
    """Of a cell, pixels."""
    width: float
    top: float
    """Height of what is above the shelf, pixels."""


LAYOUTS = {
    "Q1": Layout("wine", 2, 11, 449, 152, 152),
    "Q3": Layout("yogurt", 3, 9, 305, 186, 135),
}
"""Those of the publication; the shampoo of Q2 is not part of it."""


def matches(path: Path) -> bool:
    """Return whether a file is called as those of this data set are."""
    return bool(re.fullmatch(r"time_Q[13].*\.(xlsx|csv)", path.name))


def read(files: Sequence[Path], settings: DisplaySettings) -> Read:
    """Read tables with a row a fixation: ``ID, Question, Target, T_Package, Choice, X, Y, Sub_ID``.

    ``Choice`` is the cell that is fixated and ``T_Package`` that of the target, from 1. A display is a ``Question``.

    Raises:
        DataError: a column is missing, or a cell is not on the shelf; names file and row.
        MissingExtraError: a table is .xlsx, and what reads it is not installed.
    """
    scenes: dict[str, Scene] = {}
    found: dict[tuple[str, str], tuple[str, int, str, list[int], list[list[float]]]] = {}
    for path in files:
        table = _excel(path) if path.suffix == ".xlsx" else rows(path, COLUMNS, COLUMNS)
        for where, row in table:
            question = row["question"]
            layout = LAYOUTS.get(question.split("_")[0])
            if layout is None:
                raise DataError(
                    f'{where}: the question "{question}" has no known layout. Known: '
                    + ", ".join(f"{name} ({each.product})" for name, each in LAYOUTS.items())
                    + "."
                )
            scenes.setdefault(question, _scene(question, layout, path, settings))
            cells = layout.rows * layout.columns
            target, fixated = (_cell(row[name], cells, f'{where}, column "{name}"') for name in ("t_package", "choice"))
            point = [number(row[name], f'{where}, column "{name}"') for name in ("x", "y")]
            key = (path.name, row["id"])
            trial = found.setdefault(key, (question, target, row["sub_id"], [], []))
            if trial[:2] != (question, target):
                raise DataError(f"{where}: trial {row['id']} has another question or target than its rows before.")
            trial[3].append(fixated)
            trial[4].append(point)
    trials = [
        Fixations(
            f"{name}, trial {number_}",
            question,
            scenes[question].ids[target],
            viewer,
            np.array(points),
            objects=np.array(path_, dtype=np.int64),
        )
        for (name, number_), (question, target, viewer, path_, points) in found.items()
    ]
    return Read(list(scenes.values()), trials, licence="not stated by its authors")


def _cell(text: str, cells: int, where: str) -> int:
    found = number(text, where)
    if found != int(found) or not 1 <= found <= cells:
        raise DataError(f"{where}: {text} is no cell of this shelf, expected 1 to {cells}.")
    return int(found) - 1


def _scene(question: str, layout: Layout, path: Path, settings: DisplaySettings) -> Scene:
    at = np.arange(layout.rows * layout.columns)
    place = np.stack([at // layout.columns, at % layout.columns], -1).astype(float)
    corner = np.stack([place[:, 1] * layout.width, layout.top + place[:, 0] * layout.height], -1)
    boxes = np.concatenate([corner, corner + np.array([layout.width, layout.height])], 1)
    ids = tuple(f"{layout.product} {number_ + 1}" for number_ in at)
    folder = Path(settings.images) if settings.images else path.parent / "img" / "Question"
    picture = folder / f"{question.split('_')[-1]}.png"
    return Scene(question, boxes, ids, SCREEN, picture, place)


def _excel(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtraError(
            f"{path.name} is an Excel table, and openpyxl is not installed: pip install 'polyhead-gaze[shelf]'. Or "
            "save it as CSV."
        ) from error
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises errors of zipfile, of XML and of its own
        raise DataError(f"{path.name} cannot be read as an Excel table: {error}") from error
    try:
        table: Any = book.worksheets[0].iter_rows(values_only=True)
        columns = [str(cell or "").strip().lower() for cell in next(table, ())]
        for name in COLUMNS:
            if name not in columns:
                raise DataError(f'{path.name} has no column "{name}"; it has {", ".join(filter(None, columns[:12]))}.')
        for at, row in enumerate(table, 2):
            if at > MOST_ROWS:
                raise DataError(f"{path.name} has more than {MOST_ROWS:,} rows.")
            if all(cell is None for cell in row):
                continue
            texts = ["" if cell is None else str(cell).strip() for cell in row]
            yield f"{path.name}, row {at}", dict(zip(columns, texts, strict=False))
    finally:
        book.close()
