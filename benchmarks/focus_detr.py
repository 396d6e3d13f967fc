# /// script
# dependencies = ["transformers>=4.50"]
# ///
"""Focus-DETR on the CPU against the same model with the deformable attention of `transformers`, by grid_sample.

    .venv/bin/python -m benchmarks.run focus_detr

The encoder of the published sizes (six layers, 256 channels, four levels), forward and with backward, for pictures of
growing size, and a whole training step with a ResNet-50. Both sides are one model with one set of weights: only the
function that samples differs. Memory is the growth of the resident set in a process of its own during one call.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import compare
from torch import Tensor

import polyhead_detection.deformable as layer
from polyhead.ops import deformable_attention
from polyhead.ops.deformable_attention import DeformableAttention
from polyhead_detection.costs import encoder_macs
from polyhead_detection.focus_detr import FocusDETR, FocusDETRConfig
from polyhead_detection.geometry import Geometry
from polyhead_detection.task import DetectTask

SIZES = {"200x333": (200, 333), "400x666": (400, 666), "800x1333": (800, 1333)}
STEP = "200x333"
STRIDES = (8, 16, 32, 64)
FASTER = {"forward": 1.2, "forward+backward": 1.0}
SMALLER = 1.0
TOLERANCE = 1e-4


def theirs(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor, **_: Any
) -> DeformableAttention:
    from transformers.models.deformable_detr.modeling_deformable_detr import (  # type: ignore[import-not-found]  # the peer
        MultiScaleDeformableAttention,
    )

    sizes = torch.tensor(list(shapes))
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    arguments = (value.transpose(1, 2), sizes, list(shapes), starts, locations.transpose(1, 2), weights.transpose(1, 2))
    joined = MultiScaleDeformableAttention()(*arguments, im2col_step=64)
    return DeformableAttention(joined.unflatten(-1, (value.shape[1], -1)).transpose(1, 2))


@contextmanager
def sampling(side: str) -> Iterator[None]:
    """Let the layers sample by ours or theirs."""
    layer.deformable_attention = deformable_attention if side == "ours" else theirs
    try:
        yield
    finally:
        layer.deformable_attention = deformable_attention


def make(backbone: str) -> FocusDETR:
    torch.manual_seed(0)
    config = FocusDETRConfig(classes=80, backbone=backbone, widths=(8, 8, 8), decoder_layers=6)
    return FocusDETR(config if backbone != "small" else dataclasses.replace(config, decoder_layers=1, queries=10))


def maps(size: tuple[int, int]) -> list[tuple[int, int]]:
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in STRIDES]


class EncoderCase:
    """The encoder alone, on random maps."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.model = make("small").eval()
        shapes = tuple(maps(size))
        self.geometry = Geometry(shapes, (shapes,), torch.device("cpu"), torch.float32)
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randn(1, self.geometry.tokens, self.model.config.dim, generator=generator)
        self.scores = torch.randn(1, self.geometry.tokens, generator=generator)

    def forward(self, side: str) -> Tensor:
        with torch.no_grad(), sampling(side):
            return self.model._encode(self.tokens, self.geometry, None, self.scores).memory

    def both(self, side: str) -> Tensor:
        tokens = self.tokens.clone().requires_grad_()
        with sampling(side):
            memory = self.model._encode(tokens, self.geometry, None, self.scores).memory
        self.model.zero_grad()
        memory.square().mean().backward()
        assert tokens.grad is not None
        return tokens.grad


class StepCase:
    """A training step on one picture with ten boxes."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.model = make("resnet50").train()
        generator = torch.Generator().manual_seed(0)
        boxes = 0.2 + 0.5 * torch.rand(10, 4, generator=generator)
        self.batch = {
            "image": [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)],
            "boxes": [boxes],
            "labels": [torch.randint(0, 80, (10,), generator=generator)],
        }
        self.task = DetectTask((), 0, 0)

    def both(self, side: str) -> Tensor:
        torch.manual_seed(0)  # of the denoising queries
        with sampling(side):
            terms = self.task.loss(self.model, self.batch)
        self.model.zero_grad()
        loss = torch.stack([ratio.total / ratio.count for ratio in terms.values()]).sum()
        loss.backward()
        return loss.detach()


def case(name: str) -> tuple[Any, str]:
    """Return what a case runs, by its name: its object and the method."""
    kind, size, direction = name.split()
    made: Any = EncoderCase(SIZES[size]) if kind == "encoder" else StepCase(SIZES[size])
    return made, "forward" if direction == "forward" else "both"


def peak_mib(side: str, name: str, threads: int) -> float:
    """Return the growth of the resident set during a call, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.focus_detr", "--threads", str(threads), "--memory", side, name]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment).stdout)


def measure_memory(side: str, name: str) -> None:
    made, method = case(name)
    small, _ = case(" ".join((name.split()[0], "200x333", name.split()[2])))
    getattr(small, method)(side)  # loads what the first call of a process loads
    del small
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_mib("VmRSS")
    getattr(made, method)(side)
    print(resident_mib("VmHWM") - before)


def resident_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit(f"/proc/self/status has no {name}: memory can be measured on Linux only")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", nargs=2, metavar=("SIDE", "CASE"), help="print a peak in MiB")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        measure_memory(*options.memory)
        return 0
    names = [f"encoder {size} forward" for size in SIZES]
    names += [f"encoder {size} forward+backward" for size in ("200x333", "400x666")]
    names += [f"step {STEP} forward+backward"]
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for name in names:
        made, method = case(name)
        run = getattr(made, method)
        ours, peer = run("ours"), run("theirs")
        worst = max(worst, float((ours - peer).abs().max() / peer.abs().max()))
        if worst > TOLERANCE:
            print(f"{name}: off by {worst:.2g}, allowed {TOLERANCE}", file=sys.stderr)
            return 1
        timed = compare(partial(run, "ours"), partial(run, "theirs"), repeats=7, warmup=0, budget_s=15)
        mib, peer_mib = (peak_mib(side, name, options.threads) for side in ("ours", "theirs"))
        size, direction = SIZES[name.split()[1]], name.split()[2]
        rows.append(
            {
                "case": name,
                "peer": "transformers",
                "ours_s": timed.ours_s,
                "peer_s": timed.peer_s,
                "repeats": timed.repeats,
                "at_least": FASTER[direction],
                "tokens": sum(h * w for h, w in maps(size)),
                "encoder_gmac": encoder_macs(made.model.config, sum(h * w for h, w in maps(size))).total / 1e9,
                "ours_mib": mib,
                "peer_mib": peer_mib,
                "memory_ratio": mib / peer_mib,
                "memory_at_most": SMALLER,
            }
        )
    document = {
        "title": "Focus-DETR against itself with transformers' deformable attention, float32",
        "threads": options.threads,
        "correct": f"largest difference {worst:.2g} of memory, gradient and loss",
        "rows": rows,
    }
    print(json.dumps(document, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
