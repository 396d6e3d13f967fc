"""Text files by name from a folder, or from an archive that is read and never extracted."""

from __future__ import annotations

import zipfile
from pathlib import Path

from polyhead.errors import DataError

__all__ = ["ARCHIVES", "MAX_BYTES", "find_names", "read_text"]

ARCHIVES = (".zip", ".whl")
MAX_BYTES = 512 * 2**20
"""Of a file: more is refused before it is read."""


def find_names(place: Path, ending: str) -> list[str]:
    """Return the names of files that end so: relative paths in a folder, members of an archive, or the file itself.

    A folder without such files that holds one archive means what is in the archive.

    Raises:
        DataError: there is no such place, or it is no archive.
    """
    if not place.exists():
        raise DataError(f"There is no {place}.")
    if place.is_dir():
        return sorted(str(file.relative_to(place)) for file in place.rglob(f"*{ending}") if file.is_file())
    if place.suffix in ARCHIVES:
        try:
            with zipfile.ZipFile(place) as archive:
                return sorted(name for name in archive.namelist() if name.endswith(ending))
        except zipfile.BadZipFile as error:
            raise DataError(f"{place.name} cannot be read as an archive: {error}. Get another copy.") from error
    return [place.name] if place.name.endswith(ending) else []


def archive_in(place: Path) -> Path:
    """Return the one archive in a folder, or the place itself."""
    if place.is_dir():
        found = [file for file in place.iterdir() if file.suffix in ARCHIVES]
        if len(found) == 1:
            return found[0]
    return place


def read_text(place: Path, name: str) -> str:
    """Return a file as text, given the place and a name of `find_names`.

    Raises:
        DataError: it is too large, damaged, or no text.
    """
    try:
        if place.suffix in ARCHIVES and place.is_file():
            with zipfile.ZipFile(place) as archive:
                _limit(name, archive.getinfo(name).file_size)
                return archive.read(name).decode()
        file = place / name if place.is_dir() else place
        _limit(name, file.stat().st_size)
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is no text: {error.reason} at byte {error.start}.") from error
    except (OSError, zipfile.BadZipFile, RuntimeError) as error:
        raise DataError(f"{name} cannot be read: {error}. Get another copy.") from error


def _limit(name: str, size: int) -> None:
    if size > MAX_BYTES:
        raise DataError(f"{name} has {size:,} bytes, more than the {MAX_BYTES:,} that are read. Give a part.")
