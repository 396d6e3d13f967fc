"""Files that are whole or not there: atomic writes, digests, tensors and JSON, never pickles.

A *folder with a manifest* is the unit: its files, then ``manifest.json`` with a SHA-256 of each, then one rename that
makes it visible. safetensors and ``torch.load`` both accept a file with a flipped byte; the digests do not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeAlias

from polyhead.errors import CheckpointError, StorageError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "JSON",
    "MANIFEST",
    "atomic_file",
    "atomic_folder",
    "json_bytes",
    "load_tensors",
    "manifest_problems",
    "read_json",
    "remove_leftovers",
    "save_tensors",
    "sha256_file",
    "verify_manifest",
    "write_atomic",
    "write_manifest",
]

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
MANIFEST = "manifest.json"
_JSON_LIMIT = 64 * 2**20
_TEMPORARY = ".tmp-"


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path``; at the end of the block it is synced and renamed to ``path``.

    If the block raises, or the machine stops at any point, ``path`` is what it was before.

    Raises:
        StorageError: the disk is full or the folder cannot be written; names the file.
    """
    path = Path(path)
    with _storage_errors(path):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}{_TEMPORARY}", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with _block_errors(path, temporary):
            yield temporary
        with _storage_errors(path):
            # mkstemp gives 0600; a result should have the permissions of any other new file.
            temporary.chmod(0o666 & ~_umask())
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written; ``path`` is what it was before.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``path``; at the end of the block it is synced and renamed to ``path``.

    If the block raises, or the machine stops at any point, ``path`` is what it was before. With ``replace``, old and
    new folder change places in one step on Linux; on systems that cannot do that there is a moment with neither.

    Args:
        path: the folder to make; its parents are made too.
        replace: an existing folder is replaced if everything in it is named in its manifest.

    Raises:
        StorageError: the folder exists and may not be replaced, the disk is full, or the parent cannot be written.
    """
    path = Path(path)
    with _storage_errors(path):
        # Resolving first makes "." and links mean the folder itself, whose parent takes the temporary one.
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(path, replace)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}{_TEMPORARY}", dir=path.parent))
    try:
        with _block_errors(path, temporary):
            yield temporary
        with _storage_errors(path):
            temporary.chmod(0o777 & ~_umask())
            for folder, _, files in os.walk(temporary, topdown=False):
                for file in files:
                    _sync(Path(folder, file))
                _sync(Path(folder))
            _refuse_foreign(path, replace)  # once more: the block may have run for long
            _move_into_place(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporary files and folders that killed writers left in ``folder``; return what was deleted.

    Call it only where no other process writes.
    """
    found = sorted(p for p in Path(folder).glob(f".*{_TEMPORARY}*"))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return found


def json_bytes(value: JSON) -> bytes:
    """Return ``value`` as indented UTF-8 JSON with a final newline.

    Raises:
        ValueError: a number is NaN or infinite, which JSON has no word for.
    """
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of our own steps into a sentence about ``path``."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise _storage_error(path, error) from error


@contextlib.contextmanager
def _block_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Let errors of a caller's block speak of ``path``; only a full or failing disk is ours to explain there."""
    try:
        yield
    except (CheckpointError, StorageError) as error:
        error.args = (str(error).replace(str(temporary), str(path)),)
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            raise _storage_error(path, error) from error
        raise


def _storage_error(path: Path, error: OSError) -> StorageError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        mend = "Free some space or choose another place; what was there before is unchanged."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        mend = "Choose a folder that you may write."
    elif error.errno == errno.ENOENT:
        mend = "Make its folder first."
    else:
        mend = "What was there before is unchanged."
    result = StorageError(f"Cannot write {path}: {error.strerror or error}. {mend}")
    result.errno = error.errno
    return result


