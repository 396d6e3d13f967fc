"""What every reader needs: files within limits, numbers, and the assembly of displays and trials with their checks."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import DataError, nearest
from polyhead_gaze.displays import Display, Floats, Trial, assign, check_display, grid_of
from polyhead_gaze.settings import DisplaySettings

__all__ = [
    "BACKGROUND",
    "Fixations",
    "Read",
    "Scene",
    "build",
    "category_features",
    "listed",
    "load_json",
    "mapping",
    "number",
    "rows",
]

MOST_BYTES = 512 * 2**20
MOST_OBJECTS = 1000
MOST_FIXATIONS = 10_000
SHOWN = 10
BACKGROUND = "background"
FEATURES = 24
"""Length of the vector that stands for a category."""


@dataclass
class Scene:
    """A display as a file has it."""

    name: str
    boxes: Floats
    ids: tuple[str, ...]
    size: tuple[float, float] | None
    image: Path | None = None
    place: Floats | None = None
    """Rows and columns, where the objects stand in a grid."""
    categories: tuple[str, ...] = ()


@dataclass
class Fixations:
    """A trial as a file has it."""

    name: str
    """What messages call it, such as ``"fixations.csv, trial 7"``."""
    display: str
    target: str
    viewer: str
    points: Floats
    """x and y in pixels, shape (T, 2)."""
    durations: tuple[float, ...] = ()
    objects: NDArray[np.int64] | None = None
    """The objects themselves, where the file names them."""


@dataclass
class Read:
    """What a reader found."""

    scenes: Sequence[Scene]
    trials: Sequence[Fixations]
    targets: Mapping[str, str] = field(default_factory=dict)
    """Target of displays without trials."""
    licence: str = "that of the files"


def load_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: it is missing, too large, or no JSON; names file, line and column.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise DataError(f"{path.name} has {size:,} bytes, more than {MOST_BYTES:,}. Cut it into parts.")
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path.name}, line {error.lineno}, column {error.colno}: {error.msg}. It is no JSON file."
        ) from error
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is no JSON file: {error}.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def number(value: Any, where: str) -> float:
    """Return a finite number.

    Raises:
        DataError: it is none; says where.
    """
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if isinstance(value, bool) or not math.isfinite(found):
        raise DataError(f'{where}: "{value}" is not a number. Use a decimal point, and leave no cell empty.')
    return found


def listed(value: Any, where: str) -> list[Any]:
    """Return a list.

    Raises:
        DataError: it is none; says where.
    """
    if not isinstance(value, list):
        raise DataError(f"{where} is {_shown(value)}, expected a list.")
    return value


def mapping(value: Any, where: str) -> dict[str, Any]:
    """Return a mapping.

    Raises:
        DataError: it is none; says where.
    """
    if not isinstance(value, dict):
        raise DataError(f"{where} is {_shown(value)}, expected an object with keys.")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def rows(path: Path, needed: Sequence[str], known: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of a CSV or TSV file with where each is, such as ``"a.csv, row 7"``; column names in lower case.

    Raises:
        DataError: no such file, no header, a needed column is missing, or a row has too few or too many cells.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path.name} has more than {MOST_BYTES:,} bytes. Cut it into parts.")
        with path.open(encoding="utf-8-sig", newline="") as stream:
            head = stream.readline(2**16)
            delimiter = max(",;\t", key=head.count)
            stream.seek(0)
            lines = csv.reader(stream, delimiter=delimiter)
            columns = [cell.strip().lower() for cell in next(lines, [])]
            for name in needed:
                if name not in columns:
                    guess = nearest(name, [each for each in columns if each not in known])
                    mend = f'Is it "{guess}"? Rename it.' if guess else f"It has {', '.join(columns[:12]) or 'none'}."
                    raise DataError(f'{path.name} has no column "{name}". {mend}')
            for at, row in enumerate(lines, 2):
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(columns):
                    raise DataError(f"{path.name}, row {at} has {len(row)} cells, the header {len(columns)}.")
                yield f"{path.name}, row {at}", dict(zip(columns, (cell.strip() for cell in row), strict=True))
    except csv.Error as error:
        raise DataError(f"{path.name}: {error}. Save it as plain CSV.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not UTF-8 text (byte {error.start}). Save it as UTF-8.") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error


def category_features(categories: Sequence[str]) -> NDArray[np.float32]:
    """Return a vector of each category's name: the same everywhere, nearly at right angles to all others."""
    known: dict[str, Floats] = {}
    for name in categories:
        if name not in known:
            seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
            drawn = np.random.Generator(np.random.PCG64(seed)).normal(0, 1, FEATURES)
            known[name] = drawn / np.linalg.norm(drawn) * math.sqrt(FEATURES)
    return np.stack([known[name] for name in categories]).astype(np.float32)


