"""How every picture of this plugin is drawn: a phone's width, provenance at its foot, colours for all eyes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from polyhead.protocols import Picture
from polyhead_traffic.data import SensorData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MODEL", "TRUTH", "canvas", "captioned", "legend", "short", "unit"]

# Okabe and Ito's palette.
MODEL, TRUTH = "#0072B2", "#222222"
_WIDTH_IN, _DPI = 4.8, 200


@contextmanager
def canvas(data: SensorData, height_in: float) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and the function that ends it with the provenance at its foot and returns it as PNG."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    foot = textwrap.wrap(f"{data.name}: {data.origin}", 98)
    # Text outside of all axes is unknown to the layout: keep a strip free for it.
    strip = (0.14 * len(foot) + 0.06) / height_in
    engine = ConstrainedLayoutEngine(rect=(0, strip, 1, 1 - strip))
    with matplotlib.rc_context(
        {"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 9, "font.family": "DejaVu Sans"}
    ):
        figure = Figure(figsize=(_WIDTH_IN, height_in), dpi=_DPI, layout=engine)
        FigureCanvasAgg(figure)

        def finish() -> bytes:
            figure.text(0.02, 0.04 / height_in, "\n".join(foot), fontsize=6.5, color="0.35", va="bottom")
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            return buffer.getvalue()

        yield figure, finish


def captioned(title: str, caption: str, data: SensorData, png: bytes) -> Picture:
    """Return a picture whose caption ends with the provenance."""
    return Picture(title, f"{caption} {data.origin}", png)


def legend(figure: Figure, axes: Axes, *, last_first: bool = False) -> None:
    """Put the legend of ``axes`` above all of them."""
    handles, labels = axes.get_legend_handles_labels()
    if last_first:
        handles, labels = handles[::-1], labels[::-1]
    figure.legend(
        handles, labels, loc="outside upper left", ncols=2, frameon=False, handlelength=2.6, columnspacing=1.2
    )


def unit(data: SensorData, before: str = " ") -> str:
    """Return the unit with what stands before it; nothing if it is not known."""
    return f"{before}{data.unit}" if data.unit else ""


def short(name: str) -> str:
    """Return a name that fits above a panel."""
    return name if len(name) <= 24 else f"{name[:23]}…"
