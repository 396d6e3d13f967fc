"""Boundary matching with the convolution that consumes it, against the published dense form; and Soft-NMS.

    .venv/bin/python -m benchmarks.boundary_matching

Sizes are those of BMN on ActivityNet: T = D = 100, N = 32 samples, 128 sampled channels, 512 output channels. The dense
side multiplies by the (T, N·D·T) weights, as every port does, and convolves the result with a kernel (N, 1, 1). Both
sides go on through the ReLU and the convolution to 128 channels that follows, so that they give the same map. Memory
is the growth of the resident set in a process of its own during a forward and backward pass; the weights of the dense
side are made before. The peer of Soft-NMS is the double loop of J. Bai's port.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.timing import compare
from torch import Tensor, nn

from polyhead_actions.boundary_matching import BoundaryMatching
from polyhead_actions.nms import soft_nms
from polyhead_actions.sampling import cells, taps

LENGTH, SAMPLES, CHANNELS, WIDE, NARROW = 100, 32, 128, 512, 128
SIDES = ("ours", "dense")
FASTER, SMALLER, FASTER_NMS = 8.0, 0.1, 50.0
PROPOSALS = 5000


class Sparse(nn.Module):
    """Ours, and the next convolution on the cells that exist."""

    def __init__(self, length: int = LENGTH) -> None:
        super().__init__()
        self.matching = BoundaryMatching(CHANNELS, WIDE, length, length, samples=SAMPLES)
        self.next = nn.Linear(WIDE, NARROW)
        duration, start = self.matching.cells()
        self.register_buffer("place", duration * length + start)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.next(torch.relu(self.matching(x)))
        length = self.matching.length
        flat = rows[:, -1:].expand(-1, length**2, -1).index_copy(1, self.place, rows[:, :-1])
        return flat.mT.unflatten(-1, (length, length))


class Dense(nn.Module):
    """The published form."""

    mask: Tensor

    def __init__(self, peer: Sparse) -> None:
        super().__init__()
        length = peer.matching.length
        made = taps(length, length, samples=SAMPLES)
        duration, start = cells(length, length)
        row = np.repeat(np.arange(len(start)), np.diff(made.offsets))
        step, point = np.divmod(made.columns, SAMPLES)
        mask = torch.zeros(length, SAMPLES, length, length)
        mask[step, point, duration[row], start[row]] = torch.from_numpy(made.weights).float()
        self.register_buffer("mask", mask.view(length, -1))
        self.length = length
        self.conv = nn.Conv3d(CHANNELS, WIDE, (SAMPLES, 1, 1))
        self.next = nn.Conv2d(WIDE, NARROW, 1)
        wide = {"weight": peer.matching.weight[..., None, None], "bias": peer.matching.bias}
        narrow = {"weight": peer.next.weight[..., None, None], "bias": peer.next.bias}
        self.conv.load_state_dict({name: tensor.detach() for name, tensor in wide.items()})
        self.next.load_state_dict({name: tensor.detach() for name, tensor in narrow.items()})

    def forward(self, x: Tensor) -> Tensor:
        sampled = torch.matmul(x, self.mask).view(*x.shape[:2], SAMPLES, self.length, self.length)
        out: Tensor = self.next(torch.relu(self.conv(sampled).squeeze(2)))
        return out


def make(side: str, length: int = LENGTH) -> nn.Module:
    torch.manual_seed(0)
    ours = Sparse(length)
    return ours if side == "ours" else Dense(ours)


def step(side: str, batch: int, length: int = LENGTH) -> Callable[[], Tensor]:
    model = make(side, length)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, CHANNELS, length, generator=generator, requires_grad=True)
    back = torch.randn(batch, NARROW, length, length, generator=generator)

    def run() -> Tensor:
        model.zero_grad()
        x.grad = None
        model(x).backward(back)
        assert x.grad is not None
        return x.grad

    return run


def check() -> str:
    """Compare maps and gradients of both sides at T = 24."""
    x = torch.randn(2, CHANNELS, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = []
    for side in SIDES:
        model: Any = make(side, 24).double()
        own = x.clone().requires_grad_()
        out = model(own)
        (out.square().sum() / out.numel()).backward()
        weight = model.matching.weight.grad if side == "ours" else model.conv.weight.grad[..., 0, 0]
        results.append((out.detach(), own.grad, weight))
    worst = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*results, strict=True))
    if worst > 1e-6:
        raise SystemExit(f"maps or gradients differ by {worst:.1e}")
    segments, scores = proposals(500)
    taken, lowered = soft_nms(segments, scores, keep=None)
    slow, slowly = double_loop(segments, scores, None)
    if taken.tolist() != slow or np.abs(lowered - np.array(slowly)).max() > 1e-12:
        raise SystemExit("the orders of Soft-NMS differ")
    return f"maps and gradients differ by {worst:.0e} at most, Soft-NMS takes the same order"


def peak_mib(side: str, batch: int) -> float:
    """Return the growth of the resident set during a step, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.boundary_matching", "--memory", side, str(batch)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_memory(side: str, batch: int) -> None:
    # The small run loads what the first call of a process loads.
    step(side, 1, 8)()
    run = step(side, batch)
    # The peak of the process so far is forgotten: it is that of its imports and of the making of the weights.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_mib("VmRSS")
    run()
    print(resident_mib("VmHWM") - before)


