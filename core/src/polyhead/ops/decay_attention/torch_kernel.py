"""Linear attention with decay in chunks: quadratic inside of a chunk, a matrix of states between chunks.

The products with the state and inside of chunks are batched matrix products; states at the boundaries of a group of
chunks come from one product with a small triangular matrix of decays, forward, and with its transpose, backward.
docs/operators/decay_attention.md has the mathematics.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polyhead.ops.chunks import Workspace, pieces
from polyhead.ops.decay_attention.factors import ConstantDecay, Crossed, Decay, VaryingDecay
from polyhead.ops.decay_attention.gradients import BACKWARD, FORWARD, differentiable
from polyhead.ops.decay_attention.strands import Bucket, Strand, boundaries, dense_strands, packed_strands
from polyhead.ops.library import register

__all__ = ["decay_attention"]

CHUNK = 64
"""Tokens per chunk. More make the quadratic part dearer, fewer the states; measured flat from 32 to 128."""
GROUP = {"cpu": 16}
"""Chunks computed at once by device type: as many as stay in the cache of a core."""
GROUP_ELSEWHERE = 256
"""Where launches cost more than memory traffic."""


def _strands(q: Tensor, cu_seqlens: Tensor | None, inputs: tuple[Tensor, ...]) -> tuple[list[Strand], int]:
    """Return what can be computed together, and the number of tokens that belong to a sequence."""
    if cu_seqlens is None:
        return dense_strands(q.shape, inputs, CHUNK * _group(q)), q.shape[2]
    ends = boundaries(cu_seqlens, q.shape[2])
    return packed_strands(q.shape[1], ends, CHUNK), ends[-1]


def _group(q: Tensor) -> int:
    return GROUP.get(q.device.type, GROUP_ELSEWHERE)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _decay(log_decay: Tensor, strand: Strand, scale: float, dtype: torch.dtype, grad: Tensor | None = None) -> Decay:
    """Return the decays of a strand; ``grad`` is (H,), or where the strand's rows are written."""
    if log_decay.ndim == 1:
        return ConstantDecay(log_decay, strand.head_of_rows(log_decay.device), scale, dtype, grad)
    return VaryingDecay(strand.read(log_decay), scale, dtype, grad)


def _by_token(log_decay: Tensor, strands: list[Strand], q: Tensor) -> Tensor:
    """Return decays that can be zero where a bucket is filled up: a constant would decay its final states further."""
    if log_decay.ndim == 1 and any(isinstance(strand, Bucket) for strand in strands):
        return log_decay[None, :, None].expand(q.shape[:3])
    return log_decay


