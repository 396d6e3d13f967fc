"""DICOM series: the same voxels and geometry as the NIfTI file they were made from, and what is refused."""

import locale
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyhead.errors import DataError, MissingExtraError
from polyhead_medical.dicom import is_series, kept_locale, read_series
from polyhead_medical.layouts import find_cases
from polyhead_medical.scans import ScanData
from polyhead_medical.settings import ScanSettings

itk: Any = pytest.importorskip("SimpleITK", reason="the extra dicom is not installed")
SPACING = (2.0, 1.5, 2.5)


@pytest.fixture
def series(tmp_path: Path, ball: Any) -> Path:
    """A series of axial slices, each a file without a suffix, in no order."""
    image, _ = ball()
    return write(tmp_path / "series", image.round().astype(np.int16), "1.2.3")


@kept_locale()
def write(folder: Path, array: np.ndarray[Any, Any], uid: str) -> Path:
    folder.mkdir(parents=True)
    writer = itk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for z in np.random.default_rng(0).permutation(array.shape[2]).tolist():
        slice_ = itk.GetImageFromArray(array[:, :, z].T[None])
        slice_.SetSpacing(SPACING)
        slice_.SetOrigin((10.0, -20.0, 5.0 + z * SPACING[2]))
        tags = {
            "0008|0060": "MR",
            "0020|000d": f"{uid}.1",
            "0020|000e": uid,
            "0008|0018": f"{uid}.{z + 10}",
            "0020|0013": str(z),
            "0020|0032": f"10\\-20\\{5.0 + z * SPACING[2]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": str(SPACING[2]),
        }
        for tag, value in tags.items():
            slice_.SetMetaData(tag, value)
        file = folder / f"{uid}-{z}.dcm"
        writer.SetFileName(str(file))
        writer.Execute(slice_)
        file.rename(file.with_suffix(""))
    return folder


def test_a_series_is_a_scan(series: Path, ball: Any) -> None:
    image, _ = ball()
    before = locale.setlocale(locale.LC_ALL)
    scan = read_series(series, max_voxels=10**8)
    assert scan.shape == image.shape
    np.testing.assert_allclose(scan.voxels()[0], image.round(), atol=0.5)
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), SPACING, atol=1e-4)
    np.testing.assert_allclose(scan.affine[:3, 3], [-10, 20, 5], atol=1e-4)
    assert (np.sign(np.diag(scan.affine)) == [-1, -1, 1, 1]).all()
    assert locale.setlocale(locale.LC_ALL) == before


def test_folders_of_series_are_cases_to_predict_on(series: Path, tmp_path: Path, ball: Any) -> None:
    write(tmp_path / "many" / "anna", ball(1)[0].astype(np.int16), "1.2.4")
    write(tmp_path / "many" / "ben", ball(2)[0].astype(np.int16), "1.2.5")
    assert [case.name for case in find_cases(tmp_path / "many", "auto", ()).cases] == ["anna", "ben"]
    data = ScanData(series, ScanSettings(size=(16, 16, 16)))
    assert data.summary()["layout"] == "dicom"
    assert data.summary()["orientations"] == ["LPS"]
    volume, scan = next(data.to_predict())
    assert volume.image.shape == (1, 16, 16, 16)
    assert scan is not None
    assert int(scan.header["sform_code"]) == 1


def test_series_that_cannot_be_measured_are_refused(series: Path, tmp_path: Path, ball: Any) -> None:
    with pytest.raises(DataError, match=r"above the limit of 10. If that is right: --max-voxels 13440"):
        read_series(series, max_voxels=10)
    two = tmp_path / "two"
    write(two, ball()[0].astype(np.int16), "1.2.6")
    for file in series.iterdir():
        (two / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="two holds 2 DICOM series: give a folder with the slices of one"):
        read_series(two, max_voxels=10**8)
    (series / "1.2.3-7").unlink()
    with pytest.raises(DataError, match=r"not evenly spaced, one lies .* mm from its place. Is one missing"):
        read_series(series, max_voxels=10**8)
    for file in list(series.iterdir())[1:]:
        file.unlink()
    with pytest.raises(DataError, match="has 1 slices of 1 sizes: a scan has at least 2"):
        read_series(series, max_voxels=10**8)
    assert not is_series(tmp_path / "none")


def test_the_extra_is_named_where_it_is_missing(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyhead-medical\[dicom\]'"):
        read_series(series, max_voxels=10**8)
