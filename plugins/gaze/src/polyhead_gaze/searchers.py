"""Simulated searchers, who look for an object by distance, likeness and memory: a function of seed and index."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.protocols import Batch, Split
from polyhead_gaze.displays import Display, Floats, Trial, collate
from polyhead_gaze.settings import DisplaySettings

__all__ = ["MOST_OBJECTS", "MOST_STEPS", "SearcherData", "choice", "draw_display", "open_searchers", "search"]

VERSION = 1
"""Counts up when the same seed and index give another display."""
SPREAD = 2.2
"""Of the jump's Gaussian, in object spacings."""
LIKENESS = 1.5
MEMORY = 2.5
STAY = 0.17
STOP = 0.85
FEWEST_OBJECTS, MOST_OBJECTS = 24, 40
MOST_STEPS = 40
"""Fixations after which a viewer gives up."""
PROTOTYPES, HELD_OUT, FEATURES = 12, 3, 8
PITCH_PX = 100.0
SHOWN = 10
"""Test displays that `predict` draws scanpaths for."""
_STREAMS = {"train": 0, "validation": 1, "test": 2}
_SEED = 20_240
"""Of prototypes and displays: they are a dataset, the same for every run."""


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([_SEED, *numbers])))


def draw_display(split: Split, index: int) -> tuple[Display, int]:
    """Return a display and its target.

    24 to 40 boxes in some cells of 3 to 6 rows by 6 to 9 columns, moved by 8 % of the distance between cells. An object
    looks like one of 12 prototypes in 8 dimensions, plus noise of 0.3. Targets of training displays are of 9 of the
    prototypes, those of validation and test displays of the other 3.
    """
    random = _generator(_STREAMS[split], index)
    rows, columns = 0, 0
    while rows * columns < FEWEST_OBJECTS:
        rows, columns = int(random.integers(3, 7)), int(random.integers(6, 10))
    count = int(random.integers(FEWEST_OBJECTS, min(MOST_OBJECTS, rows * columns) + 1))
    cells = np.sort(random.permutation(rows * columns)[:count])
    grid = np.stack([cells // columns, cells % columns], -1)
    centres = (grid[:, ::-1] + 1 + random.normal(0, 0.08, (count, 2))) * PITCH_PX
    half = random.uniform(0.25, 0.42, (count, 2)) * PITCH_PX
    prototypes = _generator(9).normal(0, 1, (PROTOTYPES, FEATURES))
    seen_in_training = split == "train"
    candidates = range(PROTOTYPES - HELD_OUT) if seen_in_training else range(PROTOTYPES - HELD_OUT, PROTOTYPES)
    kinds = random.integers(0, PROTOTYPES, count)
    target = int(random.integers(count))
    kinds[target] = random.choice(candidates)
    looks = prototypes[kinds] + random.normal(0, 0.3, (count, FEATURES))
    boxes = np.concatenate([centres - half, centres + half], 1)
    display = Display(
        name=f"{split}-{index}",
        boxes=boxes,
        size=((columns + 1) * PITCH_PX, (rows + 1) * PITCH_PX),
        ids=tuple(f"object {number + 1}" for number in range(count)),
        place=(centres - centres.min(0))[:, ::-1] / PITCH_PX,
        appearance=looks.astype(np.float32),
    )
    return display, target


def choice(display: Display, target: int, path: Sequence[int]) -> Floats:
    """Return the probabilities of the next fixation, the objects and last the stop: what the simulation draws from.

    .. math:: p_k \\propto \\exp\\left(-\\frac{d(k, \\text{now})^2}{2 \\cdot 2.2^2} + 1.5 \\cos(f_k, f_\\text{target})
        - 2.5 \\, [k \\text{ seen}]\\right)

    over all other objects; with probability 0.17 the same object is fixated again. On the target the search ends with
    probability 0.85. It begins in the middle.
    """
    count = len(display.boxes)
    looks = np.asarray(display.appearance, dtype=np.float64)
    now = display.place[path[-1]] if path else display.start
    distances = ((display.place - now) ** 2).sum(-1)
    norms = np.linalg.norm(looks, axis=1)
    likeness = looks @ looks[target] / (norms * norms[target])
    seen = np.zeros(count)
    seen[list(path)] = 1
    weights = np.exp(-distances / (2 * SPREAD**2) + LIKENESS * likeness - MEMORY * seen)
    if not path:
        return np.append(weights / weights.sum(), 0.0)
    weights[path[-1]] = 0
    moved = (1 - STAY) * weights / weights.sum()
    moved[path[-1]] = STAY
    stop = STOP if path[-1] == target else 0.0
    return np.append((1 - stop) * moved, stop)


def search(display: Display, target: int, random: np.random.Generator) -> tuple[int, ...]:
    """Return the fixations of one viewer."""
    path: list[int] = []
    while len(path) < MOST_STEPS:
        slot = int(random.choice(len(display.boxes) + 1, p=choice(display, target, path)))
        if slot == len(display.boxes):
            break
        path.append(slot)
    return tuple(path)


class SearcherSource:
    """The trials of one split, simulated when they are first asked for."""

    def __init__(self, split: Split, displays: int, viewers: int, *, flip: bool, turn: bool) -> None:
        """Make a source of ``displays`` × ``viewers`` trials."""
        self.split, self.viewers, self.flip, self.turn, self._count = split, viewers, flip, turn, displays
        self._displays: dict[int, tuple[Display, int]] = {}
        self._trials: dict[int, Trial] = {}

    def __len__(self) -> int:
        """Return the number of trials."""
        return self._count * self.viewers

    def display(self, index: int) -> tuple[Display, int]:
        """Return a display and its target."""
        if index not in self._displays:
            self._displays[index] = draw_display(self.split, index)
        return self._displays[index]

    def trial(self, index: int) -> Trial:
        """Return a trial; those of one display stand together."""
        if index not in self._trials:
            display, target = self.display(index // self.viewers)
            path = search(
                display, target, _generator(_STREAMS[self.split], index // self.viewers, 1 + index % self.viewers)
            )
            self._trials[index] = Trial(
                index // self.viewers, target, path, viewer=f"viewer {index % self.viewers + 1}"
            )
        return self._trials[index]

    def trials(self) -> Sequence[Trial]:
        """Return all trials."""
        return [self.trial(index) for index in range(len(self))]

    def displays(self) -> Sequence[Display]:
        """Return all displays."""
        return [self.display(index)[0] for index in range(self._count)]

    def fetch(self, indices: Sequence[int], *, seed: int, epoch: int) -> Batch:
        """Return trials, see `polyhead_gaze.displays.collate`; training displays are turned at random.

        So are the features of each: how alike two objects are stays, and nothing else can be learned of them.
        """
        displays, trials = [], []
        for number, index in enumerate(indices):
            trial = self.trial(index)
            displays.append(self.display(trial.display)[0])
            trials.append(Trial(number, trial.target, trial.path, trial.viewer, trial.name))
        flip = flips(seed, epoch, indices) if self.flip else None
        rows = range(len(indices))
        batch = collate(displays, trials, rows, most_objects=MOST_OBJECTS, most_steps=MOST_STEPS, flip=flip)
        if self.turn and indices:
            batch = {**batch, "appearance": _turned(batch["appearance"], seed, epoch, indices)}
        import torch

        where = torch.as_tensor(list(indices), dtype=torch.int64)
        return {**batch, "trial": where, "display": where // self.viewers}


def _turned(looks: Any, seed: int, epoch: int, indices: Sequence[int]) -> Any:
    """Turn the features (B, N, F) of each display by a random rotation or reflection."""
    import torch

    drawn = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, index, 78]))).normal(
            0, 1, (FEATURES, FEATURES)
        )
        for index in indices
    ]
    turns = np.linalg.qr(np.array(drawn).reshape(len(indices), FEATURES, FEATURES))[0]
    return looks @ torch.from_numpy(turns.astype(np.float32))


