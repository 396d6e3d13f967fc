# /// script
# dependencies = ["transformers>=4.50"]
# ///
"""deformable_attention on the CPU against the form of `transformers`, which samples each level by grid_sample.

    .venv/bin/python -m benchmarks.run deformable_attention

Claims, for the four levels of an image of 800 × 1333 pixels (strides 8 to 64), 8 heads of 32 and 4 points: twice as
fast forward and 1.2 times with backward, at half the peak memory or less, for 20,000 queries of an encoder, which look
around their own pixels, and for 2,000 of a decoder, which look around boxes anywhere. Inputs are laid out as a
projection gives them, (B, S, H, D): ours takes them transposed, and its output is brought back. Memory is the growth of
the resident set in a process of its own during one call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import compare
from torch import Tensor

from polyhead.ops import deformable_attention, explain, registry

HEADS, DIM, POINTS = 8, 32, 4
LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
PIXELS = sum(height * width for height, width in LEVELS)
QUERIES = {"encoder": 20_000, "decoder": 2_000}
FASTER = {"forward": 2.0, "forward+backward": 1.2}
SMALLER = 0.5
TOLERANCE = 1e-5


def draw(kind: str, queries: int) -> tuple[Tensor, ...]:
    """Return value, locations, weights and the gradient of the output as Deformable DETR's layers hand them over."""
    generator = torch.Generator().manual_seed(0)
    samples = (1, queries, HEADS, len(LEVELS), POINTS)
    extents = torch.tensor([[width, height] for height, width in LEVELS], dtype=torch.float32)[:, None]
    spread = torch.randn(*samples, 2, generator=generator)
    if kind == "encoder":
        tokens = torch.linspace(0, PIXELS - 1, queries).long()
        locations = centres()[tokens][None, :, None, None, None] + 3 * spread / extents
    else:
        boxes = torch.rand(1, queries, 1, 1, 1, 4, generator=generator)
        locations = boxes[..., :2] + 0.25 * spread * boxes[..., 2:]
    # Away from whole pixels, where rounding would decide which way the gradient of a location points.
    at = locations * extents - 0.5
    locations = (at.floor() + 0.001 + 0.998 * at.frac().abs() + 0.5) / extents
    value = torch.randn(1, PIXELS, HEADS, DIM, generator=generator)
    weights = torch.randn(samples, generator=generator).flatten(3).softmax(-1).view(samples)
    return value, locations, weights, torch.randn(1, queries, HEADS * DIM, generator=generator)


def centres() -> Tensor:
    """Return x and y of the centres of all pixels, (S, 2)."""
    maps = []
    for height, width in LEVELS:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        maps.append(torch.stack([(x + 0.5) / width, (y + 0.5) / height], -1).flatten(0, 1))
    return torch.cat(maps)


def ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    value, locations, weights = (x.transpose(1, 2) for x in (value, locations, weights))
    return deformable_attention(value, LEVELS, locations, weights).output.transpose(1, 2).flatten(2)


def theirs(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    from transformers.models.deformable_detr.modeling_deformable_detr import (  # type: ignore[import-not-found]  # the peer
        MultiScaleDeformableAttention,
    )

    shapes = torch.tensor(LEVELS)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    output: Tensor = MultiScaleDeformableAttention()(
        value, shapes, list(LEVELS), starts, locations, weights, im2col_step=64
    )
    return output


SIDES = {"ours": ours, "theirs": theirs}


def forward(side: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        return [SIDES[side](*inputs[:3])]


def both(side: str, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    given = [x.detach().requires_grad_() for x in inputs[:3]]
    output = SIDES[side](*given)
    return [output.detach(), *torch.autograd.grad(output, given, inputs[3])]


DIRECTIONS: dict[str, Callable[[str, tuple[Tensor, ...]], list[Tensor]]] = {
    "forward": forward,
    "forward+backward": both,
}


def largest_difference(inputs: tuple[Tensor, ...]) -> float:
    """Return how far output and gradients are from the peer's in float64, relative to the largest value."""
    truth = both("theirs", tuple(x.double() for x in inputs))
    pairs = zip(both("ours", inputs), truth, strict=True)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def peak_mib(side: str, direction: str, kind: str, threads: int) -> float:
    """Return the growth of the resident set during a call, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.deformable_attention", "--threads", str(threads)]
    command += ["--memory", side, direction, kind]
    # Freed memory goes back at once, or what the inputs' making has left would be used again and not be counted.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout)


def measure_memory(side: str, direction: str, kind: str) -> None:
    run, inputs = DIRECTIONS[direction], draw(kind, QUERIES[kind])
    run(side, draw(kind, 8))  # loads what the first call of a process loads
    # The peak of the process so far is forgotten: it is that of its imports.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_mib("VmRSS")
    run(side, inputs)
    print(resident_mib("VmHWM") - before)


def resident_mib(name: str) -> float:
    """Return a figure of /proc/self/status: VmRSS, the resident set, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit(f"/proc/self/status has no {name}: memory can be measured on Linux only")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three repeats of each, for a look")
    parser.add_argument("--memory", nargs=3, metavar=("SIDE", "DIRECTION", "KIND"), help="print a peak in MiB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        measure_memory(*options.memory)
        return 0
    spec = registry.operator("deformable_attention")
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for kind, queries in QUERIES.items():
        inputs = draw(kind, queries)
        worst = max(worst, largest_difference(inputs))
        if worst > TOLERANCE:
            print(f"{kind}: off by {worst:.2g}, allowed {TOLERANCE}", file=sys.stderr)
            return 1
        shape = (1, HEADS, PIXELS, DIM)
        levels = ",".join(f"{height}x{width}" for height, width in LEVELS)
        call = explain("deformable_attention", shape, queries=queries, levels=levels, points=POINTS).call
        for direction, run in DIRECTIONS.items():
            costs = [spec.cost(call)] + ([spec.cost(call, backward=True)] if run is both else [])
            timed = compare(
                partial(run, "ours", inputs),
                partial(run, "theirs", inputs),
                repeats=3 if options.quick else 15,
                budget_s=90,
            )
            mib, peer_mib = (peak_mib(side, direction, kind, options.threads) for side in SIDES)
            rows.append(
                {
                    "case": f"{kind}, {queries} queries, {direction}",
                    "peer": "transformers",
                    "ours_s": timed.ours_s,
                    "peer_s": timed.peer_s,
                    "repeats": timed.repeats,
                    "at_least": FASTER[direction],
                    "flops": sum(cost.flops for cost in costs),
                    "bytes": sum(cost.bytes for cost in costs),
                    "ours_mib": mib,
                    "peer_mib": peer_mib,
                    "memory_ratio": mib / peer_mib,
                    "memory_at_most": SMALLER,
                }
            )
    document = {
        "title": "deformable_attention against transformers, float32",
        "threads": options.threads,
        "correct": f"largest difference {worst:.2g}, gradients included",
        "rows": rows,
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
