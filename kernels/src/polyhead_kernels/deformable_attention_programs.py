"""Multi-scale deformable attention in Triton: what runs on the device. ``deformable_attention`` launches it.

A program takes a block of queries of one head through all samples. ``levels`` holds height, width and first pixel of
each level. A sample at x, y in pixels reads the four pixels around it; one that reads none is moved to a place where it
reads nothing, so that no number is converted that has no integer. ``g`` is the gradient of the output.
"""

# ruff: noqa: N803 - constants of a Triton function are written in capitals
# Triton types arguments when it compiles, which a checker of Python cannot follow.
# mypy: disallow-untyped-defs=false, check-untyped-defs=false

import triton
import triton.language as tl

__all__ = ["sample_backward", "sample_forward"]


@triton.jit
def _sample(locations, weights, at, inside, height, width):
    """Return x and y in pixels, the weight, and whether any pixel is read; zeros if none is."""
    x = tl.load(locations + 2 * at, mask=inside, other=0)
    y = tl.load(locations + 2 * at + 1, mask=inside, other=0)
    weight = tl.load(weights + at, mask=inside, other=0)
    # An empty map has no pixel to be read, wherever a sample is; infinity times its width would be no number.
    x = x * tl.maximum(width, 1).to(x.dtype) - 0.5
    y = y * tl.maximum(height, 1).to(y.dtype) - 0.5
    near = inside & (x >= -1) & (x < width) & (y >= -1) & (y < height)  # of NaN, nothing holds
    return tl.where(near, x, 0), tl.where(near, y, 0), tl.where(near, weight, 0), near


@triton.jit
def _pixel(x, y, near, height, width, BELOW: tl.constexpr, RIGHT: tl.constexpr):
    """Return one of the four pixels around a sample, whether it is in the map, and its share along y and along x."""
    left, top = tl.floor(x), tl.floor(y)
    column, row = left.to(tl.int32) + RIGHT, top.to(tl.int32) + BELOW
    read = near & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    share_x = x - left if RIGHT else 1 - (x - left)
    share_y = y - top if BELOW else 1 - (y - top)
    return row * width + column, read, share_y, share_x


@triton.jit
def _place(heads, queries, BLOCK_Q: tl.constexpr):
    """Return the row of the batch, the head and the queries of this program."""
    program = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(queries, BLOCK_Q)
    row = program // blocks
    return row // heads, row % heads, program % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)


