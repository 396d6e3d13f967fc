"""Tables: a CSV file, or three simulated rings."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import DataError, nearest
from polyhead.protocols import Batch, Split
from polyhead_outsider.settings import TableSettings

PARTS: Mapping[Split, slice] = {"train": slice(0, 6), "validation": slice(6, 8), "test": slice(8, 10)}
"""The tenths of the shuffled rows that each split takes."""


@dataclass(frozen=True)
class Rows:
    """The rows of one split."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.y)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return x (B, columns) and y (B,)."""
        chosen = torch.as_tensor(list(indices), dtype=torch.int64)
        return {"x": self.x[chosen], "y": self.y[chosen]}


@dataclass(frozen=True)
class Table:
    """A table with a class for each row."""

    name: str
    provenance: str
    licence: str
    columns: list[str]
    classes: list[str]
    x: Tensor
    y: Tensor

    def source(self, split: Split) -> Rows:
        """Return a split: 60, 20 and 20 % of the rows, shuffled always alike."""
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(0))
        bounds = [round(len(order) * tenth / 10) for tenth in (PARTS[split].start, PARTS[split].stop)]
        chosen = order[slice(*bounds)]
        return Rows(self.x[chosen], self.y[chosen])

    def summary(self) -> Mapping[str, Any]:
        """Return sizes, and rows of each class."""
        counts = torch.bincount(self.y, minlength=len(self.classes)).tolist()
        return {
            "rows": len(self.y),
            "columns": self.columns,
            "rows of each class": dict(zip(self.classes, counts, strict=True)),
        }

    def fingerprint(self) -> str:
        """Return a digest of names, numbers and classes."""
        digest = hashlib.sha256(repr((self.columns, self.classes)).encode())
        digest.update(self.x.numpy().tobytes() + self.y.numpy().tobytes())
        return digest.hexdigest()


def open_rings(path: Path | None, settings: TableSettings) -> Table:
    """Draw three rings of 200 points, and two columns that mean nothing; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(200)
    angle = torch.rand(600, generator=generator) * 2 * math.pi
    radius = 1.0 + y + 0.2 * torch.randn(600, generator=generator)
    noise = torch.randn(600, 2, generator=generator)
    x = torch.cat([(radius * angle.cos())[:, None], (radius * angle.sin())[:, None], noise], dim=1)
    says = "Simulated: three rings in a plane and two columns of noise."
    return Table("three-rings", says, "CC0-1.0", ["a", "b", "c", "d"], ["inner", "middle", "outer"], x, y)


def open_csv(path: Path | None, settings: TableSettings) -> Table:
    """Read a CSV file.

    Raises:
        DataError: the file cannot be used; names the file, the row, the column and the mend.
    """
    if path is None or not path.is_file():
        raise DataError(f"{path} is not a file. Give a CSV file with a header.")
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            header, *lines = csv.reader(file, delimiter=settings.delimiter, strict=True)
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path} is not a CSV file in UTF-8: {error}.") from error
        except ValueError:
            raise DataError(f"{path} is empty. Give a CSV file with a header.") from None
    target = settings.target or header[-1]
    if target not in header:
        guess = nearest(target, header)
        raise DataError(f'{path} has no column "{target}".' + (f' Did you mean "{guess}"?' if guess else ""))
    where = header.index(target)
    columns = header[:where] + header[where + 1 :]
    if not columns:
        raise DataError(f"{path} has one column only. It needs columns of numbers beside the classes.")
    labels, values = [], []
    for number, cells in enumerate(lines, start=2):
        if len(cells) != len(header):
            raise DataError(f"{path}, row {number}: {len(cells)} cells where the header has {len(header)}.")
        labels.append(cells.pop(where))
        values.append([_number(path, number, name, cell) for name, cell in zip(columns, cells, strict=True)])
    classes = sorted(set(labels))
    if len(labels) < 10 or len(classes) < 2:
        raise DataError(f"{path} has {len(labels)} rows of {len(classes)} classes. It needs 10 rows of 2 classes.")
    y = torch.tensor([classes.index(label) for label in labels])
    return Table(path.name, f"Rows of {path.name}.", "that of the file", columns, classes, torch.tensor(values), y)


def _number(path: Path, row: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f'{path}, row {row}, column "{column}": "{cell}" is not a finite number. Fill it or leave it out.'
        )
    return value
