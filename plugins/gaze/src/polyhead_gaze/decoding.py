"""Scanpaths from a model: drawn at random, or the most probable fixation at each step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polyhead_gaze.oat import NEVER, OAT, Scene

__all__ = ["Scanpaths", "scanpaths", "uniforms"]

MOST_ROWS = 2048
"""Scanpaths that are decoded together."""


class Scanpaths(NamedTuple):
    """Decoded scanpaths."""

    paths: Tensor
    """Indices of objects, int64, shape (B, samples, steps), -1 behind the end."""
    log_probability: Tensor
    """Of each path, the stop included where it was reached, shape (B, samples)."""


def uniforms(streams: Tensor, step: int) -> Tensor:
    """Return numbers in [0, 1), one for each stream: a function of stream and step, on any device.

    So what is drawn for a display does not depend on what else is in the batch. Counter-based: SplitMix64's mixing of
    ``stream + step``, Steele et al. 2014, doi:10.1145/2660193.2660195, 24 bits of it.

    Args:
        streams: int64, any shape.
        step: from 0.

    Returns:
        Tensor: float32, the shape of streams.
    """
    x = streams * _signed(0xD1B54A32D192ED03) + _signed((step + 1) * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ _shifted(x, shift)) * _signed(factor)
    x = x ^ _shifted(x, 31)
    return _shifted(x, 40).float() / 2**24


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Shift right, zeros moving in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _choose(logits: Tensor, streams: Tensor | None, step: int, temperature: float) -> Tensor:
    """Return a slot of each row: the most probable one, or the one that a number of its stream falls into."""
    if streams is None:
        return logits.argmax(-1)
    # In float64, so that rounding does not decide which slot a number falls into.
    reached = (logits.double() / temperature).softmax(-1).cumsum(-1)
    drawn = uniforms(streams, step).double() * reached[:, -1]
    slot = (reached <= drawn.unsqueeze(-1)).sum(-1)
    possible = logits > NEVER / 2
    last = logits.shape[-1] - 1 - possible.flip(-1).long().argmax(-1)
    return torch.minimum(slot, last)


@torch.no_grad()
def scanpaths(
    model: OAT,
    scene: Scene,
    *,
    most: int,
    samples: int = 1,
    streams: Tensor | None = None,
    temperature: float = 1.0,
) -> Scanpaths:
    """Decode scanpaths step by step; displays are encoded once and each step costs one token.

    Args:
        model: in evaluation mode.
        scene: B displays.
        most: fixations after which a scanpath ends at the latest.
        samples: scanpaths of each display.
        streams: int64, shape (B,): scanpaths are drawn with the numbers of these streams. None: the most probable
            fixation is taken at each step, and ``samples`` is 1.
        temperature: logits are divided by it before drawing.

    Returns:
        Scanpaths: shapes (B, samples, ≤ most) and (B, samples).
    """
    parts = []
    each = max(1, MOST_ROWS // samples)
    for first in range(0, len(scene.target), each):
        rows = torch.arange(first, min(first + each, len(scene.target)), device=scene.place.device)
        part = Scene(*(tensor[rows] for tensor in scene))
        mine = None if streams is None else streams[rows]
        parts.append(_decode(model, part, most, samples, mine, temperature))
    width = max((paths.shape[-1] for paths, _ in parts), default=0)
    whole = [torch.nn.functional.pad(paths, (0, width - paths.shape[-1]), value=-1) for paths, _ in parts]
    return Scanpaths(torch.cat(whole), torch.cat([score for _, score in parts]))


def _decode(
    model: OAT, scene: Scene, most: int, samples: int, streams: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    device = scene.place.device
    batch, stop = len(scene.target), scene.mask.shape[1] - 1
    logits, decoding = model.begin_scanpath(scene)
    alive = torch.arange(batch, device=device).repeat_interleave(samples)
    logits, decoding = logits[alive], model.rows(decoding, alive)
    own = None
    if streams is not None:
        own = streams.repeat_interleave(samples) * 1_000_003 + torch.arange(samples, device=device).repeat(batch)
    paths = torch.full((batch * samples, most), -1, dtype=torch.int64, device=device)
    score = torch.zeros(batch * samples, dtype=torch.float64, device=device)
    alive = torch.arange(batch * samples, device=device)
    step = 0
    while True:
        slot = _choose(logits, own, step, temperature)
        score[alive] += logits.double().log_softmax(-1).gather(1, slot.unsqueeze(1))[:, 0]
        on = (slot != stop).nonzero()[:, 0]
        if len(on) < len(slot):
            slot, alive, decoding = slot[on], alive[on], model.rows(decoding, on)
            own = None if own is None else own[on]
        paths[alive, step] = slot
        step += 1
        if step == most or not len(alive):
            return paths[:, :step].view(batch, samples, step), score.view(batch, samples)
        logits, decoding = model.continue_scanpath(decoding, slot, step)
