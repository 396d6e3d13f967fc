"""The command `action-detect features`: rows of features from videos, by an image model and PyAV."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from polyhead.errors import CheckpointError, DataError, MissingExtraError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["extract", "features"]

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and deviation of red, green and blue in [0, 1]."""
META = "features.json"


def features(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO…", help="Files that PyAV can decode.")],
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME|PATH",
            help="A model of timm, or an exported program (.pt2) from images (B, 3, H, W) in [0, 1] to rows (B, C).",
        ),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Its weights, safetensors (default: those that timm fetches for NAME)."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where to write NAME.npy.")] = Path(
        "features"
    ),
    fps: Annotated[float, typer.Option(min=0.01, help="Frames per second that count.")] = 30.0,
    stride: Annotated[float, typer.Option(min=1, help="Frames from one row to the next.")] = 16.0,
    size: Annotated[int, typer.Option(min=8, help="Side of the images for an exported program, pixels.")] = 224,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 32,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, or such as cuda:0.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Make those anew that --out holds.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and warnings only.")] = False,
) -> None:
    """Write a row of features for every ``stride`` frames of each video, and how they were made."""
    from polyhead_apps.console import Console
    from polyhead_apps.runtime import pick_device

    console = Console(quiet=quiet)
    where = pick_device(device)
    run, side, norm = _model(backbone, weights, size, where)
    about = {"fps": fps, "stride": stride, "offset": 0.0, "backbone": Path(backbone).name}
    _keep(out, about)
    for video in videos:
        file = out / f"{video.stem}.npy"
        if file.exists() and not force:
            console.line(f"{file} is there: left as it is (--force makes it anew).")
            continue
        rows = extract(video, run, fps=fps, stride=stride, side=side, norm=norm, batch=batch, device=str(where))
        _save(file, rows)
        console.result(str(file))
    console.line(f"made {out}. Next: action-detect predict --data {out}, or annotate and fit")


def extract(
    video: Path,
    run: Callable[[Tensor], Tensor],
    *,
    fps: float,
    stride: float,
    side: int,
    norm: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET,
    batch: int = 32,
    device: str = "cpu",
) -> np.ndarray:
    """Return features (rows, channels): of the frame in the middle of every ``stride`` frames of ``1 / fps`` s.

    Args:
        video: a file that PyAV can decode.
        run: maps images (B, 3, side, side), normalised, to rows (B, C).
        fps: frames per second that count, whatever the file has.
        stride: frames from row to row.
        side: of the images, pixels; the shorter side is scaled to it, and the middle is cut out.
        norm: mean and deviation of the colours.
        batch: images at a time.
        device: where ``run`` computes.

    Raises:
        DataError: the file cannot be decoded or has no picture.
    """
    import numpy as np
    import torch

    mean, std = (torch.tensor(part, device=device).view(1, 3, 1, 1) for part in norm)
    rows: list[np.ndarray] = []
    images: list[Tensor] = []

    def flush() -> None:
        if images:
            with torch.inference_mode():
                rows.append(run((torch.stack(images).to(device) - mean) / std).float().cpu().numpy())
            images.clear()

    for picture in _frames(video, stride / fps):
        images.append(_square(torch.from_numpy(picture), side))
        if len(images) == batch:
            flush()
    flush()
    if not rows:
        raise DataError(f"{video.name} has no picture that can be decoded. Convert it, or leave it out.")
    return np.concatenate(rows).astype(np.float32)


