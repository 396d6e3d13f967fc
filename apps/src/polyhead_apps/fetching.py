"""Fetch the files of public datasets: whole and as published, or not at all. Imports no torch.

The standard library's client does it: pooch would bring seven packages and starts a broken transfer from the beginning.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path

from polyhead.artifacts import sha256_file
from polyhead.errors import DataError, StorageError
from polyhead.manifest import DatasetSpec, RemoteFile
from polyhead_apps.console import Console

__all__ = ["data_folder", "fetch", "fetched"]

TIMEOUT_S = 60
"""Longest silence of a server."""
BLOCK = 1 << 16


def data_folder(spec: DatasetSpec) -> Path:
    """Return where the files of a public dataset are kept: in ``POLYHEAD_DATA``, else in the user's cache."""
    if given := os.environ.get("POLYHEAD_DATA"):
        return Path(given).expanduser() / spec.name
    cache = "~/Library/Caches" if sys.platform == "darwin" else os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "polyhead" / "data" / spec.name


def fetched(spec: DatasetSpec) -> Path:
    """Return the folder of a public dataset whose files are all there.

    Raises:
        DataError: some are not, or have another size; names the command that fetches them.
    """
    folder = data_folder(spec)
    lost = [file.name for file in spec.files if not _has_size(folder / file.name, file)]
    if lost:
        raise DataError(
            f'Dataset "{spec.name}" has not been fetched ({", ".join(lost)} not in {folder}). Fetch it with '
            f"the command `datasets get {spec.name}`."
        )
    return folder


def fetch(spec: DatasetSpec, folder: Path, console: Console) -> list[Path]:
    """Fetch what is missing of a public dataset into ``folder`` and return the paths of all its files.

    A file appears under its name once its digest is right. What a broken transfer left is kept and gone on with.

    Raises:
        DataError: no network, a refusal, a broken transfer, or a file that is not the published one; names the address
            and the mend.
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"Cannot make the folder {folder}: {error.strerror}. Name another with --out.") from error
    for file in spec.files:
        target = folder / file.name
        if _has_size(target, file) and sha256_file(target) == file.sha256:
            console.line(f"{file.name} is there")
            continue
        _fetch_file(file, target, console)
    return [folder / file.name for file in spec.files]


def _fetch_file(file: RemoteFile, target: Path, console: Console) -> None:
    part = target.with_name(f".{file.name}.part")
    with _open_part(part) as stream:
        have = stream.seek(0, os.SEEK_END)
        if have < file.bytes:
            _transfer(file, target, stream, have, console)
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != file.sha256:
            part.unlink()
            raise DataError(
                f"{file.url} is not the published file: its SHA-256 is {found[:16]}…, not {file.sha256[:16]}…. It was "
                "changed there or on the way, and nothing was kept. Try again; if it stays so, use another copy: "
                "--data PATH."
            )
        part.replace(target)
    console.line(f"{file.name}: {file.bytes:,} bytes, digest right")


@contextmanager
def _open_part(part: Path) -> Iterator[BufferedRandom]:
    """Open what a broken transfer left, or a new file; one process at a time."""
    try:
        stream = part.open("a+b")
    except OSError as error:
        raise StorageError(f"Cannot write {part}: {error.strerror}. Name another folder with --out.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StorageError(f"{part} is being written by another process. Wait for it to end.") from error
        yield stream


def _transfer(file: RemoteFile, target: Path, stream: BufferedRandom, have: int, console: Console) -> None:
    """Append the bytes from ``have`` on; start again where the server cannot go on."""
    request = urllib.request.Request(file.url, headers={"User-Agent": "polyhead", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    by_hand = f"or get it by other means, put it at {target} and run this again"
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            if have and not (answer.status == 206 and _begins_at(answer, have)):
                stream.truncate(have := 0)
            with console.progress(file.name, file.bytes, done=have) as bar:
                while block := answer.read(BLOCK):
                    have += len(block)
                    if have > file.bytes:
                        stream.truncate(0)
                        raise DataError(
                            f"{file.url} gives more than the {file.bytes:,} bytes of the published file. It was "
                            "changed there: use another copy, --data PATH."
                        )
                    stream.write(block)
                    bar.advance(len(block))
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the server has fewer bytes than were kept
            stream.truncate(0)
            _transfer(file, target, stream, 0, console)
            return
        raise DataError(f"{file.url} answers {error.code} {error.reason}. Try later, {by_hand}.") from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        reason = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        kept = f" after {have:,} of {file.bytes:,} bytes, which are kept" if have else ""
        raise DataError(
            f"{file.url} cannot be reached{kept}: {reason}. Connect to the network and run this again, {by_hand}."
        ) from error
    if have < file.bytes:
        raise DataError(
            f"{file.url}: the transfer ended after {have:,} of {file.bytes:,} bytes, which are kept. Run this again: "
            "it goes on from there."
        )


def _begins_at(answer: http.client.HTTPResponse, first: int) -> bool:
    return (answer.headers.get("Content-Range") or "").startswith(f"bytes {first}-")


def _has_size(path: Path, file: RemoteFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes
