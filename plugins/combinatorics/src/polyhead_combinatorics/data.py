"""Instances of a file as a dataset: a split to learn from where their answers are known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polyhead.errors import DataError
from polyhead.protocols import Batch, Source, Split
from polyhead_combinatorics.instances import Instance, Kind, collate, normalised

__all__ = ["FileData", "FileSource"]

FEWEST = 10
"""Instances with answers, from which on a file can be split."""
HELD_OUT = 0.1


class FileSource:
    """Instances of one split."""

    def __init__(self, kind: Kind, instances: Sequence[Instance], width: int) -> None:
        """Keep the instances; ``width`` is the most points of any in the file."""
        self.kind, self.instances, self.width = kind, instances, width

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.instances)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return instances with their solutions, scaled into the unit square."""
        del seed, epoch
        chosen = [self.instances[index] for index in indices]
        return collate([(normalised(each.points), each.solution or ()) for each in chosen], self.kind, self.width)


class FileData:
    """The instances of a file; implements ``polyhead.protocols.Data``."""

    licence = "that of the files"

    def __init__(self, path: Path, kind: Kind, instances: Sequence[Instance]) -> None:
        """Keep what was read."""
        self.kind, self._path, self._instances = kind, path, instances
        self.name = path.stem
        self.most_points = max(len(each.points) for each in instances)
        known = sum(each.solution is not None for each in instances)
        plural = "s" * (len(instances) != 1)
        self.provenance = f"{path.name}: {len(instances):,} instance{plural}, {known:,} with an answer."

    def instances(self) -> Sequence[Instance]:
        """Return all instances, in the order of the file."""
        return self._instances

    def source(self, split: Split) -> Source:
        """Return the samples of a split: the last tenth is for tests, the one before it for validation.

        Only instances with answers are samples; a file of stops has none.
        """
        known = [each for each in self._instances if each.solution is not None]
        held = max(1, int(HELD_OUT * len(known))) if known else 0
        first, second = max(0, len(known) - 2 * held), len(known) - held
        part = {"train": known[:first], "validation": known[first:second], "test": known[second:]}[split]
        return FileSource(self.kind, part, self.most_points)

    def check_trainable(self) -> None:
        """Refuse a file that there is too little to learn from.

        Raises:
            DataError: too few instances have answers.
        """
        known = sum(each.solution is not None for each in self._instances)
        if known < FEWEST:
            raise DataError(
                f"{self.name} has {known} instances with answers, at least {FEWEST} are needed to train and measure. "
                f"Train on generated ones (--data uniform-{self.kind}) and use predict on this file."
            )

    def summary(self) -> Mapping[str, Any]:
        """Return sizes and units."""
        sizes = [len(each.points) for each in self._instances]
        first = self._instances[0]
        return {
            "kind": self.kind,
            "instances": len(sizes),
            "with answers": sum(each.solution is not None for each in self._instances),
            "points": [min(sizes), max(sizes)],
            "distances": first.metric,
            "first names": list(first.names[:5]),
        }

    def fingerprint(self) -> str:
        """Return a digest of points, names and answers."""
        digest = hashlib.sha256(self.kind.encode())
        for each in self._instances:
            digest.update(each.points.tobytes())
            digest.update(repr((each.ids, each.solution, each.metric)).encode())
            digest.update(b"" if each.matrix is None else each.matrix.tobytes())
        return digest.hexdigest()
