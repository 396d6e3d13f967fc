"""What an encoder costs: multiplications with additions, counted, and time, measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead_detection.focus_detr import FocusDETR, FocusDETRConfig
from polyhead_detection.geometry import Geometry
from polyhead_detection.selector import budgets

__all__ = ["EncoderMacs", "encoder_macs", "encoder_seconds"]


class EncoderMacs(NamedTuple):
    """Multiply-accumulates of an encoder for one picture."""

    values: int
    """The projection of all tokens that deformable attention reads from: the same for every budget."""
    tokens: int
    """All that is done for the tokens that are updated: offsets, weights, sampling, output, feed-forward part."""
    fine: int
    """The attention among the finest tokens."""
    scoring: int
    """Of the selector and the category scores."""

    @property
    def total(self) -> int:
        """The encoder's, without the scoring, as the literature compares encoders."""
        return self.values + self.tokens + self.fine


def encoder_macs(config: FocusDETRConfig, count: int) -> EncoderMacs:
    """Count for one picture of ``count`` tokens."""
    c = config
    line = ((1, count),)
    geometry = Geometry(line, (line,), torch.device("cpu"), torch.float32)
    if c.fts == "none":
        taken = [count] * c.encoder_layers
    else:
        taken = [own for own, _ in budgets(geometry, c.rho, c.cascade, by_batch=c.padding == "release")]
    samples = c.levels * c.points
    # Offsets and weights; four corners of each sample for each channel; the output; the feed-forward part.
    each = c.dim * c.heads * samples * 3 + samples * c.dim * 4 + c.dim**2 + 2 * c.dim * c.ff_dim
    fine = 0
    for own in taken:
        few = min(c.fine_tokens, own)
        fine += 4 * few * c.dim**2 + 2 * few**2 * c.dim
    selector = count * (2 * c.dim**2 + c.dim * (c.dim // 2) + (c.dim // 2) * (c.dim // 4) + c.dim // 4)
    scoring = (selector if c.fts == "score" else 0) + (sum(taken) * c.dim * c.classes if c.fine_tokens else 0)
    return EncoderMacs(c.encoder_layers * count * c.dim**2, sum(taken) * each, fine, scoring)


def encoder_seconds(model: FocusDETR, images: Sequence[Tensor], *, repeats: int = 5) -> tuple[float, float]:
    """Return the median seconds that the encoder, and the selector in front of it, take for a batch of pictures."""
    spent: dict[str, list[float]] = {"encoder": [], "selector": []}
    began: dict[str, float] = {}
    handles = []

    def start(name: str) -> Any:
        def hook(*_: Any) -> None:
            began[name] = time.perf_counter()

        return hook

    def stop(name: str) -> Any:
        def hook(*_: Any) -> None:
            spent[name].append(time.perf_counter() - began[name])

        return hook

    for name in spent:
        module = getattr(model, name)
        if module is not None:
            handles += [module.register_forward_pre_hook(start(name)), module.register_forward_hook(stop(name))]
    try:
        with torch.inference_mode():
            for _ in range(repeats + 1):
                model.eval()(list(images))
    finally:
        for handle in handles:
            handle.remove()
    encoder, selector = (statistics.median(times[1:]) if times else 0.0 for times in spent.values())
    return encoder, selector
