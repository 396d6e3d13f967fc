"""The command `table-classify columns`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from polyhead_outsider.data import open_csv
from polyhead_outsider.settings import TableSettings


def columns(
    path: Annotated[Path, typer.Argument(help="CSV file.")],
    target: Annotated[str, typer.Option(help="Column of the classes; the last one if empty.")] = "",
) -> None:
    """Print the range of each column of a table."""
    table = open_csv(path, TableSettings(target=target))
    for name, low, high in zip(table.columns, table.x.amin(0).tolist(), table.x.amax(0).tolist(), strict=True):
        typer.echo(f"{name}\t{low:g}\t{high:g}")