def build(read: Read, settings: DisplaySettings, name: str) -> tuple[list[Display], list[Trial], dict[int, int]]:
    """Check what was read and return displays, trials, and the targets of displays without trials.

    Raises:
        DataError: a display, a target or fixations that cannot be used; see the messages.
    """
    if not read.scenes:
        raise DataError(f"{name} has no trial that can be used: of COCO-Search18 those with the target in view are.")
    sizes = _sizes(read)
    displays = [_display(scene, sizes[scene.name], settings, name) for scene in read.scenes]
    if len({None if each.appearance is None else each.appearance.shape[1:] for each in displays}) > 1:
        raise DataError(
            f"{name}: of some displays it is known what objects look like, and of others not. Give categories for all, "
            "or for none."
        )
    index = {display.name: number for number, display in enumerate(displays)}
    if len(index) < len(displays):
        raise DataError(f"{name}: two displays have the same name.")
    _check_units(read, sizes, name)
    problems: list[str] = []
    trials = []
    for each in read.trials:
        if each.display not in index:
            guess = nearest(each.display, index)
            mend = f'Did you mean "{guess}"?' if guess else f"There are {', '.join(list(index)[:SHOWN])}."
            raise DataError(f'{each.name}: no boxes of the display "{each.display}". {mend}')
        at = index[each.display]
        found = _trial(each, at, displays[at], settings, problems)
        if found is not None:
            trials.append(found)
    if problems:
        shown = "  ".join(problems[:SHOWN]) + (f"  And {len(problems) - SHOWN} more." if len(problems) > SHOWN else "")
        raise DataError(shown)
    aims = {}
    for display, target in read.targets.items():
        aims[index[display]] = _target(target, displays[index[display]], name)
    return displays, trials, aims


def _sizes(read: Read) -> dict[str, tuple[float, float]]:
    """Return the size of each screen; where it is not known, as far as boxes and fixations reach."""
    points: dict[str, list[Floats]] = {}
    for trial in read.trials:
        points.setdefault(trial.display, []).append(trial.points)
    sizes = {}
    for scene in read.scenes:
        if scene.size is not None:
            sizes[scene.name] = scene.size
            continue
        reach = np.concatenate([scene.boxes[:, 2:], *points.get(scene.name, [])]).max(0) if len(scene.boxes) else (1, 1)
        sizes[scene.name] = (float(reach[0]), float(reach[1]))
    return sizes


