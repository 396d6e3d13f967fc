"""Record what happens inside a model, by name, for pictures and analysis."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from polyhead.errors import UnknownNameError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Recording", "note", "record", "wanted"]

Wanted = bool | Sequence[int]


class Recording(Mapping[str, "tuple[Tensor, ...]"]):
    """The tensors by name, such as ``"encoder.blocks.0.cross.weights"``: one for each time the module ran."""

    def __init__(
        self, names: Mapping[int, str], where: Sequence[str], detach: bool, kinds: Mapping[str, Wanted]
    ) -> None:
        """Begin an empty recording; ``record`` does."""
        self._names, self._where, self._detach, self._kinds = names, where, detach, kinds
        self._tensors: dict[str, list[Tensor]] = {}

    def __getitem__(self, name: str) -> tuple[Tensor, ...]:
        """Return the tensors of a name.

        Raises:
            UnknownNameError: nothing was recorded under it; suggests the nearest one.
        """
        if name not in self._tensors:
            raise UnknownNameError("recorded tensor", name, self._tensors)
        return tuple(self._tensors[name])

    def __contains__(self, name: object) -> bool:
        """Whether something was recorded under a name."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, in the order of their first call."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self._tensors)

    def _wants(self, module: nn.Module, kind: str) -> Wanted:
        asked = self._kinds.get(kind, False)
        name = self._name(module, kind)
        return asked if name and any(fnmatch.fnmatchcase(name, pattern) for pattern in self._where) else False

    def _name(self, module: nn.Module, kind: str) -> str:
        """Return the name of what a module records; empty if it is no part of the recorded model."""
        path = self._names.get(id(module))
        return "" if path is None else f"{path}.{kind}" if path else kind

    def _add(self, module: nn.Module, kind: str, tensor: Tensor) -> None:
        tensors = self._tensors.setdefault(self._name(module, kind), [])
        tensors.append(tensor.detach() if self._detach else tensor)


_current: ContextVar[Recording | None] = ContextVar("polyhead_recording", default=None)


@contextmanager
def record(
    model: nn.Module, *, where: str | Sequence[str] = "*", detach: bool = True, **kinds: Wanted
) -> Iterator[Recording]:
    """Record tensors inside the modules of a model while the block runs.

    Outside of such a block nothing is computed or kept for it. Contexts nest, and the innermost records; other threads
    do not take part. A compiled model runs uncompiled while it is recorded.

    Args:
        model: whose modules record; names begin at it.
        where: names to record, with ``*`` and ``?``: ``"decoder.*"``, or several of them.
        detach: cut the tensors off from autograd. False keeps them differentiable, for a loss on them.
        kinds: what to record. ``weights=True`` records the weights of every head of `MultiHeadAttention`, shape
            (B, H, Sq, Sk); ``weights=[0, 2]`` those of two heads; ``kept=True`` the positions of the tokens that go on,
            where a mixer drops some. Modules of plugins have further kinds: a kind is what a module gives to ``note``.

    Returns:
        A context with the `Recording`, which fills while the block runs.

    >>> import torch
    >>> from polyhead.nn import MultiHeadAttention
    >>> attention = MultiHeadAttention(8, 2)
    >>> with record(attention, weights=True) as tape:
    ...     _ = attention(torch.ones(1, 3, 8))
    >>> {name: [x.shape for x in tensors] for name, tensors in tape.items()}
    {'weights': [torch.Size([1, 2, 3, 3])]}
    """
    import torch

    names = {id(module): name.replace("_orig_mod.", "") for name, module in model.named_modules()}
    tape = Recording(names, (where,) if isinstance(where, str) else tuple(where), detach, kinds)
    token = _current.set(tape)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield tape
    finally:
        _current.reset(token)


def wanted(module: nn.Module, kind: str) -> Wanted:
    """Return whether a recording wants something of a module: False, True, or the heads that it wants.

    Modules ask before they compute what only a recording needs.
    """
    tape = _current.get()
    return False if tape is None else tape._wants(module, kind)


def note(module: nn.Module, kind: str, tensor: Any) -> None:
    """Give a tensor to the recording, if there is one that wants it.

    Args:
        module: who records; part of the name.
        kind: the last part of the name, and the keyword of ``record``.
        tensor: what to record; None is ignored.
    """
    tape = _current.get()
    if tape is not None and tensor is not None and tape._wants(module, kind) is not False:
        tape._add(module, kind, tensor)
