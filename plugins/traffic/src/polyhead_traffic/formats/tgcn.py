"""T-GCN's layout: ``NAME_speed.csv`` (header of sensor ids, no times) beside ``NAME_adj.csv`` (square matrix).

Source: github.com/lehaifeng/T-GCN, folder ``data``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyhead_traffic.data import SensorData
from polyhead_traffic.formats.assemble import assemble
from polyhead_traffic.formats.known import with_known_times
from polyhead_traffic.formats.table import read_table
from polyhead_traffic.settings import SensorSettings

__all__ = ["candidates", "read"]


def candidates(files: Sequence[Path]) -> list[Path]:
    """Return the files that could hold the readings."""
    return [file for file in files if file.name.lower().endswith("_speed.csv")]


def read(path: Path, settings: SensorSettings) -> SensorData:
    """Read a speed file with what lies beside it."""
    table = read_table(path)
    settings, notes = with_known_times(path, len(table.ids), settings) if table.seconds is None else (settings, ())
    adjacency = path.with_name(path.name[: -len("_speed.csv")] + "_adj.csv")
    graph = adjacency if adjacency.exists() else None
    return assemble(table, path, settings, layout="tgcn", graph=graph, notes=notes)
