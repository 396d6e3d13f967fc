"""Baselines: viewers who move by one simple rule, fitted on the training split; and other people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch
from polyhead_gaze.displays import Floats, Trial
from polyhead_gaze.scores import pack

__all__ = ["Rule", "RuleViewer", "baselines", "other_viewers"]

BIN = 0.5
"""Width of the bins of distance, in object spacings; the same object is a bin of its own."""
BINS = 30
ROUNDS = 60
SPREADS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 15.0, 30.0)
STEEPNESS = (-2.0, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0)

Ints = NDArray[np.int64]
Rule = Callable[["Scenes", Ints, NDArray[np.bool_]], Floats]
"""Unnormalised weights of the next fixation (B, N), given the last one (B,), -1 at the start, and what was seen."""


class Scenes:
    """What rules look at: a batch as NumPy arrays."""

    def __init__(self, batch: Batch) -> None:
        """Take what is needed of a batch."""
        self.place = np.asarray(batch["place"], dtype=np.float64)
        self.objects = np.asarray(batch["objects"])
        self.start = np.asarray(batch["start"], dtype=np.float64)
        self.target = np.asarray(batch["target"])
        self.looks = _looks(np.asarray(batch["appearance"])) if "appearance" in batch else None

    def rows(self, index: Ints) -> Scenes:
        """Return some rows, which may repeat."""
        chosen = object.__new__(Scenes)
        chosen.place, chosen.objects = self.place[index], self.objects[index]
        chosen.start, chosen.target = self.start[index], self.target[index]
        chosen.looks = None if self.looks is None else self.looks[index]
        return chosen

    def distances(self, current: Ints) -> Floats:
        """Return how far each object is from the current one, or from the start, (B, N)."""
        rows = np.arange(len(current))
        now = np.where((current >= 0)[:, None], self.place[rows, np.maximum(current, 0)], self.start)
        distance: Floats = np.sqrt(((self.place - now[:, None]) ** 2).sum(-1))
        return distance


def _looks(appearance: NDArray[Any]) -> Floats:
    """Return a vector of each object: its features, or the mean colours of its crop."""
    if appearance.ndim == 5:
        return appearance.mean((2, 3)) / 255 - 0.5
    return appearance.astype(np.float64)


def _bins(scenes: Scenes, current: Ints) -> Ints:
    """Return the bin of each object's distance, (B, N); 0 for the current object itself."""
    bins = np.minimum(1 + (scenes.distances(current) / BIN).astype(np.int64), BINS - 1)
    on = current >= 0
    bins[np.flatnonzero(on), current[on]] = 0
    return bins


class RuleViewer:
    """A viewer who chooses by a rule, and stops with a probability that the target may change."""

    def __init__(self, rule: Rule, stop: tuple[float, float], *, most: int, samples: int) -> None:
        """Make a viewer.

        Args:
            rule: weights of the next fixation.
            stop: probability to stop elsewhere, and on the target.
            most: fixations after which the search ends.
            samples: scanpaths drawn for a trial.
        """
        self.rule, self.stop, self.most, self.samples = rule, stop, most, samples

    def __call__(self, batch: Batch) -> Mapping[str, Any]:
        """Return a prediction, as `polyhead_gaze.metrics.ScanpathMetric` takes it."""
        scenes = Scenes(batch)
        human = np.asarray(batch["fixations"])
        nll, probability = self._score(scenes, human)
        return {"nll": nll, "probability": probability, "paths": self._draw(scenes, np.asarray(batch["stream"]))}

    def probabilities(self, scenes: Scenes, current: Ints, seen: NDArray[np.bool_]) -> Floats:
        """Return the probabilities of the next fixation and, last, of the stop, (B, N + 1)."""
        weights = np.where(scenes.objects, self.rule(scenes, current, seen), 0.0)
        # A rule may leave nothing to choose: then it is any object.
        weights = np.where(weights.sum(1, keepdims=True) > 0, weights, scenes.objects)
        stop = np.where(current < 0, 0.0, np.where(current == scenes.target, self.stop[1], self.stop[0]))
        moves = weights / weights.sum(1, keepdims=True) * (1 - stop[:, None])
        return np.concatenate([moves, stop[:, None]], 1)

    def _score(self, scenes: Scenes, human: Ints) -> tuple[Floats, Floats]:
        count, width = scenes.objects.shape
        current = np.full(count, -1)
        seen = np.zeros((count, width), bool)
        nll, probability = np.zeros(count), np.zeros(count)
        for step in range(human.shape[1] + 1):
            fixation = human[:, step] if step < human.shape[1] else np.full(count, -1)
            begun = np.ones(count, bool) if step == 0 else human[:, step - 1] >= 0
            rows = np.flatnonzero(begun)
            if not len(rows):
                break
            slot = np.where(fixation[rows] >= 0, fixation[rows], width)
            chances = self.probabilities(scenes.rows(rows), current[rows], seen[rows])[np.arange(len(rows)), slot]
            nll[rows] -= np.log(np.maximum(chances, 1e-12))
            probability[rows] += chances
            on = fixation >= 0
            seen[on, fixation[on]] = True
            current = np.where(on, fixation, current)
        return nll, probability

    def _draw(self, scenes: Scenes, streams: Ints) -> Ints:
        count, width = scenes.objects.shape
        owner = np.repeat(np.arange(count), self.samples)
        generators = [np.random.Generator(np.random.PCG64([int(stream), 1])) for stream in streams]
        drawn = np.concatenate([each.random((self.samples, self.most + 1)) for each in generators])
        paths = np.full((len(owner), self.most), -1)
        alive = np.arange(len(owner))
        current, seen = np.full(len(owner), -1), np.zeros((len(owner), width), bool)
        for step in range(self.most):
            chances = self.probabilities(scenes.rows(owner[alive]), current[alive], seen[alive]).cumsum(1)
            slot = (chances <= drawn[alive, step, None] * chances[:, -1:]).sum(1)
            slot = np.minimum(slot, width)
            on = slot < width
            alive, slot = alive[on], slot[on]
            if not len(alive):
                break
            paths[alive, step] = slot
            current[alive], seen[alive, slot] = slot, True
        return paths.reshape(count, self.samples, self.most)


