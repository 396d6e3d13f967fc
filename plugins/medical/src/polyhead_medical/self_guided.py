"""The multi-scale self-guided attention network: maps of several scales, refined twice by guided attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError, UnknownNameError
from polyhead.models import Pretrained
from polyhead_medical.attention import ChannelAttention, ChannelMode, PositionAttention

__all__ = ["Passes", "SelfGuidedNet"]


class Passes(NamedTuple):
    """Everything the loss needs; lists run over scales, finest first."""

    first: list[Tensor]
    """Logits of the maps before attention, (B, classes, H, W) each."""
    second: list[Tensor]
    """Logits after the last refinement, (B, classes, H, W) each."""
    latents: list[tuple[Tensor, Tensor]]
    """Latents of the two steps; empty with one step or without guidance."""
    rebuilt: list[tuple[Tensor, Tensor]]
    """(reconstruction, what was to be rebuilt), of step 1 then step 2; empty without guidance."""


class SelfGuidedNet(Pretrained, nn.Module):
    r"""Segment 2-D slices with guided position and channel attention at several scales.

    Maps F'_s of a backbone's stages are brought to the finest stage's size and C channels; F_MS is their fusion. Step 1
    refines concat(F'_s, F_MS) by position and channel attention, times the reconstruction of a small auto-encoder
    (shared by the scales); step 2 does so with concat(F'_s, A1_s · F_MS). The answer is the mean over scales of the
    last step's logits.

    Args:
        config: sizes and switches.

    Shapes: image (B, in_channels, H, W) to logits (B, classes, H, W). H and W must be multiples of four times the first
    stage's stride.

    Complexity: eight position attentions over N = H·W / stride² positions, O(N²·C) time and O(N·C) memory each.
    Source: Sinha & Dolz 2020, arXiv:1906.02849, and github.com/sinAshish/Multi-Scale-Attention, read for its behaviour.
    Differs: the backbone is a small residual network of any number of stages, not ResNeXt-101; layers that the release
    registers and never calls are left out.
    """

    gated_at_first: ClassVar[tuple[str, ...]] = ("steps.*.position.*.3.*.weight", "steps.*.position.*.3.*.bias")

    @dataclass(frozen=True)
    class Config:
        """Sizes, and a switch for every part of the paper's ladder."""

        in_channels: int = 1
        classes: int = 5
        """Background included."""
        stages: tuple[int, ...] = (64, 128, 256, 512)
        """Channels of the backbone's stages, each half the size of the one before."""
        stride: int = 4
        """Of the first stage: 2 or 4."""
        channels: int = 64
        """C: of every map after the backbone."""
        inner: int | None = None
        """Channels of queries and keys; C/8 if None."""
        position: bool = True
        channel: bool = True
        channel_mode: ChannelMode = "danet"
        multi_scale: bool = True
        """Maps are refined together with the fusion of all scales; else each with itself."""
        guided: bool = True
        """Attention is multiplied by an auto-encoder's reconstruction."""
        steps: int = 2
        """Refinements: 1 or 2."""
        kernel: int = 3
        """Of the convolutions around attention: 1 keeps them from seeing neighbours."""
        coordinates: bool = False
        """The image gets two channels from -1 to 1: attention alone knows no left and right."""

        @classmethod
        def release(cls, name: str) -> Self:
            """Return the configuration of a published network, after its backbone.

            Args:
                name: "Multi-Scale-Attention", the paper's code.

            Raises:
                UnknownNameError: there is no such release.
            """
            if name != "Multi-Scale-Attention":
                raise UnknownNameError("release", name, ["Multi-Scale-Attention"])
            return cls(stages=(256, 512, 1024, 2048))

    def __init__(self, config: Config) -> None:
        """Build the network.

        Raises:
            ConfigError: a size or switch cannot be.
        """
        super().__init__()
        _check(config)
        self.config = config
        width, scales = config.channels, range(len(config.stages))
        self.backbone = _Backbone(config)
        self.lateral = nn.ModuleList(_conv_norm(stage, width, 1) for stage in config.stages)
        self.fuse = nn.Sequential(
            *_conv_norm(width * len(config.stages), width, 3),
            *_conv_norm(width, width, 3),
            *_conv_norm(width, width, 1),
        )
        self.first = nn.ModuleList(nn.Conv2d(width, config.classes, 1) for _ in scales)
        self.steps = nn.ModuleList(_Step(config) for _ in range(config.steps))
        self.second = nn.ModuleList(nn.Conv2d(width, config.classes, 1) for _ in scales)

    @property
    def size_multiple(self) -> int:
        """What height and width have to be multiples of."""
        return self.config.stride * 4

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, classes, H, W)."""
        return torch.stack(self.passes(image).second).mean(0)

    def passes(self, image: Tensor) -> Passes:
        """Return the logits of all scales, before and after attention, and what the guidance is trained by.

        Raises:
            ShapeError: axes, channels or sizes do not fit the network.
        """
        config, shape = self.config, tuple(image.shape)
        if len(shape) != 4 or shape[1] != config.in_channels:
            raise ShapeError(f"image has shape {shape}, expected (batch, {config.in_channels}, H, W).")
        if any(size % self.size_multiple or not size for size in shape[2:]):
            raise ShapeError(
                f"image has sizes {shape[2:]}: with a stride of {config.stride} and two halvings in the guidance each "
                f"must be a multiple of {self.size_multiple}. Resize or pad it."
            )
        if config.coordinates:
            rows, columns = (torch.linspace(-1, 1, size, dtype=image.dtype, device=image.device) for size in shape[2:])
            places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(shape[0], -1, -1, -1)
            image = torch.cat([image, places], 1)
        return self.from_stages(self.backbone(image), shape[2:])

    def from_stages(self, stages: Sequence[Tensor], size: Sequence[int]) -> Passes:
        """Return the same from the maps of a backbone, finest first, and the image's height and width."""
        finest = stages[0].shape[2:]
        maps = [_sized(layer(stage), finest) for layer, stage in zip(self.lateral, stages, strict=True)]
        first = [_sized(layer(x), size) for layer, x in zip(self.first, maps, strict=True)]
        fused = self.fuse(torch.cat(maps[::-1], 1)) if self.config.multi_scale else None
        partners = [x if fused is None else fused for x in maps]
        latents: list[list[Tensor]] = []
        rebuilt: list[tuple[Tensor, Tensor]] = []
        refined: list[Tensor] = []
        for step in self.steps:
            joined = [
                torch.cat([x, other if not refined else refined[scale] * other], 1)
                for scale, (x, other) in enumerate(zip(maps, partners, strict=True))
            ]
            found = step(joined)
            refined = found.refined
            latents.append(found.latents)
            rebuilt += zip(found.rebuilt, joined, strict=False)
        second = [_sized(layer(x), size) for layer, x in zip(self.second, refined, strict=True)]
        pairs = list(zip(*latents, strict=True)) if len(latents) == 2 else []
        return Passes(first, second, pairs, rebuilt)


class _Refined(NamedTuple):
    refined: list[Tensor]
    latents: list[Tensor]
    rebuilt: list[Tensor]


class _Step(nn.Module):
    """One refinement of all scales; the auto-encoder is shared by them."""

    def __init__(self, config: SelfGuidedNet.Config) -> None:
        super().__init__()
        width, scales = config.channels, range(len(config.stages))
        self.position = nn.ModuleList(
            _branch(
                width,
                config.kernel,
                PositionAttention(width, inner=config.inner, bias=True) if config.position else None,
            )
            for _ in scales
        )
        self.channel = nn.ModuleList(
            _branch(width, config.kernel, ChannelAttention(config.channel_mode) if config.channel else None)
            for _ in scales
        )
        self.out = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in scales)
        self.autoencoder = _AutoEncoder(2 * width) if config.guided else None
        self.guide = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in scales if config.guided)

    def forward(self, joined: Sequence[Tensor]) -> _Refined:
        refined, latents, rebuilt = [], [], []
        for scale, x in enumerate(joined):
            seen = self.position[scale](x) + self.channel[scale](x)
            if self.autoencoder is not None:
                latent, again = self.autoencoder(x)
                seen = seen * self.guide[scale](again)
                latents.append(latent)
                rebuilt.append(again)
            refined.append(self.out[scale](seen))
        return _Refined(refined, latents, rebuilt)


