"""Additive scores in Triton: what runs on the device for both pointer operators.

A program owns some keys or queries of one head, as wide as they are, and walks along the other side one by one: hidden
units stay in registers and are used for everything they are needed for. The gradients of the queries and those of the
keys are two walks, so that no two programs add to one place. ``ok`` flags say what takes part (uint8, None if
everything does), ``ends`` where the last one that does is.
"""

# ruff: noqa: N803 - constants of a Triton function are written in capitals
# Triton types arguments when it compiles, which a checker of Python cannot follow.
# mypy: disallow-untyped-defs=false, check-untyped-defs=false

import triton
import triton.language as tl

__all__ = ["key_gradients", "losses", "query_gradients", "scores"]

_NUMBERS = ["mask_batch", "mask_head", "mask_query", "mask_key", "heads", "queries", "keys", "head_dim"]


@triton.jit
def _tanh(x):
    power = tl.exp(-2 * tl.abs(x))  # never overflows
    value = (1 - power) / (1 + power)
    return tl.where(x < 0, -value, value)


@triton.jit
def _place(count, BLOCK: tl.constexpr):
    """Return the row of batch and head of this program, and what it owns of ``count``."""
    blocks = tl.cdiv(count, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    return row, (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _own(x, ok, row, at, count, column, head_dim):
    """Load what a program owns, in the wide dtype, zeros for what takes no part; and what does."""
    wide: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    inside = at < count
    if ok is not None:
        inside &= tl.load(ok + row * count + at, mask=inside, other=0) != 0
    where = inside[:, None] & (column < head_dim)[None, :]
    tile = tl.load(x + (row * count + at)[:, None] * head_dim + column[None, :], mask=where, other=0)
    return tile.to(wide), inside


@triton.jit
def _other(x, ok, row, at, count, column, head_dim):
    """Load one row of the other side, zeros if it takes no part; and whether it does."""
    wide: tl.constexpr = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    inside = column < head_dim
    part = at >= 0
    if ok is not None:
        part = tl.load(ok + row * count + at) != 0
        inside &= part
    return tl.load(x + (row * count + at) * head_dim + column, mask=inside, other=0).to(wide), part


@triton.jit
def _end(ends, row, count):
    end = count
    if ends is not None:
        end = tl.load(ends + row)
    return end


@triton.jit
def _masked(mask, allowed, row, heads, query, key, mask_batch, mask_head, mask_query, mask_key):
    """Return which pairs of a program are allowed by the mask as well; one of ``query`` and ``key`` is a number."""
    if mask is not None:
        base = mask + (row // heads) * mask_batch + (row % heads) * mask_head
        pairs = query.to(tl.int64) * mask_query + key.to(tl.int64) * mask_key
        allowed &= tl.load(base + pairs, mask=allowed, other=0) != 0
    return allowed


@triton.jit
def _weight(weight, row, heads, column, head_dim):
    return tl.load(weight + (row % heads) * head_dim + column, mask=column < head_dim, other=0)


@triton.jit
def _logits(hidden, weight, clip):
    """Return the logits of a program's pairs."""
    logits = tl.sum(hidden * weight[None, :], 1)
    if clip is not None:
        logits = tl.load(clip) * _tanh(logits)
    return logits


@triton.jit(do_not_specialize=_NUMBERS)
def scores(
    q, k, weight, query_ok, key_ok, query_ends, mask, clip, logits,
    mask_batch, mask_head, mask_query, mask_key, heads, queries, keys, head_dim,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Own keys, walk along the queries, and write a piece of a row of logits for each."""
    row, at = _place(keys, BLOCK)
    column = tl.arange(0, BLOCK_D)
    w = _weight(weight, row, heads, column, head_dim)
    own, inside = _own(k, key_ok, row, at, keys, column, head_dim)
    for i in range(_end(query_ends, row, queries)):
        other, part = _other(q, query_ok, row, i, queries, column, head_dim)
        values = _logits(_tanh(own + other[None, :]), w, clip)
        allowed = _masked(mask, inside & part, row, heads, at * 0 + i, at, mask_batch, mask_head, mask_query, mask_key)
        values = tl.where(allowed, values, float("-inf"))
        tl.store(logits + (row * queries + i) * keys + at, values.to(logits.dtype.element_ty), mask=at < keys)


@triton.jit(do_not_specialize=_NUMBERS)
def losses(
    q, k, weight, targets, query_ok, key_ok, key_ends, mask, clip, total, chosen,
    mask_batch, mask_head, mask_query, mask_key, heads, queries, keys, head_dim,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Own queries, walk along the keys: the logarithm of the sum of exponentials, and the logit of the target."""
    row, at = _place(queries, BLOCK)
    column = tl.arange(0, BLOCK_D)
    w = _weight(weight, row, heads, column, head_dim)
    own, inside = _own(q, query_ok, row, at, queries, column, head_dim)
    target = tl.load(targets + row * queries + at, mask=inside, other=-1)
    largest = tl.full([BLOCK], float("-inf"), own.dtype)
    summed = tl.zeros_like(largest)
    right = largest
    for j in range(_end(key_ends, row, keys)):
        other, part = _other(k, key_ok, row, j, keys, column, head_dim)
        values = _logits(_tanh(own + other[None, :]), w, clip)
        allowed = _masked(mask, inside & part, row, heads, at, at * 0 + j, mask_batch, mask_head, mask_query, mask_key)
        values = tl.where(allowed, values, float("-inf"))
        right = tl.where(target == j, values, right)
        larger = tl.maximum(largest, values, propagate_nan=tl.PropagateNan.ALL)
        # Before the first allowed key both are −∞, whose difference would be NaN.
        base = tl.where(larger == float("-inf"), 0, larger)
        summed = summed * tl.exp(largest - base) + tl.exp(values - base)
        largest = larger
    summed = tl.where(largest == float("-inf"), 1, summed)
    tl.store(total + row * queries + at, largest + tl.log(summed), mask=at < queries)
    tl.store(chosen + row * queries + at, right, mask=at < queries)


@triton.jit
def _gradient(hidden, w, grad, target, total, key, allowed, clip):
    """Return the gradients of a program's logits before they are clipped: given, or those of a loss."""
    g = grad
    if target is not None or clip is not None:
        sums = tl.sum(hidden * w[None, :], 1)
        values = sums
        if clip is not None:
            bound = tl.load(clip)
            outer = _tanh(sums)
            values = bound * outer
        if target is not None:
            g = (tl.exp(values - total) - tl.where(target == key, 1.0, 0.0)) * grad
        if clip is not None:
            g = g * bound * (1 - outer * outer)
    return tl.where(allowed, g, 0)


@triton.jit(do_not_specialize=_NUMBERS)
def query_gradients(
    grad, q, k, weight, targets, total, query_ok, key_ok, key_ends, mask, clip, dq, dweight,
    mask_batch, mask_head, mask_query, mask_key, heads, queries, keys, head_dim,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Own queries, walk along the keys; ``dweight`` (programs, D) is summed over programs afterwards."""
    row, at = _place(queries, BLOCK)
    column = tl.arange(0, BLOCK_D)
    w = _weight(weight, row, heads, column, head_dim)
    own, inside = _own(q, query_ok, row, at, queries, column, head_dim)
    target, of_sums = None, None
    if targets is not None:
        target = tl.load(targets + row * queries + at, mask=inside, other=-1)
        of_sums = tl.load(total + row * queries + at, mask=inside, other=0)
        of_losses = tl.load(grad + row * queries + at, mask=inside, other=0).to(own.dtype)
    mine, for_weight = tl.zeros_like(own), tl.zeros_like(own)
    for j in range(_end(key_ends, row, keys)):
        other, part = _other(k, key_ok, row, j, keys, column, head_dim)
        hidden = _tanh(own + other[None, :])
        allowed = _masked(mask, inside & part, row, heads, at, at * 0 + j, mask_batch, mask_head, mask_query, mask_key)
        if targets is not None:
            given = of_losses
        else:
            given = tl.load(grad + (row * queries + at) * keys + j, mask=allowed, other=0).to(own.dtype)
        g = _gradient(hidden, w, given, target, of_sums, j, allowed, clip)
        mine += g[:, None] * (1 - hidden * hidden)
        for_weight += g[:, None] * hidden
    where = (at < queries)[:, None] & (column < head_dim)[None, :]
    places = (row * queries + at)[:, None] * head_dim + column[None, :]
    tl.store(dq + places, (mine * w[None, :]).to(dq.dtype.element_ty), mask=where)
    program = tl.program_id(0).to(tl.int64)
    tl.store(dweight + program * head_dim + column, tl.sum(for_weight, 0), mask=column < head_dim)


@triton.jit(do_not_specialize=_NUMBERS)
def key_gradients(
    grad, q, k, weight, targets, total, query_ok, key_ok, query_ends, mask, clip, dk,
    mask_batch, mask_head, mask_query, mask_key, heads, queries, keys, head_dim,
    BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Own keys, walk along the queries."""
    row, at = _place(keys, BLOCK)
    column = tl.arange(0, BLOCK_D)
    w = _weight(weight, row, heads, column, head_dim)
    own, inside = _own(k, key_ok, row, at, keys, column, head_dim)
    mine = tl.zeros_like(own)
    for i in range(_end(query_ends, row, queries)):
        other, part = _other(q, query_ok, row, i, queries, column, head_dim)
        hidden = _tanh(own + other[None, :])
        allowed = _masked(mask, inside & part, row, heads, at * 0 + i, at, mask_batch, mask_head, mask_query, mask_key)
        target, of_sums = None, None
        if targets is not None:
            target = tl.load(targets + row * queries + i)
            of_sums = tl.where(part, tl.load(total + row * queries + i), 0)  # −∞ where nothing is attended
            given = tl.load(grad + row * queries + i).to(own.dtype)
        else:
            given = tl.load(grad + (row * queries + i) * keys + at, mask=allowed, other=0).to(own.dtype)
        g = _gradient(hidden, w, given, target, of_sums, at, allowed, clip)
        mine += g[:, None] * (1 - hidden * hidden)
    where = (at < keys)[:, None] & (column < head_dim)[None, :]
    places = (row * keys + at)[:, None] * head_dim + column[None, :]
    tl.store(dk + places, (mine * w[None, :]).to(dk.dtype.element_ty), mask=where)
