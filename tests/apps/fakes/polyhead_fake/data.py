from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import DataError
from polyhead_fake.settings import PointSettings


class Rows:
    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.y)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Mapping[str, Any]:
        rows = torch.as_tensor(list(indices))
        return {"x": self.x[rows], "y": self.y[rows]}


class Points:
    def __init__(self, name: str, provenance: str, licence: str, x: Tensor, y: Tensor) -> None:
        self.name, self.provenance, self.licence, self.x, self.y = name, provenance, licence, x, y

    def source(self, split: str) -> Rows:
        n = len(self.y)
        parts = {"train": slice(0, n // 2), "validation": slice(n // 2, 3 * n // 4), "test": slice(3 * n // 4, n)}
        return Rows(self.x[parts[split]], self.y[parts[split]])

    def summary(self) -> Mapping[str, Any]:
        return {"rows": len(self.y), "columns": ["a", "b"], "range": {"low": float(self.y.min()), "high": 1234.5}}

    def fingerprint(self) -> str:
        return hashlib.sha256(self.x.numpy().tobytes() + self.y.numpy().tobytes()).hexdigest()


def open_toy(path: Path | None, settings: Any) -> Points:
    assert path is None
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(64, 2, generator=generator)
    return Points("toy lines", "Points drawn by a generator; they measure nothing.", "CC0", x, 2 * x[:, 0] - x[:, 1])


def open_points(path: Path | None, settings: PointSettings) -> Points:
    assert path is not None
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    if len(rows) < 9:
        raise DataError(f"{path} has {len(rows)} rows: at least 8 points and a header are needed.")
    values = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            values.append([float(cell.replace(",", ".") if settings.decimal == "comma" else cell) for cell in row])
        except ValueError as error:
            raise DataError(f"{path}, row {number}: {error}.") from error
    table = torch.tensor(values) * settings.scale
    return Points(path.name, f"Points of {path.name}.", "unknown", table[:, :2], table[:, 2])
