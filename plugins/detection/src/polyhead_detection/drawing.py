"""Draw boxes on pictures, and the tokens that each encoder layer kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

__all__ = ["annotated", "keep_map", "montage", "png"]

Pixels = NDArray[np.uint8]
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000", "#808000", "#000075")
TRUTH = "#ffffff"


def annotated(
    image: Pixels, boxes: Sequence[Sequence[float]], labels: Sequence[int], texts: Sequence[str], *, scale: int = 1
) -> Pixels:
    """Return a picture with boxes and a text at each.

    Args:
        image: uint8 (H, W, 3).
        boxes: x0, y0, x1, y1 in pixels.
        labels: which choose the colour; -1 is white, for the truth.
        texts: one a box; an empty one is left out.
        scale: so many pixels for one, for small pictures.
    """
    canvas = Image.fromarray(image).resize((image.shape[1] * scale, image.shape[0] * scale), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(canvas)
    side = min(canvas.size)
    width, font = max(1, side // 250), ImageFont.load_default(size=max(10, min(side // 30, 28)))
    for box, label, text in zip(boxes, labels, texts, strict=True):
        colour = TRUTH if label < 0 else COLOURS[label % len(COLOURS)]
        x0, y0, x1, y1 = (float(value) * scale for value in box)
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=colour, width=width)
        if text:
            place = draw.textbbox((x0, y0), text, font=font)
            height = place[3] - place[1]
            top = max(0.0, y0 - height - 2)
            draw.rectangle((x0, top, x0 + place[2] - place[0] + 3, top + height + 3), fill=colour)
            draw.text((x0 + 1, top - (place[1] - y0) + 1), text, fill="white", font=font)
    return np.array(canvas)


def keep_map(
    image: Pixels, kept: Sequence[Tensor], places: Tensor, token_mask: Tensor, strides: Sequence[int]
) -> Pixels:
    """Return the picture once for each encoder layer, side by side: bright where tokens were updated.

    A pixel is as bright as the share of the maps whose token over it was updated; where none was it is dark.

    Args:
        image: uint8 (H, W, 3), as the model saw it.
        kept: of each layer bool (N,).
        places: x and y in pixels and level of the tokens, (N, 3).
        token_mask: bool (N,), False = padding.
        strides: pixels of a token of each level.
    """
    height, width = image.shape[:2]
    levels = places[:, 2].long().numpy()
    rows = (places[:, 1].numpy() // np.array(strides)[levels]).astype(int)
    columns = (places[:, 0].numpy() // np.array(strides)[levels]).astype(int)
    real = token_mask.numpy()
    panels = []
    for layer in kept:
        share = np.zeros((height, width))
        updated = layer.numpy()
        for level, stride in enumerate(strides):
            own = (levels == level) & real
            if not own.any():
                continue
            grid = np.zeros((rows[own].max() + 1, columns[own].max() + 1))
            grid[rows[own], columns[own]] = updated[own]
            down = np.minimum(np.arange(height) // stride, grid.shape[0] - 1)
            across = np.minimum(np.arange(width) // stride, grid.shape[1] - 1)
            share += grid[down][:, across] / len(strides)
        panels.append((image * (0.15 + 0.85 * share[..., None])).astype(np.uint8))
    return montage(panels, columns=len(panels))


def montage(panels: Sequence[Pixels], *, columns: int) -> Pixels:
    """Return pictures in rows, on white with a small gap between."""
    gap = 4
    height = max(panel.shape[0] for panel in panels)
    width = max(panel.shape[1] for panel in panels)
    lines = -(-len(panels) // columns)
    whole = np.full((lines * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, panel in enumerate(panels):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        whole[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
    return whole


def png(image: Any) -> bytes:
    """Return a picture as PNG."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()
