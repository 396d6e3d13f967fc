"""NIfTI files: what is read, what is refused and how it is said, what is written."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from polyhead.errors import DataError
from polyhead_medical.nifti import read_label, read_scan, write_nifti

LIMIT = 10_000_000


def header(path: Path, shape: tuple[int, ...], *, spacing: float = 1.0, tail: bytes = b"") -> Path:
    """Write a bare float32 NIfTI header by hand, with whatever voxels follow."""
    raw = bytearray(348)
    struct.pack_into("<i", raw, 0, 348)
    struct.pack_into("<8h", raw, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<2h", raw, 70, 16, 32)
    struct.pack_into("<8f", raw, 76, 1, *[spacing] * 7)
    struct.pack_into("<f", raw, 108, 352)
    raw[344:348] = b"n+1\0"
    content = bytes(raw) + bytes(4) + tail
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def test_voxels_come_scaled_and_the_geometry_goes_back(tmp_path: Path, ball: Any) -> None:
    image, mask = ball()
    affine = np.array([[-2, 0, 0, 30], [0, -1.5, 0.1, 20], [0, 0.1, 2.5, -10], [0, 0, 0, 1.0]])
    stored = nibabel.Nifti1Image((image / 2).astype(np.int16), affine)
    stored.header.set_slope_inter(2.0, 1.0)
    stored.header.set_xyzt_units("mm")
    stored.set_qform(affine, 1)
    stored.set_sform(affine, 2)
    nibabel.save(stored, tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz", max_voxels=LIMIT)
    assert scan.voxels().shape == (1, *image.shape)
    assert np.abs(scan.voxels()[0] - image).max() < 5
    write_nifti(tmp_path / "seg.nii.gz", mask, scan.affine, scan)
    again: Any = nibabel.load(tmp_path / "seg.nii.gz")
    assert again.shape == image.shape
    assert again.get_data_dtype() == np.uint8
    np.testing.assert_allclose(again.affine, affine, atol=1e-6)
    assert (int(again.header["qform_code"]), int(again.header["sform_code"])) == (1, 2)
    assert again.header.get_xyzt_units()[0] == "mm"
    assert np.array_equal(np.asarray(again.dataobj), mask)


def test_a_flat_fourth_axis_is_a_plain_scan(tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save(tmp_path / "flat.nii", np.zeros((4, 5, 6, 1), np.float32))
    assert read_scan(path, max_voxels=LIMIT).voxels().shape == (1, 4, 5, 6)
    path = save(tmp_path / "two.nii", np.zeros((4, 5, 6, 2), np.float32))
    assert read_scan(path, max_voxels=LIMIT, several=True).voxels().shape == (2, 4, 5, 6)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("flat.nii", np.zeros((9, 9)), r"shape \(9, 9\): a scan has three axes of at least 2 voxels; this is an image"),
        ("slice.nii", np.zeros((9, 9, 1)), "this is an image"),
        ("series.nii.gz", np.zeros((9, 9, 9, 5)), "this is a series of 5. Take one volume of it"),
        ("nan.nii.gz", np.full((3, 3, 3), np.nan), "27 voxels that are NaN or infinite. Write a number there"),
        ("scan.mgz.txt", np.zeros((3, 3, 3)), 'has the extension ".txt": scans are .nii or .nii.gz'),
    ],
)
def test_what_is_no_scan_is_refused(
    tmp_path: Path, save: Callable[..., Path], name: str, array: np.ndarray[Any, Any], message: str
) -> None:
    if name.endswith(".txt"):
        path = tmp_path / name
        path.write_text("scan")
    else:
        path = save(tmp_path / name, array.astype(np.float32))
    with pytest.raises(DataError, match=message) as caught:
        read_scan(path, max_voxels=LIMIT).voxels()
    assert name in str(caught.value)


def test_headers_that_claim_what_is_not_there_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"claims 4,500,000,000 voxels .* above the limit of 10,000,000.*--max-voxels"):
        read_scan(header(tmp_path / "huge.nii", (1500, 1500, 2000)), max_voxels=LIMIT)
    with pytest.raises(DataError, match=r"claims 4,000,000 bytes .* and has 352: it is cut off"):
        read_scan(header(tmp_path / "short.nii", (100, 100, 100)), max_voxels=LIMIT)
    with pytest.raises(DataError, match="is cut off or damaged"):
        read_scan(header(tmp_path / "short.nii.gz", (100, 100, 100)), max_voxels=LIMIT).voxels()
    (tmp_path / "text.nii").write_text("no scan at all")
    with pytest.raises(DataError, match="no readable NIfTI file"):
        read_scan(tmp_path / "text.nii", max_voxels=LIMIT)
    with pytest.raises(DataError, match="is not there"):
        read_scan(tmp_path / "gone.nii", max_voxels=LIMIT)


def test_of_a_bomb_only_what_the_header_claims_is_read(tmp_path: Path) -> None:
    import tracemalloc

    path = header(tmp_path / "bomb.nii.gz", (8, 8, 8), tail=bytes(200_000_000))
    assert path.stat().st_size < 1_000_000
    tracemalloc.start()
    voxels = read_scan(path, max_voxels=LIMIT).voxels()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert voxels.shape == (1, 8, 8, 8)
    assert peak < 20_000_000


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (80, 0.0, "its spacing is 0 × 1 × 1 mm"),  # pixdim
        (280, 0.0, "its spacing is 0 × 1 × 1 mm"),  # srow_x
        (280, np.nan, "affine is not finite"),
    ],
)
def test_geometry_that_measures_nothing_is_refused(
    tmp_path: Path, save: Callable[..., Path], offset: int, value: float, message: str
) -> None:
    path = save(tmp_path / "scan.nii", np.zeros((4, 4, 4), np.float32), np.eye(4))
    raw = bytearray(path.read_bytes())
    struct.pack_into("<f", raw, offset, value)
    path.write_bytes(bytes(raw))
    with pytest.raises(DataError, match=message):
        read_scan(path, max_voxels=LIMIT)


@pytest.mark.parametrize(
    ("labels", "known", "message"),
    [
        ([0, 0.5], (), "has the labels 0.5: labels are whole numbers from 0 to 255"),
        ([0, -1], (), "has the labels -1"),
        ([0, 300], (), "has the labels 300"),
        ([0, 1, 4], (1, 2, 3), "has the labels 4: labels are 0, 1, 2, 3. Is it a mask of this data set?"),
    ],
)
def test_labels_out_of_range_are_refused(
    tmp_path: Path, save: Callable[..., Path], labels: list[float], known: tuple[int, ...], message: str
) -> None:
    array = np.zeros((4, 4, 4), np.float32)
    array.flat[: len(labels)] = labels
    path = save(tmp_path / "seg.nii.gz", array)
    scan = read_scan(save(tmp_path / "scan.nii.gz", array), max_voxels=LIMIT)
    with pytest.raises(DataError, match=message):
        read_label(path, scan, max_voxels=LIMIT, known=known)


def test_a_mask_on_another_grid_is_refused(tmp_path: Path, save: Callable[..., Path]) -> None:
    array = np.zeros((4, 5, 6), np.uint8)
    scan = read_scan(save(tmp_path / "scan.nii.gz", array), max_voxels=LIMIT)
    with pytest.raises(
        DataError, match=r"seg.nii.gz has \(4, 5, 7\) voxels and its scan .*scan.nii.gz has \(4, 5, 6\)"
    ):
        read_label(save(tmp_path / "seg.nii.gz", np.zeros((4, 5, 7), np.uint8)), scan, max_voxels=LIMIT)
    moved = np.diag([2.0, 1.5, 2.5, 1])
    moved[0, 3] = 4.0
    with pytest.raises(DataError, match="as many voxels but other affines: corners are 4 mm apart"):
        read_label(save(tmp_path / "seg.nii.gz", array, moved), scan, max_voxels=LIMIT)
