"""What the benchmarks of the two pointer operators share: rows against the formula written out, and peak memory."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import compare
from torch import Tensor

from polyhead.manifest import resolve
from polyhead.ops import Inputs, explain, registry

CLAIMED = "B64 Sq100 Sk100 D256"
AT_LEAST = 4.0
TOLERANCE = 1e-5


def forward(function: Callable[..., Any], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [_tensor(function(**tensors))]


def both(function: Callable[..., Any], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    given = {name: x.detach().requires_grad_(x.is_floating_point()) for name, x in tensors.items()}
    output = _tensor(function(**given))
    wanted = [x for x in given.values() if x.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, torch.ones_like(output))]


def _tensor(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned


def draw(operator: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    inputs: Inputs = resolve(f"polyhead.ops.{operator}.measures:draw")(
        shape, torch.Generator().manual_seed(0), torch.float32
    )
    return dict(inputs.tensors)


def rows(operator: str, repeats: int) -> tuple[list[dict[str, Any]], float]:
    """Return the rows of an operator against its formula written out, and the largest difference.

    Raises:
        SystemExit: the two sides differ.
    """
    spec = registry.operator(operator)
    ours = resolve(spec.function)
    written_out = resolve(f"polyhead.ops.{operator}.measures:written_out")
    found: list[dict[str, Any]] = []
    worst = 0.0
    for name, shape in resolve("polyhead.ops.additive_attention_scores.measures:SIZES").items():
        tensors = draw(operator, shape)
        for a, b in zip(both(ours, tensors), both(written_out, tensors), strict=True):
            worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp(min=1)))
        if worst > TOLERANCE:
            raise SystemExit(f"{name}: off by {worst:.2g}, allowed {TOLERANCE}")
        call = explain(operator, shape).call
        for direction, run in (("forward", forward), ("forward+backward", both)):
            timed = compare(partial(run, ours, tensors), partial(run, written_out, tensors), repeats=repeats)
            costs = [spec.cost(call)] + ([spec.cost(call, backward=True)] if run is both else [])
            row = {
                "case": f"{name}, {direction}",
                "peer": "written out",
                "ours_s": timed.ours_s,
                "peer_s": timed.peer_s,
                "repeats": timed.repeats,
                "flops": sum(cost.flops for cost in costs),
                "bytes": sum(cost.bytes for cost in costs),
            }
            if name == CLAIMED and run is both:
                row["at_least"] = AT_LEAST
            found.append(row)
    return found, worst


def extra_mb(operator: str, side: str, threads: int) -> float:
    """Return by how much a forward and backward pass raises a fresh process's peak, gradients given and made apart."""
    command = [sys.executable, "-m", "benchmarks._pointer", operator, side, str(threads)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main(operator: str, title: str, allowed_mb: float) -> int:
    """Print the document of a benchmark; ``allowed_mb`` is the claim about memory at the claimed size."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three repeats of each, for a look")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found, worst = rows(operator, 3 if options.quick else 15)
    extra = {side: extra_mb(operator, side, options.threads) for side in ("ours", "peer")}
    if extra["ours"] > allowed_mb:
        print(f"{CLAIMED} takes {extra['ours']:.1f} MB beside its gradients, claimed {allowed_mb}", file=sys.stderr)
        return 1
    for row in found:
        if "at_least" in row:
            row |= {"extra_mb": extra["ours"], "peer_extra_mb": extra["peer"], "allowed_mb": allowed_mb}
    document = {
        "title": f"{title}, float32; {extra['ours']:.1f} MB beside gradients, written out {extra['peer']:.0f} MB",
        "threads": options.threads,
        "correct": f"largest difference {worst:.2g}",
        "rows": found,
    }
    print(json.dumps(document, indent=2))
    return 0


def peak() -> int:
    """Return the bytes that this program has held at most; what getrusage tells begins with the parent's."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit("The peak of memory is read from /proc/self/status, which is Linux's.")
    return int(found[1]) * 1024


def measure(operator: str, side: str, threads: str) -> None:
    """Print the memory of one side, in MB; run in a process of its own."""
    torch.set_num_threads(int(threads))
    reference = registry.operator(operator).function
    function = resolve(reference if side == "ours" else f"polyhead.ops.{operator}.measures:written_out")
    both(function, draw(operator, (1, 1, 16, 4)))  # loads what is loaded at the first call
    tensors = draw(operator, resolve("polyhead.ops.additive_attention_scores.measures:SIZES")[CLAIMED])
    before = peak()
    results = both(function, tensors)
    grown = peak() - before
    gradients = sum(x.numel() * x.element_size() for x in results)  # as large as what they belong to
    print(json.dumps((grown - gradients) / 1e6))


if __name__ == "__main__":
    measure(*sys.argv[1:])
