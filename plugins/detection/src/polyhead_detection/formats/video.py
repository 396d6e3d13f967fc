"""Videos: their frames as pictures without boxes, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import DataError, MissingExtraError
from polyhead.protocols import Source, Split
from polyhead_detection.images import MOST_PIXELS
from polyhead_detection.pictures import Item
from polyhead_detection.settings import PictureSettings

__all__ = ["VideoData", "open_video"]


@dataclass(frozen=True, eq=False)
class VideoData:
    """The frames of a video, for ``predict``."""

    path: Path
    settings: PictureSettings
    licence = "that of the file"
    categories = None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    @property
    def provenance(self) -> str:
        """Say which frames these are."""
        step = self.settings.every
        return f"Frames of {self.path.name}" + (f", every {step}th." if step > 1 else ".")

    def source(self, split: Split) -> Source:
        """Refuse: frames have no boxes.

        Raises:
            DataError: always.
        """
        raise DataError(f"{self.name} is a video without boxes: predict takes it, there is no {split} split.")

    def pictures(self, split: Split) -> Iterator[tuple[Item, Tensor]]:
        """Yield every so many frames, as uint8 (3, H, W); ids count frames from 1.

        Raises:
            DataError: the video is damaged, or its frames too large.
        """
        del split
        import av

        try:
            with av.open(str(self.path)) as container:
                stream = container.streams.video[0]
                if stream.width * stream.height > MOST_PIXELS:
                    raise DataError(f"{self.name} has frames of more than {MOST_PIXELS:,} pixels.")
                for number, frame in enumerate(container.decode(stream), 1):
                    if (number - 1) % self.settings.every:
                        continue
                    pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1).contiguous()
                    size = (pixels.shape[1], pixels.shape[2])
                    yield Item(self.path, number, size, name=f"{self.path.stem}-{number:06d}.png"), pixels
        except av.FFmpegError as error:
            raise DataError(f"{self.name} is damaged: {error}. Use another copy.") from error

    def summary(self) -> Mapping[str, Any]:
        """Return what the file's header says."""
        import av

        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0)
            return {"frames": stream.frames, "width": stream.width, "height": stream.height, "frames per s": rate}

    def fingerprint(self) -> str:
        """Return a digest of the file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def open_video(path: Path, settings: PictureSettings) -> VideoData:
    """Open a video.

    Raises:
        MissingExtraError: PyAV is not installed.
        DataError: the file holds no video.
    """
    try:
        import av
    except ImportError as error:
        raise MissingExtraError("Videos need PyAV: pip install 'polyhead-detection[video]'") from error
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path.name} holds no video.")
    except av.FFmpegError as error:
        raise DataError(f"{path.name} is no video, or damaged: {error}.") from error
    return VideoData(path, settings)
