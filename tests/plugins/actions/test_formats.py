"""Adapters: what is read, how it is timed and split, and what is said of files that are wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from polyhead.errors import DataError
from polyhead.testing import check_dataset
from polyhead_actions.formats import open_videos
from polyhead_actions.settings import VideoSettings

Make = Callable[..., Path]
Change = Callable[[Path, Callable[[dict[str, Any]], None]], None]


def _open(path: Path, **settings: Any) -> Any:
    return open_videos(path, VideoSettings(**{"length": 16, **settings}))


def test_a_folder_of_ones_own(folder: Make) -> None:
    data = _open(folder())
    assert data.classes == ("jump", "wave")
    assert data.sampling == "rescale"
    assert {split: len(videos) for split, videos in data.splits.items()} == {"train": 8, "validation": 1, "test": 5}
    assert "Reported on the subset validation; 1 of the 9 training videos pick the weights." in data.provenance
    batch = data.source("train").fetch([0, 1], seed=0, epoch=0)
    assert batch["features"].shape == (2, 3, 16)
    assert bool(batch["mask"].all())
    assert batch["time"][0].tolist() == [0.0, 20 / 16]
    video = data.videos[int(batch["video"][0])]
    assert batch["segments"][0, 0].tolist() == pytest.approx((video.segments[0] / 20 * 16).tolist())
    assert data.summary()["actions"] == 14
    assert check_dataset(data)


def test_windows_of_a_long_video(folder: Make) -> None:
    data = _open(folder(rows=40, meta={"fps": 10, "stride": 5, "backbone": "tsn"}))
    assert data.sampling == "window"
    assert data.backbone == "tsn"
    windows = data.windows([0])
    assert [window.first for window in windows] == [0, 8, 16, 24]
    assert {window.windows for window in windows} == {4}
    source = data.source("train")
    batch = source.fetch(range(4), seed=0, epoch=0)
    assert batch["time"][1].tolist() == [4.0, 0.5]
    # An action counts where most of it lies.
    for row in range(4):
        inside = batch["segments"][row][batch["labels"][row] >= 0]
        assert (inside >= 0).all()
        assert (inside <= 16).all()
    assert check_dataset(data)


def test_short_windows_are_padded(folder: Make) -> None:
    data = _open(folder(rows=10, meta={"fps": 10, "stride": 20}), sampling="window")
    batch = data.source("test").fetch([0], seed=0, epoch=0)
    assert int(batch["mask"].sum()) == 10
    assert not batch["features"][0, :, 10:].any()


def test_one_frame_videos(folder: Make) -> None:
    data = _open(folder(rows=1, seconds=2.0))
    batch = data.source("train").fetch([0], seed=0, epoch=0)
    assert bool((batch["features"][0] == batch["features"][0, :, :1]).all())
    data = _open(folder_again(folder, data), sampling="window", fps=1, stride=2)
    batch = data.source("train").fetch([0], seed=0, epoch=0)
    assert int(batch["mask"].sum()) == 1


def folder_again(folder: Make, data: Any) -> Path:
    """Return the folder that data were read from."""
    path: Path = data.load.__self__.folder.parent
    return path


def test_bmns_release(tmp_path: Path) -> None:
    (tmp_path / "csv_mean_100").mkdir()
    lines = ["video,numFrame,seconds,fps,rfps,subset,featureFrame"]
    annotations = {}
    for number in range(6):
        subset = "training" if number < 4 else "validation"
        rows = np.arange(100 * 4).reshape(100, 4)
        header = ",".join(f"f{i}" for i in range(4))
        np.savetxt(tmp_path / "csv_mean_100" / f"v_{number}.csv", rows, delimiter=",", header=header, comments="")
        lines.append(f"v_{number},300,10,30,30,{subset},288")
        annotations[f"v_{number}"] = {
            "duration_second": 10.0,
            "duration_frame": 300,
            "feature_frame": 288,
            "annotations": [{"label": "surf", "segment": [1.0, 4.0]}],
        }
    (tmp_path / "video_info_new.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "anet_anno_action.json").write_text(json.dumps(annotations))
    data = _open(tmp_path, length=100)
    assert [video.name for video in data.videos] == [str(i) for i in range(6)]
    assert len(data.splits["test"]) == 2
    # Features end before the video does: 288 of 300 frames.
    assert data.step_s(data.videos[0]) == pytest.approx(9.6 / 100)
    batch = data.source("test").fetch([0], seed=0, epoch=0)
    assert batch["features"][0, :, 3].tolist() == [12.0, 13.0, 14.0, 15.0]


def test_thumos_subsets_and_ambiguous_labels(folder: Make, change: Change) -> None:
    path = folder()

    def how(database: dict[str, Any]) -> None:
        for video in database.values():
            video["subset"] = {"training": "validation", "validation": "test"}[video["subset"]]
            video["annotations"].append({"label": "Ambiguous", "segment": [0, 1]})

    change(path, how)
    data = _open(path)
    assert {split: len(videos) for split, videos in data.splits.items()} == {"train": 8, "validation": 1, "test": 5}
    assert data.classes == ("jump", "wave")


@pytest.mark.parametrize("layout", ["npz", "one h5 a video", "one h5", "groups"])
def test_other_feature_files(folder: Make, layout: str) -> None:
    path = folder()
    expected = _open(path).source("train").fetch([0, 3], seed=0, epoch=0)
    files = sorted((path / "feats").glob("*.npy"))
    arrays = {file.stem: np.load(file) for file in files}
    for file in files:
        file.unlink()
    if layout == "npz":
        for name, array in arrays.items():
            np.savez(path / "feats" / f"v_{name}.npz", feats=array, other=np.zeros(1))
    elif layout == "one h5 a video":
        for name, array in arrays.items():
            with h5py.File(path / "feats" / f"{name}.h5", "w") as stream:
                stream["features"] = array
    else:
        with h5py.File(path / "feats" / "sub_activitynet.hdf5", "w") as stream:
            for name, array in arrays.items():
                stream[f"v_{name}" if layout == "one h5" else f"v_{name}/c3d_features"] = array
    got = _open(path).source("train").fetch([0, 3], seed=0, epoch=0)
    assert (got["features"] == expected["features"]).all()


def test_features_without_annotations(folder: Make) -> None:
    path = folder(meta={"fps": 10, "stride": 5})
    (path / "annotations.json").unlink()
    data = _open(path)
    assert len(data.chosen("all")) == 14 * 4
    assert data.videos[0].seconds == 20
    with pytest.raises(DataError, match=r"has no train videos \(train: 0, validation: 0, test: 0\)"):
        data.source("train")


def test_missing_videos_are_named_and_not_fatal(folder: Make) -> None:
    path = folder()
    (path / "feats" / "clip3.npy").unlink()
    data = _open(path)
    assert "1 annotated videos have no features: clip3." in data.notes
    assert len(data.videos) == 13


def test_blocked_videos(folder: Make, tmp_path: Path) -> None:
    path = folder()
    (tmp_path / "blocked.json").write_text('["v_clip0", "clip1"]')
    data = _open(path, blocked=str(tmp_path / "blocked.json"))
    assert "clip0" not in [video.name for video in data.videos]
    assert len(data.videos) == 12


def _set(video: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def how(database: dict[str, Any]) -> None:
        database[video][key] = value

    return how


def _segment(value: Any) -> Callable[[dict[str, Any]], None]:
    return _set("clip2", "annotations", [{"label": "wave", "segment": value}])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (_segment([5, 3]), 'video "clip2": the action from 5 to 3 s ends before it starts: correct it'),
        (_segment([5, 5]), "the action from 5 to 5 s ends before it starts"),
        (_segment([18, 25]), "the action from 18 to 25 s lies outside of its 20 s"),
        (_segment([-3, 4]), "the action from -3 to 4 s lies outside of its 20 s"),
        (_segment([1]), 'video "clip2": "segment" is [1], not [start, end] in seconds'),
        (_segment(["a", 2]), '"segment" is ["a", 2], not [start, end] in seconds'),
        (_segment([float("nan"), 2]), '"segment" is [NaN, 2], not [start, end] in seconds'),
        (_set("clip2", "duration", "long"), 'video "clip2": "duration" is "long", not a number of seconds'),
        (_set("clip2", "duration", 0), 'video "clip2" has no duration: give it in the annotations, or --fps'),
        (_set("clip2", "annotations", {}), 'video "clip2": it is no object with a list "annotations"'),
        (lambda database: database.clear(), '"database" has no videos'),
        (
            lambda database: [database.update({f"x{n}": database.pop(n)}) for n in list(database)],
            "has features of none of the 14 annotated videos. Expected are files such as xclip0.npy; it has clip0",
        ),
    ],
)
def test_wrong_annotations(folder: Make, change: Change, how: Any, message: str) -> None:
    path = folder()
    change(path, how)
    with pytest.raises(DataError) as caught:
        _open(path)
    assert message in str(caught.value)


def test_segments_are_mended_on_request(folder: Make, change: Change) -> None:
    path = folder()
    change(path, _set("clip2", "annotations", [{"label": "wave", "segment": s} for s in ([5, 3], [18, 25], [1, 2])]))
    data = _open(path, segments="mend")
    video = next(video for video in data.videos if video.name == "clip2")
    assert video.segments.tolist() == [[18.0, 20.0], [1.0, 2.0]]
    assert "2 annotations were cut to their video or dropped." in data.notes


def test_an_overhang_of_rounding_is_cut(folder: Make, change: Change) -> None:
    path = folder()
    change(path, _segment([15, 20.3]))
    assert next(v for v in _open(path).videos if v.name == "clip2").segments.tolist() == [[15.0, 20.0]]


def test_features_of_another_length_than_the_video(folder: Make) -> None:
    path = folder(meta={"fps": 10, "stride": 16})
    with pytest.raises(DataError) as caught:
        _open(path)
    assert 'video "clip0" lasts 20 s, its 40 feature rows 64 s (fps 10, stride 16): correct --fps' in str(caught.value)
    assert "and 4 more" in str(caught.value)


def _nan(path: Path) -> None:
    array = np.load(path / "feats" / "clip1.npy")
    array[4, 2] = np.nan
    np.save(path / "feats" / "clip1.npy", array)


def test_nan_features(folder: Make) -> None:
    path = folder()
    _nan(path)
    data = _open(path)
    with pytest.raises(DataError, match=r"clip1.npy, row 5, channel 3: nan is not finite \(1 such values\)"):
        data.summary()


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("clip1.npy", lambda f: np.save(f, np.zeros((4, 9))), "clip1.npy has 9 channels, the files before it 3"),
        ("clip1.npy", lambda f: np.save(f, np.zeros((0, 3))), "the features of clip1 have the shape (0, 3)"),
        ("clip1.npy", lambda f: np.save(f, np.zeros(4)), "the features of clip1 have the shape (4,)"),
        ("clip1.npy", lambda f: f.write_bytes(b"nothing"), "clip1.npy cannot be read"),
        ("clip1.npz", lambda f: np.savez(f, a=np.zeros((2, 3)), b=np.zeros(1)), "clip1.npz has the arrays a, b: call"),
        ("clip1.csv", lambda f: f.write_text("a,b,c\n1,2,x\n"), "Every row needs a number in each column"),
        ("clip1.csv", lambda f: f.write_text(""), "clip1.csv is empty"),
        ("features.json", lambda f: f.write_text('{"fps": -1}'), 'features.json: "fps" is -1, not a number'),
        ("features.json", lambda f: f.write_text("[]"), "features.json is no JSON object with fps"),
        ("features.json", lambda f: f.write_text("{"), "features.json is no JSON"),
    ],
)
def test_wrong_features(folder: Make, name: str, write: Callable[[Path], Any], message: str) -> None:
    path = folder()
    if name != "features.json":
        (path / "feats" / "clip1.npy").unlink()
    write(path / "feats" / name)
    with pytest.raises(DataError) as caught:
        _open(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotations": "none.json"}, "--annotations none.json: there is no such file"),
        ({"features": "nowhere"}, "--features nowhere: there is no such file or folder"),
        ({"features": "annotations.json"}, "--features annotations.json: there are no features in it"),
        ({"blocked": "nowhere"}, "--blocked nowhere: there is no such file"),
        ({"class_scores": "nowhere"}, "--class-scores nowhere: there is no such file"),
    ],
)
def test_wrong_paths(folder: Make, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        _open(folder(), **settings)
    assert message in str(caught.value)


def test_ambiguous_folders(folder: Make) -> None:
    path = folder()
    (path / "more.json").write_text((path / "annotations.json").read_text())
    with pytest.raises(DataError, match=r"several files of annotations \(annotations.json, more.json\)"):
        _open(path)
    (path / "more.json").unlink()
    (path / "rgb").mkdir()
    np.save(path / "rgb" / "clip0.npy", np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"features in several folders \(feats, rgb\): name one by --features"):
        _open(path)
    assert _open(path, features="feats").channels == 3


def test_class_scores_of_videos(folder: Make, tmp_path: Path) -> None:
    path = folder()
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"clip0": {"wave": 0.75, "unknown": 1.0}}))
    data = _open(path, class_scores=str(file))
    assert data.class_scores["clip0"].tolist() == [0.0, 0.75]
    assert data.source("train").fetch([0], seed=0, epoch=0)["class_scores"].shape == (1, 2)
    file.write_text(json.dumps({"class": ["wave", "jump"], "results": {"v_clip0": [0.1, 0.9]}}))
    assert _open(path, class_scores=str(file)).class_scores["clip0"].tolist() == [0.9, 0.1]
    file.write_text(json.dumps({"clip0": {"unknown": 1.0}}))
    with pytest.raises(DataError, match='video "clip0": none of its classes is one of the annotations'):
        _open(path, class_scores=str(file))
    file.write_text("[]")
    with pytest.raises(DataError, match=r"scores.json is no JSON object: give"):
        _open(path, class_scores=str(file))


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no such folder of videos. Give --data FOLDER"):
        _open(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no features: files \.npy, \.npz, \.csv, \.h5, \.hdf5"):
        _open(tmp_path)
    with h5py.File(tmp_path / "all.h5", "w"):
        pass
    with pytest.raises(DataError, match=r"all\.h5 has no datasets: one a video is needed"):
        _open(tmp_path)
    (tmp_path / "all.h5").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"all\.h5 cannot be read"):
        _open(tmp_path)


def test_a_label_that_classes_do_not_name(folder: Make) -> None:
    path = folder()
    content = json.loads((path / "annotations.json").read_text())
    (path / "annotations.json").write_text(json.dumps({**content, "classes": ["wave"]}))
    with pytest.raises(DataError, match=r'the label "jump" is not among "classes"'):
        _open(path)
    (path / "annotations.json").write_text(json.dumps({**content, "classes": ["wave", "jump", "sing"]}))
    assert _open(path).classes == ("wave", "jump", "sing")


def test_a_file_that_changes_under_way(folder: Make) -> None:
    path = folder()
    data = _open(path)
    np.save(path / "feats" / "clip0.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"clip0\.npy has changed: its shape is \(3, 3\) now"):
        data.load(data.videos[0])


def test_a_released_table_without_subsets(tmp_path: Path) -> None:
    np.save(tmp_path / "v_0.npy", np.zeros((4, 2)))
    entry = {"duration_second": 4.0, "duration_frame": 40, "feature_frame": 40, "annotations": []}
    (tmp_path / "anno.json").write_text(json.dumps({"v_0": entry}))
    (tmp_path / "video_info_new.csv").write_text("name,part\n")
    with pytest.raises(DataError, match=r"has the columns name, part: video and subset are needed"):
        _open(tmp_path)


def test_all_blocked(folder: Make, tmp_path: Path) -> None:
    path = folder()
    (tmp_path / "blocked.txt").write_text("\n".join(f"clip{i}" for i in range(14)))
    with pytest.raises(DataError, match=r"has no video that is not blocked|has features of none"):
        _open(path, blocked=str(tmp_path / "blocked.txt"))