def uniform(scenes: Scenes, current: Ints, seen: NDArray[np.bool_]) -> Floats:
    """Choose any object."""
    del current, seen
    return scenes.objects.astype(float)


def centre(spread: float) -> Rule:
    """Prefer the middle of the display: a Gaussian of this spread, in object spacings."""

    def rule(scenes: Scenes, current: Ints, seen: NDArray[np.bool_]) -> Floats:
        del seen
        distance = scenes.distances(np.full_like(current, -1))
        weights: Floats = np.exp(-(distance**2) / (2 * spread**2))
        return weights

    return rule


def nearest(mixed: float) -> Rule:
    """Go to the nearest object not yet seen; with probability ``mixed`` to any."""

    def rule(scenes: Scenes, current: Ints, seen: NDArray[np.bool_]) -> Floats:
        distance = np.where(scenes.objects & ~seen, scenes.distances(current), np.inf)
        first = distance == distance.min(1, keepdims=True)
        share = first / first.sum(1, keepdims=True)
        weights: Floats = (1 - mixed) * share + mixed * scenes.objects / scenes.objects.sum(1, keepdims=True)
        return weights

    return rule


def appearance(steepness: float) -> Rule:
    """Prefer what looks like the target."""

    def rule(scenes: Scenes, current: Ints, seen: NDArray[np.bool_]) -> Floats:
        del current, seen
        looks = scenes.looks if scenes.looks is not None else np.ones((*scenes.objects.shape, 1))
        norms = np.maximum(np.linalg.norm(looks, axis=-1), 1e-9)
        rows = np.arange(len(looks))
        aim = looks[rows, scenes.target] / norms[rows, scenes.target, None]
        likeness = np.einsum("bnf,bf->bn", looks, aim) / norms
        weights: Floats = np.exp(steepness * likeness)
        return weights

    return rule


def distance_markov(first: Floats, later: Floats) -> Rule:
    """Choose by the distance from the last fixation: a weight for each bin of `BIN` object spacings."""

    def rule(scenes: Scenes, current: Ints, seen: NDArray[np.bool_]) -> Floats:
        del seen
        bins = _bins(scenes, current)
        return np.where((current < 0)[:, None], first[bins], later[bins])

    return rule


