"""Features from a small video that PyAV wrote, by an exported program and by a model of timm with its weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polyhead.errors import DataError
from polyhead_actions.app import app
from polyhead_actions.extract import extract
from polyhead_apps import run

av = pytest.importorskip("av", reason="PyAV is not installed")
timm = pytest.importorskip("timm", reason="timm is not installed")


def _call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        run(app, arguments)
    assert isinstance(exited.value.code, int)
    return exited.value.code


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Two seconds of 20 frames per second, dark and then bright."""
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=20)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for number in range(40):
            picture = np.full((32, 48, 3), 30 if number < 20 else 220, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


class _Means(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((-2, -1))


def test_rows_are_taken_at_the_middle_of_each_stride(video: Path) -> None:
    rows = extract(video, _Means(), fps=20, stride=5, side=16, norm=((0.0,) * 3, (1.0,) * 3), batch=3)
    assert rows.shape == (8, 3)
    assert (rows[:4] < 0.2).all()
    assert (rows[4:] > 0.8).all()


def test_an_exported_program(video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(_Means(), (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    torch.export.save(program, "means.pt2")
    call = ("features", str(video), "--backbone", "means.pt2", "--size", "16", "--fps", "20", "--stride", "10")
    assert _call(*call, "--out", "feats") == 0
    assert np.load(tmp_path / "feats" / "clip.npy").shape == (4, 3)
    about = json.loads((tmp_path / "feats" / "features.json").read_text())
    assert about == {"fps": 20.0, "stride": 10.0, "offset": 0.0, "backbone": "means.pt2"}


def test_a_model_of_timm(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=0).state_dict(), "weights.safetensors")
    call = ("features", str(video), "--backbone", "test_resnet", "--fps", "20", "--out", "feats")
    assert _call(*call, "--weights", "weights.safetensors", "--stride", "20") == 0
    assert np.load(tmp_path / "feats" / "clip.npy").shape[0] == 2
    assert _call(*call, "--weights", "weights.safetensors", "--stride", "10") == 1
    assert "features.json says stride 20.0, now it is 10.0" in capsys.readouterr().err
    save_file({"one": torch.zeros(1)}, "other.safetensors")
    assert _call(*call, "--weights", "other.safetensors", "--stride", "20") == 1
    assert "does not have the weights of test_resnet" in capsys.readouterr().err


def test_what_cannot_be_read(video: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.mp4 cannot be decoded"):
        extract(tmp_path / "broken.mp4", _Means(), fps=20, stride=5, side=16)
    with pytest.raises(DataError, match="there is no such video"):
        extract(tmp_path / "nowhere.mp4", _Means(), fps=20, stride=5, side=16)
    out = ("--out", str(tmp_path / "feats"))
    assert _call("features", str(video), "--backbone", "test_resne", *out) == 1
    assert "nor a model of timm. Near: test_resnet" in capsys.readouterr().err
    assert _call("features", str(video), "--backbone", str(video), *out) == 1
    assert "a file must be an exported program, .pt2" in capsys.readouterr().err
