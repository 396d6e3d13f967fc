"""Rows of states: what beam search and vectorised environments do with what a streaming module carries.

A state is a tensor whose first axis is the batch, or a NamedTuple, tuple, list or mapping of states; None and numbers
in it belong to no row. That holds for the state of every token mixer, block and stack. Nothing is written into a state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from polyhead.errors import ShapeError

__all__ = ["nbytes", "reorder", "slice_state", "stack", "where"]

State = TypeVar("State")


def slice_state(state: State, start: int, stop: int) -> State:
    """Return the rows from start up to, and without, stop.

    >>> slice_state({"sum": torch.tensor([1.0, 2.0, 3.0])}, 1, 3)
    {'sum': tensor([2., 3.])}
    """
    return cast(State, _map(lambda x: x[start:stop], state))


def stack(states: Sequence[State]) -> State:
    """Return one state with the rows of all, one behind the other.

    Key-value caches may be of different lengths; the shorter ones are padded.

    Raises:
        ShapeError: there are none, or they differ in structure.
    """
    if not states:
        raise ShapeError("There are no states to stack.")
    return cast(State, _map(lambda *xs: torch.cat(xs), *states))


def reorder(state: State, index: Tensor) -> State:
    """Return the rows at ``index``, which may repeat some and leave out others.

    Args:
        state: rows 0 to B - 1.
        index: int64, shape (new B,). The parents of new beams; ``torch.arange(B).repeat_interleave(beams)`` makes
            beams of rows.
    """
    return cast(State, _map(lambda x: x.index_select(0, index), state))


def where(rows: Tensor, a: State, b: State) -> State:
    """Return a where rows is True and b elsewhere.

    ``where(done, module.init_state(B), state)`` begins the finished episodes of vectorised environments anew.

    Args:
        rows: bool, shape (B,).
        a: a state of B rows, or of one that stands for all.
        b: the same.

    Raises:
        ShapeError: the states differ in structure.
    """

    def pick(x: Tensor, y: Tensor) -> Tensor:
        return torch.where(rows.view(-1, *(1,) * (x.ndim - 1)), x, y)

    return cast(State, _map(pick, a, b))


def nbytes(state: Any) -> int:
    """Return how much memory a state takes, in bytes.

    >>> nbytes((torch.zeros(2, 3), None))
    24
    """
    total = 0

    def add(x: Tensor) -> Tensor:
        nonlocal total
        total += x.numel() * x.element_size()
        return x

    _map(add, state)
    return total


def _map(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Return the state made of what ``function`` gives for the tensors at the same place of all states."""
    states = (first, *others)
    if others and len({type(each) for each in states}) > 1:
        names = ", ".join(type(each).__name__ for each in states)
        raise ShapeError(f"The states differ: where one has a {type(first).__name__}, there are {names}.")
    if isinstance(first, Tensor):
        return function(*states)
    if isinstance(first, Mapping):
        _same("keys", *(tuple(each) for each in states))
        return {key: _map(function, *(each[key] for each in states)) for key in first}
    if isinstance(first, list | tuple):
        if others and hasattr(first, "aligned"):  # caches of different lengths
            states = first.aligned(states)
        _same("items", *(len(each) for each in states))
        items = [_map(function, *each) for each in zip(*states, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def _same(what: str, *each: Any) -> None:
    if any(other != each[0] for other in each):
        raise ShapeError(f"The states differ: their {what} are {', '.join(map(str, each))}.")
