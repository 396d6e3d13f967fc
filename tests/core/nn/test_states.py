"""Rows of states: sliced, stacked, reordered and begun anew, through any nesting."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.errors import ShapeError
from polyhead.nn import states


class Pair(NamedTuple):
    a: Tensor
    rest: Any


def made(rows: int, start: int = 0) -> dict[str, Any]:
    numbers = torch.arange(start, start + rows)
    return {"pair": Pair(numbers, [numbers[:, None] * 10, None]), "layers": (numbers.float(), 3)}


def numbers(state: dict[str, Any]) -> list[int]:
    """Return which rows a state holds, after a look at every part."""
    rows: list[int] = state["pair"].a.tolist()
    assert (state["pair"].rest[0] == state["pair"].a[:, None] * 10).all()
    assert state["pair"].rest[1] is None
    assert state["layers"][0].tolist() == rows
    assert state["layers"][1] == 3
    assert isinstance(state["pair"], Pair)
    return rows


@settings(deadline=None)
@given(rows=st.integers(1, 6), data=st.data())
def test_slices_stack_to_the_whole(rows: int, data: st.DataObject) -> None:
    state, cut = made(rows), data.draw(st.integers(0, rows))
    parts = [states.slice_state(state, 0, cut), states.slice_state(state, cut, rows)]
    assert [numbers(part) for part in parts] == [list(range(cut)), list(range(cut, rows))]
    assert numbers(states.stack(parts)) == list(range(rows))


def test_reorder_repeats_and_drops() -> None:
    assert numbers(states.reorder(made(3), torch.tensor([2, 2, 0]))) == [2, 2, 0]
    assert numbers(states.reorder(made(2), torch.arange(2).repeat_interleave(3))) == [0, 0, 0, 1, 1, 1]


def test_where_takes_rows_of_either() -> None:
    rows = torch.tensor([True, False, True])
    assert numbers(states.where(rows, made(3, 10), made(3))) == [10, 1, 12]
    assert numbers(states.where(rows, made(1, 7), made(3))) == [7, 1, 7]


def test_bytes_are_counted() -> None:
    assert states.nbytes(made(2)) == 2 * 8 + 2 * 8 + 2 * 4
    assert states.nbytes(None) == 0


def test_different_states_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"There are no states to stack\."):
        states.stack([])
    with pytest.raises(ShapeError, match="The states differ: where one has a Tensor, there are Tensor, NoneType"):
        states.stack([torch.zeros(1), None])
    with pytest.raises(ShapeError, match=r"The states differ: their keys are \('a',\), \('b',\)"):
        states.stack([{"a": torch.zeros(1)}, {"b": torch.zeros(1)}])
    with pytest.raises(ShapeError, match="The states differ: their items are 1, 2"):
        states.stack([[None], [None, None]])