def _fit_distances(batches: Sequence[tuple[Scenes, Ints]]) -> tuple[Floats, Floats]:
    """Return the weights of greatest likelihood, for first fixations and for later ones.

    By minorise-maximise steps: the weight of a bin is how often it was chosen over how often it would have been.
    """
    first: list[tuple[Floats, Ints]] = []
    later: list[tuple[Floats, Ints]] = []
    for scenes, human in batches:
        for step in range(human.shape[1]):
            rows = np.flatnonzero(human[:, step] >= 0)
            if not len(rows):
                break
            current = human[rows, step - 1] if step else np.full(len(rows), -1)
            part = scenes.rows(rows)
            bins = _bins(part, current)
            there = np.zeros((len(rows), BINS))
            np.add.at(there, (np.arange(len(rows))[:, None], bins), part.objects)
            (later if step else first).append((there, bins[np.arange(len(rows)), human[rows, step]]))
    return _weights(first), _weights(later)


def _weights(choices: Sequence[tuple[Floats, Ints]]) -> Floats:
    there = np.concatenate([counts for counts, _ in choices])
    chosen = np.bincount(np.concatenate([bins for _, bins in choices]), minlength=BINS).astype(float)
    weights = np.ones(BINS)
    for _ in range(ROUNDS):
        expected = (there / (there @ weights)[:, None]).sum(0)
        # A bin that nobody chose keeps a little weight: a test viewer may.
        weights = (chosen + 0.5) / np.maximum(expected, 1e-9)
        weights[expected <= 0] = 0
        weights /= weights.max()
    return np.maximum(weights, 1e-9)


def _stops(batches: Sequence[tuple[Scenes, Ints]]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return how often viewers stop wherever they are, and how often elsewhere and on the target."""
    stops, chances = np.ones(2) * 0.5, np.ones(2)
    for scenes, human in batches:
        on = human == scenes.target[:, None]
        real = human >= 0
        last = np.take_along_axis(on, (real.sum(1) - 1)[:, None], 1)[:, 0]
        for kind, where in enumerate((real & ~on, real & on)):
            chances[kind] += where.sum()
            stops[kind] += (last == bool(kind)).sum()
    share, any_ = stops / chances, float(stops.sum() / chances.sum())
    return (any_, any_), (float(share[0]), float(share[1]))


def baselines(data: Any, *, most: int, samples: int, batch_size: int = 256) -> dict[str, Any]:
    """Return the baselines by name, fitted on the training split; see `other_viewers` for the last one.

    All but one stop at a constant rate. The one that knows the target has a rate of its own there: more than distances.
    """
    source = data.source("train")
    batches = []
    for begin in range(0, len(source), batch_size):
        batch = source.fetch(range(begin, min(begin + batch_size, len(source))), seed=0, epoch=0)
        batches.append((Scenes(batch), np.asarray(batch["fixations"])))
    stop, knowing = _stops(batches)
    options: dict[str, Any] = {"most": most, "samples": samples}

    def best(make: Callable[[float], Rule], values: Sequence[float]) -> Rule:
        def loss(value: float) -> float:
            viewer = RuleViewer(make(value), stop, **options)
            return sum(float(viewer._score(scenes, human)[0].sum()) for scenes, human in batches[:2])

        return make(min(values, key=loss))

    found: dict[str, Any] = {
        "uniform": RuleViewer(uniform, stop, **options),
        "centre": RuleViewer(best(centre, SPREADS), stop, **options),
        "nearest neighbour": RuleViewer(best(nearest, (0.1, 0.3, 0.5, 0.7, 0.9)), stop, **options),
    }
    if batches[0][0].looks is not None:
        found["appearance"] = RuleViewer(best(appearance, STEEPNESS), stop, **options)
    markov = distance_markov(*_fit_distances(batches))
    found["distance-Markov"] = RuleViewer(markov, stop, **options)
    found["distance-Markov, knows the target"] = RuleViewer(markov, knowing, **options)
    if others := other_viewers(data):
        found["other viewers"] = others
    return found


def other_viewers(data: Any) -> Any:
    """Return what other people did on the same display with the same target: the human ceiling, or None."""
    paths: dict[tuple[int, int], list[tuple[int, Sequence[int]]]] = {}
    trials: Sequence[Trial] = data.source("test").trials()
    for index, trial in enumerate(trials):
        paths.setdefault((trial.display, trial.target), []).append((index, trial.path))
    if max(map(len, paths.values()), default=0) < 2:
        return None

    def predict(batch: Batch) -> Mapping[str, Any]:
        rows = []
        for index in batch["trial"].tolist():
            trial = trials[index]
            rows.append([path for other, path in paths[trial.display, trial.target] if other != index])
        samples = max(1, max(map(len, rows)))
        flat = pack([path for row in rows for path in (*row, *[()] * (samples - len(row)))])
        return {"paths": flat.reshape(len(rows), samples, flat.shape[1])}

    return predict
