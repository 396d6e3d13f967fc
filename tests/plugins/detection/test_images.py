"""Pictures that anybody made: depths, transparency, orientation; wrecks and bombs end in one clear sentence."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from polyhead.errors import DataError
from polyhead_detection.images import find_images, read_image, read_size


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.jpg" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("RGB", (7, 5), (200, 200, 200)).convert(mode).save(path)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert tuple(image.shape) == (3, 5, 7)
    if mode != "1":
        assert abs(int(image.float().mean()) - 200) <= 3


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[:, 0].tolist() == [[0, 1, 255]] * 3


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="floating-point pixels: save it with 8 or 16 bits"):
        read_image(tmp_path / "a.tiff")


def test_transparent_pixels_lie_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (9, 9, 9, 0)).save(tmp_path / "a.png")
    assert bool((read_image(tmp_path / "a.png") == 255).all())


def test_exif_turns_the_picture_unless_the_annotations_say_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(5, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    assert read_size(path) == (4, 5)
    assert read_image(path).shape[1:] == (4, 5)
    assert read_image(path, (4, 5)).shape[1:] == (4, 5)
    assert read_image(path, (5, 4)).shape[1:] == (5, 4)
    with pytest.raises(DataError, match=r"has 4 × 5 pixels and its annotations say 6 × 6 \(height × width\)"):
        read_image(path, (6, 6))


def _bomb(path: Path, side: int = 60_000) -> None:
    """Write a PNG whose header claims a huge picture."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_a_bomb_is_refused_by_its_header(side: int, tmp_path: Path) -> None:
    _bomb(tmp_path / "bomb.png", side)
    for read in (read_size, read_image):
        with pytest.raises(DataError, match="says that it has more than 89,478,485 pixels"):
            read(tmp_path / "bomb.png")


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    assert read_size(path) == (200, 200)
    with pytest.raises(DataError, match=r"cut\.jpg is damaged: .*Use another copy"):
        read_image(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"a\.jpg is no picture of the kinds JPEG, PNG"):
        read_size(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="is not there"):
        read_image(tmp_path / "none.png")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(["png", "jpg", "bmp", "gif", "tiff", "webp"]), data=st.data())
def test_damaged_files_end_in_a_data_error_or_a_picture(kind: str, data: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        shape = read_image(path).shape
    except DataError as error:
        shape, said = torch.Size((3,)), str(error)
    else:
        said = path.name
    assert shape[0] == 3
    assert path.name in said


def test_pictures_of_a_folder_come_in_order_and_hidden_ones_stay_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", ".cache/c.png", "in/d.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["a.JPG", "b.png", "in/d.webp"]
