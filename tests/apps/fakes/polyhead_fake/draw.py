from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer


def draw(
    out: Annotated[Path, typer.Argument(help="Where to.")],
    rows: Annotated[int, typer.Option(help="How many.")] = 3,
) -> None:
    """Draw points into a file.

    The module imports torch, so help of the app must not import it.
    """
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(rows, 2, generator=generator).tolist()
    lines = [f"{a:.4f},{b:.4f},{2 * a - b:.4f}" for a, b in points]
    out.write_text("\n".join(["a,b,y", *lines]) + "\n", encoding="utf-8")
