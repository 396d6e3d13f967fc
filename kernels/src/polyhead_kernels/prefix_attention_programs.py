"""Attention over prefixes in Triton: what runs on the device. ``prefix_attention`` beside this launches it.

``tokens`` holds the logarithms of what each token weighs in its chunk's last prefix, −∞ where a key is masked, and
``prefixes`` those of each prefix in the same measure, ∞ where it is empty: a difference of the two is at most 0, and
its exponential is exactly 0 where nothing may be seen. Rows are batch times heads. Strides are in units of UNIT
elements, so that the compiler knows of their alignment. ``g`` is the gradient of the output.
"""

# ruff: noqa: N803 - constants of a Triton function are written in capitals
# Triton types arguments when it compiles, which a checker of Python cannot follow.
# mypy: disallow-untyped-defs=false, check-untyped-defs=false

import triton
import triton.language as tl

__all__ = ["chunk_gradient_sums", "chunk_gradients", "chunk_logits", "chunk_outputs", "chunk_sums", "chunk_walk"]


@triton.jit
def _tile(x, stride, real, column, columns, CHUNK: tl.constexpr):
    """Load (CHUNK, BLOCK); zeros where a token is not real, or past the last column."""
    token = tl.arange(0, CHUNK)
    inside = real[:, None] & (column < columns)[None, :]
    return tl.load(x + token[:, None] * stride + column[None, :], mask=inside, other=0)


