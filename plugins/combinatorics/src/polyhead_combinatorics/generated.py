"""Generated instances: uniform points with the answers of real solvers, a function of seed and index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.protocols import Batch, Source, Split
from polyhead_combinatorics.instances import Floats, Instance, Kind, collate, in_general_position, solve
from polyhead_combinatorics.settings import InstanceSettings
from polyhead_combinatorics.solvers import canonical_tour

__all__ = ["GeneratedData", "HeldOut", "Stream", "open_delaunay", "open_hull", "open_tsp"]

VERSION = 2
"""Counts up when the same seed and index give another instance."""
SHOWN = 10
"""Test instances that `predict` answers."""
_STREAMS = {"train": 0, "validation": 1, "test": 2}


def _generator(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _draw(seeds: Sequence[tuple[int, ...]], count: int) -> list[Floats]:
    """Return ``count`` points in the unit square for each seed, drawn again if three lie on a line."""
    generators = [_generator(*seed) for seed in seeds]
    found = np.empty((len(seeds), count, 2))
    left = np.arange(len(seeds))
    while len(left):
        found[left] = [generators[row].random((count, 2), dtype=np.float32) for row in left]
        left = left[~in_general_position(found[left])]
    return list(found)


def _varied(points: Floats, tour: Sequence[int], generator: np.random.Generator) -> tuple[Floats, tuple[int, ...]]:
    """Turn, mirror and renumber an instance: another one, of which the shortest tour is known."""
    turned = points[:, ::-1] if generator.random() < 0.5 else points
    mirrored = np.where(generator.random(2) < 0.5, 1 - turned, turned)
    order = generator.permutation(len(points))
    numbers = order.argsort() + 1
    return mirrored[order], tuple(canonical_tour(numbers[np.asarray(tour) - 1].tolist()))


def _by_size(indices: Sequence[int], sizes: Sequence[int]) -> dict[int, list[int]]:
    """Return the indices of each size."""
    found: dict[int, list[int]] = {}
    for index, size in zip(indices, sizes, strict=True):
        found.setdefault(size, []).append(index)
    return found


def _solved(kind: Kind, seeds: Sequence[tuple[int, ...]], count: int) -> list[tuple[Floats, tuple[int, ...]]]:
    """Draw instances of one size and solve them together."""
    points = _draw(seeds, count)
    return list(zip(points, solve(kind, points), strict=True)) if points else []


class Stream:
    """Training instances without end."""

    endless = True

    def __init__(self, kind: Kind, settings: InstanceSettings) -> None:
        """Make the stream of a task."""
        self.kind, self.settings = kind, settings
        self._solved: dict[tuple[int, int, int], tuple[Floats, tuple[int, ...]]] = {}

    def size(self, index: int, *, seed: int) -> int:
        """Return how many points instance ``index`` has: the curriculum's stair, then any of the range alike.

        Sizes are those of whole blocks, so that a batch is seldom padded.
        """
        settings = self.settings
        block = index // settings.block
        first = min(settings.curriculum_from, settings.max_points)
        done = block * settings.block / settings.curriculum if settings.curriculum else 1.0
        most = first + int(done * (settings.max_points - first)) if done < 1 else settings.max_points
        return int(_generator(seed, 3, block).integers(min(settings.min_points, most), most + 1))

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return instances and their solutions; an endless stream has no passes, so ``epoch`` changes nothing."""
        del epoch
        found: dict[int, tuple[Floats, tuple[int, ...]]] = {}
        for count, same in _by_size(indices, [self.size(index, seed=seed) for index in indices]).items():
            found |= zip(same, self._instances(same, count, seed), strict=True)
        return collate([found[index] for index in indices], self.kind, self.settings.max_points)

    def _instances(self, indices: Sequence[int], count: int, seed: int) -> list[tuple[Floats, tuple[int, ...]]]:
        """Return instances of one size; those beyond ``settings.solved`` are variations of the first ones."""
        most = self.settings.solved
        if self.kind != "tsp" or not most:
            return _solved(self.kind, [(seed, _STREAMS["train"], index) for index in indices], count)
        keys = [(seed, count, index % most) for index in indices]
        missing = list(dict.fromkeys(key for key in keys if key not in self._solved))
        seeds = [(seed, _STREAMS["train"], key[2]) for key in missing]
        self._solved |= zip(missing, _solved(self.kind, seeds, count), strict=True)
        return [
            _varied(*self._solved[key], _generator(seed, 4, index)) if index >= most else self._solved[key]
            for index, key in zip(indices, keys, strict=True)
        ]