def flips(seed: int, epoch: int, indices: Sequence[int]) -> Any:
    """Return a function from the row of a batch to the axes that are turned."""

    def of(row: int) -> tuple[bool, bool]:
        drawn = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, indices[row], 77])))
        upside, sideways = drawn.integers(0, 2, 2)
        return bool(upside), bool(sideways)

    return of


class SearcherData:
    """Simulated searchers; implements ``polyhead.protocols.Data``."""

    name = "simulated-searchers"
    licence = "Apache-2.0"
    provenance = (
        "Simulated viewers who prefer near objects, objects like the target and objects not yet seen; layouts and "
        "targets of the test split are new."
    )
    cells = 9
    most_steps = MOST_STEPS
    most_objects = MOST_OBJECTS
    appearance = "features"
    features = FEATURES
    crop = (0, 0)

    def __init__(self, settings: DisplaySettings) -> None:
        """Open the simulation."""
        self.settings = settings
        held = settings.test_displays
        self._sources = {
            "train": SearcherSource("train", settings.displays, 1, flip=settings.flip, turn=settings.turn_features),
            "validation": SearcherSource("validation", max(2, held // 3), settings.viewers, flip=False, turn=False),
            "test": SearcherSource("test", held, settings.viewers, flip=False, turn=False),
        }

    def source(self, split: Split) -> SearcherSource:
        """Return the trials of a split."""
        return self._sources[split]

    def scenes(self) -> Sequence[tuple[Display, int | None, Sequence[Trial]]]:
        """Return the first test displays with their targets and viewers, for ``predict`` and pictures."""
        source = self.source("test")
        found = []
        for number in range(min(SHOWN, self.settings.test_displays)):
            display, target = source.display(number)
            first = number * source.viewers
            found.append((display, target, [source.trial(first + viewer) for viewer in range(source.viewers)]))
        return found

    def check_trainable(self) -> None:
        """Accept: there are always trials to learn from."""

    def summary(self) -> Mapping[str, Any]:
        """Return the sizes."""
        return {
            "displays": {name: len(source) // source.viewers for name, source in self._sources.items()},
            "trials": {name: len(source) for name, source in self._sources.items()},
            "objects": [FEWEST_OBJECTS, MOST_OBJECTS],
            "appearance": f"{FEATURES} features",
        }

    def fingerprint(self) -> str:
        """Return a digest of the settings that the displays are a function of."""
        names = ("displays", "test_displays", "viewers", "flip", "turn_features")
        content = [VERSION, {name: getattr(self.settings, name) for name in names}]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def open_searchers(path: Path | None, settings: DisplaySettings) -> SearcherData:
    """Open the simulation; ``path`` is None."""
    del path
    return SearcherData(settings)
