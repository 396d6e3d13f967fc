"""softmax_attention against plain SDPA on the CPU: what the contract costs, and what the fused path saves.

    .venv/bin/python -m benchmarks.softmax_attention [--threads N] [--quick]

Claims: without a mask as fast as SDPA, with a mask at most 5 % slower (forward, and forward with backward). Each shape
begins with SDPA against itself, which shows what the ratios of this run are worth; 3 % count as the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.timing import compare
from torch import Tensor

from polyhead.ops import explain, registry, softmax_attention

SHAPES = {
    "GMAN sensors": (192, 8, 207, 8),  # 16 windows of 12 steps: attention over 207 sensors
    "GMAN steps": (3312, 8, 12, 8),  # 16 windows of 207 sensors: attention over 12 steps
    "text": (4, 8, 1024, 64),
}
MASKED, PLAIN = 1 / 1.05, 0.97
TOLERANCE = 1e-5


def masks(batch: int, length: int) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(length // 2, length + 1, (batch, 1, 1, 1), generator=generator)
    pairs = torch.rand(1, 1, length, length, generator=generator) < 0.8
    pairs[..., 0] = True
    return {"no mask": None, "mask of pairs": pairs, "padded keys": torch.arange(length) < lengths}


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def ours(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return softmax_attention(q, k, v, mask=mask).output


def forward(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], mask: Tensor | None) -> list[Tensor]:
    with torch.no_grad():
        return [function(*inputs, mask)]


def both(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], mask: Tensor | None) -> list[Tensor]:
    output = function(*inputs, mask)
    return [output.detach(), *torch.autograd.grad(output, inputs, torch.ones_like(output))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three repeats of each, for a look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    repeats = 3 if options.quick else 31
    spec = registry.operator("softmax_attention")
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for name, shape in SHAPES.items():
        generator = torch.Generator().manual_seed(0)
        inputs = tuple(torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))
        for label, mask in masks(shape[0], shape[2]).items():
            for direction, run in (("forward", forward), ("forward+backward", both)):
                for a, b in zip(run(ours, inputs, mask), run(sdpa, inputs, mask), strict=True):
                    worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1)))
                if worst > TOLERANCE:
                    print(f"{name}, {label}: off by {worst:.2g}, allowed {TOLERANCE}", file=sys.stderr)
                    return 1
                peers = {"SDPA": ours} | ({"SDPA, itself": sdpa} if mask is None else {})
                for peer, function in reversed(peers.items()):
                    timed = compare(
                        partial(run, function, inputs, mask),
                        partial(run, sdpa, inputs, mask),
                        repeats=repeats,
                        budget_s=30,
                    )
                    call = explain("softmax_attention", shape).call
                    costs = [spec.cost(call)] + ([spec.cost(call, backward=True)] if run is both else [])
                    row: dict[str, Any] = {
                        "case": f"{name} {'×'.join(map(str, shape))}, {label}, {direction}",
                        "peer": peer,
                        "ours_s": timed.ours_s,
                        "peer_s": timed.peer_s,
                        "repeats": timed.repeats,
                        "flops": sum(cost.flops for cost in costs),
                        "bytes": sum(cost.bytes for cost in costs),
                    }
                    if function is ours:
                        row["at_least"] = round(PLAIN if mask is None else MASKED, 3)
                    rows.append(row)
    document = {
        "title": "softmax_attention against SDPA, float32",
        "threads": options.threads,
        "correct": f"largest difference {worst:.2g}",
        "rows": rows,
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
