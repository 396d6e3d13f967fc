"""U-Nets of whole volumes: plain, with attention gates (AGUNet), with dual attention at the bottleneck (DAUNet)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError, UnknownNameError
from polyhead.models import Pretrained
from polyhead_medical.attention import AttentionGate, ChannelAttention, ChannelMode, GateForm, PositionAttention

__all__ = ["AGUNet", "AttentionUNet", "DAUNet", "UNet"]


@dataclass(frozen=True)
class _Config:
    """Every component of the paper is a switch; see `AttentionUNet`."""

    spatial_dims: int = 3
    """3 for volumes, 2 for images."""
    in_channels: int = 1
    """Sequences of a scan, such as T1c and FLAIR."""
    classes: int = 2
    """Background included."""
    filters: tuple[int, ...] = (16, 32, 128, 256, 256)
    """Channels of each level, finest first; the last is the bottleneck."""
    attention: Literal["none", "gate", "dual"] = "none"
    gate_form: GateForm = "concat"
    position: bool = True
    """Dual attention: its position branch attends."""
    channel: bool = True
    """Dual attention: its channel branch attends."""
    channel_mode: ChannelMode = "danet"
    channel_scaled: bool = False
    """Divide channel likeness by the number of positions."""
    guided: bool = False
    """The attended bottleneck enters the decoder again."""
    guide_levels: Literal["all", "top"] = "all"
    """Where: at every level of the decoder, or at the finest alone."""
    guide_by: Literal["transposed", "linear"] = "transposed"
    """How it is brought to size: a transposed convolution with holes above stride 3, or interpolation and a 1×1."""
    multi_scale_input: bool = False
    """Every level sees the averaged image too."""
    pyramid_at_bottleneck: bool = True
    """The bottleneck too, as in the paper's figure; its code leaves it out."""
    deep_supervision: bool = False
    """A head on every level of the decoder."""
    coordinates: bool = False
    """The image gets a channel for each axis, from -1 to 1: attention alone knows no left and right."""
    norm: Literal["batch", "instance", "group"] = "batch"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    dropout: float = 0.0
    """Of whole channels, after each convolution of the encoder and decoder."""
    attention_dropout: float = 0.5
    """Of whole channels, in the dual attention."""

    @classmethod
    def release(cls, name: str) -> Self:
        """Return the configuration of a published network.

        Args:
            name: "mri_brain_tumor_segmentation", the Keras code of the paper.

        Raises:
            UnknownNameError: there is no such release.
        """
        if name != "mri_brain_tumor_segmentation":
            raise UnknownNameError("release", name, ["mri_brain_tumor_segmentation"])
        return cls(channel_mode="keras", pyramid_at_bottleneck=False, norm_eps=1e-3, norm_momentum=0.01)


