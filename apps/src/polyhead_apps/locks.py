"""One process at a time writes a run's folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from polyhead.errors import CheckpointError, StorageError

__all__ = ["run_lock"]

_HELD: set[Path] = set()
"""Locks of this process: the system does not refuse a second one to the same process."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the file ``lock`` of a run's folder inside the block; the folder is made if it is not there.

    The system gives the lock back when the process ends, however it ends: a killed run leaves a file and no lock.
    Children, such as the loader's workers, do not inherit it.

    Raises:
        CheckpointError: another process holds it; names process and machine.
        StorageError: the folder cannot be written.
    """
    path = folder.resolve() / "lock"
    if path in _HELD:
        raise CheckpointError(f"Run {folder} is being written by this very process.")
    file = _take(path, folder)
    _HELD.add(path)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        _HELD.remove(path)
        # Removed while it is held, or a run that starts meanwhile would lock a file that is gone.
        path.unlink(missing_ok=True)
        os.close(file)


def _take(path: Path, folder: Path) -> int:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise StorageError(f"Cannot write {path}: {error.strerror}. Choose a folder that you may write.") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            os.close(file)
            raise CheckpointError(
                f"Run {folder} is being written by {owner} ({path}). Wait for it to end, or choose another folder."
            ) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)  # its owner ended, and removed the file, between our two calls
