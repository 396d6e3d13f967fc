"""Attention over feature maps: positions, channels, and the gate of a skip connection; 2-D and 3-D by the same code."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.ops import softmax_attention

__all__ = ["AttentionGate", "ChannelAttention", "ChannelMode", "GateForm", "PositionAttention"]

ChannelMode = Literal["danet", "plain", "keras"]
GateForm = Literal["concat", "add"]


class PositionAttention(nn.Module):
    r"""Let every position look at every other one, and add what it saw.

    .. math:: y_i = \gamma \sum_j \operatorname{softmax}_j(q_i \cdot k_j) \, v_j + x_i

    The map of all pairs is never stored: it goes through ``softmax_attention`` with a scale of 1, as published. It
    knows no places: permuted positions give permuted results.

    Args:
        channels: C.
        inner: channels of queries and keys; C/8, at least 1, if None.
        bias: whether the three projections have one.

    Shapes: (B, C, ...) to (B, C, ...), any number of spatial axes, N positions in all.

    Complexity: O(B·N²·C) time, O(B·N·C) memory.
    Source: Fu et al. 2019, arXiv:1809.02983, eq. 1-2; γ starts at 0, so that a fresh module changes nothing.
    """

    def __init__(self, channels: int, *, inner: int | None = None, bias: bool = False) -> None:
        """Make the projections."""
        super().__init__()
        inner = max(1, channels // 8) if inner is None else inner
        self.query = nn.Conv1d(channels, inner, 1, bias=bias)
        self.key = nn.Conv1d(channels, inner, 1, bias=bias)
        self.value = nn.Conv1d(channels, channels, 1, bias=bias)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the positions of (B, C, ...)."""
        flat = x.flatten(2)
        q, k, v = (layer(flat).transpose(1, 2).unsqueeze(1) for layer in (self.query, self.key, self.value))
        seen = softmax_attention(q, k, v, scale=1.0).output
        return self.gamma * seen.squeeze(1).transpose(1, 2).reshape(x.shape) + x


class ChannelAttention(nn.Module):
    r"""Mix channels by how alike their maps are, and add the mixture.

    .. math:: Y = \gamma A X + X, \qquad E = X X^\top, \qquad
        A = \operatorname{softmax}(\operatorname{rowmax}(E) - E)

    Args:
        mode: "danet": the form above, which favours channels that differ; "plain": softmax(E), the papers' text;
            "keras": softmax(E) from the other side (Aᵀ X), as the Keras port computes it.
        scaled: divide E by the number of positions, which keeps the softmax from saturating.

    Shapes: (B, C, ...) to (B, C, ...), N positions in all.

    Complexity: O(B·C²·N) time, O(B·C²) memory. E is computed in float32 at least.
    Source: Fu et al. 2019, arXiv:1809.02983, eq. 3-4, and its code for "danet"; γ starts at 0.
    """

    def __init__(self, mode: ChannelMode = "danet", *, scaled: bool = False) -> None:
        """Keep the form.

        Raises:
            ConfigError: there is no such mode.
        """
        super().__init__()
        if mode not in get_args(ChannelMode):
            raise ConfigError(f'Channel attention has no mode "{mode}". All: {", ".join(get_args(ChannelMode))}')
        self.mode, self.scaled = mode, scaled
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of (B, C, ...)."""
        flat = x.flatten(2)
        exact = flat if flat.dtype == torch.float64 else flat.float()
        with torch.autocast(x.device.type, enabled=False):  # E grows with N: half precision would overflow
            likeness = exact @ exact.transpose(1, 2)
            if self.scaled:
                likeness = likeness / flat.shape[2]
            if self.mode == "danet":
                likeness = likeness.amax(-1, keepdim=True) - likeness
            weights = likeness.softmax(-1)
            mixed = (weights.transpose(1, 2) if self.mode == "keras" else weights) @ exact
        return self.gamma * mixed.to(x.dtype).reshape(x.shape) + x


class AttentionGate(nn.Module):
    r"""Weigh every position of a skip connection by what the decoder knows.

    .. math:: s' = s \cdot \sigma(\psi(\operatorname{ReLU}([W_u u, W_s s])))

    W and ψ are 1×1 convolutions with bias and batch normalisation. ``form="add"`` adds the two projections, as Oktay et
    al. do; "concat" is the published AGUNet.

    Args:
        up: channels of the decoder's signal u.
        skip: channels of the skip connection s.
        inner: channels of each projection.
        spatial_dims: 2 or 3.
        form: how the projections meet.
        norm_eps: epsilon of the batch normalisations.

    Shapes: u (B, up, ...), s (B, skip, ...) of the same places; returns (B, skip, ...).

    Source: Bouget et al. 2021, arXiv:2101.07715, and its code: the raw skip is weighted, not its projection;
    Oktay et al. 2018, arXiv:1804.03999.
    """

    def __init__(
        self,
        up: int,
        skip: int,
        inner: int,
        *,
        spatial_dims: int = 3,
        form: GateForm = "concat",
        norm_eps: float = 1e-5,
    ) -> None:
        """Make the projections."""
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        norm = nn.BatchNorm3d if spatial_dims == 3 else nn.BatchNorm2d
        self.form = form
        self.of_up = nn.Sequential(conv(up, inner, 1), norm(inner, eps=norm_eps))
        self.of_skip = nn.Sequential(conv(skip, inner, 1), norm(inner, eps=norm_eps))
        self.psi = nn.Sequential(conv(inner * (2 if form == "concat" else 1), 1, 1), norm(1, eps=norm_eps))

    def forward(self, up: Tensor, skip: Tensor) -> Tensor:
        """Return the weighted skip connection."""
        a, b = self.of_up(up), self.of_skip(skip)
        joined = torch.cat([a, b], 1) if self.form == "concat" else a + b
        return skip * self.psi(joined.relu()).sigmoid()