class AttentionUNet(Pretrained, nn.Module):
    """A U-Net with switches; `UNet`, `AGUNet` and `DAUNet` are this class with other defaults.

    Encoder levels are two convolutions of 3 with normalisation and ReLU, halved by pooling. ``attention="gate"``
    weighs each skip connection by `AttentionGate`; ``attention="dual"`` refines the bottleneck by position and channel
    attention. All switches off leave a plain U-Net with the same names of parameters.

    Args:
        config: the switches.

    Shapes: image (B, in_channels, D, H, W) to logits (B, classes, D, H, W); without D in 2-D. Every size must be a
    multiple of 2^(levels - 1).

    Complexity: O(voxels · filters² · 27); position attention at the bottleneck O(N²·C) time and O(N·C) memory.
    Source: Bouget et al. 2021, arXiv:2101.07715, and github.com/dbouget/mri_brain_tumor_segmentation. Differs: the
    projections of the position attention are trained (the release made new random ones in every call), channel
    attention is DANet's, the input pyramid reaches the bottleneck. ``Config.release(...)`` takes the last two back.
    """

    Config: ClassVar[type[_Config]] = _Config
    gated_at_first: ClassVar[tuple[str, ...]] = ("attention.position.0.*.weight",)

    def __init__(self, config: _Config) -> None:
        """Build the network.

        Raises:
            ConfigError: a switch has a value that cannot be, or two do not fit together.
        """
        super().__init__()
        _check(config)
        self.config = config
        filters, levels = config.filters, len(config.filters)
        image = config.in_channels + (config.spatial_dims if config.coordinates else 0)

        self.encoder = nn.ModuleList()
        self.pyramid = nn.ModuleDict()
        for level, width in enumerate(filters):
            below = image if level == 0 else filters[level - 1]
            last = levels - 1 if not config.pyramid_at_bottleneck else levels
            if config.multi_scale_input and 0 < level < last:
                self.pyramid[str(level)] = _conv(config, image, width, 3)
                below += width
            self.encoder.append(_ConvBlock(config, below, width))
        self.attention = _DualAttention(config, filters[-1]) if config.attention == "dual" else None
        self.decoder = nn.ModuleList(
            _DecoderLevel(config, filters[level + 1], filters[level], level) for level in reversed(range(levels - 1))
        )
        heads = levels - 1 if config.deep_supervision else 1
        self.heads = nn.ModuleList(_conv(config, filters[level], config.classes, 1) for level in range(heads))
        for module in self.modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def size_multiple(self) -> int:
        """What every spatial size has to be a multiple of."""
        return int(2 ** (len(self.config.filters) - 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits (B, classes, ...) at the image's resolution."""
        return self.scales(image)[0]

    def scales(self, image: Tensor) -> list[Tensor]:
        """Return the logits of every head: full resolution first, then halved; one without deep supervision.

        Raises:
            ShapeError: axes, channels or sizes do not fit the network.
        """
        config = self.config
        _check_image(image, config, self.size_multiple)
        if config.coordinates:
            image = torch.cat([image, _places(image)], 1)
        x, small, skips = image, image, []
        for level, block in enumerate(self.encoder):
            if level > 0:
                skips.append(x)
                x, small = _pool(x, "max"), _pool(small, "avg")
                if str(level) in self.pyramid:
                    x = torch.cat([self.pyramid[str(level)](small).relu(), x], 1)
            x = block(x)
        if self.attention is not None:
            x = self.attention(x)
        bottom, found = x, []
        for block in self.decoder:
            x = block(x, skips.pop(), bottom)
            found.append(x)
        found.reverse()
        return [head(features) for head, features in zip(self.heads, found, strict=False)]


class UNet(AttentionUNet):
    """A plain U-Net of the whole volume; the paper's baseline."""

    @dataclass(frozen=True)
    class Config(_Config):
        """As `AttentionUNet`'s."""


class AGUNet(AttentionUNet):
    """The U-Net with a gate on every skip connection, an input pyramid and deep supervision."""

    @dataclass(frozen=True)
    class Config(_Config):
        """As `AttentionUNet`'s, gates on."""

        attention: Literal["none", "gate", "dual"] = "gate"
        multi_scale_input: bool = True
        deep_supervision: bool = True


class DAUNet(AttentionUNet):
    """The U-Net with position and channel attention, guided, with an input pyramid and deep supervision (DAGUNet)."""

    @dataclass(frozen=True)
    class Config(_Config):
        """As `AttentionUNet`'s, dual attention on."""

        attention: Literal["none", "gate", "dual"] = "dual"
        guided: bool = True
        multi_scale_input: bool = True
        deep_supervision: bool = True


class _ConvBlock(nn.Sequential):
    """Twice convolution, normalisation, ReLU, and dropout of channels if any."""

    def __init__(self, config: _Config, inputs: int, width: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, width):
            layers += [_conv(config, channels, width, 3), _norm(config, width), nn.ReLU()]
            if config.dropout:
                layers.append(_dropout(config, config.dropout))
        super().__init__(*layers)


class _DualAttention(nn.Module):
    """Position and channel branches side by side, summed and projected."""

    def __init__(self, config: _Config, width: int) -> None:
        super().__init__()

        def branch(first: nn.Module) -> nn.Sequential:
            return nn.Sequential(
                first,
                _conv(config, width, width, 3),
                _norm(config, width),
                nn.ReLU(),
                _dropout(config, config.attention_dropout),
                _conv(config, width, width, 3),
            )

        self.position = branch(PositionAttention(width) if config.position else nn.Identity())
        channel = ChannelAttention(config.channel_mode, scaled=config.channel_scaled)
        self.channel = branch(channel if config.channel else nn.Identity())
        self.out = nn.Sequential(
            _dropout(config, config.attention_dropout), _conv(config, width, width, 1), _norm(config, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.position(x) + self.channel(x))


class _DecoderLevel(nn.Module):
    """Bring features up, join them with the skip connection, convolve."""

    def __init__(self, config: _Config, below: int, width: int, level: int) -> None:
        super().__init__()
        self.dual = config.attention == "dual"
        self.up = _Up(config, below, width, 2)
        guided = config.guided and (config.guide_levels == "all" or level == 0)
        depth = len(config.filters) - 1 - level
        self.guide: nn.Module | None = None
        if guided and config.guide_by == "transposed":
            self.guide = _Up(config, config.filters[-1], width, 2**depth)
        elif guided:
            linear = nn.Upsample(scale_factor=2**depth, mode="trilinear" if config.spatial_dims == 3 else "bilinear")
            self.guide = nn.Sequential(_conv(config, config.filters[-1], width, 1), linear)
        joined = width * (3 if guided else 2)
        # Dual attention's decoder normalises what it has joined, the skip connection too; the others the upper half.
        self.norm = _norm(config, joined if self.dual else width)
        self.gate: AttentionGate | None = None
        if config.attention == "gate":
            self.gate = AttentionGate(
                width,
                width,
                max(1, width // 2),
                spatial_dims=config.spatial_dims,
                form=config.gate_form,
                norm_eps=config.norm_eps,
            )
        self.block = _ConvBlock(config, joined, width)

    def forward(self, x: Tensor, skip: Tensor, bottom: Tensor) -> Tensor:
        up = self.up(x)
        guide = [] if self.guide is None else [self.guide(bottom)]
        if self.dual:
            return self.block(self.norm(torch.cat([*guide, skip, up], 1)).relu())
        up = self.norm(up).relu()
        if self.gate is not None:
            skip = self.gate(up, skip)
        return self.block(torch.cat([*guide, up, skip], 1))


class _Up(nn.Module):
    """A transposed convolution of 3 whose output is exactly ``stride`` times its input, aligned at the start."""

    def __init__(self, config: _Config, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        conv = nn.ConvTranspose3d if config.spatial_dims == 3 else nn.ConvTranspose2d
        self.stride = stride
        self.conv = conv(inputs, width, 3, stride=stride, output_padding=max(0, stride - 3))

    def forward(self, x: Tensor) -> Tensor:
        sizes = [size * self.stride for size in x.shape[2:]]
        up = self.conv(x)
        for axis, size in enumerate(sizes, 2):
            up = up.narrow(axis, 0, size)
        return up


def _conv(config: _Config, inputs: int, outputs: int, kernel: int) -> nn.Module:
    conv = nn.Conv3d if config.spatial_dims == 3 else nn.Conv2d
    return conv(inputs, outputs, kernel, padding=kernel // 2)


def _norm(config: _Config, channels: int) -> nn.Module:
    volume = config.spatial_dims == 3
    if config.norm == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels, eps=config.norm_eps)
    if config.norm == "instance":
        kind = nn.InstanceNorm3d if volume else nn.InstanceNorm2d
        return kind(channels, eps=config.norm_eps, affine=True)
    batch = nn.BatchNorm3d if volume else nn.BatchNorm2d
    return batch(channels, eps=config.norm_eps, momentum=config.norm_momentum)


def _dropout(config: _Config, rate: float) -> nn.Module:
    return nn.Dropout3d(rate) if config.spatial_dims == 3 else nn.Dropout2d(rate)


def _pool(x: Tensor, kind: Literal["max", "avg"]) -> Tensor:
    if x.ndim == 5:
        return F.max_pool3d(x, 2) if kind == "max" else F.avg_pool3d(x, 2)
    return F.max_pool2d(x, 2) if kind == "max" else F.avg_pool2d(x, 2)


def _places(image: Tensor) -> Tensor:
    """Return a channel for each axis, from -1 to 1."""
    axes = [torch.linspace(-1, 1, size, dtype=image.dtype, device=image.device) for size in image.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return grid.expand(len(image), *grid.shape)


def _check(config: _Config) -> None:
    if config.spatial_dims not in (2, 3):
        raise ConfigError(f"spatial_dims is {config.spatial_dims}: 3 for volumes, 2 for images.")
    if len(config.filters) < 2 or min(config.filters) < 1:
        raise ConfigError(f"filters is {list(config.filters)}: give at least two levels of at least one channel.")
    if config.in_channels < 1 or config.classes < 2:
        raise ConfigError(
            f"in_channels is {config.in_channels} and classes {config.classes}: at least 1 and 2 (with background)."
        )
    if config.guided and config.attention != "dual":
        raise ConfigError(f'guided goes with attention "dual", not "{config.attention}": it brings that attention up.')


def _check_image(image: Tensor, config: _Config, multiple: int) -> None:
    shape: Sequence[int] = tuple(image.shape)
    axes = "(batch, channels, D, H, W)" if config.spatial_dims == 3 else "(batch, channels, H, W)"
    if len(shape) != config.spatial_dims + 2:
        raise ShapeError(f"image has shape {shape}, expected {axes}.")
    if shape[1] != config.in_channels:
        raise ShapeError(f"image has {shape[1]} channels, the network takes {config.in_channels}. Shape {shape}.")
    if any(size % multiple or not size for size in shape[2:]):
        raise ShapeError(
            f"image has sizes {tuple(shape[2:])}: with {len(config.filters)} levels each must be a multiple of "
            f"{multiple}. Resize or pad it."
        )
