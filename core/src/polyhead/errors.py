"""Errors that say what is wrong, where, and how to mend it.

Every type is also a builtin exception, so both ``except PolyheadError`` and ``except ValueError`` work.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DtypeError",
    "KernelError",
    "MissingExtraError",
    "NonFiniteError",
    "PluginError",
    "PolyheadError",
    "ShapeError",
    "StorageError",
    "UnknownNameError",
    "nearest",
]


class PolyheadError(Exception):
    """Base of all errors that Polyhead raises on purpose."""


class ShapeError(PolyheadError, ValueError):
    """A tensor's shape does not fit the operation or the other tensors."""


class DtypeError(PolyheadError, TypeError):
    """A tensor's dtype or device is not supported here."""


class ConfigError(PolyheadError, ValueError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(PolyheadError, ValueError):
    """A user's file cannot be used: names the file, the row, column or key, and the mend."""


class CheckpointError(PolyheadError, RuntimeError):
    """A checkpoint or model folder is damaged, incomplete or of another model."""


class StorageError(PolyheadError, OSError):
    """A file cannot be written: the disk is full, or the folder is not ours to write. What was there stays."""


class KernelError(PolyheadError, RuntimeError):
    """A forced kernel cannot serve the call, or no kernel can."""


class PluginError(PolyheadError, RuntimeError):
    """A plugin failed to load, clashes with another one or breaks its contract."""


class NonFiniteError(PolyheadError, ArithmeticError):
    """NaN or Inf appeared; names the step and the tensor."""


class MissingExtraError(PolyheadError, ImportError):
    """An optional dependency is missing; names the extra that brings it."""


class UnknownNameError(PolyheadError, LookupError):
    """A name is not registered; suggests the nearest one."""

    def __init__(self, kind: str, name: str, known: Iterable[str], listing: str = "") -> None:
        """Build the message.

        Args:
            kind: what the name should name, such as "operator" or "model".
            name: what was asked for.
            known: the names that exist.
            listing: the command that lists them all; the names themselves are printed if empty.
        """
        self.kind, self.name, self.known, self.listing = kind, name, sorted(known), listing
        text = f'No {kind} "{name}".'
        if guess := nearest(name, self.known):
            text += f' Did you mean "{guess}"?'
        text += f"  All: {listing or ', '.join(self.known) or 'none'}"
        super().__init__(text)

    def __reduce__(self) -> tuple[type[UnknownNameError], tuple[str, str, list[str], str]]:
        """Pickle by the arguments: loader workers send their errors this way."""
        return type(self), (self.kind, self.name, self.known, self.listing)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like ``name``, or None if none is close.

    >>> nearest("lightening", ["lightning", "softmax"])
    'lightning'
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return found[0] if found else None
