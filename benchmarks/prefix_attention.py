"""prefix_attention on the CPU: against SDPA with the query repeated, over lengths, and on a stream.

    .venv/bin/python -m benchmarks.prefix_attention [--threads N] [--quick]

Claims, for B1 H8 D64: with 4096 tokens, forward and backward together 15 times as fast as SDPA whose query is repeated
at every position; from 4096 to 65,536 tokens the time grows with an exponent of at most 1.05; one step of a stream
costs the same after 100 tokens and after a million.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.timing import compare
from torch import Tensor

from polyhead.ops import explain, prefix_attention, registry
from polyhead.ops.prefix_attention import init_state, prefill, step

HEADS, DIM, LENGTH = 8, 64, 4096
LENGTHS = (4096, 8192, 16384, 32768, 65536)
EARLY, LATE, STEPS = 100, 1_000_000, 200
SDPA, EXPONENT, SAME = 15.0, 1.05, 0.95
TOLERANCE = 1e-5


def draw(length: int) -> tuple[Tensor, ...]:
    """Return q, k, v and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(HEADS, DIM, generator=generator)
    return q, *(torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3))


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    repeated = q[None, :, None].expand(k.shape).contiguous()
    return F.scaled_dot_product_attention(repeated, k, v, is_causal=True)


def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return prefix_attention(q, k, v).output


def forward(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [function(*inputs[:3])]


def both(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    *inputs, gradient = inputs
    inputs = [x.detach().requires_grad_() for x in inputs]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


DIRECTIONS = {"forward": forward, "forward+backward": both}


def largest_error() -> float:
    """Return how far output and gradients are from SDPA's in float64, relative to the largest value."""
    inputs = draw(LENGTH)
    truth = both(sdpa, [x.double() for x in inputs])
    pairs = zip(both(ours, inputs), truth, strict=True)
    return max(float((x - y).abs().max() / y.abs().max()) for x, y in pairs)


def against_sdpa(repeats: int) -> list[dict[str, Any]]:
    rows = []
    inputs = draw(LENGTH)
    spec = registry.operator("prefix_attention")
    call = explain("prefix_attention", tuple(inputs[1].shape)).call
    for direction, run in DIRECTIONS.items():
        costs = [spec.cost(call)] + ([spec.cost(call, backward=True)] if run is both else [])
        timed = compare(partial(run, ours, inputs), partial(run, sdpa, inputs), repeats=repeats, budget_s=60)
        row = {
            "case": f"B1 H{HEADS} S{LENGTH} D{DIM}, {direction}",
            "peer": "SDPA, query repeated",
            "ours_s": timed.ours_s,
            "peer_s": timed.peer_s,
            "repeats": timed.repeats,
            "flops": sum(cost.flops for cost in costs),
            "bytes": sum(cost.bytes for cost in costs),
        }
        rows.append(row | ({"at_least": SDPA} if run is both else {}))
    return rows


def over_lengths(repeats: int) -> list[dict[str, Any]]:
    """Time all lengths in turn and fit the exponent; a row compares the longest with the shortest, per token."""
    rows = []
    for direction, run in DIRECTIONS.items():
        calls = {length: partial(run, ours, draw(length)) for length in LENGTHS}
        times: dict[int, list[float]] = {length: [] for length in LENGTHS}
        for count in range(-1, repeats):
            for length, call in calls.items():
                for _ in range(LENGTHS[-1] // length):  # as many tokens of each
                    start = time.perf_counter()
                    call()
                    if count >= 0:
                        times[length].append(time.perf_counter() - start)
        medians = {length: statistics.median(each) for length, each in times.items()}
        exponent = slope([math.log(length) for length in LENGTHS], [math.log(medians[length]) for length in LENGTHS])
        rows.append(
            {
                "case": f"a token of {LENGTHS[-1]}, {direction}",
                "peer": f"a token of {LENGTHS[0]}",
                "ours_s": medians[LENGTHS[-1]] / LENGTHS[-1],
                "peer_s": medians[LENGTHS[0]] / LENGTHS[0],
                "repeats": repeats,
                # An exponent of 1.05 makes a token dearer by this factor.
                "at_least": (LENGTHS[0] / LENGTHS[-1]) ** (EXPONENT - 1),
                "exponent": exponent,
                "exponent_at_most": EXPONENT,
                "seconds": medians,
            }
        )
    return rows


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the line of least squares."""
    return statistics.linear_regression(x, y).slope


def on_a_stream(repeats: int) -> dict[str, Any]:
    """Time steps of a stream at its start and after a million tokens."""
    q, k, v, _ = draw(10_000)
    states = []
    for tokens in (EARLY, LATE):
        state = init_state(1, HEADS, DIM)
        for at in range(0, tokens, k.shape[2]):
            part = slice(0, min(k.shape[2], tokens - at))
            state = prefill(state, q, k[:, :, part], v[:, :, part]).final_state
        states.append(state)

    def steps(state: Any) -> None:
        for t in range(STEPS):
            _, state = step(state, q, k[:, :, t], v[:, :, t])

    with torch.no_grad():
        timed = compare(partial(steps, states[1]), partial(steps, states[0]), repeats=repeats)
    return {
        "case": f"a step at token {LATE}",
        "peer": f"a step at token {EARLY}",
        "ours_s": timed.ours_s / STEPS,
        "peer_s": timed.peer_s / STEPS,
        "repeats": timed.repeats,
        "at_least": SAME,
        "state_bytes": sum(x.numel() * x.element_size() for x in states[1]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three repeats of each, for a look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    worst = largest_error()
    if worst > TOLERANCE:
        print(f"off by {worst:.2g}, allowed {TOLERANCE}", file=sys.stderr)
        return 1
    few = options.quick
    rows = against_sdpa(3 if few else 9) + over_lengths(2 if few else 7) + [on_a_stream(5 if few else 31)]
    document = {
        "title": "prefix_attention, float32",
        "threads": options.threads,
        "correct": f"largest difference from SDPA in float64 {worst:.2g}, gradients included",
        "rows": rows,
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
