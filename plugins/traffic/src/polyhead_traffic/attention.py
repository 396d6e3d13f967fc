"""The three attentions of GMAN: over sensors, over steps, and from past to future steps."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from polyhead.ops import softmax_attention
from polyhead_traffic.layers import Dense, Moments, NormSettings, Place, Projection, chain, joint_moments

__all__ = ["AttentionSettings", "SpatialAttention", "TemporalAttention", "TransformAttention", "attend"]


class AttentionSettings(NamedTuple):
    """What all attentions of a model have in common."""

    heads: int
    head_dim: int
    qk_activation: Literal["relu", "none"]
    norm: NormSettings
    single_layer_output: bool
    """The port's output: one layer with ReLU instead of two, of which the second is linear."""

    @property
    def dim(self) -> int:
        """Width of the model."""
        return self.heads * self.head_dim

    def project(self) -> Projection:
        """Return the projection of ``[x, e]`` to q, k and v."""
        relu = self.qk_activation == "relu"
        return Projection(self.dim, self.dim, self.heads, self.head_dim, (relu, relu, True), self.norm)

    def project_place(self) -> Projection:
        """Return the projection of ``e`` alone to queries or keys."""
        return Projection(0, self.dim, self.heads, self.head_dim, (self.qk_activation == "relu",), self.norm)

    def output(self) -> nn.Module:
        """Return what follows the concatenated heads."""
        if self.single_layer_output:
            return Dense(self.dim, self.dim, self.norm, relu=True)
        return chain((self.dim,) * 3, self.norm)


def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Return softmax attention; q, k, v and the result have shape (batch, heads, seq, head_dim)."""
    return softmax_attention(q, k, v, causal=causal).output


def attend_sensors(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend over the sensors of each step: (B, S, N, heads, head_dim) to (B, S, N, heads · head_dim)."""
    batch, steps = q.shape[:2]
    y = attend(*(part.flatten(0, 1).transpose(1, 2) for part in (q, k, v)))
    return y.transpose(1, 2).flatten(2).unflatten(0, (batch, steps))


def attend_steps(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    """Attend over the steps of each sensor: (B, S, N, heads, head_dim) to (B, S, N, heads · head_dim).

    Sensors and heads are one axis of the attention, which leaves the layout as it is.
    """
    nodes = q.shape[2]
    y = attend(*(part.flatten(2, 3).transpose(1, 2) for part in (q, k, v)), causal=causal)
    return y.transpose(1, 2).unflatten(2, (nodes, -1)).flatten(3)


class SpatialAttention(nn.Module):
    """Attend over all sensors, in every step by itself; the graph enters through the embedding only.

    ``[x, e]`` gives q, k and v. Source: GMAN, eq. 4-7. Differs, as the authors' code does: values see the embedding
    too, and an output chain follows the heads.

    Complexity: O(B·S·N·D² + B·S·N²·D) time, O(B·S·N·D) memory.
    Parameters: 33,600 at D = 64.
    """

    def __init__(self, settings: AttentionSettings) -> None:
        """Make the layer."""
        super().__init__()
        self.project = settings.project()
        self.out = settings.output()

    def forward(self, x: Tensor, place: Place, moments: Moments | None = None) -> Tensor:
        """Map x (B, S, N, D) at ``place`` to the same shape; ``moments`` of ``[x, e]`` are needed in training."""
        y: Tensor = self.out(attend_sensors(*self.project(x, place, moments)))
        return y


class TemporalAttention(nn.Module):
    """Attend over the steps of every sensor by itself; with ``causal``, over the same and earlier ones.

    Source: GMAN, eq. 10-12; the step itself is included, as in the paper's figure 5 and the authors' code.

    Complexity: O(B·S·N·D² + B·S²·N·D) time, O(B·S·N·D) memory.
    Parameters: 33,600 at D = 64.
    """

    def __init__(self, settings: AttentionSettings, *, causal: bool) -> None:
        """Make the layer."""
        super().__init__()
        self.causal = causal
        self.project = settings.project()
        self.out = settings.output()

    def forward(self, x: Tensor, place: Place, moments: Moments | None = None) -> Tensor:
        """Map x (B, S, N, D) at ``place`` to the same shape; ``moments`` of ``[x, e]`` are needed in training."""
        y: Tensor = self.out(attend_steps(*self.project(x, place, moments), causal=self.causal))
        return y


class TransformAttention(nn.Module):
    """Carry P past steps to Q future steps: queries are future places, keys past places, values past features.

    All future steps come out at once, so that errors are not fed back. Source: GMAN, eq. 13-15.

    Complexity: O(B·P·N·D² + B·P·Q·N·D) time, O(B·(P + Q)·N·D) memory.
    """

    def __init__(self, settings: AttentionSettings) -> None:
        """Make the layer."""
        super().__init__()
        self.heads = settings.heads
        self.q = settings.project_place()
        self.k = settings.project_place()
        self.v = Dense(settings.dim, settings.dim, settings.norm, relu=True)
        self.out = settings.output()

    def forward(self, x: Tensor, past: Place, future: Place) -> Tensor:
        """Map x (B, P, N, D) at ``past`` to (B, Q, N, D) at ``future``."""
        (q,) = self.q(None, future, joint_moments(None, future) if self.training else None)
        (k,) = self.k(None, past, joint_moments(None, past) if self.training else None)
        y: Tensor = self.out(attend_steps(q, k, self.v(x).unflatten(-1, (self.heads, -1))))
        return y
