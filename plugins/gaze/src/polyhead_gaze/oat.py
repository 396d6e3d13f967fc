"""OAT, the Object-level Attention Transformer: which object a person fixates next, and when they stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.models import Pretrained
from polyhead.nn import BlockState, Stack, sinusoid, states
from polyhead_gaze.appearance import BackboneEncoder, CropEncoder
from polyhead_gaze.places import PlaceCode

__all__ = ["NEVER", "OAT", "Decoding", "OATConfig", "Scene"]

NEVER = -1e9
"""The logit of a slot that cannot be chosen; its probability is exactly 0."""


@dataclass(frozen=True)
class OATConfig:
    """Sizes and switches of `OAT`; the defaults differ from the publication where `release` says so."""

    appearance: Literal["none", "features", "crops"] = "none"
    """What is seen of an object: nothing but its place, a vector that comes with the data, or a crop of the image.
    Vectors are brought to the same length."""
    features: int = 0
    """Length of that vector."""
    crop_height: int = 150
    crop_width: int = 93
    pyramid: int = 0
    """Levels of pyramid pooling of crops; 0 for none."""
    backbone: str = ""
    """Name of a backbone of timm that encodes crops instead of the published two convolutions."""
    dim: int = 512
    heads: int = 4
    depth: int = 4
    decoder_depth: int = 4
    ff_dim: int = 512
    dropout: float = 0.1
    place: Literal["distance", "table", "sinusoid", "random", "none"] = "distance"
    """How places are coded; see `PlaceCode`."""
    cells: int = 16
    """Largest extent of a display, in object spacings."""
    sigma: float = 2.0
    """Of the code's Gaussian, in object spacings."""
    readout: Literal["objects", "linear"] = "objects"
    """Attention to the objects, or a linear map, which fixes the number of objects."""
    readout_heads: int = 2
    readout_width: int = 0
    """Scores are divided by its square root; 0 for ``dim``."""
    objects: int = 0
    """How many objects a linear read-out has slots for."""
    target_location: Literal["given", "hidden"] = "given"
    """``given`` as published: the target token carries its place, and fixations are marked when on the target."""
    begin: Literal["learned", "blank"] = "learned"
    """What is seen before the first fixation: a learned vector, or a crop of ones."""
    pad_slot: bool = False
    """A slot for padding, which takes probability from the others."""
    stop_first: bool = False
    """Whether a scanpath may end before its first fixation, in teacher forcing."""

    @classmethod
    def release(cls, name: Literal["shelves", "books"], **changes: Any) -> Self:
        """Return the switches and sizes of the published code: `shelves` of wine and yogurt, or book covers.

        Places are looked up in a table; what is seen before the first fixation is a blank crop; there is a slot for
        padding; and the first step may stop.
        """
        cells = {"shelves": 11, "books": 14}[name]
        switches: dict[str, Any] = {
            "appearance": "crops",
            "place": "table",
            "cells": cells,
            "begin": "blank",
            "pad_slot": True,
            "stop_first": True,
        }
        return cls(**{**switches, **changes})


class Scene(NamedTuple):
    """An encoded display with a target: computed once, for any number of scanpaths."""

    seen: Tensor
    """What is seen of each object, shape (B, N, dim / 2)."""
    place: Tensor
    """Row and column of each object, shape (B, N, 2)."""
    target: Tensor
    """Index of the target, shape (B,)."""
    start: Tensor
    """Row and column where viewers start, shape (B, 2)."""
    memory: Tensor
    """Encoded objects and, last, the target again, shape (B, N + 1, dim)."""
    mask: Tensor
    """Which of them there are, shape (B, N + 1)."""
    keys: Tensor
    """What the read-out compares with, shape (B, N + 1, heads · dim)."""


class Decoding(NamedTuple):
    """What is kept from fixation to fixation: its first axis is the scanpath, so ``polyhead.nn.states`` work on it."""

    scene: Scene
    state: tuple[BlockState, ...]


