"""Readers of files with displays and gaze: one module a format, found by looking at the files."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

from polyhead.errors import DataError
from polyhead_gaze.formats.checks import build
from polyhead_gaze.recorded import RecordedData
from polyhead_gaze.settings import DisplaySettings

__all__ = ["FORMATS", "open_files"]

FORMATS: Mapping[str, str] = {
    "amazon": "Amazon.json of the STI data set: book covers, six viewers",
    "coco-search18": "fixations in COCO-Search18's JSON, with boxes in COCO's",
    "display": "one display in JSON: image or size, boxes, ids, target",
    "shelf": "time_Q*.xlsx (or .csv) of the shelf data set",
    "csv": "fixations.csv (trial, viewer, order, x, y, target) with boxes.csv or boxes in COCO JSON",
}
"""Names and contents, in the order they are looked for; each is a module here with ``matches`` and ``read``."""


def open_files(path: Path, settings: DisplaySettings) -> RecordedData:
    """Open a file, or the one file of a folder that holds fixations or a display.

    Raises:
        DataError: there is nothing to read, or a file is wrong: names it and the mend.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder. Give the path of fixations, or of a display.")
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    files = [file for file in files if not file.name.startswith(".")]
    if not files:
        raise DataError(f"{path.name} has no files. Give the folder of your fixations.")
    wanted = FORMATS if settings.format == "auto" else [settings.format]
    for name in wanted:
        module = importlib.import_module(f"polyhead_gaze.formats.{name.replace('-', '_')}")
        found = [file for file in files if module.matches(file)]
        if settings.format != "auto" and path.is_file():
            found = [path]
        if found:
            read = module.read(found, settings)
            displays, trials, aims = build(read, settings, found[0].name)
            what = ", ".join(file.name for file in found[:3]) + (", …" if len(found) > 3 else "")
            return RecordedData(path.stem, f"{what}.", read.licence, displays, trials, aims, settings)
    names = ", ".join(file.name for file in files[:8]) + (", …" if len(files) > 8 else "")
    layouts = "; ".join(f"{name}: {FORMATS[name]}" for name in wanted)
    raise DataError(f"{path.name} has nothing in a layout that is known ({layouts}). Files: {names}.")
