"""The command `convert`: a published checkpoint becomes a model that `predict`, `evaluate` and `fit` take."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["coco_categories", "convert"]


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="published .pth of Focus-DETR (PyTorch, ResNet-50 or -101)")],
    out: Annotated[Path, typer.Option(help="folder of the model, made new")],
    release: Annotated[
        str, typer.Option(help="12-epoch, 24-epoch or 36-epoch: which sines the model was trained with")
    ] = ("12-epoch"),
    categories: Annotated[
        Path | None, typer.Option(help="COCO JSON with the categories (default: COCO's own 80)")
    ] = None,
) -> None:
    """Convert a published checkpoint; nothing in it is executed."""
    import dataclasses

    from polyhead.errors import CheckpointError
    from polyhead.models import save_pretrained
    from polyhead_apps.console import Console
    from polyhead_detection.focus_detr import FocusDETR, FocusDETRConfig
    from polyhead_detection.released import convert_weights
    from polyhead_detection.task import DetectTask

    weights = read_checkpoint(checkpoint)
    heads = weights.get("class_embed.0.bias")
    if heads is None:
        raise CheckpointError(
            f"{checkpoint.name} has no class_embed.0.bias: it is no Focus-DETR of the PyTorch release. Its "
            f"first names are {', '.join(list(weights)[:4])}."
        )
    known = coco_categories(categories)
    if len(known) != len(heads):
        raise CheckpointError(
            f"{checkpoint.name} has {len(heads)} classes and {categories or 'COCO'} {len(known)} categories: give "
            "those it was trained on by --categories FILE.json."
        )
    blocks = sum(1 for name in weights if name.startswith("backbone.res4.") and name.endswith(".conv1.weight"))
    config = dataclasses.replace(
        FocusDETRConfig.release(release), classes=len(heads), backbone="resnet101" if blocks > 6 else "resnet50"
    )
    model = FocusDETR(config).eval()
    missing, unexpected = model.load_state_dict(convert_weights(weights, config), strict=False)
    if missing or unexpected:
        raise CheckpointError(
            f"{checkpoint.name} does not fill the model: {len(missing)} weights are missing, such as "
            f"{', '.join(missing[:3]) or 'none'}; {len(unexpected)} are unknown, such as "
            f"{', '.join(unexpected[:3]) or 'none'}."
        )
    task = DetectTask(known, 800, 1333)
    state: dict[str, Any] = {"plugin": "detection", "task": "detect", "state": dict(task.state())}
    save_pretrained(model, out, extra={"task.json": state})
    Console().line(f"made {out}. Next: object-detect predict --model {out} --data PICTURES")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the weights of a ``.pth``, read without running what a pickle may hold.

    Raises:
        CheckpointError: it is not there, damaged, or holds other things than tensors.
    """
    import pickle
    import warnings

    import torch

    from polyhead.errors import CheckpointError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols; what cannot be read is refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there.") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path.name} is no checkpoint of weights alone: {reason[:160]}") from error
    for key in ("model", "state_dict"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise CheckpointError(f"{path.name} holds no table of weights by name.")
    return found


def coco_categories(file: Path | None) -> tuple[Any, ...]:
    """Return the categories of a COCO JSON, or COCO's own 80 with their ids between 1 and 90.

    Raises:
        DataError: the file is no COCO JSON.
    """
    from polyhead_detection.pictures import Category

    if file is not None:
        from polyhead_detection.formats.coco import read_categories

        return read_categories(file)
    text = resources.files("polyhead_detection").joinpath("assets/coco.json").read_text(encoding="utf-8")
    return tuple(Category(entry["id"], entry["name"]) for entry in json.loads(text))
