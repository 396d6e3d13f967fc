"""Figures of a tumour task: each patient is measured once, on the scan's own voxels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from polyhead.protocols import Batch
from polyhead_medical.grids import Grid
from polyhead_medical.raidionics import Objects, Overlap, Score, objectwise, overlap, patientwise

__all__ = ["Patient", "TumorMetric", "measure", "surface_distance_mm"]

_FOUND = 0.1
"""Dice above which a tumour counts as found, where patients are counted."""
_TERCILES_FROM = 9
"""Patients with a tumour, from which on a third of them says something."""


class Patient(NamedTuple):
    """The figures of one scan."""

    overlap: Overlap
    objects: Objects
    truth_ml: float
    found_ml: float
    hd95_mm: float
    """NaN where it was not asked for, or a mask is empty."""


class TumorMetric:
    """Accumulates one row for every patient; implements ``polyhead.protocols.Metric``.

    - ``dice``: mean over all patients, 0 for one whose mask or prediction is empty (`raidionicsval`).
    - ``dice_monai``: mean over the patients with a tumour (MONAI's DiceMetric with ``ignore_empty``).
    - ``voxel_recall``, ``voxel_precision``: means over patients with a tumour.
    - ``patient_recall``, ``patient_precision``, ``patient_f1``: a tumour is found if its Dice is above 0.1.
    - ``object_recall``, ``object_precision``, ``object_f1``: means over patients of what connected parts say.
    - ``volume_error``: median over patients with a tumour of |found - true| / true, %; ``volume_bias_ml``: mean.
    - ``false_ml``: mean volume that was found in patients without a tumour.
    - ``hd95_mm``: 95 % of the surface distances, by MONAI, mean where both masks hold something.
    - ``recall_small``, ``recall_middle``, ``recall_large``: share of tumours found, by thirds of their volumes.
    """

    def __init__(self, threshold: float, *, smallest: int, surfaces: bool = False) -> None:
        """Start empty.

        Args:
            threshold: probability from which on a voxel is tumour.
            smallest: objects of fewer voxels are left out where objects are counted.
            surfaces: measure surface distances too, which takes longer.
        """
        self.threshold, self.smallest, self.surfaces = threshold, smallest, surfaces
        self._patients: list[Patient] = []

    def update(self, prediction: Any, batch: Batch) -> None:
        """Add one batch.

        Args:
            prediction: probabilities of tumour (B, D, H, W) on the network's grid.
            batch: with ``label`` and ``grid``.
        """
        for seen, label, grid in zip(prediction, batch["label"], batch["grid"], strict=True):
            found = on_scan(seen, grid) >= self.threshold
            truth = np.asarray(label) > 0
            self._patients.append(measure(found, truth, grid, smallest=self.smallest, surfaces=self.surfaces))

    def state(self) -> list[Patient]:
        """Return what ``merge`` of another process takes."""
        return self._patients

    def merge(self, states: Sequence[Any]) -> None:
        """Replace the own state by the union of ``states``."""
        self._patients = [patient for state in states for patient in state]

    def compute(self) -> Mapping[str, float]:
        """Return the figures by name; what no patient can tell is left out."""
        patients = self._patients
        if not patients:
            return {}
        ill = [patient for patient in patients if patient.truth_ml > 0]
        well = [patient for patient in patients if patient.truth_ml == 0]
        scores = [Score(self.threshold, p.overlap.dice, p.truth_ml, p.found_ml) for p in patients]
        by_patient = patientwise(scores, overlap=_FOUND, condition="TP")
        figures = {
            "dice": _mean(p.overlap.dice for p in patients),
            "dice_monai": _mean(p.overlap.dice for p in ill),
            "voxel_recall": _mean(p.overlap.recall for p in ill),
            "voxel_precision": _mean(p.overlap.precision for p in ill),
            "patient_recall": by_patient.recall,
            "patient_precision": by_patient.precision,
            "patient_f1": by_patient.f1,
            "object_recall": _mean(p.objects.recall for p in patients),
            "object_precision": _mean(p.objects.precision for p in patients),
            "object_f1": _mean(p.objects.f1 for p in patients),
            "volume_error": 100 * _median(abs(p.found_ml - p.truth_ml) / p.truth_ml for p in ill),
            "volume_bias_ml": _mean(p.found_ml - p.truth_ml for p in ill),
            "false_ml": _mean(p.found_ml for p in well),
            "hd95_mm": _mean(p.hd95_mm for p in patients if math.isfinite(p.hd95_mm)),
        }
        if len(ill) >= _TERCILES_FROM:
            ordered = sorted(ill, key=lambda patient: patient.truth_ml)
            for name, part in zip(
                ("small", "middle", "large"), np.array_split(np.arange(len(ordered)), 3), strict=True
            ):
                figures[f"recall_{name}"] = _mean(float(ordered[i].overlap.dice > _FOUND) for i in part)
        return {name: value for name, value in figures.items() if math.isfinite(value)}


def on_scan(seen: Tensor, grid: Grid) -> np.ndarray[Any, Any]:
    """Return probabilities on the network's grid (D, H, W) on the scan's own voxels, float32."""
    stored: np.ndarray[Any, Any] = grid.to_stored(seen.float().cpu().unsqueeze(0))[0].numpy()
    return stored


def measure(
    found: np.ndarray[Any, Any],
    truth: np.ndarray[Any, Any],
    grid: Grid,
    *,
    smallest: int = 50,
    surfaces: bool = False,
) -> Patient:
    """Return the figures of two bool masks on the scan's own voxels."""
    both = surfaces and bool(found.any()) and bool(truth.any())
    return Patient(
        overlap(found, truth),
        objectwise(found, truth, smallest=smallest),
        int(np.count_nonzero(truth)) * grid.voxel_ml,
        int(np.count_nonzero(found)) * grid.voxel_ml,
        surface_distance_mm(found, truth, grid.spacing_mm) if both else math.nan,
    )


def surface_distance_mm(found: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], spacing_mm: Sequence[float]) -> float:
    """Return the 95th percentile of the distances between the surfaces of two masks, mm, by MONAI.

    Args:
        found: bool, not empty.
        truth: bool, the same shape, not empty.
        spacing_mm: of the voxels.
    """
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    masks = [torch.from_numpy(mask)[None, None].float() for mask in (found, truth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI 1.6 warns of an argument that it gives itself
        distance = compute_hausdorff_distance(
            masks[0], masks[1], include_background=True, percentile=95, spacing=list(spacing_mm)
        )
    return float(distance)


def _mean(values: Any) -> float:
    known = list(values)
    return float(np.mean(known)) if known else math.nan


def _median(values: Any) -> float:
    known = list(values)
    return float(np.median(known)) if known else math.nan
