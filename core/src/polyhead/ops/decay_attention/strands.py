"""Which rows of a call have one length and can be computed together: batches, slices of them, packed sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from polyhead.errors import ShapeError

__all__ = ["Bucket", "Slice", "Strand", "boundaries", "dense_strands", "packed_strands"]


@dataclass(frozen=True)
class Slice:
    """Consecutive rows of the batch, or one packed sequence: all heads, consecutive tokens, no copies of outputs."""

    batch: slice
    tokens: slice
    sequences: slice
    heads: int

    @property
    def length(self) -> int:
        """Tokens per row."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def rows(self) -> int:
        """Batch times heads."""
        return int(self.batch.stop - self.batch.start) * self.heads

    def head_of_rows(self, device: torch.device) -> Tensor:
        """Return each row's head."""
        return torch.arange(self.heads, device=device).repeat(self.rows // max(self.heads, 1))

    def read(self, x: Tensor) -> Tensor:
        """Return (B, H, S, ...) as (rows, length, ...): a view where the strides allow, always if x is contiguous."""
        return x[self.batch, :, self.tokens].flatten(0, 1)

    def place(self, x: Tensor) -> Tensor:
        """Return where the rows of an output (B, H, S, ...) are to be written."""
        return self.read(x)

    def write(self, _rows: Tensor, _x: Tensor) -> None:
        """Nothing is left to do: ``place`` is a view."""

    def place_state(self, x: Tensor) -> Tensor:
        """Return (sequences, H, ...) as (rows, ...)."""
        return x[self.sequences].flatten(0, 1)

    def write_state(self, _rows: Tensor, _x: Tensor) -> None:
        """Nothing is left to do: ``place_state`` is a view."""


@dataclass(frozen=True)
class Bucket:
    """Packed sequences of about one length, copied behind one another and filled up with zeros."""

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    indices: tuple[int, ...]
    """Of the sequences."""
    heads: int

    @property
    def length(self) -> int:
        """Tokens per row."""
        return max(self.lengths)

    @property
    def rows(self) -> int:
        """Heads times sequences."""
        return self.heads * len(self.starts)

    def head_of_rows(self, device: torch.device) -> Tensor:
        """Return each row's head."""
        return torch.arange(self.heads, device=device).repeat_interleave(len(self.starts))

    def _where(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return each place's token, shape (sequences · length,), and whether the place is filled."""
        place = torch.arange(self.length, device=device)
        starts = torch.tensor(self.starts, device=device)[:, None]
        filled = place < torch.tensor(self.lengths, device=device)[:, None]
        return (starts + place * filled).flatten(), filled.flatten()

    def read(self, x: Tensor) -> Tensor:
        """Return (1, H, S, ...) as (rows, length, ...), zeros behind the ends."""
        token, filled = self._where(x.device)
        rows = x[0].index_select(1, token)
        rows = rows.masked_fill_(~filled.view(1, -1, *(1,) * (rows.ndim - 2)), 0)
        return rows.view(self.rows, self.length, *x.shape[3:])

    def place(self, x: Tensor) -> Tensor:
        """Return where the rows of an output (1, H, S, ...) are to be written."""
        return x.new_empty(self.rows, self.length, *x.shape[3:])

    def write(self, rows: Tensor, x: Tensor) -> None:
        """Bring the rows of an output to their tokens."""
        token, filled = self._where(x.device)
        rows = rows.view(self.heads, -1, *x.shape[3:])
        x[0].index_copy_(1, token[filled], rows[:, filled])

    def place_state(self, x: Tensor) -> Tensor:
        """Return a copy of (sequences, H, ...) as (rows, ...)."""
        return x[list(self.indices)].transpose(0, 1).reshape(self.rows, *x.shape[2:])

    def write_state(self, rows: Tensor, x: Tensor) -> None:
        """Bring the states of the rows to their sequences."""
        x[list(self.indices)] = rows.view(self.heads, len(self.starts), *x.shape[2:]).transpose(0, 1)


Strand = Slice | Bucket


def dense_strands(shape: Sequence[int], inputs: Sequence[Tensor], long: int) -> list[Strand]:
    """Return the rows of a batch together, or row by row where that spares copies.

    Args:
        shape: of q.
        inputs: what will be read.
        long: the number of tokens above which a copy costs more than separate calls.
    """
    batch, heads, length, _ = shape
    if not batch or not heads or not length:
        return []
    apart = length >= long and any(x.stride(0) != heads * x.stride(1) for x in inputs)
    step = 1 if apart else batch
    tokens = slice(0, length)
    return [Slice(slice(i, i + step), tokens, slice(i, i + step), heads) for i in range(0, batch, step)]


def packed_strands(heads: int, ends: Sequence[int], chunk: int) -> list[Strand]:
    """Return packed sequences, those with as many chunks together; the shortest first, without the empty ones."""
    buckets: dict[int, list[int]] = {}
    for i, (start, end) in enumerate(pairwise(ends)):
        if end > start:
            buckets.setdefault(-(-(end - start) // chunk), []).append(i)
    strands: list[Strand] = []
    for _, indices in sorted(buckets.items()):
        starts = tuple(ends[i] for i in indices)
        lengths = tuple(ends[i + 1] - ends[i] for i in indices)
        if len(indices) == 1:
            (i,) = indices
            strands.append(Slice(slice(0, 1), slice(ends[i], ends[i + 1]), slice(i, i + 1), heads))
        else:
            strands.append(Bucket(starts, lengths, tuple(indices), heads))
    return strands if heads else []


def boundaries(cu_seqlens: Tensor, length: int) -> list[int]:
    """Return the boundaries of packed sequences, which waits for the device that holds them.

    Raises:
        ShapeError: they do not start at 0, fall, or pass the end.
    """
    ends: list[int] = cu_seqlens.tolist()
    if ends[0] != 0 or ends[-1] > length or any(a > b for a, b in pairwise(ends)):
        shown = ", ".join(map(str, ends[:10])) + (", …" if len(ends) > 10 else "")
        raise ShapeError(f"cu_seqlens must rise from 0 to at most seq = {length}: [{shown}].")
    return ends