class HeldOut:
    """Validation or test instances: the same ones whatever the seed of a run."""

    def __init__(self, kind: Kind, settings: InstanceSettings, split: Split) -> None:
        """Make the instances of a split."""
        self.kind, self.settings, self.split = kind, settings, split
        self.sizes = settings.test_points or (settings.max_points,)
        self._kept: dict[int, tuple[Floats, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        """Return the number of instances."""
        return self.settings.held_out * len(self.sizes)

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return instances with their solutions; they are kept, since several models are measured on them."""
        del seed, epoch
        missing = [index for index in indices if index not in self._kept]
        for count, same in _by_size(missing, [self._size(index) for index in missing]).items():
            seeds = [(_STREAMS[self.split], count, index) for index in same]
            self._kept |= zip(same, _solved(self.kind, seeds, count), strict=True)
        return collate([self._kept[index] for index in indices], self.kind, max(self.sizes))

    def _size(self, index: int) -> int:
        return self.sizes[index // self.settings.held_out]


class GeneratedData:
    """Uniform points with their solutions; implements ``polyhead.protocols.Data``."""

    licence = "Apache-2.0"

    def __init__(self, kind: Kind, settings: InstanceSettings) -> None:
        """Open the generator of a task."""
        solver = {"tsp": "Held-Karp, beyond 12 points PyVRP", "hull": "Qhull", "delaunay": "Qhull"}[kind]
        self.kind, self.settings = kind, settings
        self.name = f"uniform-{kind}"
        self.provenance = f"Points drawn uniformly in the unit square, solved by {solver}."
        self.most_points = settings.max_points
        self._held_out = {split: HeldOut(kind, settings, split) for split in ("validation", "test")}

    def source(self, split: Split) -> Source:
        """Return the samples of a split; those for training are endless."""
        return Stream(self.kind, self.settings) if split == "train" else self._held_out[split]

    def instances(self) -> Sequence[Instance]:
        """Return the first test instances, for ``predict``."""
        source = self._held_out["test"]
        batch = source.fetch(range(min(SHOWN, len(source))), seed=0, epoch=0)
        pairs = zip(batch["points"].double().numpy(), batch["lengths"].tolist(), strict=True)
        return [Instance(points[:count], name=f"{self.name} {number}") for number, (points, count) in enumerate(pairs)]

    def check_trainable(self) -> None:
        """Accept: there are always instances to learn from."""

    def summary(self) -> Mapping[str, Any]:
        """Return the sizes."""
        return {
            "kind": self.kind,
            "training points": [self.settings.min_points, self.settings.max_points],
            "test points": list(self._held_out["test"].sizes),
            "test instances": len(self._held_out["test"]),
        }

    def fingerprint(self) -> str:
        """Return a digest of the settings that the instances are a function of."""
        names = (
            "min_points", "max_points", "curriculum", "curriculum_from", "block", "solved", "test_points", "held_out",
        )  # fmt: skip
        content = [VERSION, self.kind, {name: getattr(self.settings, name) for name in names}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_tsp(path: Path | None, settings: InstanceSettings) -> GeneratedData:
    """Open generated tours; ``path`` is None."""
    del path
    return GeneratedData("tsp", settings)


def open_hull(path: Path | None, settings: InstanceSettings) -> GeneratedData:
    """Open generated hulls; ``path`` is None."""
    del path
    return GeneratedData("hull", settings)


def open_delaunay(path: Path | None, settings: InstanceSettings) -> GeneratedData:
    """Open generated triangulations; ``path`` is None."""
    del path
    return GeneratedData("delaunay", settings)
