"""Pictures of displays, and the crops of objects: opened with limits, since files come from anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from polyhead.errors import DataError
from polyhead_gaze.displays import Floats

__all__ = ["CROP", "crops_of", "open_image"]

MOST_PIXELS = 100_000_000
CROP = (150, 93)
"""Height and width that crops are resized to, as published."""


def open_image(path: Path) -> NDArray[np.uint8]:
    """Return a picture as red, green, blue bytes, shape (height, width, 3).

    Raises:
        DataError: it is missing, no picture, damaged or too large; names the file.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(
                    f"{path} has {image.width} × {image.height} pixels, more than {MOST_PIXELS:,}. Scale it down."
                )
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(f"There is no picture {path}. Name the folder of the pictures by --images.") from error
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}. Use PNG or JPEG.") from error


def crops_of(picture: NDArray[np.uint8], boxes: Floats, size: tuple[float, float]) -> NDArray[np.uint8]:
    """Return what is inside of each box, resized to `CROP`.

    Args:
        picture: shape (height, width, 3).
        boxes: left, top, right, bottom on a screen of ``size``, which the picture fills.
        size: width and height of the screen, pixels.

    Returns:
        uint8, shape (N, 150, 93, 3).
    """
    height, width = picture.shape[:2]
    scale = np.array([width / size[0], height / size[1]] * 2)
    image = Image.fromarray(picture)
    height_to, width_to = CROP
    crops = [
        np.asarray(image.resize((width_to, height_to), Image.Resampling.BILINEAR, box=_inside(box, width, height)))
        for box in boxes * scale
    ]
    return np.stack(crops)


def _inside(box: Floats, width: int, height: int) -> tuple[float, float, float, float]:
    """Cut a box to the picture; one that lies outside becomes the nearest pixel."""
    left, right = (float(np.clip(x, 0, width)) for x in box[[0, 2]])
    top, bottom = (float(np.clip(y, 0, height)) for y in box[[1, 3]])
    left, top = min(left, width - 1.0), min(top, height - 1.0)
    return left, top, max(right, left + 1.0), max(bottom, top + 1.0)
