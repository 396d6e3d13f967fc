"""A real head with lesions put into it: the MNI152 average of 152 adults, 1 mm, that nilearn ships."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from scipy import ndimage

WHEEL = "nilearn==0.14.1"
MEMBER = "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
SMALLEST_ML, LARGEST_ML = 1.0, 30.0
Arrays = np.ndarray[Any, Any]


class Head(NamedTuple):
    """A scan and where lesions may lie."""

    image: Arrays
    affine: Arrays
    inside: Arrays
    """bool: brain, two voxels from its border at least."""


def fetch(folder: Path) -> Path:
    """Return the template's file, taken out of nilearn's wheel, which is fetched once (10 MB) and not installed.

    Raises:
        SystemExit: it cannot be fetched.
    """
    path = folder / "mni152.nii.gz"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
        if subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode:
            raise SystemExit(f"{WHEEL} cannot be fetched. Put the template's file at {path}.")
        with zipfile.ZipFile(next(folder.glob("nilearn-*.whl"))) as wheel:
            path.write_bytes(wheel.read(MEMBER))
    return path


def load(path: Path) -> Head:
    """Return the head, intensities as stored (0 to 255)."""
    stored: Any = nibabel.load(path)
    image = np.asarray(stored.dataobj, dtype=np.float32)
    return Head(image, stored.affine, ndimage.binary_erosion(image > 40, iterations=2))


def implant(head: Head, seed: int) -> tuple[Arrays, Arrays]:
    """Return the head with one enhancing lesion of 1 to 30 ml, and the lesion's mask.

    The lesion is an ellipsoid with an uneven border, brighter than white matter by 10 to 40 %, blurred at the border as
    a scanner would; a fifth of its volume at most lies outside the brain. A slow bias field and noise make each scan
    another one.
    """
    rng = np.random.default_rng([2101, seed])
    volume = float(np.exp(rng.uniform(np.log(SMALLEST_ML), np.log(LARGEST_ML)))) * 1000
    axes = rng.uniform(0.8, 1.25, 3)
    radii = (volume * 3 / 4 / np.pi) ** (1 / 3) * axes / axes.prod() ** (1 / 3)
    reach = int(2 * radii.max()) + 4
    places = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij")).astype(float)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    uneven = ndimage.gaussian_filter(rng.normal(size=places.shape[1:]), radii.mean() / 3)
    uneven *= 0.12 / uneven.std()
    distance = np.sqrt(((np.tensordot(turn, places, 1) / radii[:, None, None, None]) ** 2).sum(0)) * (1 + uneven)
    # The border is set where exactly the drawn volume lies within.
    edge = float(np.partition(distance.ravel(), int(volume))[int(volume)])
    mask = distance <= edge
    soft = ndimage.gaussian_filter(mask.astype(np.float32), 0.6)
    spots = np.argwhere(head.inside)
    while True:
        centre = spots[rng.integers(len(spots))]
        low, high = centre - reach, centre + reach + 1
        if (low >= 0).all() and (high <= head.image.shape).all():
            part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            if (mask & ~head.inside[part]).sum() <= 0.2 * mask.sum():
                break
    image, label = head.image.copy(), np.zeros(head.image.shape, np.uint8)
    bright = 225 * rng.uniform(1.1, 1.4) + ndimage.gaussian_filter(rng.normal(size=mask.shape), 2) * 40
    image[part] = image[part] * (1 - soft) + bright * soft
    label[part] = mask
    return disturb(image, rng), label


def disturb(image: Arrays, rng: np.random.Generator) -> Arrays:
    """Return a scan with a linear bias field (sd 5 % at its ends) and noise (sd 4 of 255)."""
    axes = [np.linspace(-1, 1, size) for size in image.shape]
    field = 1 + sum(
        slope * axis.reshape([-1 if i == j else 1 for j in range(3)])
        for i, (slope, axis) in enumerate(zip(rng.normal(0, 0.05, 3), axes, strict=True))
    )
    return np.clip(image * field + rng.normal(0, 4, image.shape), 0, None).astype(np.float32)


def write(path: Path, array: Arrays, affine: Arrays) -> None:
    """Write a NIfTI file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    image = nibabel.Nifti1Image(array, affine)
    image.to_stream(stream)
    temporary = path.with_name(f".{path.name}")
    temporary.write_bytes(gzip.compress(stream.getvalue(), 1))
    temporary.rename(path)
