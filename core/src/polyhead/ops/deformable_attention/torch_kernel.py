"""Multi-scale deformable attention as bags of rows: ``embedding_bag`` forward, and backward over sorted pixels.

Forward, a block of queries at a time, each query and head is one bag of 4·L·P weighted rows. Backward, the gradients of
samples are dot products with the rows that they read; the gradient of a pixel is a bag, too, of the output gradients of
the samples that read it, found by sorting. Nothing is added up in an order that depends on threads.
docs/operators/deformable_attention.md has the mathematics.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.deformable_attention.gradients import (
    BACKWARD,
    FORWARD,
    differentiable,
    fake_backward,
    fake_forward,
)
from polyhead.ops.deformable_attention.windows import Rows, Window, Windows, wide_of
from polyhead.ops.library import register

__all__ = ["deformable_attention", "value_gradients"]

SAMPLES = {"cpu": 2**16}
"""Samples at once by device type: what they need stays in the cache of a processor, and is enough for its threads."""
SAMPLES_BACKWARD = {"cpu": 2**15}
SAMPLES_SORTED = {"cpu": 2**18}
SAMPLES_ELSEWHERE = 2**20
"""Where launches cost more than memory traffic."""
GATHERED = {"cpu": 2**19}
"""Numbers of rows gathered at once by device type."""
GATHERED_ELSEWHERE = 2**26


def _blocks(locations: Tensor, samples: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield first and last row of the batch, first and last query of locations (B, H, Q, L, P, 2)."""
    batch, heads, queries, levels, points = locations.shape[:5]
    each = heads * levels * points
    height = min(max(samples // (queries * each), 1), batch)
    width = min(max(samples // each, 1), queries)
    for first in range(0, batch, height):
        for start in range(0, queries, width):
            yield first, min(first + height, batch), start, min(start + width, queries)


def _is_empty(value: Tensor, locations: Tensor) -> bool:
    return 0 in (value.numel(), locations.numel())


def _finite(*tensors: Tensor) -> bool:
    """Return whether sums say that all numbers are finite; on other devices, where asking makes them wait, never."""
    return tensors[0].device.type == "cpu" and all(bool(x.sum().isfinite()) for x in tensors)


def _gathered(table: Tensor, index: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of the table that an index (rows, 4·L·P) names, as (some rows, 4·L·P, D) in the same memory."""
    rows, count = index.shape
    room = GATHERED.get(table.device.type, GATHERED_ELSEWHERE)
    height = min(max(room // (count * table.shape[1]), 1), rows)
    buffer = table.new_empty(height * count, table.shape[1])
    for first in range(0, rows, height):
        part = slice(first, min(first + height, rows))
        wanted = index[part].flatten()
        read = torch.index_select(table, 0, wanted, out=buffer[: wanted.numel()])
        yield part, read.view(-1, count, table.shape[1])


def _run_forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    output = fake_forward(value, locations, weights, sizes)
    if _is_empty(value, locations):
        return output.zero_()
    samples = locations.shape[3] * locations.shape[4]
    rows = Rows(value, wide_of(value.dtype))
    windows = Windows(sizes, locations.shape[4], (rows.batch, rows.head, rows.pixel), value)
    table, held = value, (-1, -1)
    for first, last, start, end in _blocks(locations, SAMPLES.get(value.device.type, SAMPLES_ELSEWHERE)):
        if held != (first, last):
            table, held = rows.table(first, last), (first, last)
        window = windows.find(locations[first:last, :, start:end].transpose(1, 2))
        scale = weights[first:last, :, start:end].transpose(1, 2).reshape(-1, 1, samples)
        # The window's memory for ``near`` is free to take the weights along.
        upright = window.near[:, 1].mul_(scale)
        share = torch.mul(
            upright.unsqueeze(2), window.near[:, 0].unsqueeze(1), out=windows.floats.take("share", *window.near.shape)
        )
        index, share = window.rows.flatten(1), share.flatten(1)
        sums = F.embedding_bag(index, table, mode="sum", per_sample_weights=share)
        if not _finite(sums):
            touched = window.touched().flatten(1)
            share.masked_fill_(~touched, 0)
            for part, read in _gathered(table, index):
                read.masked_fill_(~touched[part].unsqueeze(-1), 0)
                torch.sum(read.mul_(share[part].unsqueeze(-1)), 1, out=sums[part])
        target = output[first:last, :, start:end].transpose(1, 2)
        target.copy_(sums.view(target.shape))
    return output


def _run_backward(
    grad_output: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    sizes: list[int],
    deterministic: bool,
    value_grad: bool,
    sample_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    gradients = fake_backward(grad_output, value, locations, weights, sizes, deterministic, value_grad, sample_grad)
    if _is_empty(value, locations):
        for x in gradients:
            x.zero_()
        return gradients
    dvalue, dlocations, dweights = gradients
    if sample_grad:
        _sample_gradients(grad_output, value, locations, weights, sizes, dlocations, dweights)
    if value_grad:
        value_gradients(grad_output, locations, weights, sizes, dvalue)
    return gradients


def _sample_gradients(
    grad_output: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    sizes: list[int],
    dlocations: Tensor,
    dweights: Tensor,
) -> None:
    """Write the gradients of locations and weights."""
    wide = wide_of(value.dtype)
    samples = locations.shape[3] * locations.shape[4]
    rows = Rows(value, wide)
    windows = Windows(sizes, locations.shape[4], (rows.batch, rows.head, rows.pixel), value)
    take = windows.floats.take
    table, held = value, (-1, -1)
    for first, last, start, end in _blocks(locations, SAMPLES_BACKWARD.get(value.device.type, SAMPLES_ELSEWHERE)):
        if held != (first, last):
            table, held = rows.table(first, last), (first, last)
        given = locations[first:last, :, start:end].transpose(1, 2)
        window = windows.find(given)
        scale = weights[first:last, :, start:end].transpose(1, 2).reshape(-1, samples).to(wide)
        outer = grad_output[first:last, :, start:end].transpose(1, 2).reshape(-1, 1, value.shape[3]).to(wide)
        count = scale.shape[0]
        products = take("products", count, 4 * samples)
        for part, read in _gathered(table, window.rows.flatten(1)):
            torch.sum(read.mul_(outer[part]), 2, out=products[part])
        products = products.view(count, 2, 2, samples)
        slope = _slope(window, take("at below", *window.near.shape), take("at here", *window.near.shape))
        found = take("location", count, 2, samples), take("weight", count, samples)
        _contract(products, window, slope, scale, take("product", *products.shape), found)
        if not _finite(*found):
            touched = window.touched()
            products.masked_fill_(~touched, 0)
            _contract(products, window, slope, scale, take("product", *products.shape), found)
            unread = ~touched.flatten(1, 2).any(1)
            found[0].masked_fill_(unread.unsqueeze(1), 0)
            found[1].masked_fill_(unread, 0)
        found[0].mul_(windows.extents)
        target = dlocations[first:last, :, start:end].transpose(1, 2)
        target.copy_(found[0].mT.reshape(target.shape))
        target = dweights[first:last, :, start:end].transpose(1, 2)
        target.copy_(found[1].view(target.shape))


def _slope(window: Window, before: Tensor, behind: Tensor) -> Tensor:
    """Return the derivative of the window's ``near`` by the location, to the right at kinks."""
    cell = torch.floor(window.distance, out=window.distance)
    torch.eq(cell, -1, out=before)
    return before.sub_(torch.eq(cell, 0, out=behind))


def _contract(
    products: Tensor, window: Window, slope: Tensor, scale: Tensor, buffer: Tensor, found: tuple[Tensor, Tensor]
) -> None:
    """Write the gradients of samples, in pixels, from the products with the four rows that each one reads."""
    by_location, by_weight = found
    near_x, near_y = window.near[:, 0], window.near[:, 1]
    rows = torch.mul(products, near_x.unsqueeze(1), out=buffer).sum(2)
    torch.sum(rows.mul_(slope[:, 1]), 1, out=by_location[:, 1])
    columns = torch.mul(products, near_y.unsqueeze(2), out=buffer).sum(1)
    torch.sum(columns * near_x, 1, out=by_weight)
    torch.sum(columns.mul_(slope[:, 0]), 1, out=by_location[:, 0])
    by_location.mul_(scale.unsqueeze(1))


def value_gradients(grad_output: Tensor, locations: Tensor, weights: Tensor, sizes: list[int], dvalue: Tensor) -> None:
    """Write the gradient of value, head by head, the same bit by bit each time."""
    _, heads, pixels, dim = dvalue.shape
    if _is_empty(dvalue, locations):
        dvalue.zero_()
        return
    wide = wide_of(dvalue.dtype)
    samples = locations.shape[3] * locations.shape[4]
    windows = Windows(sizes, locations.shape[4], (pixels, 0, 1), dvalue)
    room = SAMPLES_SORTED.get(dvalue.device.type, SAMPLES_ELSEWHERE)
    for head in range(heads):
        total, held = dvalue, (-1, -1)
        for first, last, start, end in _blocks(locations[:, :1], room):
            part = slice(first, last), slice(head, head + 1), slice(start, end)
            window = windows.find(locations[part].transpose(1, 2))
            scale = weights[part].transpose(1, 2).reshape(-1, 1, 1, samples).to(wide)
            share = windows.floats.take("share", *window.near.shape)
            torch.mul(window.near[:, 1].unsqueeze(2), window.near[:, 0].unsqueeze(1), out=share)
            bags = (last - first) * pixels
            # What is not read is sorted behind all rows.
            keys = window.rows.view(share.shape).masked_fill_(share == 0, bags).flatten()
            share.mul_(scale)
            outer = grad_output[part].reshape(-1, dim).to(wide)
            sums = _summed(keys, share.flatten(), outer, 4 * samples, bags)
            if held == (first, last):
                total += sums
            else:
                if held[0] >= 0:
                    _store(total, dvalue, held, head)
                total, held = sums, (first, last)
        _store(total, dvalue, held, head)


def _summed(keys: Tensor, share: Tensor, outer: Tensor, each: int, bags: int) -> Tensor:
    """Return, by key, the weighted sum of rows of ``outer``, ``each`` keys a row, in the order of keys."""
    counts = torch.bincount(keys, minlength=bags + 1)[:bags]
    ends = counts.cumsum(0)
    kept = int(ends[-1])
    order = keys.sort(stable=True).indices[:kept]
    rows = order.div(each, rounding_mode="floor")
    return F.embedding_bag(rows, outer, ends - counts, mode="sum", per_sample_weights=share.index_select(0, order))


def _store(total: Tensor, dvalue: Tensor, rows: tuple[int, int], head: int) -> None:
    target = dvalue[rows[0] : rows[1], head]
    target.copy_(total.view(target.shape))


_forward = register(f"deformable_attention_forward{FORWARD}", _run_forward, fake_forward)
_backward = register(
    f"deformable_attention_backward{BACKWARD}",
    _run_backward,
    fake_backward,
    backward_of="torch of deformable_attention",
)
deformable_attention = differentiable(_forward, _backward)
