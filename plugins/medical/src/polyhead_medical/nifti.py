"""NIfTI files: read with the header looked at first, written with the scan's own geometry."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError

__all__ = ["SUFFIXES", "Scan", "is_nifti", "read_label", "read_scan", "stem", "write_nifti"]

SUFFIXES = (".nii", ".nii.gz")
MAX_LABEL = 255
SAME_GRID_MM = 1e-2
"""How far the corners of two grids may lie apart to be called the same, mm."""
Arrays = np.ndarray[Any, Any]


class Scan:
    """A checked NIfTI header; voxels are read when asked for."""

    def __init__(self, path: Path, image: Any, shape: tuple[int, ...], channels: int) -> None:
        """Keep what `read_scan` found."""
        self.path, self._image = path, image
        self.shape = (shape[0], shape[1], shape[2])
        self.channels = channels
        """Volumes along the fourth axis; 1 of a plain scan."""

    @property
    def affine(self) -> Arrays:
        """4 × 4, from voxels to RAS+ millimetres."""
        affine: Arrays = np.asarray(self._image.affine, dtype=np.float64)
        return affine

    @property
    def header(self) -> Any:
        """The NIfTI header."""
        return self._image.header

    def voxels(self) -> Arrays:
        """Return the intensities, float32, scaled as the header says: (channels, *shape).

        Raises:
            DataError: the file is cut off or damaged, or has voxels that are NaN or infinite.
        """
        import zlib

        try:
            array = np.asarray(self._image.dataobj, dtype=np.float32)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{self.path} is cut off or damaged: {' '.join(str(error).split())} Get another copy of it."
            ) from error
        broken = int(array.size - np.isfinite(array).sum())
        if broken:
            raise DataError(
                f"{self.path} has {broken:,} voxels that are NaN or infinite. Write a number there, such as 0 for air."
            )
        array = array.reshape(*self.shape, self.channels)
        return np.ascontiguousarray(np.moveaxis(array, -1, 0))


def is_nifti(path: Path) -> bool:
    """Say whether the name is that of a NIfTI file."""
    return path.name.lower().endswith(SUFFIXES)


def stem(path: Path) -> str:
    """Return the name without ``.nii`` or ``.nii.gz``."""
    name = path.name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_scan(path: Path, *, max_voxels: int, several: bool = False) -> Scan:
    """Open a NIfTI file and check its header; no voxel is read.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        max_voxels: what a header may claim.
        several: whether a fourth axis, of sequences, is allowed.

    Raises:
        DataError: no NIfTI file, not of three axes, too large, or without a usable geometry.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    if not is_nifti(path):
        raise DataError(
            f'{path} has the extension "{path.suffix}": scans are {" or ".join(SUFFIXES)}. '
            f"A DICOM series is given by its folder."
        )
    if not path.is_file():
        raise DataError(f"{path} is not there.")
    try:
        image: Any = nibabel.load(path)
        shape = tuple(int(size) for size in image.shape)
        affine = np.asarray(image.affine, dtype=np.float64)
        stored = _stored_spacing(path)
        item = int(image.get_data_dtype().itemsize)
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, OverflowError) as error:
        raise DataError(f"{path} is no readable NIfTI file: {' '.join(str(error).split())}") from error
    _check_shape(path, shape, several=several, max_voxels=max_voxels)
    claimed = math.prod(shape) * item
    if not path.name.lower().endswith(".gz") and claimed > path.stat().st_size:
        raise DataError(
            f"{path} claims {claimed:,} bytes of voxels {shape} and has {path.stat().st_size:,}: it is cut off. "
            f"Get another copy of it."
        )
    if not np.isfinite(affine).all():
        raise DataError(f"{path}: its affine is not finite. Write the scan again with its geometry.")
    spacing = np.minimum(np.linalg.norm(affine[:3, :3], axis=0), stored)
    if not (spacing > 0).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        shown = " × ".join(f"{each:g}" for each in spacing)
        raise DataError(
            f"{path}: its spacing is {shown} mm, so no volume can be measured. Write the scan again with its spacing."
        )
    return Scan(path, image, shape[:3], math.prod(shape[3:]))


