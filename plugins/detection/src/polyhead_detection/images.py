"""Read pictures that anybody made: orientation, depth and transparency resolved, bombs and wrecks refused."""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from polyhead.errors import DataError

__all__ = ["SUFFIXES", "VIDEOS", "find_images", "read_image", "read_size", "to_picture"]

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM")
SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
VIDEOS = frozenset((".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"))
MOST_PIXELS = 89_478_485
"""A quarter of a gigabyte as RGB; Pillow's own bound."""
_ROTATED = frozenset((5, 6, 7, 8))
_ORIENTATION = 0x0112


def find_images(folder: Path) -> list[Path]:
    """Return the pictures of a folder and the folders in it, in order of their names; hidden ones are left out."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def read_size(path: Path) -> tuple[int, int]:
    """Return height and width as a viewer shows the picture, from its header.

    Raises:
        DataError: it is no picture that is read here, or too large.
    """
    with _opened(path) as image:
        width, height = image.size
        rotated = image.getexif().get(_ORIENTATION) in _ROTATED
    return (width, height) if rotated else (height, width)


def read_image(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """Return a picture as uint8 (3, H, W), turned as its EXIF data say.

    Grey values are repeated, 16-bit ones divided by 257, transparent pixels lie on white.

    Args:
        path: of the picture.
        size: height and width that its annotations speak of. Where they are those of the picture as it is stored,
            it is not turned.

    Raises:
        DataError: it is damaged, too large, of an unknown kind, or not of ``size``.
    """
    with _opened(path) as image:
        stored = (image.height, image.width)
        rotated = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
        turned = ImageOps.exif_transpose(image) if rotated else image
        if size is not None and (turned.height, turned.width) != size:
            if stored != size:
                raise DataError(
                    f"{path.name} has {turned.height} × {turned.width} pixels and its annotations say {size[0]} × "
                    f"{size[1]} (height × width). Correct the annotations, or bring back the picture they were made on."
                )
            turned = image
        pixels = to_picture(turned, path)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def to_picture(image: Image.Image, path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return uint8 (H, W, 3) of any mode.

    Raises:
        DataError: pixels are floating-point numbers.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        scaled = np.clip(grey // 257 if grey.max(initial=0) > 255 else grey, 0, 255).astype(np.uint8)
        return np.repeat(scaled[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError(f"{path.name} has floating-point pixels: save it with 8 or 16 bits.")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        above = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", above.size, "white"), above)
    return np.array(image.convert("RGB"))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Open a picture; nothing is decoded yet, and the size that its header states is bounded."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of EXIF data; they are not needed
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path.name} says that it has more than {MOST_PIXELS:,} pixels: it is not opened. Make it smaller."
        ) from error
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path.name} is no picture of the kinds {', '.join(FORMATS)}, or is damaged.") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is not there.") from error
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, MemoryError) as error:
        raise DataError(f"{path.name} is damaged: {' '.join(str(error).split())}. Use another copy.") from error
