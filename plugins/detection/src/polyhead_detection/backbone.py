"""Backbones: feature maps of an image at several strides, from timm or from a small network of our own."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, nearest

__all__ = ["SmallBackbone", "TimmBackbone", "make_backbone"]


class SmallBackbone(nn.Module):
    """A few convolutions with group norms: maps at the strides 4, 8, 16, … of ``widths`` channels.

    For small pictures, trained from nothing; an image in a batch does not depend on the others.
    """

    multiple = 1

    def __init__(self, widths: Sequence[int]) -> None:
        """Make a network with a map for each width."""
        super().__init__()
        self.channels = tuple(widths)
        self.strides = tuple(4 * 2**level for level in range(len(widths)))
        self.stem = _Step(3, widths[0], stride=2)
        inputs = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(_Step(before, width, stride=2), _Step(width, width, stride=1))
            for before, width in zip(inputs, widths, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to maps, the finest first."""
        x = self.stem(image)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Step(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, width, 3, stride=stride, padding=1, bias=False)
        self.norm = nn.GroupNorm(8 if width % 8 == 0 else 1, width)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class TimmBackbone(nn.Module):
    """The last three maps of a timm model, at the strides 8, 16 and 32: ResNet, ConvNeXt, Swin and others.

    Batch norms are frozen, as detectors have them: their statistics are those of the weights that are loaded.
    """

    def __init__(self, name: str, *, freeze_stem: bool = False, pretrained: bool = False) -> None:
        """Make the network.

        Args:
            name: of timm, such as "resnet50".
            freeze_stem: whether the first layers are not trained.
            pretrained: whether timm fetches its ImageNet weights.

        Raises:
            ConfigError: timm has no such model, or it gives no maps at these strides.
        """
        super().__init__()
        import timm
        from timm.utils.model import freeze_batch_norm_2d

        if not timm.is_model(name):
            guess = nearest(name, timm.list_models())
            mend = f'Did you mean "{guess}"?' if guess else "timm.list_models() has all."
            raise ConfigError(f'backbone is "{name}", which timm does not have. {mend}')
        make: Any = functools.partial(timm.create_model, name, features_only=True)
        if name.startswith("swin"):
            make = functools.partial(make, strict_img_size=False)
        strides = make(pretrained=False).feature_info.reduction()
        if not {8, 16, 32} <= set(strides):
            raise ConfigError(f'backbone "{name}" has maps at the strides {strides}; 8, 16 and 32 are needed.')
        indices = tuple(strides.index(stride) for stride in (8, 16, 32))
        network: Any = make(pretrained=pretrained, out_indices=indices)
        self.channels = tuple(network.feature_info.channels())
        self.strides = (8, 16, 32)
        self.channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        convolution = any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        # Networks with batch norms pad their convolutions, so that maps cover every pixel; others cut into patches.
        self.multiple = 1 if convolution else 32
        self.network: nn.Module = freeze_batch_norm_2d(network) if convolution else network
        if freeze_stem:
            for part, parameter in self.network.named_parameters():
                if part.startswith(("conv1", "stem", "patch_embed")):
                    parameter.requires_grad_(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) to maps, the finest first."""
        maps = self.network(image)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def make_backbone(
    name: str, widths: Sequence[int], *, freeze_stem: bool = False, pretrained: bool = False
) -> SmallBackbone | TimmBackbone:
    """Return ``"small"``, of ``widths``, or the timm model of a name."""
    if name == "small":
        return SmallBackbone(widths)
    return TimmBackbone(name, freeze_stem=freeze_stem, pretrained=pretrained)


class Neck(nn.Module):
    """Bring maps to one width, and add coarser ones: 1×1 convolutions, then 3×3 with stride 2, each with a group norm.

    Source: Zhu et al. 2021, arXiv:2010.04159, appendix A.2.
    """

    def __init__(self, channels: Sequence[int], dim: int, levels: int, groups: int) -> None:
        """Make a neck for maps of ``channels`` and ``levels`` maps out, at least as many.

        Raises:
            ConfigError: fewer levels than maps.
        """
        super().__init__()
        if levels < len(channels):
            raise ConfigError(
                f"levels is {levels} and the backbone gives {len(channels)} maps: have that many or more."
            )
        sides = [nn.Conv2d(width, dim, 1) for width in channels]
        inputs = (channels[-1], *[dim] * levels)
        extra = [nn.Conv2d(inputs[i], dim, 3, stride=2, padding=1) for i in range(levels - len(channels))]
        self.sides, self.extra = nn.ModuleList(sides), nn.ModuleList(extra)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, dim) for _ in range(levels))
        for conv in (*sides, *extra):
            nn.init.xavier_uniform_(conv.weight)
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Map a (B, C, H, W) of each stride to (B, dim, H, W) of each level."""
        result = [norm(side(x)) for side, norm, x in zip(self.sides, self.norms, maps, strict=False)]
        x = maps[-1]
        for conv, norm in zip(self.extra, self.norms[len(maps) :], strict=True):
            x = norm(conv(x))
            result.append(x)
        return result


def normalise(image: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Return pixels of 0 to 255, (..., 3, H, W), as a network expects them."""
    shape = (3, 1, 1)
    centre = torch.tensor(mean, device=image.device, dtype=dtype).view(shape)
    spread = torch.tensor(std, device=image.device, dtype=dtype).view(shape)
    return (image.to(dtype) - centre) / spread