def _umask() -> int:
    # The only portable way to read the mask is to set it.
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # pragma: no cover - Windows cannot open folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _refuse_foreign(path: Path, replace: bool) -> None:
    """Refuse to replace what Polyhead did not write: a rename would delete a person's files."""
    if not path.exists():
        return
    if not path.is_dir():
        raise StorageError(f"Cannot write {path}: it is a file, not a folder. Choose another name.")
    present = {str(p.relative_to(path).as_posix()) for p in path.rglob("*") if not p.is_dir()}
    if not present:
        return
    if not replace:
        raise StorageError(f"Cannot write {path}: it exists and is not empty. Choose another name.")
    known: set[str] = set()
    with contextlib.suppress(CheckpointError):
        known = {*_manifest_files(path), MANIFEST}
    if foreign := sorted(present - known):
        shown = ", ".join(foreign[:3]) + (f" and {len(foreign) - 3} more" if len(foreign) > 3 else "")
        raise StorageError(f"Cannot replace {path}: it holds files of others ({shown}). Choose another folder.")


def _move_into_place(new: Path, path: Path) -> None:
    if not path.exists():
        os.rename(new, path)
    elif not any(path.iterdir()):
        if os.name == "nt":
            path.rmdir()  # POSIX renames onto an empty folder, Windows does not
        os.rename(new, path)
    elif not _exchange(new, path):
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}{_TEMPORARY}", dir=path.parent))
        os.rename(path, old)
        os.rename(new, path)
        shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Let two paths change places in one step; return False where the system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    at_fdcwd, rename_exchange = -100, 2
    return renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, in bounded memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | os.PathLike[str]) -> None:
    """Write ``manifest.json``: size in bytes and SHA-256 of every other file in ``folder`` and below. Call it last."""
    folder = Path(folder)
    files: dict[str, JSON] = {
        path.relative_to(folder).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    write_atomic(folder / MANIFEST, json_bytes({"files": files}))


def verify_manifest(folder: str | os.PathLike[str]) -> None:
    """Check that every file named in ``manifest.json`` is there and unchanged. Files it does not name are left alone.

    Raises:
        CheckpointError: the manifest is missing or damaged, or files are missing, cut short or altered; names them.
    """
    if problems := manifest_problems(folder):
        shown = "; ".join(problems[:10]) + (f"; and {len(problems) - 10} more" if len(problems) > 10 else "")
        raise CheckpointError(f"{folder} is damaged: {shown}. Use another copy of it.")


def manifest_problems(folder: str | os.PathLike[str]) -> list[str]:
    """Return what `verify_manifest` would complain of, one phrase a file, such as "a.json is missing".

    Raises:
        CheckpointError: the manifest itself is missing or damaged.
    """
    folder = Path(folder)
    found = ((name, _difference(folder / name, entry)) for name, entry in _manifest_files(folder).items())
    return [f"{name} {problem}" for name, problem in found if problem]


def _difference(path: Path, entry: Mapping[str, Any]) -> str:
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    if size != entry["bytes"]:
        return f"has {size} bytes where {entry['bytes']} were written"
    if sha256_file(path) != entry["sha256"]:
        return "does not match its digest"
    return ""


def _manifest_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Read and check a manifest; names that leave the folder are refused."""
    path = folder / MANIFEST
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {MANIFEST}: it was not written to its end. Use another copy of it.")
    content = read_json(path)
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError(f'{path} is damaged: it has no object "files". Use another copy of {folder}.')
    for name, entry in files.items():
        if not _stays_inside(name):
            raise CheckpointError(f'{path} names "{name}", which lies outside of the folder. Do not use this copy.')
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("sha256"), str)
            or not isinstance(entry.get("bytes"), int)
        ):
            raise CheckpointError(f'{path} is damaged: "{name}" has no "sha256" and "bytes". Use another copy.')
    return files


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and not set(name) & set("\\:\0")


def read_json(path: str | os.PathLike[str], *, limit: int = _JSON_LIMIT) -> Any:
    """Read a JSON file of at most ``limit`` bytes.

    Raises:
        CheckpointError: the file is missing, larger than ``limit`` or not JSON; names file, line and column.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror or error}.") from error
    if len(data) > limit:
        raise CheckpointError(f"{path} is larger than {limit} bytes, the limit for this file. It is not one of ours.")
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{path} is not JSON: {error.msg}, {where}. Use another copy of it.") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}. Use another copy of it.") from error


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def save_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, whole or not at all; the same tensors give the same bytes.

    Tensors that are one and the same view of memory (tied weights) are written once, and ``load_tensors`` gives them
    back as one tensor. Tensors that only overlap are written each for itself. Any device, any strides.

    Args:
        path: the file, ``*.safetensors``.
        tensors: by name.

    Raises:
        CheckpointError: a tensor is sparse, has no data (device "meta") or a dtype that safetensors lacks.
        StorageError: the disk is full or the folder cannot be written; ``path`` is what it was before.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    kept: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            what = "has no data (device meta)" if tensor.is_meta else f"is sparse ({tensor.layout})"
            raise CheckpointError(f'Cannot save tensor "{name}" to {path}: it {what}. Make it a dense tensor first.')
        identity = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in seen:
            aliases[name] = seen[identity]
            continue
        seen[identity] = name
        kept[name] = tensor.detach()
    kept = _apart(kept)
    # One key only: safetensors writes several in an order that differs from run to run.
    header = {"aliases": json.dumps(aliases)} if aliases else {"format": "pt"}
    with atomic_file(path) as temporary:
        try:
            save_file(kept, temporary, metadata=header)
        except SafetensorError as error:
            _raise_as_oserror(error)
            raise CheckpointError(f"Cannot save {path}: {error}.") from error
        except (KeyError, ValueError, TypeError) as error:
            dtypes = ", ".join(sorted({str(t.dtype) for t in kept.values()}))
            raise CheckpointError(f"Cannot save {path}: safetensors refuses {error} (dtypes: {dtypes}).") from error