def read_label(path: Path, scan: Scan, *, max_voxels: int, known: tuple[int, ...] = ()) -> Arrays:
    """Return an expert's mask, uint8, on the voxels of a scan.

    Args:
        path: the mask.
        scan: what it belongs to.
        max_voxels: what a header may claim.
        known: the labels there may be besides 0; any up to 255 if empty.

    Raises:
        DataError: it lies on another grid, or a label is no whole number, negative, too large or unknown.
    """
    mask = read_scan(path, max_voxels=max_voxels)
    if mask.shape != scan.shape:
        raise DataError(
            f"{path} has {mask.shape} voxels and its scan {scan.path} has {scan.shape}: a mask lies on the grid of its "
            f"scan. Resample it to that, with nearest neighbours."
        )
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) * [*scan.shape, 1]
    apart = float(np.abs(corners @ (mask.affine - scan.affine).T).max())
    if apart > SAME_GRID_MM:
        raise DataError(
            f"{path} and its scan {scan.path} have as many voxels but other affines: corners are {apart:.3g} mm apart. "
            f"Resample the mask to the grid of its scan, with nearest neighbours."
        )
    values = mask.voxels()[0]
    found = np.unique(values)
    allowed = found[(found == np.round(found)) & (found >= 0) & (found <= MAX_LABEL)]
    if known:
        allowed = allowed[np.isin(allowed, [0, *known])]
    wrong = found[~np.isin(found, allowed)]
    if len(wrong):
        shown = ", ".join(f"{value:g}" for value in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        said = f"0, {', '.join(map(str, known))}" if known else f"whole numbers from 0 to {MAX_LABEL}"
        raise DataError(f"{path} has the labels {shown}: labels are {said}. Is it a mask of this data set?")
    return values.astype(np.uint8)


def write_nifti(path: Path, voxels: Arrays, affine: Any, like: Scan | None = None) -> None:
    """Write voxels (uint8 or float32) with an affine, and with the units and the codes of the scan they belong to."""
    import nibabel

    image = nibabel.Nifti1Image(voxels, np.asarray(affine, dtype=np.float64))
    codes = (0, 1)
    if like is not None:
        units = like.header.get_xyzt_units()
        image.header.set_xyzt_units(*(name if name != "unknown" else None for name in units))
        codes = (int(like.header["qform_code"]), int(like.header["sform_code"]))
    # A scan without any code has its spacing only; its own affine must come back nevertheless.
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1] if any(codes) else 1)
    nibabel.save(image, path)


def _stored_spacing(path: Path) -> Arrays:
    """Return the spacing as the header has it: nibabel mends a zero without a word."""
    import nibabel
    from nibabel.openers import ImageOpener

    with ImageOpener(str(path)) as stream:
        raw = stream.read(348)
    if len(raw) < 348 or 348 not in (int.from_bytes(raw[:4], "little"), int.from_bytes(raw[:4], "big")):
        return np.full(3, np.inf)  # NIfTI-2: another header, which nibabel checks
    header: Any = nibabel.Nifti1Header(raw, check=False)
    stored: Arrays = np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))
    return stored


def _check_shape(path: Path, shape: tuple[int, ...], *, several: bool, max_voxels: int) -> None:
    plain = tuple(shape[:3]) + tuple(size for size in shape[3:] if size != 1)
    if len(plain) < 3 or min(plain[:3], default=0) < 2:
        raise DataError(f"{path} has the shape {shape}: a scan has three axes of at least 2 voxels; this is an image.")
    if len(plain) > 4 or (len(plain) == 4 and not several):
        raise DataError(
            f"{path} has the shape {shape}: a scan has three axes, this is a series of {plain[3]}. Take one volume of "
            f"it, or list its sequences in a Decathlon dataset.json."
        )
    if math.prod(shape) > max_voxels:
        raise DataError(
            f"{path} claims {math.prod(shape):,} voxels {shape}, above the limit of {max_voxels:,}. If that is right: "
            f"--max-voxels {math.prod(shape)}"
        )
