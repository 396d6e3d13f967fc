"""BMN: the boundary-matching network, with class-semantics attention between its encoder and its heads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError
from polyhead.models import Pretrained
from polyhead_actions.boundary_matching import BoundaryMatching
from polyhead_actions.gates import ClassSemanticsAttention, Fuse, SqueezeExcitation
from polyhead_actions.sampling import Span

__all__ = ["BMN", "Maps"]

_RELEASES: dict[str, dict[str, Any]] = {
    "jjboy": {"span": "boundaries", "map_axes": "start-end"},
    "opentad": {"span": "snippets", "map_axes": "duration-start"},
}


class Maps(NamedTuple):
    """What the network says about a sequence of T steps."""

    start: Tensor
    """(B, T): probability that an action starts at a step."""
    end: Tensor
    """(B, T): probability that an action ends at a step (the last one of the action)."""
    conf: Tensor
    """(B, 2, D, T): estimated IoU of the proposal that starts at a step and lasts d + 1 steps with an action, by
    regression (0) and as the probability of a match (1); 0 for proposals that end outside of the sequence."""
    classes: Tensor
    """(B, K, T): class logits of a step, K = 0 without classes; those of a proposal are their mean over its steps."""


class BMN(Pretrained, nn.Module):
    """Score every start, every end and every proposal of a sequence.

    A base of two grouped convolutions; gates on its features (`gates`); starts and ends by convolutions; and
    boundary matching for all proposals at once, followed by convolutions over the map of proposals. Classes come from
    the mean of the input over a proposal, by a linear map.

    Shapes: features (B, C, T), any scale once `set_data` was called; mask (B, T) True = valid -> `Maps`.

    Complexity: O(B·T·N·O·C' + B·D·T·O·(N + H)) time, O(B·D·T·O) memory, with N samples, O = hidden_3d, H = hidden_2d.
    Source: Lin et al. 2019, arXiv:1907.09702 (BMN); Sridhar et al. 2021, arXiv:2109.02613 (attention).
    Differs: padded steps and proposals that end outside of the sequence are zeros at every convolution; the
    releases let the former leak by their biases and convolve over the latter (`Config.release`).

    Raises:
        ConfigError: sizes that do not fit together.
        ShapeError: features or mask of another shape.
    """

    @dataclass(frozen=True)
    class Config:
        """Sizes and switches; the defaults are the published sizes of the PyTorch ports."""

        channels: int = 400
        """C: channels of the features."""
        length: int = 100
        """T: steps of a sequence."""
        durations: int = 100
        """D: longest proposal, in steps."""
        classes: int = 0
        """K: 0 makes proposals without classes."""
        hidden: int = 256
        """Channels of the first base convolution and of the heads for start and end."""
        base: int = 256
        """Channels of the base features; the paper has 128."""
        reduced: int = 256
        """Channels that are sampled for proposals; the paper samples the base features."""
        hidden_3d: int = 512
        hidden_2d: int = 128
        samples: int = 32
        per_sample: int = 3
        extend: float = 0.5
        groups: int = 4
        """Of the base and boundary convolutions; the first one takes what of it divides the channels."""
        variant: Literal["port", "paper"] = "port"
        """port: heads for start and end apart, one more convolution before sampling and one more after it."""
        span: Span = "snippets"
        """How a proposal's length is measured, see `sampling.taps`."""
        legacy_edge: bool = False
        """Sample positions between -1 and 0 as the releases do."""
        map_axes: Literal["duration-start", "start-end"] = "duration-start"
        """What the two axes are over which proposals are convolved; start-end needs durations = length."""
        mask_steps: bool = True
        """Zero padded steps after each convolution, not only in the base."""
        mask_cells: bool = True
        """Zero proposals that end outside of the sequence before each convolution of the map."""
        attention: Literal["none", "se", "csa", "se+csa"] = "csa"
        """Gates on the base features: squeeze-and-excitation, class-semantics attention, or one after the other."""
        csa_channel: bool = True
        csa_temporal: bool = True
        fuse: Fuse = "sum"
        pool_first: bool = False
        source: Literal["R", "F"] = "R"
        """What the attention looks at: the input, or, as a control, the base features themselves."""
        reduction: int = 4
        csa_kernel: int = 3

        @classmethod
        def release(cls, name: str, **sizes: Any) -> Self:
            """Return the config of a released port of BMN, "jjboy" or "opentad", with other sizes if given.

            Raises:
                ConfigError: no such release.
            """
            if name not in _RELEASES:
                raise ConfigError(f'BMN has no release "{name}".  All: {", ".join(_RELEASES)}')
            switches = {"attention": "none", "legacy_edge": True, "mask_steps": False, "mask_cells": False}
            return cls(**{**switches, **_RELEASES[name], **sizes})

    config: Config
    durations_of: Tensor
    starts_of: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: Config) -> None:
        """Build the network with Xavier-uniform weights and biases of zero."""
        super().__init__()
        _check(config)
        self.config = config
        c = config
        port = c.variant == "port"
        self.register_buffer("mean", torch.zeros(c.channels))
        self.register_buffer("std", torch.ones(c.channels))
        first = math.gcd(c.groups, c.channels)
        self.base = nn.ModuleList(
            [
                nn.Conv1d(c.channels, c.hidden, 3, padding=1, groups=first),
                nn.Conv1d(c.hidden, c.base, 3, padding=1, groups=c.groups),
            ]
        )
        self.se = SqueezeExcitation(c.base, reduction=c.reduction) if "se" in c.attention.split("+") else None
        self.csa = None
        if "csa" in c.attention:
            self.csa = ClassSemanticsAttention(
                c.channels if c.source == "R" else c.base,
                c.base,
                reduction=c.reduction,
                kernel=c.csa_kernel,
                channel=c.csa_channel,
                temporal=c.csa_temporal,
                fuse=c.fuse,
                pool_first=c.pool_first,
            )
        trunks = 2 if port else 1
        self.boundary_in = nn.ModuleList(
            nn.Conv1d(c.base, c.hidden, 3, padding=1, groups=c.groups) for _ in range(trunks)
        )
        self.boundary_out = nn.ModuleList(nn.Conv1d(c.hidden, 2 // trunks, 1) for _ in range(trunks))
        self.reduce = nn.Conv1d(c.base, c.reduced, 3, padding=1) if port else None
        self.matching = BoundaryMatching(
            c.reduced if port else c.base,
            c.hidden_3d,
            c.length,
            c.durations,
            samples=c.samples,
            per_sample=c.per_sample,
            extend=c.extend,
            span=c.span,
            legacy_edge=c.legacy_edge,
        )
        self.map_in = nn.Linear(c.hidden_3d, c.hidden_2d)
        self.map_convs = nn.ModuleList(
            nn.Conv2d(c.hidden_2d, c.hidden_2d, 3, padding=1) for _ in range(2 if port else 1)
        )
        self.map_out = nn.Conv2d(c.hidden_2d, 2, 1)
        self.classifier = nn.Linear(c.channels, c.classes) if c.classes else None
        for module in (self.base, self.boundary_in, self.boundary_out, self.reduce, self.map_convs, self.map_out):
            for conv in (module or nn.Module()).modules():
                if isinstance(conv, nn.Conv1d | nn.Conv2d):
                    nn.init.xavier_uniform_(conv.weight)
                    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]  # each has one
        nn.init.xavier_uniform_(self.map_in.weight)
        nn.init.zeros_(self.map_in.bias)
        duration, start = self.matching.cells()
        self.register_buffer("durations_of", duration, persistent=False)
        self.register_buffer("starts_of", start, persistent=False)

    def set_data(self, mean: Tensor, std: Tensor) -> Self:
        """Subtract ``mean`` (C,) from the features and divide them by ``std`` (C,); saved with the weights.

        Raises:
            ShapeError: another number of channels.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != self.mean.shape:
                raise ShapeError(f"{name} has shape {tuple(value.shape)}, the features have {len(self.mean)} channels.")
            getattr(self, name).copy_(value)
        return self

    def valid_cells(self, mask: Tensor) -> Tensor:
        """Return (B, D, T): whether a proposal ends before the padding of a sequence (B, T)."""
        steps = torch.arange(self.config.length, device=mask.device)
        lasts = steps + torch.arange(self.config.durations, device=mask.device).unsqueeze(-1)
        return lasts < mask.sum(-1).view(-1, 1, 1)

    def forward(self, features: Tensor, mask: Tensor | None = None, *, logits: bool = False) -> Maps:
        """Return the maps, as probabilities or, with ``logits``, before the sigmoid."""
        c = self.config
        if features.ndim != 3 or features.shape[1:] != (c.channels, c.length):
            raise ShapeError(
                f"BMN takes features (B, {c.channels}, {c.length}), channels and steps, not {tuple(features.shape)}."
            )
        if mask is None:
            mask = features.new_ones(features.shape[0], c.length, dtype=torch.bool)
        elif mask.shape != (features.shape[0], c.length):
            raise ShapeError(f"The mask has shape {tuple(mask.shape)}, not ({features.shape[0]}, {c.length}).")
        valid = mask.unsqueeze(1).to(features.dtype)
        source = (features - self.mean.unsqueeze(-1)) / self.std.unsqueeze(-1) * valid
        base = source
        for conv in self.base:
            base = torch.relu(conv(base)) * valid
        own = base
        if self.se is not None:
            base = self.se(base, mask)
        if self.csa is not None:
            base = self.csa(source if c.source == "R" else own, base, mask)
        kept = valid if c.mask_steps else torch.ones_like(valid)
        edges = [
            out(torch.relu(conv(base)) * kept) for conv, out in zip(self.boundary_in, self.boundary_out, strict=True)
        ]
        boundaries = torch.cat(edges, 1)
        conf = self._proposals(base, kept, mask)
        classes = source.new_zeros(source.shape[0], 0, c.length)
        if self.classifier is not None:
            classes = self.classifier(source.mT).mT
        if not logits:
            boundaries, conf = torch.sigmoid(boundaries), torch.sigmoid(conf)
        conf = conf.masked_fill(~self.valid_cells(mask).unsqueeze(1), 0)
        maps = Maps(boundaries[:, 0], boundaries[:, 1], conf, classes)
        # An exported program knows no classes of ours.
        return tuple(maps) if torch.compiler.is_exporting() else maps  # type: ignore[return-value]

    def _proposals(self, base: Tensor, kept: Tensor, mask: Tensor) -> Tensor:
        """Return (B, 2, D, T), logits."""
        c = self.config
        sampled = base if self.reduce is None else torch.relu(self.reduce(base)) * kept
        rows = torch.relu(self.map_in(torch.relu(self.matching(sampled))))
        on_map = self._to_map(rows)
        valid = self._to_axes(self.valid_cells(mask)) if c.mask_cells else None
        if valid is not None:
            on_map = on_map * valid
        for conv in self.map_convs:
            on_map = torch.relu(conv(on_map))
            if valid is not None:
                on_map = on_map * valid
        out: Tensor = self.map_out(on_map)
        if c.map_axes == "start-end":
            moved = out.new_zeros(out.shape[0], 2, c.durations, c.length)
            moved[:, :, self.durations_of, self.starts_of] = out[
                :, :, self.starts_of, self.starts_of + self.durations_of
            ]
            return moved
        return out

    def _to_map(self, rows: Tensor) -> Tensor:
        """Put rows (B, V + 1, H) on the map (B, H, D, T); the last one fills the cells that do not exist."""
        c = self.config
        cells, empty = rows[:, :-1], rows[:, -1:]
        lines = c.length if c.map_axes == "start-end" else c.durations
        line, place = self.durations_of, self.starts_of
        if c.map_axes == "start-end":
            line, place = self.starts_of, self.starts_of + self.durations_of
        flat = empty.expand(-1, lines * c.length, -1).index_copy(1, line * c.length + place, cells)
        return flat.mT.unflatten(-1, (lines, c.length))

    def _to_axes(self, valid: Tensor) -> Tensor:
        """Return which cells (B, D, T) exist on the axes of the map, (B, 1, lines, T), as numbers."""
        numbers = valid.unsqueeze(1).to(self.mean.dtype)
        if self.config.map_axes == "duration-start":
            return numbers
        moved = numbers.new_zeros(valid.shape[0], 1, self.config.length, self.config.length)
        moved[:, :, self.starts_of, self.starts_of + self.durations_of] = numbers[
            :, :, self.durations_of, self.starts_of
        ]
        return moved


def _check(config: BMN.Config) -> None:
    for name in ("channels", "length", "durations", "hidden", "base", "reduced", "hidden_3d", "hidden_2d", "groups"):
        if getattr(config, name) < 1:
            raise ConfigError(f"BMN: {name} is {getattr(config, name)}, at least 1 is needed.")
    if config.classes < 0:
        raise ConfigError(f"BMN: classes is {config.classes}; 0 makes proposals without classes.")
    if config.durations > config.length:
        raise ConfigError(f"BMN: durations is {config.durations}, longer than the length of {config.length}.")
    for name in ("hidden", "base"):
        if getattr(config, name) % config.groups:
            raise ConfigError(
                f"BMN: {name} is {getattr(config, name)}, not a multiple of groups, which is {config.groups}."
            )
    if config.map_axes == "start-end" and config.durations != config.length:
        raise ConfigError(
            f'BMN: map_axes "start-end" needs durations = length, not {config.durations} and {config.length}.'
        )
