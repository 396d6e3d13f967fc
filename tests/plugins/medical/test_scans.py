"""Folders of scans: layouts, splits, what the network sees, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from polyhead.errors import DataError
from polyhead.protocols import Split
from polyhead.testing import check_dataset
from polyhead_medical.layouts import find_cases
from polyhead_medical.scans import ScanData, augmented, open_scans
from polyhead_medical.settings import ScanSettings

SETTINGS = ScanSettings(size=(16, 16, 16), flips=(0,), rotation_deg=0, translation=0)


def test_the_adapter_keeps_the_rules(folder: Path) -> None:
    check_dataset("scans", folder, settings={"size": (16, 16, 16)})


def test_splits_are_by_patient_and_every_fold_is_tested_once(folder: Path) -> None:
    tested = []
    for fold in range(3):
        data = ScanData(folder, SETTINGS.model_copy(update={"folds": 3, "fold": fold}))
        sources: dict[str, Any] = {split: data.source(split) for split in get_args(Split)}
        parts = {split: {case.name for case in source.cases} for split, source in sources.items()}
        assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == 6
        tested += sorted(parts["test"])
    assert sorted(tested) == [f"head-{i}" for i in range(6)]
    with pytest.raises(DataError, match="--fold 5: with --folds 5 they are 0 to 4"):
        ScanData(folder, SETTINGS.model_copy(update={"fold": 5}))


def test_the_network_sees_the_head_from_0_to_1_with_the_mask_in_place(folder: Path) -> None:
    data = ScanData(folder, SETTINGS)
    batch = data.source("validation").fetch([0], seed=0, epoch=0)
    image, target, label, grid = batch["image"][0, 0], batch["target"][0], batch["label"][0], batch["grid"][0]
    assert (float(image.min()), float(image.max())) >= (0.0, 0.9)
    assert image[target > 0.9].mean() > image[target < 0.1].mean() + 0.3
    assert grid.box != ((0, 24), (0, 28), (0, 20))
    extent = np.prod([high - low for low, high in grid.box])
    assert float(target.mean()) * extent == pytest.approx(int(label.sum()), rel=0.02)


def test_what_was_read_is_kept_within_its_budget(folder: Path) -> None:
    source: Any = ScanData(folder, SETTINGS.model_copy(update={"cache_mb": 0.05})).source("train")
    for index in (0, 1, 2, 0):
        source.fetch([index], seed=0, epoch=0)
        assert source._kept_bytes <= 0.05e6
    assert len(source._kept) == 1


def test_augmentation_moves_image_and_mask_alike() -> None:
    target = torch.zeros(16, 16, 16)
    target[3:9, 5:8, 4:12] = 1
    settings = ScanSettings(size=(16, 16, 16))
    for seed in range(6):
        image, moved = augmented(target[None], target, np.random.default_rng(seed), settings)
        torch.testing.assert_close(image[0], moved)
        assert 0.3 * float(target.sum()) < float(moved.sum()) < 1.2 * float(target.sum())


@pytest.mark.parametrize("nested", [False, True])
def test_raidionics_layouts(tmp_path: Path, folder: Path, nested: bool) -> None:
    root = tmp_path / "raidionics"
    for i in range(3):
        where = root / "0" / f"Pat{i}" if nested else root / f"Pat{i}"
        image = where / "volumes" if nested else where
        mask = where / "segmentations" if nested else where
        for place in (image, mask):
            place.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "images" / f"head-{i}.nii.gz", image / f"Pat{i}_MRI.nii.gz")
        shutil.copy(folder / "labels" / f"head-{i}.nii.gz", mask / f"Pat{i}_MRI_label_tumor.nii.gz")
    found = find_cases(root, "auto", ())
    assert found.layout == "raidionics"
    assert [case.name for case in found.cases] == ["Pat0", "Pat1", "Pat2"]
    assert all(case.label for case in found.cases)


def brats(root: Path, folder: Path, *, old: bool = False) -> Path:
    for i in range(3):
        name = f"BraTS-{i}"
        (root / name).mkdir(parents=True)
        dash, t1c, flair = ("_", "t1ce", "flair") if old else ("-", "t1c", "t2f")
        for sequence in (t1c, flair):
            shutil.copy(folder / "images" / f"head-{i}.nii.gz", root / name / f"{name}{dash}{sequence}.nii.gz")
        shutil.copy(folder / "labels" / f"head-{i}.nii.gz", root / name / f"{name}{dash}seg.nii.gz")
    return root


@pytest.mark.parametrize("old", [False, True])
def test_brats_layouts_of_several_channels(tmp_path: Path, folder: Path, old: bool) -> None:
    root = brats(tmp_path / "brats", folder, old=old)
    data = ScanData(root, SETTINGS.model_copy(update={"channels": ("t1c", "flair"), "folds": 3}))
    assert data.summary()["layout"] == "brats"
    assert tuple(data.channels) == ("t1c", "flair")
    assert data.source("train").fetch([0], seed=0, epoch=0)["image"].shape == (1, 2, 16, 16, 16)
    assert tuple(ScanData(root, SETTINGS).channels) == ("t1c",)
    with pytest.raises(DataError, match=r"BraTS-0 has no t2: it has flair, t1c. Choose the sequences"):
        ScanData(root, SETTINGS.model_copy(update={"channels": ("t1c", "t2")}))


def test_labels_that_count_can_be_chosen(tmp_path: Path, folder: Path, save: Any, ball: Any) -> None:
    _, mask = ball(0)
    save(folder / "labels" / "head-0.nii.gz", mask * 2)
    only_one = ScanData(folder, SETTINGS.model_copy(update={"labels": (1,)}))
    every = ScanData(folder, SETTINGS)
    for data, expected in ((only_one, 0), (every, int(mask.sum()))):
        for split in ("validation", "test"):
            source: Any = data.source(split)
            for index, case in enumerate(source.cases):
                if case.name == "head-0":
                    assert int(source.fetch([index], seed=0, epoch=0)["label"][0].sum()) == expected


def decathlon(root: Path, folder: Path, save: Any, ball: Any, **changes: Any) -> Path:
    entries = []
    for i in range(4):
        image, mask = ball(i)
        save(root / "imagesTr" / f"BRATS_{i}.nii.gz", np.stack([image, image / 2], -1))
        save(root / "labelsTr" / f"BRATS_{i}.nii.gz", mask)
        entries.append({"image": f"./imagesTr/BRATS_{i}.nii.gz", "label": f"./labelsTr/BRATS_{i}.nii.gz"})
    content = {
        "modality": {"0": "FLAIR", "1": "T1gd"},
        "labels": {"0": "background", "1": "tumour"},
        "training": entries,
        "test": [],
        **changes,
    }
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_decathlon_layout_with_channels_along_the_fourth_axis(
    tmp_path: Path, folder: Path, save: Any, ball: Any
) -> None:
    data = ScanData(decathlon(tmp_path / "msd", folder, save, ball), SETTINGS)
    assert data.summary()["layout"] == "decathlon"
    assert tuple(data.channels) == ("FLAIR", "T1gd")
    assert data.source("train").fetch([0], seed=0, epoch=0)["image"].shape == (1, 2, 16, 16, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": "all"}, 'it needs "training", a list'),
        ({"training": [{"image": "a.nii"}]}, "the training entry .* is not"),
        ({"training": [{"image": "../../etc/a.nii", "label": "b.nii"}]}, "which lies outside of"),
        ({"training": []}, "lists no scans"),
    ],
)
def test_decathlon_listings_that_cannot_be_are_refused(
    tmp_path: Path, folder: Path, save: Any, ball: Any, changes: dict[str, Any], message: str
) -> None:
    root = decathlon(tmp_path / "msd", folder, save, ball, **changes)
    with pytest.raises(DataError, match=message):
        find_cases(root, "auto", ())


def test_a_broken_listing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DataError, match=r"dataset.json is no readable JSON"):
        find_cases(tmp_path, "auto", ())


def test_folders_without_scans_are_refused(tmp_path: Path, folder: Path, save: Any, ball: Any) -> None:
    with pytest.raises(DataError, match="holds no scans"):
        find_cases(_empty(tmp_path), "auto", ())
    with pytest.raises(DataError, match="is not laid out as decathlon"):
        find_cases(folder, "decathlon", ())
    with pytest.raises(DataError, match="give --data PATH"):
        open_scans(None, SETTINGS)
    (tmp_path / "a.dcm").write_text("x")
    with pytest.raises(DataError, match=r'has the extension "\.dcm"'):
        find_cases(tmp_path / "a.dcm", "auto", ())
    save(folder / "labels" / "heat-1.nii.gz", ball(0)[1])
    with pytest.raises(DataError, match=r"is the mask of no scan: images/ has no heat-1. Did you mean \"head-1\"\?"):
        find_cases(folder, "auto", ())


def _empty(tmp_path: Path) -> Path:
    (tmp_path / "none").mkdir()
    return tmp_path / "none"


def test_sequences_on_different_grids_are_refused(tmp_path: Path, folder: Path, save: Any) -> None:
    root = brats(tmp_path / "brats", folder)
    save(root / "BraTS-1" / "BraTS-1-t2f.nii.gz", np.zeros((24, 28, 21), np.float32))
    with pytest.raises(DataError, match="lie on different grids"):
        ScanData(root, SETTINGS.model_copy(update={"channels": ("t1c", "flair")}))


def test_too_few_masks_are_refused_for_training(tmp_path: Path, folder: Path) -> None:
    for i in range(2, 6):
        (folder / "labels" / f"head-{i}.nii.gz").unlink()
    with pytest.raises(DataError, match="has 2 cases with masks, at least 3 are needed"):
        ScanData(folder, SETTINGS).check_trainable()


def test_channels_of_a_layout_with_one_file_each(folder: Path) -> None:
    with pytest.raises(DataError, match=r"the channels t1c, flair are wanted. Sequences of one case lie in a folder"):
        ScanData(folder, SETTINGS.model_copy(update={"channels": ("t1c", "flair")}))
