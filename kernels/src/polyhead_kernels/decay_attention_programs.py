"""Linear attention with decay in Triton: what runs on the device. ``decay_attention`` beside this launches it.

Widths are cut into blocks and masked, so that any head_dim is served. A decay over several tokens is a sum of log
decays that is added up for itself: a difference of sums from the start would lose digits, and be NaN at −∞. Strides are
in units of UNIT elements, so that the compiler knows of their alignment. ``g`` is the gradient of the output.
"""

# ruff: noqa: N803 - constants of a Triton function are written in capitals
# Triton types arguments when it compiles, which a checker of Python cannot follow.
# mypy: disallow-untyped-defs=false, check-untyped-defs=false

import triton
import triton.language as tl

__all__ = ["chunk_gradients", "chunk_outputs", "chunk_state_gradients", "chunk_states", "chunk_value_gradients"]

FORGET = tl.constexpr(-1000.0)
"""A log decay whose exponential is zero in every dtype; −∞ times no step would be NaN."""


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    """Return a @ b of one operand in the call's dtype and one in the wide one.

    In bfloat16 both are multiplied in it. Float16 is too narrow for states, so there both are multiplied in tf32, which
    has as many digits.
    """
    if a.dtype == tl.bfloat16 or b.dtype == tl.bfloat16:
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif a.dtype == tl.float16 or b.dtype == tl.float16:
        product = tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="tf32")
    else:
        product = tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)
    return product


@triton.jit
def _pairs(a, b, PRECISION: tl.constexpr):
    """Return a @ b.T of two tiles in the call's dtype, (CHUNK, ·) each."""
    wide: tl.constexpr = tl.float64 if a.dtype == tl.float64 else tl.float32
    return tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=wide)


@triton.jit
def _tile(x, stride, count, column, columns, CHUNK: tl.constexpr):
    """Load (CHUNK, BLOCK) from the first token and column on; zeros past ``count`` tokens and ``columns``."""
    token = tl.arange(0, CHUNK)
    inside = (token < count)[:, None] & (column < columns)[None, :]
    return tl.load(x + token[:, None] * stride + column[None, :], mask=inside, other=0)


