"""Contrastive denoising: queries made of the true boxes, moved a little (to be mended) or far (to be refused)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyhead_detection.boxes import logit, to_centres, to_corners

__all__ = ["Denoising", "Noise", "denoising_queries"]


@dataclass(frozen=True)
class Noise:
    """The random numbers of a batch, flat over 2 · groups · boxes of the batch."""

    flip: Tensor
    """Uniform in [0, 1), (T,): labels below half the label noise are replaced."""
    labels: Tensor
    """Classes to replace them with, int64 (T,)."""
    sign: Tensor
    """-1 or 1, (T, 4)."""
    size: Tensor
    """Uniform in [0, 1), (T, 4): of negatives 1 is added."""

    @classmethod
    def draw(cls, count: int, classes: int, device: torch.device) -> Noise:
        """Draw from the global generator."""
        return cls(
            torch.rand(count, device=device),
            torch.randint(classes, (count,), device=device),
            torch.randint(2, (count, 4), device=device) * 2.0 - 1,
            torch.rand(count, 4, device=device),
        )


@dataclass(frozen=True)
class Denoising:
    """Queries of a batch: for each group all positives of an image, then all its negatives, padded to the most."""

    labels: Tensor
    """int64 (B, D); 0 where there is no box."""
    boxes: Tensor
    """Where the queries begin: centre x, y, width, height in [0, 1], (B, D, 4)."""
    real: Tensor
    """bool (B, D), False = the image has fewer boxes than the most of the batch."""
    target: Tensor
    """int64 (B, D): which box of the image a positive is made of; -1 for negatives and padding."""
    groups: int

    def embed(self, table: nn.Embedding) -> Tensor:
        """Return what the queries hold, (B, D, dim); zeros where there is no box."""
        x: Tensor = table(self.labels) * self.real[..., None]
        return x

    def mask(self, queries: int | Tensor, *, exact: bool) -> Tensor:
        """Return who may attend to whom, D denoising queries before the matching ones.

        Matching queries do not see denoising ones, groups do not see each other.

        Args:
            queries: how many matching queries there are, or which are real, bool (B, Q).
            exact: whether queries without a box, and matching ones that are not real, are hidden.

        Returns:
            Tensor: bool (D + Q, D + Q), or (B, 1, D + Q, D + Q) if ``exact``.
        """
        given, device = self.labels.shape[1], self.labels.device
        count = queries if isinstance(queries, int) else queries.shape[1]
        size = given // max(self.groups, 1)
        group = torch.arange(given, device=device) // max(size, 1)
        mask = torch.ones(given + count, given + count, dtype=torch.bool, device=device)
        mask[:given, :given] = group[:, None] == group
        mask[given:, :given] = False
        if not exact:
            return mask
        every = torch.ones(len(self.labels), count, dtype=torch.bool, device=device)
        shown = torch.cat([self.real, every if isinstance(queries, int) else queries], 1)
        return mask & shown[:, None, None]


def denoising_queries(
    labels: Sequence[Tensor],
    boxes: Sequence[Tensor],
    *,
    classes: int,
    number: int,
    label_noise: float,
    box_noise: float,
    noise: Noise | None = None,
) -> Denoising | None:
    """Make the queries of a batch; None if there is no box.

    Args:
        labels: of each image, int64 (n,).
        boxes: of each image: centre x, y, width, height in [0, 1], (n, 4).
        classes: how many there are.
        number: positives per image at most, shared among its boxes: so many groups are made, one at least.
        label_noise: twice the share of labels that are replaced.
        box_noise: how far corners move, in half sides: positives up to it, negatives up to twice that.
        noise: the random numbers; drawn if None.

    Source: Zhang et al. 2023 (DINO), arXiv:2203.03605, sec. 3.3.
    """
    counts = [len(each) for each in labels]
    most, total = max(counts, default=0), sum(counts)
    if most == 0 or number == 0:
        return None
    groups = max(1, 2 * number // (2 * most))
    device = boxes[0].device
    copies = 2 * groups
    label, box = torch.cat(list(labels)).repeat(copies), torch.cat(list(boxes)).repeat(copies, 1)
    noise = Noise.draw(len(label), classes, device) if noise is None else noise
    flipped = torch.where(noise.flip < label_noise / 2, noise.labels, label)
    negative = torch.arange(copies, device=device).repeat_interleave(total) % 2 == 1
    moves = noise.sign * (noise.size + negative[:, None]) * box_noise
    half = box[:, 2:] / 2
    corners = (to_corners(box) + moves * half.repeat(1, 2)).clamp(0, 1)
    moved = logit(to_centres(corners)).sigmoid()  # as near to 0 and 1 as a query's logit can be

    image = torch.cat([torch.full((count,), number_) for number_, count in enumerate(counts)]).to(device)
    within = torch.cat([torch.arange(count) for count in counts]).to(device)
    copy = torch.arange(copies, device=device).repeat_interleave(total)
    slot = copy * most + within.repeat(copies)
    rows = image.repeat(copies)
    shape = (len(counts), copies * most)
    result_labels = torch.zeros(shape, dtype=torch.int64, device=device)
    result_boxes = torch.full((*shape, 4), 0.5, device=device, dtype=box.dtype)
    real = torch.zeros(shape, dtype=torch.bool, device=device)
    target = torch.full(shape, -1, dtype=torch.int64, device=device)
    result_labels[rows, slot], result_boxes[rows, slot], real[rows, slot] = flipped, moved, True
    target[rows, slot] = torch.where(negative, -1, within.repeat(copies))
    return Denoising(result_labels, result_boxes, real, target, groups)
