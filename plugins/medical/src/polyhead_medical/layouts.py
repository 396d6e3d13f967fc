"""The public ways to lay out a folder of scans: which files make a case."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polyhead.errors import DataError, nearest
from polyhead_medical.dicom import is_series
from polyhead_medical.nifti import is_nifti, stem

__all__ = ["LAYOUTS", "Case", "Folder", "find_cases"]

MAX_JSON_BYTES = 50_000_000
_SEQUENCES = {
    "t1ce": "t1c",
    "t1gd": "t1c",
    "t1c": "t1c",
    "t1n": "t1",
    "t1": "t1",
    "t2w": "t2",
    "t2": "t2",
    "t2f": "flair",
    "flair": "flair",
}
"""Names of sequences in use, and what they are called here."""
_MASKS = ("seg", "label", "mask", "label_tumor")


@dataclass(frozen=True)
class Case:
    """The files of one scan session of one patient."""

    name: str
    images: tuple[Path, ...]
    """One for each channel, or one with the channels along its fourth axis."""
    label: Path | None = None


@dataclass(frozen=True)
class Folder:
    """What a folder holds."""

    layout: str
    cases: tuple[Case, ...]
    channels: tuple[str, ...]
    """What the network sees, such as t1c and flair."""
    labels: tuple[int, ...] = ()
    """Values that masks may have besides 0; any if empty."""


def find_cases(path: Path, layout: str, channels: Sequence[str]) -> Folder:
    """Return the cases of a file or folder.

    Args:
        path: a NIfTI file, or a folder.
        layout: a name of `LAYOUTS`, or "auto".
        channels: sequences that are wanted; the first found if empty.

    Raises:
        DataError: nothing is there, or it is not laid out so; says what was looked for.
    """
    if not path.exists():
        raise DataError(f"{path} is not there.")
    if path.is_file():
        if not is_nifti(path):
            raise DataError(
                f'{path} has the extension "{path.suffix}": scans are .nii or .nii.gz. '
                f"A DICOM series is given by its folder."
            )
        return Folder("scans", (Case(stem(path), (path,)),), _names(channels, 1, path))
    if layout != "auto":
        found = LAYOUTS[layout](path, channels)
        if found is None:
            raise DataError(f"{path} is not laid out as {layout}. What each layout looks like: tumor-segment datasets.")
        return found
    for read in LAYOUTS.values():
        found = read(path, channels)
        if found is not None:
            return found
    raise DataError(
        f"{path} holds no scans: no dataset.json, no images/, no file that ends in .nii or .nii.gz, no DICOM. "
        f"What is read: tumor-segment datasets."
    )


def _decathlon(path: Path, channels: Sequence[str]) -> Folder | None:
    listing = path / "dataset.json"
    if not listing.is_file():
        return None
    if listing.stat().st_size > MAX_JSON_BYTES:
        raise DataError(f"{listing} has {listing.stat().st_size:,} bytes: that is no list of scans.")
    try:
        content = json.loads(listing.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{listing} is no readable JSON: {error}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("training", []), list):
        raise DataError(f'{listing} is no Decathlon listing: it needs "training", a list of image and label.')
    modality = content.get("modality") or content.get("channel_names") or {}
    names = tuple(str(modality[key]) for key in sorted(modality, key=str)) if isinstance(modality, dict) else ()
    named = content.get("labels")
    labels = named if isinstance(named, dict) else {}
    keys = [text for pair in labels.items() for text in pair if str(text).isdigit()]
    cases = []
    for entry in content.get("training", []):
        if not (
            isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str)
        ):
            raise DataError(f'{listing}: the training entry {entry!r} is not {{"image": ..., "label": ...}}.')
        image = _inside(path, entry["image"], listing)
        cases.append(Case(stem(image), (image,), _inside(path, entry["label"], listing)))
    test = content.get("test", [])
    for entry in test if isinstance(test, list) else []:
        name = entry.get("image") if isinstance(entry, dict) else entry
        if isinstance(name, str):
            image = _inside(path, name, listing)
            cases.append(Case(stem(image), (image,)))
    if not cases:
        raise DataError(f"{listing} lists no scans.")
    known = tuple(sorted({int(key) for key in keys} - {0}))
    return Folder("decathlon", tuple(cases), names or _names(channels, 1, path), known)


def _inside(root: Path, name: str, listing: Path) -> Path:
    """Return a listed file; a name that leads out of the folder is refused."""
    found = (root / name).resolve()
    if not found.is_relative_to(root.resolve()):
        raise DataError(f'{listing} names "{name}", which lies outside of {root}.')
    return root / Path(name)


def _brats(path: Path, channels: Sequence[str]) -> Folder | None:
    found: list[tuple[str, dict[str, Path], Path | None]] = []
    for folder in sorted(each for each in path.iterdir() if each.is_dir()):
        sequences: dict[str, Path] = {}
        label = None
        for file in sorted(filter(is_nifti, folder.iterdir())):
            ending = re.fullmatch(re.escape(folder.name) + r"[-_](\w+)", stem(file))
            if ending and ending[1].lower() in _SEQUENCES:
                sequences[_SEQUENCES[ending[1].lower()]] = file
            elif ending and ending[1].lower() == "seg":
                label = file
        if sequences:
            found.append((folder.name, sequences, label))
    if not found:
        return None
    if channels:
        wanted = tuple(_SEQUENCES.get(name.lower(), name.lower()) for name in channels)
    else:
        wanted = tuple(name for name in ("t1c", "t1", "flair", "t2") if name in found[0][1])[:1]
    cases = []
    for name, sequences, label in found:
        if missing := [each for each in wanted if each not in sequences]:
            raise DataError(
                f"{path / name} has no {' and no '.join(missing)}: it has {', '.join(sorted(sequences))}. "
                f"Choose the sequences that all cases have: --channels {sorted(sequences)[0]}"
            )
        cases.append(Case(name, tuple(sequences[each] for each in wanted), label))
    return Folder("brats", tuple(cases), wanted)


def _raidionics(path: Path, channels: Sequence[str]) -> Folder | None:
    cases = {}
    for file in sorted(path.glob("**/*_MRI.nii*")):
        if is_nifti(file):
            patient = stem(file).removesuffix("_MRI")
            name = f"{stem(file)}_label_tumor"
            places = [file.parent, file.parent.parent / "segmentations"]
            masks = [place / f"{name}{end}" for place in places for end in (".nii.gz", ".nii")]
            cases[patient] = Case(patient, (file,), next(filter(Path.is_file, masks), None))
    if not cases:
        return None
    return Folder("raidionics", tuple(cases.values()), _names(channels, 1, path))


def _folders(path: Path, channels: Sequence[str]) -> Folder | None:
    if not (path / "images").is_dir():
        return None
    files = sorted(filter(is_nifti, (path / "images").iterdir()))
    if not files:
        raise DataError(f"{path / 'images'} holds no file that ends in .nii or .nii.gz.")
    masks = {stem(each): each for each in (path / "labels").glob("*") if is_nifti(each)}
    cases = tuple(Case(stem(file), (file,), masks.pop(stem(file), None)) for file in files)
    if masks:
        name = sorted(masks)[0]
        guess = nearest(name, [case.name for case in cases])
        hint = f' Did you mean "{guess}"?' if guess else ""
        raise DataError(f"{masks[name]} is the mask of no scan: images/ has no {name}.{hint}")
    return Folder("folders", cases, _names(channels, 1, path))


def _dicom(path: Path, channels: Sequence[str]) -> Folder | None:
    found = [path] if is_series(path) else sorted(each for each in path.iterdir() if is_series(each))
    if not found:
        return None
    cases = tuple(Case(each.name, (each,)) for each in found)
    return Folder("dicom", cases, _names(channels, 1, path))


def _scans(path: Path, channels: Sequence[str]) -> Folder | None:
    files = {stem(each): each for each in sorted(path.iterdir()) if is_nifti(each)}
    endings = tuple(f"{dash}{name}" for dash in "-_" for name in _MASKS)
    cases = []
    for name, file in files.items():
        if not name.endswith(endings):
            masks = (files[name + ending] for ending in endings if name + ending in files)
            cases.append(Case(name, (file,), next(masks, None)))
    if not cases:
        return None
    return Folder("scans", tuple(cases), _names(channels, 1, path))


def _names(channels: Sequence[str], count: int, path: Path) -> tuple[str, ...]:
    """Return what the user calls the channels of a layout that has no names for them."""
    if len(channels) > count:
        raise DataError(
            f"{path} has one file for each scan, and the channels {', '.join(channels)} are wanted. Sequences of one "
            f"case lie in a folder: CASE/CASE-t1c.nii.gz, CASE/CASE-flair.nii.gz."
        )
    return tuple(channels) or ("scan",)


LAYOUTS: Mapping[str, Callable[[Path, Sequence[str]], Folder | None]] = {
    "decathlon": _decathlon,
    "folders": _folders,
    "brats": _brats,
    "raidionics": _raidionics,
    "scans": _scans,
    "dicom": _dicom,
}
"""Readers by layout, in the order in which they are tried."""