class _AutoEncoder(nn.Module):
    """The guidance: down by four and up again."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Sequential(*_twice(width, 2 * width), nn.MaxPool2d(2))
        self.deeper = nn.Sequential(*_twice(2 * width, 4 * width), nn.MaxPool2d(2))
        self.up = nn.Sequential(*_twice(4 * width, 2 * width), nn.ConvTranspose2d(2 * width, 2 * width, 2, 2))
        self.out = nn.Sequential(*_twice(2 * width, width), nn.ConvTranspose2d(width, width, 2, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.deeper(self.down(x))
        return latent, self.out(self.up(latent))


class _Backbone(nn.Module):
    """A small residual network that gives a map of each stage."""

    def __init__(self, config: SelfGuidedNet.Config) -> None:
        super().__init__()
        image = config.in_channels + (2 if config.coordinates else 0)
        width = config.stages[0]
        self.stem = nn.Sequential(nn.Conv2d(image, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.pooled = config.stride == 4
        below = [width, *config.stages[:-1]]
        self.stages = nn.ModuleList(
            _Residual(inputs, outputs, 1 if level == 0 else 2)
            for level, (inputs, outputs) in enumerate(zip(below, config.stages, strict=True))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        if self.pooled:
            x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut: nn.Module = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.body(x) + self.shortcut(x)).relu()
        return out


def _branch(width: int, kernel: int, attention: nn.Module | None) -> nn.Sequential:
    return nn.Sequential(
        *_conv_norm(2 * width, width, kernel), attention or nn.Identity(), *_conv_norm(width, width, kernel)
    )


def _conv_norm(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2), nn.BatchNorm2d(outputs), nn.PReLU())


def _twice(inputs: int, outputs: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for channels in (inputs, outputs):
        layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return layers


def _sized(x: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=list(size), mode="bilinear", align_corners=False)


def _check(config: SelfGuidedNet.Config) -> None:
    if config.in_channels < 1 or config.classes < 2 or config.channels < 1:
        raise ConfigError(
            f"in_channels is {config.in_channels}, classes {config.classes}, channels {config.channels}: at least 1, 2 "
            f"(with background) and 1."
        )
    if not config.stages or min(config.stages) < 1 or config.stride not in (2, 4):
        raise ConfigError(
            f"stages is {list(config.stages)} and stride {config.stride}: at least one stage of at least one channel, "
            f"and a stride of 2 or 4."
        )
    if config.steps not in (1, 2) or config.kernel not in (1, 3):
        raise ConfigError(f"steps is {config.steps} and kernel {config.kernel}: steps are 1 or 2, the kernel 1 or 3.")
