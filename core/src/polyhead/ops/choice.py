"""Force a kernel: the context ``use_kernel`` and the environment variable POLYHEAD_KERNEL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from polyhead.errors import ConfigError, KernelError, UnknownNameError
from polyhead.ops.spec import KernelSpec

__all__ = ["forced", "use_kernel"]

EVERY = "op"
"""The keyword that stands for every operator."""
Choice = str | KernelSpec | None

_context: ContextVar[Mapping[str, Choice] | None] = ContextVar("polyhead_kernel", default=None)
_parsed: dict[str, Mapping[str, Choice]] = {}


@contextmanager
def use_kernel(**kernels: Choice) -> Iterator[None]:
    """Run operators by the named kernels, or fail; nothing falls back.

    Contexts nest, the innermost wins; threads and asynchronous tasks do not see each other's. A compiled function
    is compiled again when the context around it changes. The environment variable POLYHEAD_KERNEL does the same for a
    whole process: ``torch`` for every operator, ``softmax_attention=reference`` for one, commas between several;
    compiled functions keep what it was when they were compiled.

    Args:
        kernels: a kernel's name by operator; ``op=NAME`` for every operator; None gives the choice back to dispatch.
            A ``KernelSpec`` runs without being registered, which suits a kernel that is being written.

    Raises:
        UnknownNameError: no such operator or kernel; suggests the nearest one.

    >>> import torch
    >>> from polyhead.ops import softmax_attention, use_kernel
    >>> x = torch.eye(2).reshape(1, 1, 2, 2)
    >>> with use_kernel(softmax_attention="reference"):
    ...     softmax_attention(x, x, x, scale=1000.0).output[0, 0]
    tensor([[1., 0.],
            [0., 1.]])
    """
    _check(kernels)
    outer = {} if EVERY in kernels else _current()
    token = _context.set({**outer, **kernels})
    try:
        yield
    finally:
        _context.reset(token)


def forced(operator: str) -> Choice:
    """Return the kernel that is forced for an operator, or None."""
    choices = _current()
    if operator in choices:
        return choices[operator]
    return choices.get(EVERY)


def _current() -> Mapping[str, Choice]:
    choices = _context.get()
    if choices is not None:
        return choices
    text = os.environ.get("POLYHEAD_KERNEL", "")
    return _from_text(text) if text else {}


def _from_text(text: str) -> Mapping[str, Choice]:
    _read(text)
    return _parsed[text]


@torch.compiler.assume_constant_result
def _read(text: str) -> bool:
    """Read POLYHEAD_KERNEL, the same text once. Dynamo runs this at trace time instead of tracing it."""
    if text not in _parsed:
        kernels: dict[str, Choice] = {}
        for part in text.split(","):
            operator, equals, name = part.partition("=")
            operator, name = (operator.strip(), name.strip()) if equals else (EVERY, operator.strip())
            if not operator or not name or operator in kernels:
                raise ConfigError(
                    f'POLYHEAD_KERNEL is "{text}": "{part.strip()}" is not KERNEL or OPERATOR=KERNEL, each once.'
                )
            kernels[operator] = name
        _check(kernels)
        _parsed[text] = kernels
    return True


def _check(kernels: Mapping[str, Choice]) -> None:
    """Refuse names that do not exist, where they are written rather than where an operator runs."""
    from polyhead.ops.selection import registry

    for operator, kernel in kernels.items():
        if operator == EVERY:
            known = {each.name for name in registry.operators() for each in registry.kernels(name)}
            if isinstance(kernel, KernelSpec):
                raise KernelError(f'Kernel "{kernel.name}" is of {kernel.operator}; it cannot run every operator.')
            if kernel is not None and kernel not in known:
                raise UnknownNameError("kernel", kernel, known)
        elif isinstance(kernel, str):
            registry.kernel(operator, kernel)
        else:
            registry.operator(operator)
            if kernel is not None and kernel.operator != operator:
                raise KernelError(f'Kernel "{kernel.name}" is of {kernel.operator}, not of {operator}.')