@triton.jit
def _store(x, stride, count, column, columns, value, CHUNK: tl.constexpr):
    """Write what ``_tile`` reads."""
    token = tl.arange(0, CHUNK)
    inside = (token < count)[:, None] & (column < columns)[None, :]
    tl.store(x + token[:, None] * stride + column[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def _clamped(log_decay):
    return tl.where(log_decay < FORGET, FORGET, log_decay)  # a NaN stays


@triton.jit
def _entering(decay, count, BY_TOKEN: tl.constexpr, CHUNK: tl.constexpr):
    """Return what is left of the state before the chunk when each query comes, and when the chunk ends."""
    token = tl.arange(0, CHUNK)
    if BY_TOKEN:
        steps = tl.load(decay + token, mask=token < count, other=0)
        before, all_steps = tl.cumsum(steps, 0), tl.sum(steps, 0)
    else:
        step = _clamped(tl.load(decay))
        before, all_steps = step * (token + 1), step * count
    return tl.exp(before), tl.exp(all_steps)


@triton.jit
def _leaving(decay, count, BY_TOKEN: tl.constexpr, CHUNK: tl.constexpr):
    """Return what is left of each key when the chunk ends."""
    token = tl.arange(0, CHUNK)
    if BY_TOKEN:
        following = tl.load(decay + token + 1, mask=token + 1 < count, other=0)
        after = tl.cumsum(following, 0, reverse=True)
    else:
        after = _clamped(tl.load(decay)) * tl.maximum(count - 1 - token, 0)
    return tl.exp(after)


@triton.jit
def _inside(decay, count, BY_TOKEN: tl.constexpr, CHUNK: tl.constexpr):
    """Return what is left of key j when query i comes, (CHUNK, CHUNK); 0 for j > i."""
    token = tl.arange(0, CHUNK)
    i, j = token[:, None], token[None, :]
    if BY_TOKEN:
        steps = tl.load(decay + token, mask=token < count, other=0)
        sums = tl.cumsum(tl.where(i > j, steps[:, None], 0), 0)
    else:
        sums = _clamped(tl.load(decay)) * tl.maximum(i - j, 0)
    return tl.where(i >= j, tl.exp(sums), 0)


@triton.jit
def _sequence(sequences, sequence, length, PACKED: tl.constexpr, CHUNK: tl.constexpr):
    """Return a sequence's row of the batch, first token (64 bits), end, and first chunk."""
    if PACKED:
        entry = sequences + 3 * sequence
        batch, start = sequence * 0, tl.load(entry).to(tl.int64)
        end, first = tl.load(entry + 1), tl.load(entry + 2)
    else:
        batch, start = sequence, sequence * 0
        end, first = length, sequence * tl.cdiv(length, CHUNK)
    return batch, start, end, first


@triton.jit
def _chunk(sequences, chunks, chunk, length, PACKED: tl.constexpr, CHUNK: tl.constexpr):
    """Return a chunk's row of the batch, first token, and number of tokens."""
    if PACKED:
        batch, begin = chunk * 0, tl.load(chunks + 2 * chunk + 1).to(tl.int64)
        end = tl.load(sequences + 3 * tl.load(chunks + 2 * chunk) + 1)
    else:
        per_row = tl.cdiv(length, CHUNK)
        batch, begin = chunk // per_row, chunk % per_row * CHUNK
        end = length
    return batch, begin, tl.minimum(end - begin, CHUNK).to(tl.int32)


@triton.jit
def _decay_of(log_decay, batch, head, token, heads, length, BY_TOKEN: tl.constexpr):
    """Return where the log decays from a token on begin, (B, H, S), or the head's only one."""
    if BY_TOKEN:
        log_decay += (batch * heads + head) * length + token
    else:
        log_decay += head
    return log_decay


@triton.jit(do_not_specialize=["k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token", "heads", "length"])
def chunk_states(
    k,
    v,
    log_decay,
    sequences,
    states,
    final,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    length,
    head_dim,
    value_dim,
    BY_TOKEN: tl.constexpr,
    PACKED: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the state before each chunk to (chunks, H, D, Dv); ``final`` holds the initial one and becomes the last."""
    row = tl.program_id(0).to(tl.int64)
    head = row % heads
    batch, start, end, first = _sequence(sequences, row // heads, length, PACKED, CHUNK)
    column_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    column_v = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    at = column_d[:, None] * value_dim + column_v[None, :]
    inside = (column_d < head_dim)[:, None] & (column_v < value_dim)[None, :]
    state = tl.load(final + row * head_dim * value_dim + at, mask=inside, other=0)
    for chunk in range(tl.cdiv(end - start, CHUNK)):
        tl.store(states + ((first + chunk) * heads + head) * head_dim * value_dim + at, state, mask=inside)
        begin = start + chunk * CHUNK
        count = tl.minimum(end - begin, CHUNK).to(tl.int32)
        decay = _decay_of(log_decay, batch, head, begin, heads, length, BY_TOKEN)
        k_here = k + UNIT * (batch * k_batch + head * k_head + begin * k_token)
        v_here = v + UNIT * (batch * v_batch + head * v_head + begin * v_token)
        keys = _tile(k_here, UNIT * k_token, count, column_d, head_dim, CHUNK)
        values = _tile(v_here, UNIT * v_token, count, column_v, value_dim, CHUNK)
        _, kept = _entering(decay, count, BY_TOKEN, CHUNK)
        leaving = _leaving(decay, count, BY_TOKEN, CHUNK)
        scaled = keys.to(state.dtype) * leaving[:, None]
        state = kept * state + _product(tl.trans(scaled), values, PRECISION)
    tl.store(final + row * head_dim * value_dim + at, state, mask=inside)


@triton.jit(
    do_not_specialize=[
        *("q_batch", "q_head", "q_token", "k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token"),
        *("heads", "length"),
    ]
)
def chunk_outputs(
    q,
    k,
    v,
    log_decay,
    sequences,
    chunks,
    states,
    output,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    length,
    head_dim,
    value_dim,
    scale,
    BY_TOKEN: tl.constexpr,
    PACKED: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the output, contiguous, from the states before the chunks."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    batch, begin, count = _chunk(sequences, chunks, program // heads, length, PACKED, CHUNK)
    column_v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    states += program * head_dim * value_dim
    q += UNIT * (batch * q_batch + head * q_head + begin * q_token)
    k += UNIT * (batch * k_batch + head * k_head + begin * k_token)
    v += UNIT * (batch * v_batch + head * v_head + begin * v_token)
    weights = tl.zeros((CHUNK, CHUNK), states.dtype.element_ty)
    rows = tl.zeros((CHUNK, BLOCK_V), states.dtype.element_ty)
    for left in range(0, head_dim, BLOCK_D):
        column_d = left + tl.arange(0, BLOCK_D)
        queries = _tile(q, UNIT * q_token, count, column_d, head_dim, CHUNK)
        keys = _tile(k, UNIT * k_token, count, column_d, head_dim, CHUNK)
        state = _tile(states, value_dim, head_dim - left, column_v, value_dim, BLOCK_D)
        states += BLOCK_D * value_dim
        weights += _pairs(queries, keys, PRECISION)
        rows += _product(queries, state, PRECISION)
    decay = _decay_of(log_decay, batch, head, begin, heads, length, BY_TOKEN)
    entering, _ = _entering(decay, count, BY_TOKEN, CHUNK)
    weights *= _inside(decay, count, BY_TOKEN, CHUNK)
    values = _tile(v, UNIT * v_token, count, column_v, value_dim, CHUNK)
    rows = scale * (rows * entering[:, None] + _product(weights, values, PRECISION))
    output += ((batch * heads + head) * length + begin) * value_dim
    _store(output, value_dim, count, column_v, value_dim, rows, CHUNK)


@triton.jit(do_not_specialize=["q_batch", "q_head", "q_token", "g_batch", "g_head", "g_token", "heads", "length"])
def chunk_state_gradients(
    q,
    g,
    log_decay,
    sequences,
    gradients,
    initial,
    q_batch,
    q_head,
    q_token,
    g_batch,
    g_head,
    g_token,
    heads,
    length,
    head_dim,
    value_dim,
    scale,
    BY_TOKEN: tl.constexpr,
    PACKED: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the gradient of the state behind each chunk; ``initial`` holds the final one's and becomes the first's."""
    row = tl.program_id(0).to(tl.int64)
    head = row % heads
    batch, start, end, first = _sequence(sequences, row // heads, length, PACKED, CHUNK)
    column_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    column_v = tl.program_id(2) * BLOCK_V + tl.arange(0, BLOCK_V)
    at = column_d[:, None] * value_dim + column_v[None, :]
    inside = (column_d < head_dim)[:, None] & (column_v < value_dim)[None, :]
    gradient = tl.load(initial + row * head_dim * value_dim + at, mask=inside, other=0)
    count_chunks = tl.cdiv(end - start, CHUNK)
    for back in range(count_chunks):
        chunk = count_chunks - 1 - back
        here = gradients + ((first + chunk) * heads + head) * head_dim * value_dim
        tl.store(here + at, gradient, mask=inside)
        begin = start + chunk * CHUNK
        count = tl.minimum(end - begin, CHUNK).to(tl.int32)
        decay = _decay_of(log_decay, batch, head, begin, heads, length, BY_TOKEN)
        q_here = q + UNIT * (batch * q_batch + head * q_head + begin * q_token)
        g_here = g + UNIT * (batch * g_batch + head * g_head + begin * g_token)
        queries = _tile(q_here, UNIT * q_token, count, column_d, head_dim, CHUNK)
        outer = _tile(g_here, UNIT * g_token, count, column_v, value_dim, CHUNK)
        entering, kept = _entering(decay, count, BY_TOKEN, CHUNK)
        scaled = queries.to(gradient.dtype) * (scale * entering)[:, None]
        gradient = kept * gradient + _product(tl.trans(scaled), outer, PRECISION)
    tl.store(initial + row * head_dim * value_dim + at, gradient, mask=inside)


@triton.jit(
    do_not_specialize=[
        *("q_batch", "q_head", "q_token", "k_batch", "k_head", "k_token", "v_batch", "v_head", "v_token"),
        *("g_batch", "g_head", "g_token", "heads", "length", "tokens"),
    ]
)
def chunk_gradients(
    q,
    k,
    v,
    g,
    log_decay,
    sequences,
    chunks,
    states,
    gradients,
    dq,
    dk,
    ddecay,
    q_batch,
    q_head,
    q_token,
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
    tokens,
    head_dim,
    value_dim,
    scale,
    DECAY_GRAD: tl.constexpr,
    BY_TOKEN: tl.constexpr,
    PACKED: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the gradients of q and k, and what each block of them adds to that of each token's log decay.

    The latter is a sum over the paths that cross the token: from a key before it or the chunk's start, to a query from
    it on or the chunk's end. ``tokens`` is B·H·S, what one block writes to ``ddecay``.
    """
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    batch, begin, count = _chunk(sequences, chunks, program // heads, length, PACKED, CHUNK)
    left = tl.program_id(1) * BLOCK_D
    column_d = left + tl.arange(0, BLOCK_D)
    offset = (program * head_dim + left) * value_dim
    states += offset
    gradients += offset
    q += UNIT * (batch * q_batch + head * q_head + begin * q_token)
    k += UNIT * (batch * k_batch + head * k_head + begin * k_token)
    v += UNIT * (batch * v_batch + head * v_head + begin * v_token)
    g += UNIT * (batch * g_batch + head * g_head + begin * g_token)
    weights = tl.zeros((CHUNK, CHUNK), states.dtype.element_ty)
    queries_grad = tl.zeros((CHUNK, BLOCK_D), states.dtype.element_ty)
    keys_grad = tl.zeros((CHUNK, BLOCK_D), states.dtype.element_ty)
    through = tl.zeros((BLOCK_D,), states.dtype.element_ty)
    for above in range(0, value_dim, BLOCK_V):
        column_v = above + tl.arange(0, BLOCK_V)
        values = _tile(v, UNIT * v_token, count, column_v, value_dim, CHUNK)
        outer = _tile(g, UNIT * g_token, count, column_v, value_dim, CHUNK)
        before = _tile(states, value_dim, head_dim - left, column_v, value_dim, BLOCK_D)
        behind = _tile(gradients, value_dim, head_dim - left, column_v, value_dim, BLOCK_D)
        weights += _pairs(outer, values, PRECISION)
        queries_grad += _product(outer, tl.trans(before), PRECISION)
        keys_grad += _product(values, tl.trans(behind), PRECISION)
        if DECAY_GRAD:
            through += tl.sum(before * behind, 1)
    queries = _tile(q, UNIT * q_token, count, column_d, head_dim, CHUNK)
    keys = _tile(k, UNIT * k_token, count, column_d, head_dim, CHUNK)
    decay = _decay_of(log_decay, batch, head, begin, heads, length, BY_TOKEN)
    entering, kept = _entering(decay, count, BY_TOKEN, CHUNK)
    queries_grad *= (scale * entering)[:, None]
    keys_grad *= _leaving(decay, count, BY_TOKEN, CHUNK)[:, None]
    weights *= scale * _inside(decay, count, BY_TOKEN, CHUNK)
    here = (batch * heads + head) * length + begin
    if DECAY_GRAD:
        token = tl.arange(0, CHUNK)
        i, j = token[:, None], token[None, :]
        crossing = tl.cumsum(weights * _pairs(queries, keys, PRECISION), 0, reverse=True)
        crossing += tl.sum(keys_grad * keys, 1)[None, :]
        entered = tl.sum(queries_grad * queries, 1)
        sums = tl.sum(tl.where(j < i, crossing, 0), 1) + tl.sum(tl.where(j >= i, entered[None, :], 0), 1)
        sums += kept * tl.sum(through, 0)
        tl.store(ddecay + tl.program_id(1) * tokens + here + token, sums, mask=token < count)
    queries_grad += _product(weights, keys, PRECISION)
    keys_grad += _product(tl.trans(weights), queries, PRECISION)
    _store(dq + here * head_dim, head_dim, count, column_d, head_dim, queries_grad, CHUNK)
    _store(dk + here * head_dim, head_dim, count, column_d, head_dim, keys_grad, CHUNK)


@triton.jit(
    do_not_specialize=[
        *("q_batch", "q_head", "q_token", "k_batch", "k_head", "k_token", "g_batch", "g_head", "g_token"),
        *("heads", "length"),
    ]
)
def chunk_value_gradients(
    q,
    k,
    g,
    log_decay,
    sequences,
    chunks,
    gradients,
    dv,
    q_batch,
    q_head,
    q_token,
    k_batch,
    k_head,
    k_token,
    g_batch,
    g_head,
    g_token,
    heads,
    length,
    head_dim,
    value_dim,
    scale,
    BY_TOKEN: tl.constexpr,
    PACKED: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Write the gradient of v."""
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    batch, begin, count = _chunk(sequences, chunks, program // heads, length, PACKED, CHUNK)
    column_v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    gradients += program * head_dim * value_dim
    q += UNIT * (batch * q_batch + head * q_head + begin * q_token)
    k += UNIT * (batch * k_batch + head * k_head + begin * k_token)
    g += UNIT * (batch * g_batch + head * g_head + begin * g_token)
    products = tl.zeros((CHUNK, CHUNK), gradients.dtype.element_ty)
    rows = tl.zeros((CHUNK, BLOCK_V), gradients.dtype.element_ty)
    for left in range(0, head_dim, BLOCK_D):
        column_d = left + tl.arange(0, BLOCK_D)
        queries = _tile(q, UNIT * q_token, count, column_d, head_dim, CHUNK)
        keys = _tile(k, UNIT * k_token, count, column_d, head_dim, CHUNK)
        behind = _tile(gradients, value_dim, head_dim - left, column_v, value_dim, BLOCK_D)
        gradients += BLOCK_D * value_dim
        products += _pairs(queries, keys, PRECISION)
        rows += _product(keys, behind, PRECISION)
    decay = _decay_of(log_decay, batch, head, begin, heads, length, BY_TOKEN)
    products *= scale * _inside(decay, count, BY_TOKEN, CHUNK)
    rows *= _leaving(decay, count, BY_TOKEN, CHUNK)[:, None]
    outer = _tile(g, UNIT * g_token, count, column_v, value_dim, CHUNK)
    rows += _product(tl.trans(products), outer, PRECISION)
    _store(
        dv + ((batch * heads + head) * length + begin) * value_dim, value_dim, count, column_v, value_dim, rows, CHUNK
    )
