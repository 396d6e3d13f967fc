"""What the network learns from and is measured on: a volume on its grid, with the expert's mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polyhead_medical.grids import Grid

__all__ = ["Volume", "collate"]


@dataclass(frozen=True)
class Volume:
    """A scan as the network sees it, and the expert's mask as it is stored."""

    name: str
    image: Tensor
    """(C, *grid.size), float32 in [0, 1], turned to RAS+."""
    label: Tensor | None
    """On the scan's own voxels, uint8: 1 where there is tumour; None of a scan without a mask."""
    grid: Grid

    @property
    def target(self) -> Tensor:
        """The mask as the network learns it, (*grid.size), float32: the share of tumour in each voxel."""
        if self.label is None:
            return torch.zeros(self.grid.size)
        return self.grid.to_network(self.label.float().unsqueeze(0))[0]

    def flipped(self, axes: Sequence[int]) -> Volume:
        """Return the volume mirrored along axes of the network; for volumes that the network sees as they are."""
        if not axes or self.label is None:
            return self
        return replace(
            self, image=self.image.flip([1 + axis for axis in axes]), label=self.label.flip(list(axes)).contiguous()
        )


def collate(volumes: Sequence[Volume]) -> dict[str, Any]:
    """Return volumes as a batch.

    Returns:
        dict: ``image`` (B, C, D, H, W) and ``target`` (B, D, H, W), float32; ``label`` and ``grid``, lists of the
        stored masks and of the grids they lie on.
    """
    return {
        "image": torch.stack([volume.image for volume in volumes]),
        "target": torch.stack([volume.target for volume in volumes]),
        "label": [
            torch.zeros(volume.grid.shape, dtype=torch.uint8) if volume.label is None else volume.label.clone()
            for volume in volumes
        ],
        "grid": [volume.grid for volume in volumes],
    }