def load_tensors(path: str | os.PathLike[str], *, device: str = "cpu") -> dict[str, Tensor]:
    """Read a safetensors file; it is first compared with the digest in a ``manifest.json`` beside it, if there is one.

    Raises:
        CheckpointError: the file is missing, cut short, altered or not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. Use another copy of {path.parent}.")
    if (path.parent / MANIFEST).is_file():
        entry = _manifest_files(path.parent).get(path.name)
        if entry and (problem := _difference(path, entry)):
            raise CheckpointError(f"{path.parent} is damaged: {path.name} {problem}. Use another copy of it.")
    try:
        with safe_open(path, framework="pt", device=device) as file:
            # A copy of its own: mapped memory would change or vanish with the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
            metadata = file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or not safetensors: {error}. Use another copy of it.") from error
    for alias, name in _aliases(path, metadata).items():
        if name not in tensors or alias in tensors:
            raise CheckpointError(f'{path} is damaged: its header ties "{alias}" to "{name}". Use another copy of it.')
        tensors[alias] = tensors[name]
    return tensors


def _aliases(path: Path, metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        aliases = json.loads(metadata.get("aliases", "{}"))
    except (ValueError, RecursionError):
        aliases = None
    if not isinstance(aliases, dict) or not all(isinstance(name, str) for name in aliases.values()):
        raise CheckpointError(f"{path} is damaged: the aliases in its header are no JSON object. Use another copy.")
    return aliases


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give every tensor contiguous memory of its own, which safetensors demands; copy only where needed."""
    import torch

    owners: set[tuple[Any, int]] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        whole = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes
        owner = (tensor.device, storage.data_ptr())
        result[name] = tensor if whole and owner not in owners else tensor.clone(memory_format=torch.contiguous_format)
        owners.add(owner)
    return result


def _raise_as_oserror(error: Exception) -> None:
    """safetensors reports a full disk in words only; give it back its number."""
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EIO):
        if f"os error {number})" in str(error):
            raise OSError(number, os.strerror(number)) from error
