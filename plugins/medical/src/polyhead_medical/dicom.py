"""DICOM series: a folder of slices read as one scan, through SimpleITK (the extra `dicom`)."""

from __future__ import annotations

import locale
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError, MissingExtraError
from polyhead_medical.nifti import Scan

__all__ = ["DicomScan", "is_series", "kept_locale", "read_series"]

UNEVEN_MM = 0.05
"""How far a slice may lie from its place between the first and the last, mm."""
_LOOKED_AT = 8
Arrays = np.ndarray[Any, Any]


def is_series(path: Path) -> bool:
    """Say whether a folder holds DICOM files: by their content, since many have no suffix."""
    if not path.is_dir():
        return False
    files = sorted(each for each in path.iterdir() if each.is_file())[:_LOOKED_AT]
    return any(_is_dicom(file) for file in files)


class DicomScan(Scan):
    """A checked series; voxels are read when asked for."""

    def __init__(self, path: Path, files: Sequence[str], shape: tuple[int, int, int], affine: Arrays) -> None:
        """Keep what `read_series` found."""
        import nibabel

        header: Any = nibabel.Nifti1Header()
        header.set_xyzt_units("mm")
        header["qform_code"] = header["sform_code"] = 1  # scanner coordinates
        super().__init__(path, None, shape, 1)
        self._files, self._own_affine, self._own_header = tuple(files), affine, header

    @property
    def affine(self) -> Arrays:
        """4 × 4, from voxels to RAS+ millimetres."""
        return self._own_affine

    @property
    def header(self) -> Any:
        """A NIfTI header that says as much: millimetres, scanner coordinates."""
        return self._own_header

    def voxels(self) -> Arrays:
        """Return the intensities, float32, rescaled as the files say: (1, *shape).

        Raises:
            DataError: a slice is damaged.
        """
        try:
            with kept_locale():
                array = _itk().GetArrayFromImage(_itk().ReadImage(list(self._files)))
        except RuntimeError as error:
            raise DataError(f"{self.path}: a slice cannot be read: {_short(error)}") from error
        return np.ascontiguousarray(array.transpose(2, 1, 0)[None], dtype=np.float32)


@contextmanager
def kept_locale() -> Iterator[None]:
    """Bring back the process's locale afterwards: SimpleITK leaves "C", in which no other text than ASCII is read."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@kept_locale()
def read_series(folder: Path, *, max_voxels: int) -> DicomScan:
    """Open a series and check its geometry; no voxel is read.

    Raises:
        DataError: there are several series, slices lack or are of different sizes, or it is too large.
        MissingExtraError: SimpleITK is not installed.
    """
    itk = _itk()
    series = itk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise DataError(f"{folder} holds {len(series)} DICOM series: give a folder with the slices of one.")
    files = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    reader, places, sizes = itk.ImageFileReader(), [], set()
    for file in files:
        reader.SetFileName(file)
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            raise DataError(f"{file} is no readable DICOM slice: {_short(error)}") from error
        places.append(reader.GetOrigin())
        sizes.add(reader.GetSize()[:2])
    if len(files) < 2 or len(sizes) != 1:
        raise DataError(
            f"{folder} has {len(files)} slices of {len(sizes)} sizes: a scan has at least 2, all of one size."
        )
    (width, height), count = sizes.pop(), len(files)
    if width * height * count > max_voxels:
        raise DataError(
            f"{folder} has {width * height * count:,} voxels, above the limit of {max_voxels:,}. If that is right: "
            f"--max-voxels {width * height * count}"
        )
    at = np.asarray(places)
    step = (at[-1] - at[0]) / (count - 1)
    apart = np.abs(at - (at[0] + np.arange(count)[:, None] * step)).max()
    if apart > UNEVEN_MM:
        raise DataError(
            f"{folder}: its slices are not evenly spaced, one lies {apart:.2f} mm from its place. Is one missing?"
        )
    direction, spacing = np.asarray(reader.GetDirection()).reshape(3, 3), reader.GetSpacing()
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = (
        direction[:, 0] * spacing[0],
        direction[:, 1] * spacing[1],
        step,
        at[0],
    )
    affine[:2] *= -1  # DICOM's axes run to the left and the back
    if abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{folder}: all its slices lie at one place, so no volume can be measured.")
    return DicomScan(folder, files, (width, height, count), affine)


def _is_dicom(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _itk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise MissingExtraError(
            "DICOM series are read by SimpleITK, which is not installed: pip install 'polyhead-medical[dicom]'"
        ) from error
    return SimpleITK


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-200:]