def _display(scene: Scene, size: tuple[float, float], settings: DisplaySettings, name: str) -> Display:
    where = f"{name}, display {scene.name}" if scene.name != name else name
    if len(scene.boxes) > MOST_OBJECTS:
        raise DataError(f"{where} has {len(scene.boxes):,} objects, more than {MOST_OBJECTS:,}.")
    boxes, ids, categories = scene.boxes, scene.ids, scene.categories
    check_display(Display(scene.name, boxes, size, ids, np.zeros((len(boxes), 2))), where)
    first: dict[bytes, int] = {}
    for number_, box in enumerate(boxes):
        other = first.setdefault(box.tobytes(), number_)
        if other != number_:
            raise DataError(
                f"{where}: {ids[other]} and {ids[number_]} have the same box {box.tolist()}: no fixation could tell "
                "them apart. Leave one out."
            )
    if math.isfinite(settings.nearest_px) and settings.nearest_px < 1e9 and scene.place is None:
        boxes = np.concatenate([boxes, [[0.0, 0.0, *size]]])
        ids, categories = (*ids, BACKGROUND), (*categories, BACKGROUND) if categories else ()
    place = scene.place if scene.place is not None else grid_of(boxes)
    appearance: NDArray[Any] | None = None
    if settings.images:
        from polyhead_gaze.images import crops_of, open_image

        if scene.image is None:
            raise DataError(f"{where} names no picture, and --images is given. Name it, or leave --images out.")
        appearance = crops_of(open_image(scene.image), boxes, size)
    elif categories:
        appearance = category_features(categories)
    image = str(scene.image) if scene.image is not None and scene.image.is_file() else ""
    return Display(scene.name, boxes, size, ids, place, appearance, image, _degree(settings, size))


def _degree(settings: DisplaySettings, size: tuple[float, float]) -> float:
    """Return the pixels of one degree of visual angle in the middle of the screen; 0 if the geometry is not known."""
    if not (settings.distance_cm and settings.width_cm):
        return 0.0
    return size[0] / settings.width_cm * settings.distance_cm * math.tan(math.radians(1))


def _check_units(read: Read, sizes: Mapping[str, tuple[float, float]], name: str) -> None:
    """Refuse coordinates that are no pixels: shares of the screen, or degrees."""
    points = [trial.points for trial in read.trials if trial.objects is None and len(trial.points)]
    if not points:
        return
    reach = float(np.abs(np.concatenate(points)).max())
    screen = max(max(size) for size in sizes.values())
    if reach <= 1.0 < screen:
        raise DataError(
            f"{name}: no coordinate of a fixation is above {reach:g}, on {screen:g} pixels: they seem to be "
            "shares of the screen. Multiply x by its width and y by its height."
        )
    if reach < 0.04 * screen:
        raise DataError(
            f"{name}: no coordinate of a fixation is above {reach:g}, on {screen:g} pixels: they seem to be "
            "degrees or centimetres. Give pixels from the left and top edge."
        )


def _target(target: str, display: Display, where: str) -> int:
    if target in display.ids:
        return display.ids.index(target)
    guess = nearest(target, display.ids)
    mend = f'Did you mean "{guess}"?' if guess else f"Objects: {', '.join(display.ids[:SHOWN])}."
    raise DataError(f'{where}: the target "{target}" is no object of {display.name}. {mend}')


def _trial(each: Fixations, at: int, display: Display, settings: DisplaySettings, problems: list[str]) -> Trial | None:
    target = _target(each.target, display, each.name)
    if len(each.points) > MOST_FIXATIONS:
        raise DataError(f"{each.name} has {len(each.points):,} fixations, more than {MOST_FIXATIONS:,}.")
    points, durations = each.points, each.durations
    outside = ((points < 0) | (points > display.size)).any(1) if each.objects is None else np.zeros(len(points), bool)
    if outside.any() and settings.outside == "refuse":
        x, y = points[outside][0]
        problems.append(
            f"{each.name}: {int(outside.sum())} of {len(points)} fixations lie outside of the screen of "
            f"{display.size[0]:g} × {display.size[1]:g} pixels, the first at ({x:g}, {y:g}). Leave them out: --outside "
            "drop."
        )
        return None
    points = points[~outside]
    durations = tuple(np.asarray(durations)[~outside].tolist()) if durations else ()
    if not len(points):
        if not outside.any():
            problems.append(f"{each.name} has no fixations. Leave the trial out.")
        return None
    if each.objects is not None:
        path = each.objects
    else:
        background = BACKGROUND in display.ids
        boxes = display.boxes[:-1] if background else display.boxes
        path = assign(points, boxes, settings.nearest_px)
        path = np.where(path < 0, len(display.ids) - 1, path) if background else path
    return Trial(at, target, tuple(path.tolist()), each.viewer, each.name, durations)