@triton.jit
def _store(x, stride, count, column, columns, value, CHUNK: tl.constexpr):
    """Write (CHUNK, BLOCK) of the first ``count`` tokens."""
    token = tl.arange(0, CHUNK)
    inside = (token < count)[:, None] & (column < columns)[None, :]
    tl.store(x + token[:, None] * stride + column[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _line(x, count, fill, CHUNK: tl.constexpr):
    """Load a number for each token, ``fill`` past the last one."""
    token = tl.arange(0, CHUNK)
    return tl.load(x + token, mask=token < count, other=fill)


@triton.jit
def _place(length, CHUNK: tl.constexpr):
    """Return a program's row, chunk, first token (all 64 bits), and number of tokens."""
    chunks = tl.cdiv(length, CHUNK)
    row, chunk = tl.program_id(0).to(tl.int64) // chunks, tl.program_id(0).to(tl.int64) % chunks
    begin = chunk * CHUNK
    return row, chunk, begin, tl.minimum(length - begin, CHUNK).to(tl.int32)


@triton.jit
def _weights(tokens, prefixes, CHUNK: tl.constexpr):
    """Return what token j weighs in the prefix of token i, (CHUNK, CHUNK); 0 for j > i."""
    place = tl.arange(0, CHUNK)
    seen = place[:, None] >= place[None, :]
    return tl.exp(tl.where(seen, tokens[None, :] - prefixes[:, None], float("-inf")))


@triton.jit
def _weights_transposed(tokens, prefixes, CHUNK: tl.constexpr):
    """Return the transpose of ``_weights``."""
    place = tl.arange(0, CHUNK)
    seen = place[:, None] <= place[None, :]
    return tl.exp(tl.where(seen, tokens[:, None] - prefixes[None, :], float("-inf")))


@triton.jit(do_not_specialize=["k_batch", "k_head", "k_token", "heads", "length"])
def chunk_logits(
    q,
    k,
    key_mask,
    logits,
    k_batch,
    k_head,
    k_token,
    heads,
    length,
    head_dim,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write q·k, −∞ where a key is masked; scale is in q."""
    row, _, begin, count = _place(length, CHUNK)
    batch, head = row // heads, row % heads
    token = tl.arange(0, CHUNK)
    real = token < count
    if key_mask is not None:
        real = real & (tl.load(key_mask + batch * length + begin + token, mask=real, other=0) != 0)
    k += UNIT * (batch * k_batch + head * k_head + begin * k_token)
    total = tl.zeros((CHUNK,), logits.dtype.element_ty)
    for left in range(0, head_dim, BLOCK_D):
        column = left + tl.arange(0, BLOCK_D)
        query = tl.load(q + row * head_dim + column, mask=column < head_dim, other=0)
        keys = _tile(k, UNIT * k_token, real, column, head_dim, CHUNK)
        total += tl.sum(keys.to(total.dtype) * query[None, :], 1)
    total = tl.where(real, total, float("-inf"))
    tl.store(logits + row * length + begin + token, total, mask=token < count)


@triton.jit(do_not_specialize=["v_batch", "v_head", "v_token", "heads", "length"])
def chunk_sums(
    v,
    tokens,
    means,
    v_batch,
    v_head,
    v_token,
    heads,
    length,
    value_dim,
    UNIT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write what each chunk adds to the mean at its end to (rows, chunks + 1, Dv), from the second place on."""
    row, chunk, begin, count = _place(length, CHUNK)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    here = _line(tokens + row * length + begin, count, float("-inf"), CHUNK)
    v += UNIT * (row // heads * v_batch + row % heads * v_head + begin * v_token)
    values = _tile(v, UNIT * v_token, here != float("-inf"), column, value_dim, CHUNK)
    added = tl.sum(values.to(here.dtype) * tl.exp(here)[:, None], 0)
    at = (row * (tl.cdiv(length, CHUNK) + 1) + chunk + 1) * value_dim + column
    tl.store(means + at, added, mask=column < value_dim)


@triton.jit(do_not_specialize=["chunks", "width"])
def chunk_walk(carried, kept, chunks, width, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    """Add to each of (rows, chunks + 1, width) what is kept of the one before; or from the end of the one behind."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    carried += row * (chunks + 1) * width + column
    kept += row * chunks
    if REVERSE:
        carried += chunks.to(tl.int64) * width
    value = tl.load(carried, mask=inside, other=0)
    for step in range(chunks):
        if REVERSE:
            carried -= width
            value *= tl.load(kept + chunks - 1 - step)
        else:
            carried += width
            value *= tl.load(kept + step)
        value += tl.load(carried, mask=inside, other=0)
        tl.store(carried, value, mask=inside)


@triton.jit(do_not_specialize=["v_batch", "v_head", "v_token", "heads", "length"])
def chunk_outputs(
    v,
    tokens,
    prefixes,
    entering,
    means,
    output,
    v_batch,
    v_head,
    v_token,
    heads,
    length,
    value_dim,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the output, contiguous, from the means before the chunks."""
    row, chunk, begin, count = _place(length, CHUNK)
    column = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    first = row * length + begin
    here = _line(tokens + first, count, float("-inf"), CHUNK)
    weights = _weights(here, _line(prefixes + first, count, float("inf"), CHUNK), CHUNK)
    v += UNIT * (row // heads * v_batch + row % heads * v_head + begin * v_token)
    values = _tile(v, UNIT * v_token, here != float("-inf"), column, value_dim, CHUNK)
    before = means + (row * (tl.cdiv(length, CHUNK) + 1) + chunk) * value_dim + column
    mean = tl.load(before, mask=column < value_dim, other=0)
    rows = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION, out_dtype=here.dtype)
    rows += _line(entering + first, count, 0, CHUNK)[:, None] * mean[None, :]
    _store(output + first * value_dim, value_dim, count, column, value_dim, rows, CHUNK)


@triton.jit(
    do_not_specialize=["v_batch", "v_head", "v_token", "g_batch", "g_head", "g_token", "heads", "length"],
)
def chunk_gradient_sums(
    v,
    g,
    tokens,
    prefixes,
    entering,
    means,
    dlogits,
    carried,
    v_batch,
    v_head,
    v_token,
    g_batch,
    g_head,
    g_token,
    heads,
    length,
    value_dim,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write what each chunk adds to the gradient before it, and the logits' gradients from inside of their chunk.

    The gradient before a chunk is (rows, chunks + 1, Dv + 1): g, and <output, g>, of all that comes later.
    """
    row, chunk, begin, count = _place(length, CHUNK)
    batch, head = row // heads, row % heads
    first = row * length + begin
    here = _line(tokens + first, count, float("-inf"), CHUNK)
    there = tl.arange(0, CHUNK) < count
    weights = _weights(here, _line(prefixes + first, count, float("inf"), CHUNK), CHUNK)
    share = _line(entering + first, count, 0, CHUNK)
    place = row * (tl.cdiv(length, CHUNK) + 1) + chunk
    v += UNIT * (batch * v_batch + head * v_head + begin * v_token)
    g += UNIT * (batch * g_batch + head * g_head + begin * g_token)
    pairs = tl.zeros((CHUNK, CHUNK), here.dtype)
    along = tl.zeros((CHUNK,), here.dtype)
    for left in range(0, value_dim, BLOCK_V):
        column = left + tl.arange(0, BLOCK_V)
        inside = column < value_dim
        values = _tile(v, UNIT * v_token, here != float("-inf"), column, value_dim, CHUNK)
        gradients = _tile(g, UNIT * g_token, there, column, value_dim, CHUNK)
        pairs += tl.dot(gradients, tl.trans(values), input_precision=PRECISION, out_dtype=here.dtype)
        mean = tl.load(means + place * value_dim + column, mask=inside, other=0)
        gradients = gradients.to(here.dtype)
        along += tl.sum(gradients * mean[None, :], 1)
        added = tl.sum(gradients * share[:, None], 0)
        tl.store(carried + place * (value_dim + 1) + column, added, mask=inside)
    pairs *= weights
    along = share * along + tl.sum(pairs, 1)
    tl.store(carried + place * (value_dim + 1) + value_dim, tl.sum(share * along, 0))
    inner = tl.sum(pairs - weights * along[:, None], 0)
    tl.store(dlogits + first + tl.arange(0, CHUNK), inner, mask=there)


@triton.jit(
    do_not_specialize=[
        *("k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token", "g_batch", "g_head", "g_token"),
        *("heads", "length"),
    ]
)
def chunk_gradients(
    q,
    k,
    v,
    g,
    tokens,
    prefixes,
    dlogits,
    carried,
    dk,
    dv,
    dq,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    g_batch,
    g_head,
    g_token,
    heads,
    length,
    head_dim,
    value_dim,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the gradients of k and v, contiguous, and of q by chunks, (rows, chunks, D); scale is in q."""
    row, chunk, begin, count = _place(length, CHUNK)
    batch, head = row // heads, row % heads
    chunks = tl.cdiv(length, CHUNK)
    first = row * length + begin
    here = _line(tokens + first, count, float("-inf"), CHUNK)
    real = here != float("-inf")
    there = tl.arange(0, CHUNK) < count
    weights = _weights_transposed(here, _line(prefixes + first, count, float("inf"), CHUNK), CHUNK)
    leaving = tl.exp(here)
    k += UNIT * (batch * k_batch + head * k_head + begin * k_token)
    v += UNIT * (batch * v_batch + head * v_head + begin * v_token)
    g += UNIT * (batch * g_batch + head * g_head + begin * g_token)
    behind = carried + (row * (chunks + 1) + chunk + 1) * (value_dim + 1)
    outer = tl.zeros((CHUNK,), here.dtype) - tl.load(behind + value_dim)
    for left in range(0, value_dim, BLOCK_V):
        column = left + tl.arange(0, BLOCK_V)
        gradients = _tile(g, UNIT * g_token, there, column, value_dim, CHUNK)
        values = _tile(v, UNIT * v_token, real, column, value_dim, CHUNK)
        later = tl.load(behind + column, mask=column < value_dim, other=0)
        outer += tl.sum(values.to(here.dtype) * later[None, :], 1)
        rows = tl.dot(weights.to(gradients.dtype), gradients, input_precision=PRECISION, out_dtype=here.dtype)
        rows += leaving[:, None] * later[None, :]
        _store(dv + first * value_dim, value_dim, count, column, value_dim, rows, CHUNK)
    slopes = _line(dlogits + first, count, 0, CHUNK) + leaving * outer
    for left in range(0, head_dim, BLOCK_D):
        column = left + tl.arange(0, BLOCK_D)
        inside = column < head_dim
        query = tl.load(q + row * head_dim + column, mask=inside, other=0)
        _store(dk + first * head_dim, head_dim, count, column, head_dim, slopes[:, None] * query[None, :], CHUNK)
        keys = _tile(k, UNIT * k_token, real, column, head_dim, CHUNK).to(here.dtype)
        tl.store(dq + (row * chunks + chunk) * head_dim + column, tl.sum(keys * slopes[:, None], 0), mask=inside)
