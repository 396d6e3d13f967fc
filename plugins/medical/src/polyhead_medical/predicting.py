"""What `predict` writes and says: masks and probabilities on the scan's own grid, volumes in ml, growth."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from polyhead.protocols import Files
from polyhead_medical.cases import Volume
from polyhead_medical.grids import Grid
from polyhead_medical.growth import growth
from polyhead_medical.metrics import on_scan
from polyhead_medical.nifti import write_nifti
from polyhead_medical.raidionics import components
from polyhead_medical.settings import TumorPredictSettings

if TYPE_CHECKING:
    from torch import nn

    from polyhead_medical.task import TumorTask

__all__ = ["DISCLAIMER", "Measured", "segment", "write"]

DISCLAIMER = "Research software, no medical device: not for diagnosis or treatment."
_BAND = 0.2
"""Thresholds this far below and above the model's give the range of volumes."""
Arrays = np.ndarray[Any, Any]


class Measured(NamedTuple):
    """The tumour of one scan."""

    volume: Volume
    probability: Arrays
    """On the scan's own voxels, float32."""
    mask: Arrays
    """uint8."""
    volume_ml: float
    low_ml: float
    """Volume at a stricter threshold, `_BAND` above."""
    high_ml: float
    """Volume at a looser threshold, `_BAND` below."""
    components_ml: tuple[float, ...]
    """Volume of each connected part, largest first."""
    threshold: float

    @property
    def grid(self) -> Grid:
        """The scan's own voxels."""
        return self.volume.grid

    def sentence(self) -> str:
        """Return it in words."""
        spacing = " × ".join(f"{value:g}" for value in np.round(self.grid.spacing_mm, 3))
        shape = " × ".join(map(str, self.grid.shape))
        count = len(self.components_ml)
        parts = f"{count} component{'s' * (count != 1)}" if count else "no tumour found"
        low, high = min(0.95, self.threshold + _BAND), max(0.05, self.threshold - _BAND)
        return (
            f"{self.volume.name}: {self.volume_ml:.2f} ml, {parts}; {self.low_ml:.2f} to {self.high_ml:.2f} ml at "
            f"thresholds {low:.2g} to {high:.2g} (used: {self.threshold:.2g}); spacing {spacing} mm, {shape} voxels"
        )

    def row(self) -> dict[str, Any]:
        """Return it as a row of the table."""
        x, y, z = self.grid.spacing_mm
        return {
            "scan": self.volume.name,
            "volume_ml": round(self.volume_ml, 4),
            "low_ml": round(self.low_ml, 4),
            "high_ml": round(self.high_ml, 4),
            "components": len(self.components_ml),
            "largest_ml": round(self.components_ml[0], 4) if self.components_ml else 0.0,
            "threshold": self.threshold,
            "spacing_x_mm": round(x, 4),
            "spacing_y_mm": round(y, 4),
            "spacing_z_mm": round(z, 4),
        }


def segment(task: TumorTask, model: nn.Module, volume: Volume, settings: TumorPredictSettings) -> Measured:
    """Return the tumour of a scan, measured on its own voxels."""
    import torch

    device = next(model.parameters()).device
    with torch.inference_mode():
        seen = task.predict(model, {"image": volume.image.unsqueeze(0).to(device)})[0]
    probability = on_scan(seen, volume.grid)
    threshold = task.threshold if settings.threshold is None else settings.threshold
    ml = volume.grid.voxel_ml
    parts, count = components(probability >= threshold)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:] * ml
    kept = sizes >= settings.smallest_ml
    mask = np.concatenate([[False], kept])[parts].astype(np.uint8)
    low, high = (
        int(np.count_nonzero(probability >= min(0.95, max(0.05, threshold + change)))) * ml
        for change in (_BAND, -_BAND)
    )
    found = tuple(sorted(sizes[kept].tolist(), reverse=True))
    return Measured(volume, probability, mask, float(sum(found)), low, high, found, threshold)


def write(task: TumorTask, model: nn.Module, data: Any, out: Path, settings: TumorPredictSettings) -> Sequence[Path]:
    """Write what the settings ask for, one scan at a time; return the files and what there is to say.

    Files: ``NAME-seg.nii.gz`` (uint8) and ``NAME-prob.nii.gz`` (float32) with the scan's affine and shape,
    ``volumes.csv``, ``NAME.png``.
    """
    files = Files()
    rows, lines = [], []
    wanted = settings.files or ("seg",)
    for number, (volume, scan) in enumerate(data.to_predict()):
        measured = segment(task, model, volume, settings)
        if number == 1 and not settings.files:
            wanted = ("seg", "csv")
        for what, voxels in (("seg", measured.mask), ("prob", measured.probability)):
            if what in wanted:
                files.append(out / f"{volume.name}-{what}.nii.gz")
                write_nifti(files[-1], voxels, volume.grid.affine, scan)
        if "png" in wanted:
            from polyhead_medical.report import picture

            files.append(out / f"{volume.name}.png")
            files[-1].write_bytes(picture(measured))
        rows.append(measured.row())
        lines.append(measured.sentence())
    if settings.compare:
        earlier = [
            segment(task, model, volume, settings) for volume, _ in data.another(Path(settings.compare)).to_predict()
        ]
        change = growth(
            earlier[0].volume_ml,
            rows[0]["volume_ml"],
            days=settings.compare_days,
            stable_percent=settings.stable_percent,
        )
        lines += [earlier[0].sentence(), change.sentence()]
        lines.append("The two scans are not registered: volumes are compared, not places.")
        rows[0]["growth"] = dict(change._asdict())
    if "csv" in wanted:
        files.append(out / "volumes.csv")
        with files[-1].open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, [name for name in rows[0] if name != "growth"], extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
    files.lines = [*lines, DISCLAIMER]
    files.figures = {"scans": rows, "note": DISCLAIMER}
    return files
