"""Spatial attention in groups: from N² to about 1.9 N^(4/3) scores. Public code of GMAN does not have it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead_traffic.attention import AttentionSettings, SpatialAttention, attend_sensors
from polyhead_traffic.layers import Moments, Place, joint_moments

__all__ = ["GroupSpatialAttention", "balanced_sizes", "best_group_size", "group_order", "random_partition"]


class _Run(NamedTuple):
    """Neighbouring groups of one size."""

    start: int
    groups: int
    size: int

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Return its sensors with the axis ``dim`` split into (groups, size)."""
        return x.narrow(dim, self.start, self.groups * self.size).unflatten(dim, (self.groups, self.size))


class GroupSpatialAttention(nn.Module):
    """Attend within groups of sensors, then between groups, and add each group's feature to its members.

    1. Every sensor attends to the sensors of its group (parameters shared by all groups): its local feature.
    2. A group is the maximum of its members' local features, at the maximum of their embeddings.
    3. Groups attend to all groups with parameters of their own: one global feature a group.
    4. The result is the local feature plus the global feature of the sensor's group.

    Sensors have to be sorted by group (``group_order``). The paper pads every group to the largest size; here groups of
    one size are worked on together, which is the same as masking the pads out of softmax, maximum and output.

    Source: GMAN, section "Group Spatial Attention", which leaves open what is pooled: here, as in the layer itself,
    the feature after its output chain, beside the embedding.

    Complexity: O(B·S·N·D² + B·S·(N·M + (N/M)²)·D) time for groups of M, O(B·S·N·D) memory; least near M = (2N)^(1/3).
    Parameters: 67,200 at D = 64, which is 33,600 more than over all sensors.
    """

    def __init__(self, settings: AttentionSettings, sizes: Sequence[int]) -> None:
        """Make the layer for groups of ``sizes``, in the order of the sensors."""
        super().__init__()
        self.local = SpatialAttention(settings)
        self.across = SpatialAttention(settings)
        self.runs = _runs(sizes)

    def forward(self, x: Tensor, place: Place, moments: Moments | None = None) -> Tensor:
        """Map x (B, S, N, D) at ``place`` to the same shape; ``moments`` of ``[x, e]`` are needed in training."""
        local = self.within(x, place, moments)
        shared = self.between(local, place)
        parts, first = [], 0
        for run in self.runs:
            parts.append((run.cut(local, 2) + shared.narrow(2, first, run.groups).unsqueeze(3)).flatten(2, 3))
            first += run.groups
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def within(self, x: Tensor, place: Place, moments: Moments | None = None) -> Tensor:
        """Return the local features, shape of x."""
        qkv = self.local.project(x, place, moments)
        parts = []
        for run in self.runs:
            groups = [run.cut(part, 2).flatten(1, 2) for part in qkv]
            parts.append(attend_sensors(*groups).unflatten(1, (-1, run.groups)).flatten(2, 3))
        y: Tensor = self.local.out(parts[0] if len(parts) == 1 else torch.cat(parts, 2))
        return y

    def between(self, local: Tensor, place: Place) -> Tensor:
        """Return the global features (B, S, G, D) of groups with these local features."""
        pooled = self._maximum(local, 2)
        # All members share the step's addend, so the maximum of the sum is that of the nodes' addend.
        groups = Place(self._maximum(place.nodes, 0), place.steps)
        y: Tensor = self.across(pooled, groups, joint_moments(pooled, groups) if self.training else None)
        return y

    def _maximum(self, x: Tensor, dim: int) -> Tensor:
        parts = [run.cut(x, dim).max(dim + 1).values for run in self.runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def best_group_size(nodes: int) -> int:
    """Return the group size M that makes the fewest scores, N·M + (N/M)²: near (2N)^(1/3).

    >>> [best_group_size(n) for n in (95, 207, 325, 883)]
    [6, 7, 9, 12]
    """
    return max(1, min(nodes, round((2 * nodes) ** (1 / 3))))


def balanced_sizes(nodes: int, group_size: int) -> tuple[int, ...]:
    """Return the sizes of the fewest groups of at most ``group_size``, which differ by one at most.

    >>> balanced_sizes(11, 4)
    (4, 4, 3)
    """
    groups = -(-nodes // group_size)
    small, larger = divmod(nodes, groups)
    return (small + 1,) * larger + (small,) * (groups - larger)


def random_partition(nodes: int, sizes: Sequence[int], seed: int) -> Tensor:
    """Return labels (N,) int64: which group each sensor belongs to, drawn from ``seed``, as in the paper."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.empty(nodes, dtype=torch.int64)
    labels[torch.randperm(nodes, generator=generator)] = torch.repeat_interleave(torch.tensor(sizes))
    return labels


def group_order(labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return the order (N,) of the sensors that puts groups of ``sizes`` side by side.

    Args:
        labels: shape (N,), the group of each sensor; any integers.
        sizes: of the groups; as many groups of each size have to be among the labels.

    Raises:
        ConfigError: the groups have other sizes.
    """
    _, index, found = torch.unique(labels, return_inverse=True, return_counts=True)
    if sorted(found.tolist()) != sorted(sizes):
        have, want = (", ".join(map(str, sorted(s, reverse=True))) for s in (found.tolist(), sizes))
        raise ConfigError(
            f"The partition has groups of {have} sensors and the model groups of {want}. "
            "Set group_sizes to those of the partition."
        )
    # Groups take the places of their size, largest first, in the order of their labels.
    free = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    rank = torch.empty(len(sizes), dtype=torch.int64)
    rank[torch.sort(found, descending=True, stable=True).indices] = torch.tensor(free)
    return torch.argsort(rank[index], stable=True)


def _runs(sizes: Sequence[int]) -> tuple[_Run, ...]:
    runs: list[_Run] = []
    start = 0
    for size in sizes:
        if runs and runs[-1].size == size:
            runs[-1] = runs[-1]._replace(groups=runs[-1].groups + 1)
        else:
            runs.append(_Run(start, 1, size))
        start += size
    return tuple(runs)
