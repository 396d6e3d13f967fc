"""Gates on the features of a localisation encoder: class-semantics attention, and squeeze-and-excitation."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead.errors import ConfigError, ShapeError

__all__ = ["ClassSemanticsAttention", "Fuse", "SqueezeExcitation", "masked_mean"]

Fuse = Literal["sum", "max", "concat"]
"""How features gated by channel and features gated by time become one."""


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean of x (B, C, T) over the steps where mask (B, T) is True; 0 where it is nowhere."""
    if mask is None:
        return x.mean(-1)
    valid = mask.unsqueeze(1).to(x.dtype)
    return (x * valid).sum(-1) / valid.sum(-1).clamp(min=1)


class ClassSemanticsAttention(nn.Module):
    """Weigh the features F of a localisation encoder by what its input R says about the classes.

    R comes from an action recogniser and still carries which classes occur, and when; F no longer does. One branch
    gives a weight for each channel of F, one for each step, both from R by convolutions of their own. Pluggable into
    any encoder R -> F over time; where the lengths differ, R is interpolated linearly to that of F.

    Shapes: source R (B, C, T'), features F (B, C', T), mask (B, T) True = valid -> (B, C', T).

    Complexity: O(B·T·C²·k / r); parameters 2·C·(C/r)·k + (C/r)·C' + k·C/r and biases.
    Source: Sridhar et al. 2021, arXiv:2109.02613. There is no public code; sizes and the fusion are ours.

    Raises:
        ConfigError: both branches are off, the kernel is even, or a size is not positive.
        ShapeError: the tensors do not fit the layer.
    """

    def __init__(
        self,
        source_channels: int,
        channels: int,
        *,
        reduction: int = 4,
        kernel: int = 3,
        channel: bool = True,
        temporal: bool = True,
        fuse: Fuse = "sum",
        pool_first: bool = False,
    ) -> None:
        """Make the gates.

        Args:
            source_channels: C of R.
            channels: C' of F.
            reduction: r; the branches have C / r hidden channels.
            kernel: k, odd.
            channel: weigh channels.
            temporal: weigh steps.
            fuse: "sum" adds both (then gates of 0.5 give back F), "max" takes the larger, "concat" mixes them by a
                1x1 convolution.
            pool_first: take the mean over time before the ReLU, as squeeze-and-excitation does.
        """
        super().__init__()
        if not (channel or temporal):
            raise ConfigError("ClassSemanticsAttention: channel and temporal are both off. Turn one on.")
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(f"ClassSemanticsAttention: kernel is {kernel}, an odd number is needed.")
        if min(source_channels, channels, reduction) < 1:
            raise ConfigError(
                f"ClassSemanticsAttention: source_channels {source_channels}, channels {channels} and reduction "
                f"{reduction} must be at least 1."
            )
        self.source_channels, self.channels = source_channels, channels
        self.fuse, self.pool_first = fuse, pool_first
        hidden = max(1, source_channels // reduction)
        pad = kernel // 2
        self.channel_in = nn.Conv1d(source_channels, hidden, kernel, padding=pad) if channel else None
        self.channel_out = nn.Linear(hidden, channels) if channel else None
        self.temporal_in = nn.Conv1d(source_channels, hidden, kernel, padding=pad) if temporal else None
        self.temporal_out = nn.Conv1d(hidden, 1, kernel, padding=pad) if temporal else None
        self.mix = nn.Conv1d(2 * channels, channels, 1) if fuse == "concat" and channel and temporal else None
        for last in (self.channel_out, self.temporal_out):
            if last is not None and last.bias is not None:
                nn.init.zeros_(last.bias)

    def forward(self, source: Tensor, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the gated features."""
        if source.ndim != 3 or source.shape[1] != self.source_channels:
            raise ShapeError(f"The source has shape {tuple(source.shape)}: (B, {self.source_channels}, T) is needed.")
        if features.ndim != 3 or features.shape[1] != self.channels or features.shape[0] != source.shape[0]:
            raise ShapeError(
                f"The features have shape {tuple(features.shape)}: ({source.shape[0]}, {self.channels}, T) is needed."
            )
        if source.shape[-1] != features.shape[-1]:
            source = F.interpolate(source, features.shape[-1], mode="linear", align_corners=False)
        if mask is not None:
            source = source * mask.unsqueeze(1)
        gated = []
        if self.channel_in is not None and self.channel_out is not None:
            gated.append(features * torch.sigmoid(self._channel_logits(source, mask)).unsqueeze(-1))
        if self.temporal_in is not None and self.temporal_out is not None:
            hidden = torch.relu(self.temporal_in(source))
            if mask is not None:
                hidden = hidden * mask.unsqueeze(1)
            gated.append(features * torch.sigmoid(self.temporal_out(hidden)))
        if len(gated) == 1:
            return gated[0]
        if self.mix is not None:
            mixed: Tensor = self.mix(torch.cat(gated, 1))
            return mixed
        return torch.maximum(*gated) if self.fuse == "max" else gated[0] + gated[1]

    def _channel_logits(self, source: Tensor, mask: Tensor | None) -> Tensor:
        assert self.channel_in is not None  # both are there, or neither
        assert self.channel_out is not None
        hidden = self.channel_in(source)
        pooled = torch.relu(masked_mean(hidden, mask)) if self.pool_first else masked_mean(torch.relu(hidden), mask)
        logits: Tensor = self.channel_out(pooled)
        return logits


class SqueezeExcitation(nn.Module):
    """Weigh the channels of F (B, C, T) by their own means over time.

    Complexity: O(B·C·(T + C / r)).
    Source: Hu et al. 2018, arXiv:1709.01507, section 3.

    Raises:
        ConfigError: a size is not positive.
    """

    def __init__(self, channels: int, *, reduction: int = 4) -> None:
        """Make the gates; the hidden layer has ``channels // reduction`` units."""
        super().__init__()
        if min(channels, reduction) < 1:
            raise ConfigError(f"SqueezeExcitation: channels {channels} and reduction {reduction} must be at least 1.")
        hidden = max(1, channels // reduction)
        self.inner, self.outer = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the gated features."""
        weights = torch.sigmoid(self.outer(torch.relu(self.inner(masked_mean(features, mask)))))
        return features * weights.unsqueeze(-1)
