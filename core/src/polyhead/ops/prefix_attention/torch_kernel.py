"""Attention over prefixes in chunks: a triangular matrix of weights in each, one more between the ends of chunks.

The logarithm of every prefix's denominator is computed first; all weights are then exponentials of differences that are
at most 0. docs/operators/prefix_attention.md has the mathematics.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.ops.chunks import Piece, Workspace, pieces
from polyhead.ops.decay_attention.strands import Slice, dense_strands
from polyhead.ops.library import register
from polyhead.ops.prefix_attention.gradients import BACKWARD, FORWARD, differentiable
from polyhead.ops.prefix_attention.state import log_sums, wide_dtype

__all__ = ["prefix_attention"]

CHUNK = 32
"""Tokens per chunk. More make the triangles dearer, fewer the chunks' ends."""
GROUP = {"cpu": 64}
"""Chunks computed at once by device type: as many as stay in the cache of a core."""
GROUP_ELSEWHERE = 256
"""Where launches cost more than memory traffic."""


class _Weights(NamedTuple):
    """What a piece's tokens and boundaries weigh in each other's prefixes. Chunks have C tokens."""

    inside: Tensor
    """(rows · chunks, C, C): token j in the prefix of token i of its chunk; 0 for j > i."""
    entering: Tensor
    """(rows, chunks, C): what came before the chunk in the prefix of token i."""
    between: Tensor
    """(rows, chunks + 1, chunks + 1): what came before boundary j in the prefix that ends at i; 0 for j > i."""

    @classmethod
    def of(cls, logits: Tensor, marks: Tensor, piece: Piece, workspace: Workspace, exact: Workspace) -> _Weights:
        """Compute them.

        Args:
            logits: (rows, length).
            marks: (rows, length + 1), float64: the log weight of the initial state, then each prefix's log denominator.
            piece: what is computed at once.
            workspace: of the results.
            exact: of differences in float64.
        """
        height, chunks, size = piece.height, piece.chunks, piece.size
        span = marks[piece.rows, piece.tokens.start : piece.tokens.stop + 1]
        # An empty prefix weighs nothing in what follows, and nothing weighs anything in it: -inf - inf = -inf.
        below = span.masked_fill(span == -torch.inf, torch.inf)
        inside = below[:, 1:].reshape(height * chunks, size, 1)
        tokens = logits[piece.rows, piece.tokens].reshape(height * chunks, 1, size).double()
        difference = torch.sub(tokens, inside, out=exact.take("inside", height * chunks, size, size))
        weights = workspace.take("inside", height * chunks, size, size).copy_(difference).exp_().tril_()
        ends, ends_below = span[:, ::size], below[:, ::size]
        entering = (ends[:, :-1, None] - inside.view(height, chunks, size)).to(workspace.dtype).exp_()
        between = (ends[:, None, :] - ends_below[:, :, None]).to(workspace.dtype).exp_().tril_()
        return cls(weights, entering, between)


def _group(x: Tensor) -> int:
    return GROUP.get(x.device.type, GROUP_ELSEWHERE)


def _load(name: str, x: Tensor, hidden: Tensor | None, piece: Piece, workspace: Workspace) -> Tensor:
    """Return a piece as (rows · chunks, size, dim), masked keys (rows, length) replaced by zero."""
    loaded = workspace.load(name, x, piece)
    if hidden is None:
        return loaded
    where = hidden[piece.rows, piece.tokens].reshape(*loaded.shape[:2], 1)
    cleared = workspace.take(name, *loaded.shape)
    if cleared.data_ptr() != loaded.data_ptr():
        cleared.copy_(loaded)
    return cleared.masked_fill_(where, 0)


def _hidden(key_mask: Tensor | None, strand: Slice) -> Tensor | None:
    """Return which keys of the rows are masked, (rows, length)."""
    if key_mask is None:
        return None
    hidden = ~key_mask[strand.batch]
    return hidden.repeat_interleave(strand.heads, 0)


def _strands(inputs: tuple[Tensor, ...]) -> list[Slice]:
    strands = dense_strands(inputs[0].shape, inputs, CHUNK * _group(inputs[0]))
    return [strand for strand in strands if isinstance(strand, Slice)]


