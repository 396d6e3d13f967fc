"""The paper's release: an instance a line, ``x1 y1 ... xn yn output i1 ... im``; plain or zipped."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from polyhead.errors import DataError
from polyhead_combinatorics.formats.checks import number
from polyhead_combinatorics.instances import Instance, Kind
from polyhead_combinatorics.settings import InstanceSettings

__all__ = ["read_released"]

MOST_UNPACKED = 4_000_000_000
MOST_LINE = 1_000_000


def read_released(path: Path, settings: InstanceSettings, kind: Kind) -> list[Instance]:
    """Return the instances of a file of the release; members of a zip are read one after the other, never unpacked.

    Raises:
        DataError: names the file, the line and what is wrong with it.
    """
    found = [_instance(line, where, kind) for where, line in _lines(path, settings.member) if line.strip()]
    if not found:
        raise DataError(f"{path} holds no instances.")
    return found


def _lines(path: Path, member: str) -> Iterator[tuple[str, str]]:
    if not zipfile.is_zipfile(path):
        if path.suffix.lower() == ".zip":
            raise DataError(f"{path} is no zip file, or a damaged one. Fetch it again.")
        with path.open("rb") as stream:
            yield from _decoded(stream, path.name)
        return
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir() and entry.filename.endswith(".txt")]
        if member:
            entries = [entry for entry in entries if member in (entry.filename, Path(entry.filename).name)]
        if not entries:
            inside = ", ".join(archive.namelist()[:10]) or "nothing"
            what = f'no member "{member}"' if member else "no .txt"
            raise DataError(f"{path} has {what}; it holds {inside}.")
        total = sum(entry.file_size for entry in entries)
        if total > MOST_UNPACKED:
            raise DataError(f"{path} unpacks to {total:,} bytes, at most {MOST_UNPACKED:,} are read. Use --member.")
        for entry in entries:
            try:
                with archive.open(entry) as stream:
                    yield from _decoded(stream, f"{path.name}, {entry.filename}")
            except (zipfile.BadZipFile, RuntimeError, NotImplementedError) as error:
                raise DataError(f"{path}, {entry.filename} cannot be unpacked: {error}. Fetch it again.") from error


def _decoded(stream: object, name: str) -> Iterator[tuple[str, str]]:
    read = stream.readline  # type: ignore[attr-defined]  # a binary file of either library
    at = 0
    while line := read(MOST_LINE + 1):
        at += 1
        if len(line) > MOST_LINE:
            raise DataError(f"{name}, line {at} is longer than {MOST_LINE:,} bytes: that is no file of the release.")
        yield f"{name}, line {at}", line.decode("utf-8")


def _instance(line: str, where: str, kind: Kind) -> Instance:
    left, word, right = line.partition(" output ")
    numbers = left.split()
    if not word:
        raise DataError(f'{where} has no word "output" between points and answer.')
    if len(numbers) % 2 or len(numbers) < 6:
        raise DataError(f"{where} has {len(numbers)} coordinates: an even number of 6 or more is needed.")
    points = np.array([number(text, where) for text in numbers]).reshape(-1, 2)
    tokens = []
    for text in right.split():
        if not text.isdecimal() or not 1 <= int(text) <= len(points):
            raise DataError(f'{where}: "{text}" is no point from 1 to {len(points)}.')
        tokens.append(int(text))
    if kind != "delaunay" and len(tokens) > 1 and tokens[0] == tokens[-1]:
        tokens.pop()
    if kind == "tsp" and sorted(tokens) != list(range(1, len(points) + 1)):
        raise DataError(f"{where}: the answer is no tour through its {len(points)} points. Is this a hull? --task hull")
    if kind == "hull" and (len(tokens) < 3 or len(set(tokens)) < len(tokens)):
        raise DataError(f"{where}: the answer has {len(set(tokens))} corners of {len(tokens)}: that is no hull.")
    if kind == "delaunay" and (not tokens or len(tokens) % 3):
        raise DataError(f"{where}: the answer has {len(tokens)} indices, a triangulation has three a triangle.")
    return Instance(points, solution=tuple(tokens), name=where)
