"""The synthetic heads: a function of seed and index, with one sphere that has no twin."""

import numpy as np
import pytest
from scipy import ndimage

from polyhead.errors import DataError
from polyhead.testing import check_dataset
from polyhead_medical.mirror import SIZE, MirrorData, mirror_lesion
from polyhead_medical.settings import ScanSettings

FEW = ScanSettings(train_cases=5, validation_cases=4, test_cases=4)


def test_a_volume_is_a_function_of_seed_and_index() -> None:
    image, label = mirror_lesion(0, 3)
    again, same = mirror_lesion(0, 3)
    assert np.array_equal(image, again)
    assert np.array_equal(label, same)
    assert not np.array_equal(image, mirror_lesion(0, 4)[0])
    assert not np.array_equal(image, mirror_lesion(1, 3)[0])
    assert image.dtype == np.float32
    assert (image.min(), image.max()) == (0.0, 1.0)


@pytest.mark.parametrize("index", range(20))
def test_the_lesion_is_one_sphere_without_a_twin_off_the_middle(index: int) -> None:
    image, label = mirror_lesion(5, index)
    assert ndimage.label(label)[1] == 1
    volume = label.sum()
    assert 4 / 3 * np.pi * 2**3 * 0.7 < volume < 4 / 3 * np.pi * 5**3 * 1.1
    centre = ndimage.center_of_mass(label)[0] - (SIZE - 1) / 2
    assert abs(centre) > 4
    other_side = label[::-1].astype(bool)
    # Bright where the lesion is, and not on the other side: noise is averaged away over a sphere.
    assert image[label.astype(bool)].mean() > image[other_side].mean() + 0.1


def test_the_dataset_keeps_the_rules() -> None:
    check_dataset(MirrorData(FEW))


def test_splits_differ_and_only_training_is_mirrored() -> None:
    data = MirrorData(FEW)
    train, test = data.source("train"), data.source("test")
    first = train.fetch([0], seed=0, epoch=0)["image"]
    assert not np.array_equal(first, test.fetch([0], seed=0, epoch=0)["image"])
    assert any(not np.array_equal(first, train.fetch([0], seed=0, epoch=epoch)["image"]) for epoch in range(1, 6))
    assert np.array_equal(test.fetch([0], seed=0, epoch=0)["image"], test.fetch([0], seed=1, epoch=4)["image"])


def test_generated_volumes_have_no_earlier_scans(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=r"--compare .*earlier.nii: generated volumes have no earlier scans"):
        MirrorData(FEW).another(tmp_path / "earlier.nii")