def _frames(video: Path, step_s: float) -> Iterator[np.ndarray]:
    """Yield the picture (H, W, 3) that is shown in the middle of each step."""
    if importlib.util.find_spec("av") is None:
        raise MissingExtraError("Reading videos needs PyAV: pip install 'polyhead-actions[video]'")
    import av

    if not video.is_file():
        raise DataError(f"{video}: there is no such video.")
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise DataError(f"{video.name} has no picture, only sound. Leave it out.")
            number, last, end = 0, None, 0.0
            for frame in container.decode(video=0):
                time = float(frame.time or 0.0)
                # Until this frame comes, the last one is what is seen.
                while last is not None and (number + 0.5) * step_s < time:
                    yield last.to_ndarray(format="rgb24")
                    number += 1
                rate = container.streams.video[0].average_rate
                last, end = frame, time + (1 / float(rate) if rate else 0.0)
            while last is not None and ((number + 0.5) * step_s < end or number == 0):
                yield last.to_ndarray(format="rgb24")
                number += 1
    except av.error.FFmpegError as error:
        raise DataError(f"{video.name} cannot be decoded: {error}. Convert it, or leave it out.") from error


def _square(picture: Tensor, side: int) -> Tensor:
    """Return a picture (H, W, 3), bytes, as (3, side, side) in [0, 1]: the shorter side scaled, the middle cut out."""
    import torch.nn.functional as F

    image = picture.permute(2, 0, 1).unsqueeze(0).float() / 255
    height, width = image.shape[-2:]
    scale = side / min(height, width)
    size = (max(side, round(height * scale)), max(side, round(width * scale)))
    image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    cut: Tensor = image[0, :, top : top + side, left : left + side]
    return cut


def _model(
    backbone: str, weights: Path | None, size: int, device: Any
) -> tuple[Callable[[Tensor], Tensor], int, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Return what maps images to rows, the side of the images, and the colours' mean and deviation."""
    import torch

    if Path(backbone).is_file():
        if Path(backbone).suffix != ".pt2":
            raise DataError(f"--backbone {backbone}: a file must be an exported program, .pt2 (torch.export.save).")
        program = torch.export.load(backbone).module().to(device)
        return lambda images: program(images).flatten(1), size, ((0.0,) * 3, (1.0,) * 3)
    if importlib.util.find_spec("timm") is None:
        raise MissingExtraError(
            f'--backbone {backbone}: image models by name need timm: pip install "polyhead-actions[video]"'
        )
    import timm

    if backbone not in timm.list_models():
        near = ", ".join(timm.list_models(f"*{backbone}*")[:3])
        raise DataError(
            f"--backbone {backbone}: there is no such file, nor a model of timm.{near and f' Near: {near}'}"
        )
    if weights is not None:
        from polyhead.artifacts import load_tensors

        model = timm.create_model(backbone, pretrained=False, num_classes=0)
        tensors = {name: tensor for name, tensor in load_tensors(weights).items() if name in model.state_dict()}
        missing = sorted(model.state_dict().keys() - tensors.keys())
        if missing:
            raise CheckpointError(f'{weights.name} does not have the weights of {backbone}: "{missing[0]}" is missing.')
        model.load_state_dict(tensors)
    else:
        try:
            model = timm.create_model(backbone, pretrained=True, num_classes=0)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"The weights of {backbone} cannot be fetched: {str(error).splitlines()[0]}  Give them by --weights."
            ) from error
    known = timm.data.resolve_model_data_config(model)
    model = model.to(device).eval()
    return model, int(known["input_size"][-1]), (tuple(known["mean"]), tuple(known["std"]))


def _keep(out: Path, about: dict[str, Any]) -> None:
    """Write how features are made; refuse a folder of others."""
    from polyhead.artifacts import json_bytes, write_atomic

    file = out / META
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        odd = [key for key in about if before.get(key, about[key]) != about[key]]
        if odd:
            raise DataError(
                f"{file} says {odd[0]} {before[odd[0]]}, now it is {about[odd[0]]}: one folder holds features of one "
                "kind. Name another by --out."
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json_bytes(about))


def _save(file: Path, rows: np.ndarray) -> None:
    import io

    import numpy as np

    from polyhead.artifacts import write_atomic

    if not math.isfinite(float(np.abs(rows).sum())):
        raise DataError(f"The features of {file.stem} are not finite: the feature model does not fit such pictures.")
    buffer = io.BytesIO()
    np.save(buffer, rows)
    write_atomic(file, buffer.getvalue())