class OAT(Pretrained, nn.Module):
    r"""Predict a sequence of fixated objects, given a display of objects and a target.

    An encoder reads a token of each object, what is seen of it beside the code of its place, and one more of the
    target. A decoder reads the fixations so far. The read-out points at one of the encoder's tokens; at the additional
    one of the target to stop:

    .. math:: s_h = \frac{(W^e_h \, \text{Enc})(W^d_h \, \text{Dec})^\top}{\sqrt{\text{dim}}}, \qquad
        \text{logits} = \sum_h w_h s_h + b

    Objects are a set: any number of them, in any order. Every display of a batch may have its own.

    Complexity: O(N²·dim) for the encoder, O(T²·dim + T·N·dim) for the decoder and read-out; a decoded fixation costs
    O((t + N)·dim + dim²).

    Source: Fang et al. 2024, arXiv:2407.13335, and the code published with it. Differs: see `OATConfig.release`.

    >>> model = OAT(OATConfig(dim=12, heads=2, depth=1, decoder_depth=1, ff_dim=16)).eval()
    >>> place = torch.tensor([[[0.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])
    >>> logits = model(place, torch.ones(1, 3, dtype=torch.bool), torch.tensor([2]), torch.tensor([[0.0, 1.0]]),
    ...                torch.tensor([[1, 2]]))
    >>> logits.shape  # before each of the two fixations and behind them; three objects and the stop
    torch.Size([1, 3, 4])
    """

    Config = OATConfig

    def __init__(self, config: OATConfig) -> None:
        """Make a model with fresh weights.

        Raises:
            ConfigError: settings that do not fit together.
        """
        super().__init__()
        self.config = config
        _check(config)
        half = config.dim // 2
        self.seen: nn.Module | None = None
        crop: dict[str, Any] = {"height": config.crop_height, "width": config.crop_width}
        if config.appearance == "crops" and config.backbone:
            self.seen = BackboneEncoder(half, name=config.backbone, **crop)
        elif config.appearance == "crops":
            self.seen = CropEncoder(half, pyramid=config.pyramid, **crop)
        elif config.appearance == "features":
            self.seen = nn.Linear(config.features, half)
        self.begin = nn.Parameter(torch.randn(half)) if config.begin == "learned" else None
        # Not "code": torch.export's modules have an attribute of that name.
        self.place_code = PlaceCode(config.dim - half, config.place, cells=config.cells, sigma=config.sigma)
        self.dropout = nn.Dropout(config.dropout)
        block: dict[str, Any] = {
            "ff_dim": config.ff_dim,
            "activation": "relu",
            "pre_norm": False,
            "dropout": config.dropout,
        }
        self.encoder = Stack(config.dim, config.depth, config.heads, **block)
        self.decoder = Stack(config.dim, config.decoder_depth, config.heads, causal=True, cross=True, **block)
        wide = config.readout_heads * config.dim
        if config.readout == "objects":
            self.readout_keys = nn.Linear(config.dim, wide)
            self.readout_queries = nn.Linear(config.dim, wide)
            self.merge = nn.Linear(config.readout_heads, 1)
        else:
            self.slots = nn.Linear(config.dim, config.objects + 1 + config.pad_slot)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.startswith("seen.backbone."):
                nn.init.xavier_uniform_(parameter)

    def encode(
        self, place: Tensor, objects: Tensor, target: Tensor, start: Tensor, appearance: Tensor | None = None
    ) -> Scene:
        """Encode displays with their targets.

        Args:
            place: row and column of each object's centre in object spacings, float, shape (B, N, 2).
            objects: bool, shape (B, N), True = there is such an object; others are padding.
            target: index of the target, int64, shape (B,).
            start: row and column where viewers start, usually the centre, float, shape (B, 2).
            appearance: features (B, N, features), crops (B, N, height, width, 3), or None, as configured.

        Returns:
            Scene: to be given to `begin_scanpath`.

        Raises:
            ShapeError: shapes do not fit one another or the model.
        """
        self._check_shapes(place, objects, target, start, appearance)
        dtype = next(self.encoder.parameters()).dtype
        place, start = place.masked_fill(~objects.unsqueeze(-1), 0).to(dtype), start.to(dtype)
        seen = self._see(place, objects, appearance)
        rows = torch.arange(target.shape[0], device=target.device)
        where = place[rows, target]
        nothing = torch.zeros_like(objects)
        code = self.place_code(place, nothing)
        aim = self.place_code(where, torch.ones_like(nothing[:, 0]))
        if self.config.target_location == "hidden":
            places = 2 * self.place_code.width
            aim = torch.cat([torch.zeros_like(aim[:, :places]), aim[:, places:]], -1)
        last = torch.cat([seen[rows, target], aim], -1).unsqueeze(1)
        tokens = torch.cat([torch.cat([seen, code], -1), last], 1)
        mask = torch.cat([objects, torch.ones_like(objects[:, :1])], 1)
        memory = self.encoder(tokens, key_mask=mask).x
        keys = self.readout_keys(memory) if self.config.readout == "objects" else memory[..., :0]
        return Scene(seen, place, target, start, memory, mask, keys)

    def forward(
        self,
        place: Tensor,
        objects: Tensor,
        target: Tensor,
        start: Tensor,
        fixations: Tensor,
        appearance: Tensor | None = None,
    ) -> Tensor:
        """Return the logits of every next fixation, given those before it.

        Args:
            place, objects, target, start, appearance: as in `encode`.
            fixations: indices of the fixated objects, int64, shape (B, T), padded with -1 at the end.

        Returns:
            Tensor: shape (B, T + 1, N + 1): the objects, and last the stop; with ``pad_slot`` one more. Objects that
            are padding, and the stop at the first step, have `NEVER`. Behind the end of a scanpath they mean nothing.

        Raises:
            ShapeError: shapes do not fit one another or the model.
        """
        if fixations.ndim != 2 or fixations.shape[0] != place.shape[0]:
            raise ShapeError(f"fixations {tuple(fixations.shape)} are not (batch, steps) of {place.shape[0]} displays.")
        scene = self.encode(place, objects, target, start, appearance)
        real = fixations >= 0
        tokens = torch.cat([self._begin(scene), self._fixated(scene, fixations.clamp(min=0))], 1)
        tokens = self.dropout(_timed(tokens, 0))
        lengths = real.sum(1) + 1
        decoded = self.decoder(tokens, lengths=lengths, memory=scene.memory, memory_mask=scene.mask).x
        logits = self._point(scene, decoded)
        if not self.config.stop_first:
            logits = torch.cat([self._no_stop(logits[:, :1], scene), logits[:, 1:]], 1)
        return logits

    def begin_scanpath(self, scene: Scene) -> tuple[Tensor, Decoding]:
        """Return the logits of the first fixation (B, N + 1), where nobody stops, and what the next step needs."""
        state = self.decoder.init_state(scene.target.shape[0], memory=scene.memory, memory_mask=scene.mask)
        token = _timed(self._begin(scene), 0)[:, 0]
        mixed = self.decoder.step(token, state=state)
        logits = self._no_stop(self._point(scene, mixed.x.unsqueeze(1)), scene)
        return logits[:, 0, : scene.mask.shape[1]], Decoding(scene, mixed.state)

    def continue_scanpath(self, decoding: Decoding, fixation: Tensor, step: int) -> tuple[Tensor, Decoding]:
        """Return the logits of the next fixation (B, N + 1), and what the step after it needs.

        Args:
            decoding: from the step before.
            fixation: index of the object that was fixated last, int64, shape (B,).
            step: how many fixations there have been, this one included.
        """
        scene = decoding.scene
        token = _timed(self._fixated(scene, fixation.unsqueeze(1)), step)[:, 0]
        mixed = self.decoder.step(token, state=decoding.state)
        logits = self._point(scene, mixed.x.unsqueeze(1))[:, 0, : scene.mask.shape[1]]
        return logits, Decoding(scene, mixed.state)

    def rows(self, decoding: Decoding, index: Tensor) -> Decoding:
        """Return the scanpaths at ``index``, which may repeat some and leave out others."""
        return states.reorder(decoding, index)

    def _see(self, place: Tensor, objects: Tensor, appearance: Tensor | None) -> Tensor:
        if self.seen is None or appearance is None:
            return place.new_zeros(*place.shape[:2], self.config.dim // 2)
        if appearance.is_floating_point():
            shape = (*objects.shape, *(1,) * (appearance.ndim - 2))
            appearance = appearance.masked_fill(~objects.view(shape), 0).to(place.dtype)
        if self.config.appearance == "features":
            # Of one length, so that a product of two of them is how alike they are.
            appearance = F.normalize(appearance, dim=-1) * math.sqrt(self.config.features)
        features: Tensor = self.seen(appearance)
        return features

    def _begin(self, scene: Scene) -> Tensor:
        """Return the token before the first fixation, shape (B, 1, dim)."""
        count = scene.target.shape[0]
        if self.begin is not None:
            seen = self.begin.expand(count, -1)
        elif isinstance(self.seen, CropEncoder | BackboneEncoder):
            blank = scene.place.new_ones(1, self.seen.height, self.seen.width, 3)
            seen = self.seen(blank).expand(count, -1)
        else:
            seen = scene.seen.new_zeros(count, scene.seen.shape[-1])
        code = self.place_code(scene.start, torch.zeros(count, dtype=torch.bool, device=scene.place.device))
        return torch.cat([seen, code], -1).unsqueeze(1)

    def _fixated(self, scene: Scene, fixations: Tensor) -> Tensor:
        """Return the tokens of fixations (B, T), shape (B, T, dim)."""
        rows = torch.arange(fixations.shape[0], device=fixations.device).unsqueeze(1)
        known = self.config.target_location == "given"
        marked = fixations == scene.target.unsqueeze(1) if known else torch.zeros_like(fixations, dtype=torch.bool)
        seen = scene.seen[rows, fixations]
        return torch.cat([seen, self.place_code(scene.place[rows, fixations], marked)], -1)

    def _point(self, scene: Scene, decoded: Tensor) -> Tensor:
        """Return logits of decoder outputs (B, S, dim)."""
        config = self.config
        if config.readout == "linear":
            logits: Tensor = self.slots(decoded)
        else:
            scale = math.sqrt(config.readout_width or config.dim)
            heads = self.readout_queries(decoded).unflatten(-1, (config.readout_heads, config.dim))
            queries = (heads * self.merge.weight.view(-1, 1) / scale).flatten(-2)
            logits = queries @ scene.keys.transpose(1, 2) + self.merge.bias
            if config.pad_slot:
                logits = torch.cat([logits, self.merge.bias.expand(*logits.shape[:-1], 1)], -1)
        there = scene.mask
        if config.pad_slot:
            there = torch.cat([there, torch.ones_like(there[:, :1])], 1)
        return logits.masked_fill(~there.unsqueeze(1), NEVER)

    def _no_stop(self, logits: Tensor, scene: Scene) -> Tensor:
        stop = torch.arange(logits.shape[-1], device=logits.device) >= scene.mask.shape[1] - 1
        return logits.masked_fill(stop, NEVER)

    def _check_shapes(
        self, place: Tensor, objects: Tensor, target: Tensor, start: Tensor, appearance: Tensor | None
    ) -> None:
        config = self.config
        batch, count = objects.shape if objects.ndim == 2 else (-1, -1)
        if place.shape != (batch, count, 2) or target.shape != (batch,) or start.shape != (batch, 2):
            raise ShapeError(
                f"place {tuple(place.shape)}, objects {tuple(objects.shape)}, target {tuple(target.shape)} and start "
                f"{tuple(start.shape)} are not (B, N, 2), (B, N), (B,) and (B, 2)."
            )
        if config.readout == "linear" and count != config.objects:
            raise ShapeError(f"There are {count} objects; a linear read-out has slots for {config.objects}.")
        if (appearance is None) != (config.appearance == "none"):
            raise ShapeError(
                f"appearance is {'missing' if appearance is None else 'given'}, and the model's is "
                f'"{config.appearance}".'
            )
        if appearance is not None and appearance.shape[:2] != objects.shape:
            raise ShapeError(f"appearance {tuple(appearance.shape)} does not begin with (B, N) {(batch, count)}.")
        if config.appearance == "features" and appearance is not None and appearance.shape[2:] != (config.features,):
            raise ShapeError(f"appearance {tuple(appearance.shape)} is not (B, N, {config.features}).")


def _timed(tokens: Tensor, first: int) -> Tensor:
    """Add the sinusoidal code of each step to tokens (B, S, dim), of which the first is step ``first``."""
    # Steps of the tokens' dtype, so that in float64 their code is computed in it.
    steps = torch.arange(first, first + tokens.shape[1], dtype=tokens.dtype, device=tokens.device)
    return tokens + sinusoid(steps, tokens.shape[-1]).to(tokens.dtype)


def _check(config: OATConfig) -> None:
    problems: Sequence[str] = [
        *([f"dim is {config.dim}: an even number is needed"] if config.dim < 2 or config.dim % 2 else []),
        *(
            [f"features is {config.features}: their length is needed"]
            if config.appearance == "features" and config.features < 1
            else []
        ),
        *(
            [f"objects is {config.objects}: a linear read-out needs their number"]
            if config.readout == "linear" and config.objects < 1
            else []
        ),
        *([f"readout_heads is {config.readout_heads}: 1 or more"] if config.readout_heads < 1 else []),
        *(
            ["target_location is hidden and appearance none: nothing would tell what is searched for"]
            if config.target_location == "hidden" and config.appearance == "none"
            else []
        ),
    ]
    if problems:
        raise ConfigError("; ".join(problems) + ".")