def _states_numel(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> Any:
    """Return the size of all states at boundaries of chunks; for packed sequences, the most there can be."""
    batch, heads, length, head_dim = q.shape
    if cu_seqlens is None:
        count = batch * ((length + CHUNK - 1) // CHUNK + 1)
    else:
        count = length // CHUNK + 2 * (cu_seqlens.shape[0] - 1)
    return count * heads * head_dim * v.shape[3]


def _state_shape(q: Tensor, v: Tensor, cu_seqlens: Tensor | None) -> tuple[Any, ...]:
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return sequences, q.shape[1], q.shape[3], v.shape[3]


def _run_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return output, final state and, if kept for the backward pass, the states at all boundaries of chunks."""
    wide = _wide(q.dtype)
    workspace = Workspace(wide, q.device)
    output = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    final = torch.zeros(_state_shape(q, v, cu_seqlens), dtype=wide, device=q.device)
    if initial_state is not None:
        final.copy_(initial_state)
    states = torch.empty(_states_numel(q, v, cu_seqlens) if keep else 0, dtype=wide, device=q.device)
    strands, filled = _strands(q, cu_seqlens, (q, k, v))
    log_decay = _by_token(log_decay, strands, q)
    output[:, :, filled:] = 0
    offset = 0
    for strand in strands:
        kept = None
        if keep:
            kept = _states_of(states, offset, strand, final.shape[2:])
            offset += kept.numel()
        rows, state = strand.place(output), strand.place_state(final)
        decay = _decay(log_decay, strand, scale, wide)
        _forward_rows(strand.read(q), strand.read(k), strand.read(v), decay, rows, state, kept, workspace)
        strand.write(rows, output)
        strand.write_state(state, final)
    return output, final, states


def _states_of(states: Tensor, offset: int, strand: Strand, size: tuple[int, ...]) -> Tensor:
    """Return a strand's part of the states, (rows, chunks + 1, D, Dv)."""
    chunks = -(-strand.length // CHUNK) + 1
    count = strand.rows * chunks * size[0] * size[1]
    return states[offset : offset + count].view(strand.rows, chunks, *size)


def _forward_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Decay,
    output: Tensor,
    state: Tensor,
    states: Tensor | None,
    workspace: Workspace,
) -> None:
    """Compute rows (rows, length, ·); ``state`` (rows, D, Dv) is the initial one and becomes the final one."""
    take = workspace.take
    head_dim, value_dim = state.shape[1:]
    for block in pieces(q.shape[0], q.shape[1], CHUNK, _group(q)):
        carry = state[block[0].rows]
        for piece in block:
            height, chunks, size = piece.height, piece.chunks, piece.size
            count = height * chunks
            factors = decay.factors(piece)
            qs, ks, vs = (workspace.load(name, x, piece) for name, x in (("q", q), ("k", k), ("v", v)))

            scaled = take("scaled", count, size, head_dim)
            _scale(ks, factors.leaving, height, scaled)
            added = take("added", height, chunks + 1, head_dim, value_dim)
            added[:, 0] = carry
            _product_into(scaled.mT, vs, added, slice(1, None), workspace)
            if states is None:
                bounds = take("bounds", height, chunks + 1, head_dim, value_dim)
            else:
                bounds = states[piece.rows, piece.first : piece.first + chunks + 1]
            if bounds.is_contiguous():
                torch.bmm(factors.between, added.flatten(2), out=bounds.flatten(2))
            else:
                bounds.copy_(torch.bmm(factors.between, added.flatten(2)).view(bounds.shape))
            carry = bounds[:, -1]

            weights = take("weights", count, size, size)
            torch.bmm(qs, ks.mT, out=weights)
            weights.view(height, chunks, size, size).mul_(factors.inside)
            _scale(qs, factors.entering, height, scaled)
            rows = workspace.target("output", output, piece)
            torch.bmm(scaled, bounds[:, :-1].reshape(count, head_dim, value_dim), out=rows)
            rows.baddbmm_(weights, vs)
            workspace.store(rows, output, piece)
        state[block[0].rows] = carry


def _scale(x: Tensor, factor: Tensor, height: int, out: Tensor) -> None:
    """Multiply (rows · chunks, C, D) by (rows, chunks or 1, C, 1)."""
    torch.mul(x.unflatten(0, (height, -1)), factor, out=out.unflatten(0, (height, -1)))


def _product_into(a: Tensor, b: Tensor, out: Tensor, where: slice, workspace: Workspace) -> None:
    """Write batched products to out[:, where], where out is (rows, chunks + 1, D, Dv)."""
    target = out[:, where]
    if out.shape[0] == 1:
        torch.bmm(a, b, out=target[0])
    else:
        product = workspace.take("product", *a.shape[:2], b.shape[2])
        torch.bmm(a, b, out=product)
        target.copy_(product.view(target.shape))


def _run_backward(
    grad_output: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    cu_seqlens: Tensor | None,
    states: Tensor,
    scale: float,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, log_decay (empty if not asked for) and the initial state."""
    wide = _wide(q.dtype)
    workspace = Workspace(wide, q.device)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    dstate = grad_final.to(wide, memory_format=torch.contiguous_format, copy=True)
    strands, filled = _strands(q, cu_seqlens, (q, k, v, grad_output))
    given, log_decay = log_decay, _by_token(log_decay, strands, q)
    # Sums over all tokens of a head: float32 would lose digits.
    sums = torch.zeros(log_decay.shape if decay_grad else 0, dtype=torch.float64, device=q.device)
    for x in (dq, dk, dv):
        x[:, :, filled:] = 0
    offset = 0
    for strand in strands:
        kept = _states_of(states, offset, strand, dstate.shape[2:])
        offset += kept.numel()
        rows, state = tuple(strand.place(x) for x in (dq, dk, dv)), strand.place_state(dstate)
        grad = None
        if decay_grad:
            grad = sums if log_decay.ndim == 1 else strand.place(sums)
        decay = _decay(log_decay, strand, scale, wide, grad)
        inputs = tuple(strand.read(x) for x in (q, k, v, grad_output))
        _backward_rows(inputs, decay, rows, state, kept, workspace, decay_grad)
        for mine, whole in zip(rows, (dq, dk, dv), strict=True):
            strand.write(mine, whole)
        strand.write_state(state, dstate)
        if grad is not None and log_decay.ndim > 1:
            strand.write(grad, sums)
    if decay_grad:
        sums = sums.sum((0, 2)) if sums.ndim > given.ndim else sums
        sums = sums.to(given.dtype).masked_fill_(given == -torch.inf, 0)
    return dq, dk, dv, sums, dstate


def _backward_rows(
    inputs: tuple[Tensor, ...],
    decay: Decay,
    gradients: tuple[Tensor, ...],
    dstate: Tensor,
    states: Tensor,
    workspace: Workspace,
    decay_grad: bool,
) -> None:
    """Compute rows; ``dstate`` (rows, D, Dv) belongs to the final state and becomes the initial one's."""
    q, k, v, grad_output = inputs
    take = workspace.take
    head_dim, value_dim = dstate.shape[1:]
    for block in pieces(q.shape[0], q.shape[1], CHUNK, _group(q)):
        carry = dstate[block[0].rows]
        for piece in reversed(block):
            height, chunks, size = piece.height, piece.chunks, piece.size
            count = height * chunks
            factors = decay.factors(piece)
            named = (("q", q), ("k", k), ("v", v), ("grad_output", grad_output))
            qs, ks, vs, gs = (workspace.load(name, x, piece) for name, x in named)
            dqs, dks, dvs = (
                workspace.target(name, x, piece) for name, x in zip(("dq", "dk", "dv"), gradients, strict=True)
            )
            starts = states[piece.rows, piece.first : piece.first + chunks].reshape(count, head_dim, value_dim)

            entering = take("entering", count, size, value_dim)
            _scale(gs, factors.entering, height, entering)
            added = take("added", height, chunks + 1, head_dim, value_dim)
            _product_into(qs.mT, entering, added, slice(0, -1), workspace)
            added[:, -1] = carry
            bounds = take("bounds", height, chunks + 1, head_dim, value_dim)
            torch.bmm(factors.between.mT, added.flatten(2), out=bounds.flatten(2))
            carry = bounds[:, 0]
            ends = bounds[:, 1:].reshape(count, head_dim, value_dim)

            weights = take("weights", count, size, size)
            torch.bmm(gs, vs.mT, out=weights)
            weights.view(height, chunks, size, size).mul_(factors.inside)
            torch.bmm(entering, starts.mT, out=dqs)
            _scale(vs, factors.leaving, height, entering)
            torch.bmm(entering, ends.mT, out=dks)
            scaled = take("scaled", count, size, head_dim)
            if decay_grad:
                entered = torch.mul(qs, dqs, out=scaled).sum(-1).view(height, chunks, size)
                left = torch.mul(ks, dks, out=scaled).sum(-1).view(height, chunks, size)
            dqs.baddbmm_(weights, ks)
            dks.baddbmm_(weights.mT, qs)
            products = torch.bmm(qs, ks.mT, out=take("products", count, size, size))
            if decay_grad:
                inside = weights.mul_(products).view(height, chunks, size, size)
                through = torch.mul(starts, ends, out=take("starts", *starts.shape)).sum((1, 2)).view(height, chunks)
                through *= factors.between.diagonal(-1, 1, 2)
                decay.add_gradient(piece, Crossed(inside, entered, left, through))
            products.view(height, chunks, size, size).mul_(factors.inside)
            _scale(ks, factors.leaving, height, scaled)
            torch.bmm(scaled, ends, out=dvs)
            dvs.baddbmm_(products.mT, gs)
            for written, whole in zip((dqs, dks, dvs), gradients, strict=True):
                workspace.store(written, whole, piece)
        dstate[block[0].rows] = carry


def _fake_forward(
    q: Tensor,
    _k: Tensor,
    v: Tensor,
    _log_decay: Tensor,
    _initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
    _scale: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(q.dtype)
    return (
        q.new_empty(*q.shape[:3], v.shape[3]),
        q.new_empty(_state_shape(q, v, cu_seqlens), dtype=wide),
        q.new_empty(_states_numel(q, v, cu_seqlens) if keep else 0, dtype=wide),
    )


def _fake_backward(
    _grad_output: Tensor,
    _grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    cu_seqlens: Tensor | None,
    _states: Tensor,
    _scale: float,
    decay_grad: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    ddecay = log_decay.new_empty(log_decay.shape) if decay_grad else q.new_empty(0, dtype=torch.float64)
    dstate = q.new_empty(_state_shape(q, v, cu_seqlens), dtype=_wide(q.dtype))
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), ddecay, dstate


decay_attention = differentiable(
    register(f"decay_attention_forward{FORWARD}", _run_forward, _fake_forward),
    register(
        f"decay_attention_backward{BACKWARD}", _run_backward, _fake_backward, backward_of="torch of decay_attention"
    ),
)
"""The chunked form; takes the arguments as the public function validated them."""
