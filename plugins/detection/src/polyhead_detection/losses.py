"""What a detector learns from: focal, L1 and generalised-IoU losses of matched queries, and the foreground loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from polyhead.protocols import Ratio
from polyhead_detection.boxes import generalised_iou, to_corners
from polyhead_detection.denoising import Denoising
from polyhead_detection.focus_detr import Detected, Predicted
from polyhead_detection.targets import Ranges, foreground_targets

__all__ = ["WEIGHTS", "Matches", "Targets", "detection_losses", "focal", "foreground_loss", "layer_losses", "match"]

ALPHA, GAMMA = 0.25, 2.0
WEIGHTS = {"class": 1.0, "box": 5.0, "giou": 2.0, "foreground": 1.5}
COSTS = {"class": 2.0, "box": 5.0, "giou": 2.0}


class Targets(NamedTuple):
    """What there is to find."""

    labels: Sequence[Tensor]
    """Of each image, int64 (n,)."""
    boxes: Sequence[Tensor]
    """Of each image: centre x, y, width, height in units of the image, (n, 4)."""

    @property
    def total(self) -> int:
        """The boxes of all images."""
        return sum(len(each) for each in self.labels)


class Matches(NamedTuple):
    """Which query found which box: all of equal length, one entry a pair."""

    image: Tensor
    query: Tensor
    box: Tensor
    """The box's number within its image."""


def focal(logits: Tensor, target: Tensor) -> Tensor:
    r"""Return the focal loss of every logit; ``target`` is 0 or 1, same shape.

    .. math:: -\alpha_t (1 - p_t)^\gamma \log p_t, \qquad \alpha = 0.25,\ \gamma = 2

    Computed from logits, so that it is finite for all of them. Source: Lin et al. 2017, arXiv:1708.02002.
    """
    p = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    right = p * target + (1 - p) * (1 - target)
    return (ALPHA * target + (1 - ALPHA) * (1 - target)) * (1 - right) ** GAMMA * entropy


@torch.no_grad()
def match(predicted: Predicted, targets: Targets, query_mask: Tensor | None = None) -> Matches:
    """Return the pairs of queries and boxes that cost least, an image at a time (Hungarian matching).

    Args:
        predicted: of a layer.
        targets: of the batch.
        query_mask: bool (B, Q), False = not to be matched.

    Source: Carion et al. 2020, arXiv:2005.12872; costs as in Deformable DETR.
    """
    device = predicted.logits.device
    labels, boxes = torch.cat(list(targets.labels)), torch.cat(list(targets.boxes))
    p = predicted.logits.double().sigmoid()
    positive = ALPHA * (1 - p) ** GAMMA * -(p + 1e-8).log()
    negative = (1 - ALPHA) * p**GAMMA * -(1 - p + 1e-8).log()
    cost = COSTS["class"] * (positive - negative)[..., labels]
    found, truth = predicted.boxes.double(), boxes.double()
    cost += COSTS["box"] * (found[:, :, None] - truth).abs().sum(-1)
    cost -= COSTS["giou"] * generalised_iou(to_corners(found)[:, :, None], to_corners(truth))
    if query_mask is not None:
        cost = cost.masked_fill(~query_mask[..., None], 1e9)
    table = np.nan_to_num(cost.cpu().numpy(), nan=1e9, posinf=1e9, neginf=-1e9)
    parts, first = [], 0
    for image, own in enumerate(targets.labels):
        queries, found_boxes = linear_sum_assignment(table[image, :, first : first + len(own)])
        first += len(own)
        real = np.ones(len(queries), bool) if query_mask is None else query_mask[image].cpu().numpy()[queries]
        parts.append(np.stack([np.full(real.sum(), image), queries[real], found_boxes[real]]))
    pairs = torch.from_numpy(np.concatenate(parts, 1).astype(np.int64)).to(device)
    return Matches(*pairs)


def layer_losses(
    predicted: Predicted, targets: Targets, matches: Matches, query_mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the sums of a layer's losses, without weights: "class" over all queries, "box" and "giou" over pairs.

    Args:
        predicted: of the layer.
        targets: of the batch.
        matches: which query found which box.
        query_mask: bool (B, Q), False = a query that is not there.
    """
    wanted = torch.zeros_like(predicted.logits)
    starts = torch.tensor([0, *(len(each) for each in targets.labels)]).cumsum(0).to(matches.box.device)
    flat = starts[matches.image] + matches.box
    wanted[matches.image, matches.query, torch.cat(list(targets.labels))[flat]] = 1
    classes = focal(predicted.logits, wanted)
    if query_mask is not None:
        classes = classes.masked_fill(~query_mask[..., None], 0.0)
    found = predicted.boxes[matches.image, matches.query]
    truth = torch.cat(list(targets.boxes))[flat].to(found.dtype)
    return {
        "class": classes.sum(),
        "box": (found - truth).abs().sum(),
        "giou": (1 - generalised_iou(to_corners(found), to_corners(truth))).sum(),
    }


def foreground_loss(logits: Tensor, targets: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """Return the foreground loss of each image, (B,): focal over its tokens, by the number of positives.

    Args:
        logits: (B, N).
        targets: bool (B, N).
        token_mask: bool (B, N), False = padding, which does not count.
    """
    each = focal(logits, targets.to(logits.dtype))
    if token_mask is not None:
        each = each.masked_fill(~token_mask, 0.0)
    return each.sum(1) / targets.sum(1).clamp(min=1)


def detection_losses(
    detected: Detected,
    targets: Targets,
    denoising: Denoising | None,
    *,
    sizes: Sequence[tuple[int, int]],
    ranges: Ranges | None,
    mask_padding: bool,
) -> Mapping[str, Ratio]:
    """Return all terms of the loss, weighted.

    Args:
        detected: what the model gave.
        targets: of the batch.
        denoising: the queries that were given to the model.
        sizes: of the images in pixels.
        ranges: of the levels for the foreground loss; None: without it.
        mask_padding: whether what is padding counts for nothing, or as background (released).
    """
    query_mask = detected.query_mask if mask_padding and not bool(detected.query_mask.all()) else None
    count = detected.logits.new_tensor(float(max(targets.total, 1) if len(sizes) else 0))
    terms: dict[str, Any] = {}

    def add(prefix: str, sums: Mapping[str, Tensor], share: float = 1.0) -> None:
        for name, value in sums.items():
            key = f"{prefix}{name}"
            terms[key] = terms.get(key, 0.0) + WEIGHTS[name] * share * value

    for layer in detected.layers:
        add("", layer_losses(layer, targets, match(layer, targets, query_mask), query_mask))
    proposals = detected.proposals
    add("proposal_", layer_losses(proposals, targets, match(proposals, targets, query_mask), query_mask))
    if denoising is not None:
        image, query = (denoising.target >= 0).nonzero(as_tuple=True)
        matches = Matches(image, query, denoising.target[image, query])
        real = denoising.real if mask_padding else None
        for layer in detected.denoised:
            add("denoising_", layer_losses(layer, targets, matches, real), 1 / denoising.groups)
    losses = {name: Ratio(total, count) for name, total in terms.items()}
    if ranges is not None:
        wanted = [
            foreground_targets(places, boxes.to(places.dtype), size, ranges)
            for places, boxes, size in zip(detected.places, targets.boxes, sizes, strict=True)
        ]
        truth = torch.stack(wanted) if wanted else detected.token_mask
        each = foreground_loss(detected.foreground, truth, detected.token_mask if mask_padding else None)
        losses["foreground"] = Ratio(WEIGHTS["foreground"] * each.sum(), count.new_tensor(float(len(sizes))))
    return losses