@triton.jit(
    do_not_specialize=[
        *("v_batch", "v_head", "v_pixel", "l_batch", "l_head", "l_query", "w_batch", "w_head", "w_query"),
        *("heads", "queries", "level_count", "points"),
    ]
)
def sample_forward(
    value,
    locations,
    weights,
    levels,
    output,
    v_batch,
    v_head,
    v_pixel,
    l_batch,
    l_head,
    l_query,
    w_batch,
    w_head,
    w_query,
    heads,
    queries,
    level_count,
    points,
    head_dim,
    UNIT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the output, (B, Q, H, D) in memory."""
    batch, head, query = _place(heads, queries, BLOCK_Q)
    inside = query < queries
    dim = tl.arange(0, BLOCK_D)
    wanted = dim < head_dim
    value += UNIT * (batch * v_batch + head * v_head)
    locations += batch * l_batch + head * l_head + query * l_query
    weights += batch * w_batch + head * w_head + query * w_query
    sums = tl.zeros((BLOCK_Q, BLOCK_D), weights.dtype.element_ty)
    for level in range(level_count):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        first = tl.load(levels + 3 * level + 2).to(tl.int64)
        for point in range(points):
            x, y, weight, near = _sample(locations, weights, level * points + point, inside, height, width)
            for corner in tl.static_range(4):
                pixel, read, share_y, share_x = _pixel(x, y, near, height, width, corner // 2, corner % 2)
                at = UNIT * ((first + pixel) * v_pixel)
                rows = tl.load(value + at[:, None] + dim[None, :], mask=read[:, None] & wanted[None, :], other=0)
                sums += (weight * share_y * share_x)[:, None] * rows.to(sums.dtype)
    at = ((batch * queries + query) * heads + head) * head_dim
    mask = inside[:, None] & wanted[None, :]
    tl.store(output + at[:, None] + dim[None, :], sums.to(output.dtype.element_ty), mask=mask)


@triton.jit(
    do_not_specialize=[
        *("v_batch", "v_head", "v_pixel", "l_batch", "l_head", "l_query", "w_batch", "w_head", "w_query"),
        *("g_batch", "g_head", "g_query", "dv_batch", "dv_head", "dv_pixel"),
        *("dl_batch", "dl_head", "dl_query", "dw_batch", "dw_head", "dw_query"),
        *("heads", "queries", "level_count", "points"),
    ]
)
def sample_backward(
    value,
    locations,
    weights,
    levels,
    g,
    dvalue,
    dlocations,
    dweights,
    v_batch,
    v_head,
    v_pixel,
    l_batch,
    l_head,
    l_query,
    w_batch,
    w_head,
    w_query,
    g_batch,
    g_head,
    g_query,
    dv_batch,
    dv_head,
    dv_pixel,
    dl_batch,
    dl_head,
    dl_query,
    dw_batch,
    dw_head,
    dw_query,
    heads,
    queries,
    level_count,
    points,
    head_dim,
    UNIT: tl.constexpr,
    SAMPLES: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Write the gradients of locations and weights (SAMPLES); add that of value to what is there (PIXELS)."""
    batch, head, query = _place(heads, queries, BLOCK_Q)
    inside = query < queries
    dim = tl.arange(0, BLOCK_D)
    wanted = dim < head_dim
    locations += batch * l_batch + head * l_head + query * l_query
    weights += batch * w_batch + head * w_head + query * w_query
    at = UNIT * (batch * g_batch + head * g_head + query * g_query)
    outer = tl.load(g + at[:, None] + dim[None, :], mask=inside[:, None] & wanted[None, :], other=0)
    outer = outer.to(weights.dtype.element_ty)
    for level in range(level_count):
        height, width = tl.load(levels + 3 * level), tl.load(levels + 3 * level + 1)
        first = tl.load(levels + 3 * level + 2).to(tl.int64)
        for point in range(points):
            sample = level * points + point
            x, y, weight, near = _sample(locations, weights, sample, inside, height, width)
            by_weight = tl.zeros((BLOCK_Q,), outer.dtype)
            by_x = tl.zeros((BLOCK_Q,), outer.dtype)
            by_y = tl.zeros((BLOCK_Q,), outer.dtype)
            for corner in tl.static_range(4):
                pixel, read, share_y, share_x = _pixel(x, y, near, height, width, corner // 2, corner % 2)
                mask = read[:, None] & wanted[None, :]
                if SAMPLES:
                    at = UNIT * (batch * v_batch + head * v_head + (first + pixel) * v_pixel)
                    rows = tl.load(value + at[:, None] + dim[None, :], mask=mask, other=0)
                    product = tl.where(read, tl.sum(rows.to(outer.dtype) * outer, 1), 0)
                    by_weight += product * share_y * share_x
                    by_x += product * share_y * (2 * (corner % 2) - 1)
                    by_y += product * share_x * (2 * (corner // 2) - 1)
                if PIXELS:
                    at = batch * dv_batch + head * dv_head + (first + pixel) * dv_pixel
                    added = (weight * share_y * share_x)[:, None] * outer
                    tl.atomic_add(dvalue + at[:, None] + dim[None, :], added, mask=mask, sem="relaxed")
            if SAMPLES:
                target = dweights + batch * dw_batch + head * dw_head + query * dw_query + sample
                tl.store(target, by_weight, mask=inside)
                target = dlocations + batch * dl_batch + head * dl_head + query * dl_query + 2 * sample
                tl.store(target, weight * by_x * width.to(weight.dtype), mask=inside)
                tl.store(target + 1, weight * by_y * height.to(weight.dtype), mask=inside)