def _run_forward(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return output and final m, u and w; and for the backward pass:

    logits (B, H, S), logarithms of the prefixes' denominators (B, H, S), and at the boundaries of chunks the initial w
    and then the means so far (B, H, chunks + 1, Dv), which are outputs that are not rounded to 16 bits.
    """
    wide = wide_dtype(v.dtype)
    workspace, exact = Workspace(wide, v.device), Workspace(torch.float64, v.device)
    output = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    logits = torch.empty(k.shape[:3], dtype=wide, device=v.device)
    sums = torch.empty(k.shape[:3], dtype=torch.float64, device=v.device)
    means = torch.empty(_bounds_shape(v), dtype=wide, device=v.device)
    last_m, last_u = (x.clone(memory_format=torch.contiguous_format) for x in (m, u))
    last_w = w.clone(memory_format=torch.contiguous_format)
    for strand in _strands((k, v)):
        hidden = _hidden(key_mask, strand)
        scores = strand.place(logits)
        _logits(strand.place_state(q), strand.read(k), hidden, scale, scores, workspace)
        largest, total, carry = (strand.place_state(x) for x in (last_m, last_u, last_w))
        marks = log_sums(scores, largest, total)
        strand.place(sums).copy_(marks[:, 1:])
        rows = strand.place(output), carry, strand.place_state(means)
        _forward_rows(strand.read(v), hidden, scores, marks, rows, workspace, exact)
        largest.copy_(torch.maximum(largest, scores.amax(1)))
        end = marks[:, -1]
        total.copy_(torch.where(end == -torch.inf, end, end - largest).exp())
        carry.mul_(total.unsqueeze(-1))
    return output, last_m, last_u, last_w, logits, sums, means


def _bounds_shape(v: Tensor) -> tuple[Any, ...]:
    return *v.shape[:2], (v.shape[2] + CHUNK - 1) // CHUNK + 1, v.shape[3]


def _logits(q: Tensor, k: Tensor, hidden: Tensor | None, scale: float, logits: Tensor, workspace: Workspace) -> None:
    """Write scale · k·q to ``logits`` (rows, length), −∞ where a key is masked."""
    for block in pieces(k.shape[0], k.shape[1], CHUNK, _group(k)):
        for piece in block:
            keys = workspace.load("keys", k, piece).unflatten(0, (piece.height, piece.chunks))
            query = q[piece.rows, None, None]
            products = torch.mul(keys, query, out=workspace.take("products", *keys.shape))
            logits[piece.rows, piece.tokens] = products.sum(-1).mul_(scale).flatten(1)
    if hidden is not None:
        logits.masked_fill_(hidden, -torch.inf)


def _forward_rows(
    v: Tensor,
    hidden: Tensor | None,
    logits: Tensor,
    marks: Tensor,
    results: tuple[Tensor, Tensor, Tensor],
    workspace: Workspace,
    exact: Workspace,
) -> None:
    """Write outputs (rows, length, Dv), the last one (rows, Dv) over the initial w, and ``means``."""
    output, carry, means = results
    take = workspace.take
    value_dim = v.shape[2]
    for block in pieces(v.shape[0], v.shape[1], CHUNK, _group(v)):
        entering = carry[block[0].rows]
        for piece in block:
            height, chunks = piece.height, piece.chunks
            weights = _Weights.of(logits, marks, piece, workspace, exact)
            rows = workspace.target("output", output, piece)
            torch.bmm(weights.inside, _load("values", v, hidden, piece, workspace), out=rows)
            added = take("added", height, chunks + 1, value_dim)
            added[:, 0] = entering
            by_chunk = rows.unflatten(0, (height, chunks))
            added[:, 1:] = by_chunk[:, :, -1]
            bounds = torch.bmm(weights.between, added, out=take("bounds", *added.shape))
            by_chunk.addcmul_(weights.entering.unsqueeze(-1), bounds[:, :-1].unsqueeze(2))
            means[piece.rows, piece.first : piece.first + chunks + 1] = bounds
            workspace.store(rows, output, piece)
            entering = bounds[:, -1]
        carry[block[0].rows] = entering


def _run_backward(
    grad_output: Tensor,
    grad_u: Tensor,
    grad_w: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_mask: Tensor | None,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    last_m: Tensor,
    logits: Tensor,
    sums: Tensor,
    means: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v and the initial m, u and w."""
    wide = wide_dtype(v.dtype)
    workspace, exact = Workspace(wide, v.device), Workspace(torch.float64, v.device)
    dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
    dq = torch.zeros(q.shape, dtype=torch.float64, device=q.device)  # a sum over all tokens: float32 would lose digits
    # Behind the last token: the gradient of w, and minus that of u in the place of <output, its gradient>.
    carry = torch.cat([grad_w, -grad_u.unsqueeze(-1)], -1)
    dm = torch.zeros(m.shape, dtype=wide, device=v.device)
    for strand in _strands((k, v, grad_output)):
        hidden = _hidden(key_mask, strand)
        largest, total, first, end = (strand.place_state(x) for x in (m, u, w, last_m))
        marks = torch.cat([largest.double().unsqueeze(1), strand.place(sums)], 1)
        rows = strand.place_state(carry)
        last = marks[:, -1]
        rows *= torch.where(last == -torch.inf, last, last - end).exp().to(wide).unsqueeze(-1)
        inputs = strand.read(grad_output), strand.read(k), strand.read(v), strand.place_state(means)
        gradients = strand.place(dk), strand.place(dv), strand.place_state(dq)
        query = scale * strand.place_state(q)
        _backward_rows(inputs, query, hidden, strand.place(logits), marks, gradients, rows, workspace, exact)
        strand.place_state(dm).copy_((rows[:, :-1] * first).sum(-1) - rows[:, -1] * total)
    return (dq * scale).to(wide), dk, dv, dm, -carry[..., -1], carry[..., :-1].contiguous()


def _backward_rows(
    inputs: tuple[Tensor, ...],
    query: Tensor,
    hidden: Tensor | None,
    logits: Tensor,
    marks: Tensor,
    gradients: tuple[Tensor, ...],
    carry: Tensor,
    workspace: Workspace,
    exact: Workspace,
) -> None:
    """Compute rows; ``carry`` (rows, Dv + 1) belongs to the last prefix and becomes the initial state's."""
    grad_output, k, v, means = inputs
    dk, dv, dq = gradients
    take = workspace.take
    value_dim, head_dim = v.shape[2], k.shape[2]
    for block in pieces(v.shape[0], v.shape[1], CHUNK, _group(v)):
        leaving = carry[block[0].rows]
        for piece in reversed(block):
            height, chunks, size = piece.height, piece.chunks, piece.size
            count = height * chunks
            weights = _Weights.of(logits, marks, piece, workspace, exact)
            gs = workspace.load("grad_output", grad_output, piece)
            vs = _load("values", v, hidden, piece, workspace)
            before = means[piece.rows, piece.first : piece.first + chunks].reshape(count, value_dim, 1)
            entering = weights.entering.view(count, 1, size)

            # <output, its gradient>, from the pairs inside of the chunk and from what enters it.
            products = torch.bmm(gs, vs.mT, out=take("products", count, size, size)).mul_(weights.inside)
            along = torch.bmm(gs, before).squeeze(2).mul_(entering.squeeze(1)).add_(products.sum(2))

            added = take("added", height, chunks + 1, value_dim + 1)
            added[:, :-1, :-1] = torch.bmm(entering, gs).view(height, chunks, value_dim)
            added[:, :-1, -1] = (entering.squeeze(1) * along).sum(-1).view(height, chunks)
            added[:, -1] = leaving
            bounds = torch.bmm(weights.between.mT, added, out=take("bounds", *added.shape))
            leaving = bounds[:, 0]
            ends = bounds[:, 1:].reshape(count, 1, value_dim + 1)

            dvs = workspace.target("dv", dv, piece)
            torch.bmm(weights.inside.mT, gs, out=dvs)
            to_end = weights.inside[:, -1].unsqueeze(-1)
            dvs.addcmul_(to_end, ends[..., :-1])
            workspace.store(dvs, dv, piece)

            dlogits = torch.bmm(vs, ends[..., :-1].mT).sub_(ends[..., -1:]).mul_(to_end).squeeze(2)
            dlogits += products.sum(1)
            dlogits -= torch.bmm(along.unsqueeze(1), weights.inside).squeeze(1)

            dks = workspace.target("dk", dk, piece)
            by_chunk = (height, chunks, size, head_dim)
            torch.mul(dlogits.view(*by_chunk[:3], 1), query[piece.rows, None, None], out=dks.view(by_chunk))
            workspace.store(dks, dk, piece)
            keys = _load("keys", k, hidden, piece, workspace)
            dq[piece.rows] += torch.bmm(dlogits.unsqueeze(1), keys).view(height, chunks, head_dim).sum(1)
        carry[block[0].rows] = leaving


def _fake_forward(
    _q: Tensor, k: Tensor, v: Tensor, _key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, _scale: float
) -> tuple[Tensor, ...]:
    logits = v.new_empty(k.shape[:3], dtype=wide_dtype(v.dtype))
    sums = v.new_empty(k.shape[:3], dtype=torch.float64)
    means = v.new_empty(_bounds_shape(v), dtype=logits.dtype)
    state = (x.new_empty(x.shape) for x in (m, u, w))
    return v.new_empty(v.shape), *state, logits, sums, means


def _fake_backward(
    _grad_output: Tensor,
    _grad_u: Tensor,
    _grad_w: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    _key_mask: Tensor | None,
    m: Tensor,
    u: Tensor,
    w: Tensor,
    _last_m: Tensor,
    _logits: Tensor,
    _sums: Tensor,
    _means: Tensor,
    _scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, m, u, w = (x.new_empty(x.shape) for x in (q, k, v, m, u, w))
    return q, k, v, m, u, w


_forward = register(f"prefix_attention_forward{FORWARD}", _run_forward, _fake_forward)
_backward = register(
    f"prefix_attention_backward{BACKWARD}", _run_backward, _fake_backward, backward_of="torch of prefix_attention"
)
prefix_attention = differentiable(_forward, _backward)
"""Run the chunked form; arguments as the public function validated them."""
