"""A figure as PNG, in the manner of all reports."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

__all__ = ["COLOURS", "draw"]

# Okabe and Ito's palette.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00")


def draw(paint: Callable[[Any], None], *, width: float = 4.8, height: float = 3.2) -> bytes:
    """Return a PNG of what ``paint(axes)`` draws."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"font.size": 10, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.subplots())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
