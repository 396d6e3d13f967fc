"""Figures of the organs task: of volumes, put together from their slices."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from polyhead.protocols import Batch

__all__ = ["OrganMetric"]


class OrganMetric:
    """Puts the slices of each subject together and measures the volumes; implements ``polyhead.protocols.Metric``.

    - ``dice``: mean over the organs of ``dice_ORGAN``, each a mean over subjects that have the organ or were given it.
    - ``present_ORGAN``: the same over the subjects that have the organ (MONAI's ``ignore_empty``).
    - ``volume_similarity``: 1 - ||A| - |B|| / (|A| + |B|), likewise.
    - ``surface_mm``: mean distance of the surfaces both ways, by MONAI, of volumes of several slices.

    An organ that neither mask has is left out; one that a single mask has counts as 0.
    """

    def __init__(self, organs: Sequence[str], *, surfaces: bool = False) -> None:
        """Start empty.

        Args:
            organs: names of the classes from 1 on.
            surfaces: measure surface distances too, which takes longer.
        """
        self.organs, self.surfaces = tuple(organs), surfaces
        self._slices: list[tuple[str, int, Any, Any, tuple[float, ...]]] = []

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add one batch.

        Args:
            prediction: classes (B, H, W).
            batch: with ``target``, ``subject``, ``slice`` and ``spacing``.
        """
        found, truth = (np.asarray(each).astype(np.uint8) for each in (prediction, batch["target"]))
        numbers, spacing = batch["slice"].tolist(), batch["spacing"].tolist()
        for name, number, a, b, mm in zip(batch["subject"], numbers, found, truth, spacing, strict=True):
            self._slices.append((name, number, a, b, tuple(mm)))

    def state(self) -> Any:
        """Return what ``merge`` of another process takes."""
        return self._slices

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states``."""
        self._slices = [each for state in states for each in state]

    def compute(self) -> Mapping[str, float]:
        """Return the figures by name; what no subject can tell is left out."""
        subjects: dict[str, list[Any]] = defaultdict(list)
        for each in self._slices:
            subjects[each[0]].append(each[1:])
        dice: dict[str, list[float]] = defaultdict(list)
        present: dict[str, list[float]] = defaultdict(list)
        likeness, surfaces = [], []
        for slices in subjects.values():
            slices.sort(key=lambda each: each[0])
            found, truth = np.stack([each[1] for each in slices]), np.stack([each[2] for each in slices])
            for number, organ in enumerate(self.organs, 1):
                a, b = found == number, truth == number
                total = int(a.sum()) + int(b.sum())
                if total:
                    dice[organ].append(2 * int((a & b).sum()) / total)
                    if b.any():
                        present[organ].append(dice[organ][-1])
                    likeness.append(1 - abs(int(a.sum()) - int(b.sum())) / total)
                    if self.surfaces and len(slices) > 1 and a.any() and b.any():
                        surfaces.append(_surface_mm(a, b, slices[0][3]))
        means = {organ: float(np.mean(values)) for organ, values in dice.items()}
        figures = {f"dice_{organ.replace(' ', '_')}": means[organ] for organ in self.organs if organ in means}
        if means:
            figures = {
                "dice": float(np.mean(list(means.values()))),
                "volume_similarity": float(np.mean(likeness)),
                **figures,
            }
        figures |= {f"present_{organ.replace(' ', '_')}": float(np.mean(each)) for organ, each in present.items()}
        if surfaces:
            figures["surface_mm"] = float(np.mean(surfaces))
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def _surface_mm(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], spacing_mm: Sequence[float]) -> float:
    from monai.metrics.surface_distance import compute_average_surface_distance

    masks = [torch.from_numpy(mask)[None, None].float() for mask in (found, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it gives itself
        distance = compute_average_surface_distance(
            masks[0], masks[1], include_background=True, symmetric=True, spacing=list(spacing_mm)
        )
    return float(distance)
