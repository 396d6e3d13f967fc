"""Small scans on disk: a bright ball in a head, stored in any orientation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

SHAPE = (24, 28, 20)
SPACING = (2.0, 1.5, 2.5)


@pytest.fixture
def ball() -> Callable[..., tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Make a head (dark air around it) with a bright ball: ``ball(seed)`` gives image and mask."""

    def make(seed: int = 0, *, radius_mm: float = 8.0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        rng = np.random.default_rng(seed)
        places = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(SHAPE, SPACING, strict=True)), indexing="ij"))
        middle = np.array(SHAPE) * SPACING / 2
        away = places - middle[:, None, None, None]
        head = ((away / (middle[:, None, None, None] * 0.85)) ** 2).sum(0) <= 1
        centre = middle + rng.uniform(-6, 6, 3)
        mask = ((places - centre[:, None, None, None]) ** 2).sum(0) <= radius_mm**2
        image = 400.0 * head + 500.0 * mask + rng.normal(0, 10, SHAPE)
        return image.astype(np.float32), mask.astype(np.uint8)

    return make


@pytest.fixture
def save() -> Callable[..., Path]:
    """Write an array as NIfTI: ``save(path, array, affine=None)``; its folder is made."""

    def write(path: Path, array: np.ndarray[Any, Any], affine: Any = None) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1]) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path, ball: Any, save: Any) -> Path:
    """A folder of six scans with masks and one without, laid out as images/ and labels/."""
    root = tmp_path / "heads"
    for number in range(7):
        image, mask = ball(number)
        save(root / "images" / f"head-{number}.nii.gz", image)
        if number < 6:
            save(root / "labels" / f"head-{number}.nii.gz", mask)
    return root
