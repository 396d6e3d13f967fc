"""Honest baselines: what a threshold can tell, without learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.protocols import Batch, Predictor

__all__ = ["baselines", "brightness", "one_sidedness"]

_TUNED_ON = 32
"""Validation volumes that a threshold is chosen on, at most."""
_CANDIDATES = 24


def baselines(data: Any) -> Mapping[str, Predictor]:
    """Return thresholds on an image, each chosen by its Dice on the validation volumes."""
    return {name: _tuned(score, data) for name, score in (("bright", brightness), ("one-sided", one_sidedness))}


def brightness(image: Tensor) -> Tensor:
    """Return the first channel (B, D, H, W) of an image, smoothed."""
    return _smooth(image[:, :1])[:, 0]


def one_sidedness(image: Tensor) -> Tensor:
    """Return by how much the first channel (B, D, H, W) is brighter than the other side of the head."""
    return brightness(image - image.flip(2))


def _smooth(x: Tensor) -> Tensor:
    return F.avg_pool3d(x, 3, stride=1, padding=1, count_include_pad=False)


def _tuned(score: Callable[[Tensor], Tensor], data: Any) -> Predictor:
    source = data.source("validation")
    batch = source.fetch(range(min(_TUNED_ON, len(source))), seed=0, epoch=0)
    values, target = score(batch["image"]), batch["target"] >= 0.5
    sample = values.flatten()[:: max(1, values.numel() // 100_000)].numpy()
    candidates = np.quantile(sample, 1 - np.geomspace(1e-4, 0.3, _CANDIDATES))
    dice = []
    for candidate in candidates.tolist():
        found = values >= candidate
        both = (found & target).flatten(1).sum(1)
        total = (found.flatten(1).sum(1) + target.flatten(1).sum(1)).clamp(min=1)
        dice.append(float((2 * both / total).mean()))
    threshold = float(candidates[int(np.argmax(dice))])

    def predict(batch: Batch) -> Tensor:
        return (score(torch.as_tensor(batch["image"])) >= threshold).float()

    return predict