def resident_mib(name: str) -> float:
    """Return a figure of /proc/self/status: VmRSS, the resident set, or VmHWM, its peak."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit(f"/proc/self/status has no {name}: memory can be measured on Linux only")


def proposals(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return segments on BMN's grid, all different, with scores like a product of four probabilities."""
    rng = np.random.default_rng(0)
    duration, start = cells(LENGTH, LENGTH)
    chosen = rng.permutation(len(start))[:count]
    segments = np.stack([start[chosen], start[chosen] + duration[chosen] + 1], 1) / LENGTH
    return segments, rng.random((count, 4)).prod(1)


def double_loop(segments: np.ndarray, scores: np.ndarray, keep: int | None) -> tuple[list[int], list[float]]:
    """Soft-NMS as the port of J. Bai writes it: lists of NumPy numbers, thresholds in a dictionary, a loop over all."""
    opt = {"soft_nms_alpha": 0.4, "soft_nms_low_thres": 0.5, "soft_nms_high_thres": 0.9}
    order = np.argsort(-scores, kind="stable")
    tstart, tend, tscore = list(segments[order, 0]), list(segments[order, 1]), list(scores[order])
    names = order.tolist()
    taken: list[int] = []
    lowered: list[float] = []
    while len(tscore) > 0 and (keep is None or len(taken) < keep):
        max_index = np.argmax(tscore)
        tmp_width = tend[max_index] - tstart[max_index]
        low, high = np.array(tstart), np.array(tend)
        inter = np.maximum(np.minimum(tend[max_index], high) - np.maximum(tstart[max_index], low), 0.0)
        iou_list = np.divide(inter, tmp_width - inter + high - low)
        iou_exp_list = np.exp(-np.square(iou_list) / opt["soft_nms_alpha"])
        for idx in range(len(tscore)):
            if idx != max_index:
                tmp_iou = iou_list[idx]
                if tmp_iou > opt["soft_nms_low_thres"] + (
                    opt["soft_nms_high_thres"] - opt["soft_nms_low_thres"]
                ) * tmp_width:  # fmt: skip
                    tscore[idx] = tscore[idx] * iou_exp_list[idx]
        taken.append(names.pop(max_index))
        lowered.append(float(tscore.pop(max_index)))
        tstart.pop(max_index)
        tend.pop(max_index)
    return taken, lowered


def main() -> None:
    if "--memory" in sys.argv:
        measure_memory(sys.argv[-2], int(sys.argv[-1]))
        return
    correct = check()
    rows: list[dict[str, Any]] = []
    for batch in (1, 2):
        times = compare(step("ours", batch), step("dense", batch), warmup=1, repeats=5, budget_s=25)
        memory = [peak_mib(side, batch) for side in SIDES]
        rows.append(
            {
                "case": f"forward + backward T=D=100 N=32 B={batch}", "peer": "dense",
                "ours_s": times.ours_s, "peer_s": times.peer_s, "at_least": FASTER,
                "ours_mib": memory[0], "peer_mib": memory[1], "memory_ratio": memory[0] / memory[1],
                "memory_at_most": SMALLER,
            }
        )  # fmt: skip
    segments, scores = proposals(PROPOSALS)
    for keep in (100, None):
        ours = compare(
            partial(soft_nms, segments, scores, keep=keep),
            partial(double_loop, segments, scores, keep),
            warmup=1 if keep else 0,
            repeats=5 if keep else 3,
        )
        if soft_nms(segments, scores, keep=keep)[0].tolist() != double_loop(segments, scores, keep)[0]:
            raise SystemExit("the orders of Soft-NMS differ")
        rows.append(
            {
                "case": f"Soft-NMS of {PROPOSALS:,}, {'100' if keep else 'all'} kept", "peer": "double loop",
                "ours_s": ours.ours_s, "peer_s": ours.peer_s, **({"at_least": FASTER_NMS} if keep else {}),
            }
        )  # fmt: skip
    document = {"title": "Boundary matching", "threads": torch.get_num_threads(), "correct": correct, "rows": rows}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
