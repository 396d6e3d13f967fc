"""Position attention against the same module written out; a whole volume through DAUNet against MONAI's AttentionUnet.

    .venv/bin/python -m benchmarks.position_attention

Claims: at 12,000 positions and 256 channels, position attention needs at most a twentieth of the written-out module's
memory and half of its time. The written-out module makes the map of all pairs, as the published code does. Memory is
the growth of the resident set in a process of its own during one call. MONAI's network is another function of the same
levels and filters: times and memory are compared, not results. Growth is that of DAUNet from 64³ to 128³ voxels.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from benchmarks.timing import compare
from torch import Tensor, nn

from polyhead_medical.attention import PositionAttention
from polyhead_medical.attention_unet import DAUNet

CHANNELS = 256
GRID = (20, 24, 25)
FASTER, SMALLER = 2.0, 1 / 20
FILTERS = (16, 32, 64, 128, 128)
VOLUME = (128, 128, 144)
SIDES = (64, 96, 128)


class WrittenOut(nn.Module):
    """The module with the map of all pairs, as in the published code."""

    def __init__(self, own: PositionAttention) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        q, k, v = (layer(flat) for layer in (self.own.query, self.own.key, self.own.value))
        weights = (q.transpose(1, 2) @ k).softmax(-1)
        return self.own.gamma * (v @ weights.transpose(1, 2)).reshape(x.shape) + x


def attention(side: str, grid: tuple[int, ...]) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    own = PositionAttention(CHANNELS)
    own.gamma.data.fill_(0.5)
    module = WrittenOut(own) if side == "written out" else own
    x = 0.3 * torch.randn(1, CHANNELS, *grid)
    return lambda: forward(module, x)


def network(side: str, size: tuple[int, ...]) -> Callable[[], Tensor]:
    torch.manual_seed(0)
    if side == "MONAI":
        from monai.networks.nets.attentionunet import AttentionUnet

        model: nn.Module = AttentionUnet(3, 1, 2, channels=FILTERS, strides=(2, 2, 2, 2))
    else:
        model = DAUNet(DAUNet.Config(filters=FILTERS))
    model.eval()
    x = torch.rand(1, 1, *size)
    return lambda: forward(model, x)


def forward(model: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        out: Tensor = model(x)
        return out


def call(what: str, side: str, size: tuple[int, ...]) -> Callable[[], Tensor]:
    return attention(side, size) if what == "attention" else network(side, size)


def measure_memory(what: str, side: str, size: tuple[int, ...]) -> None:
    run = call(what, side, size)
    call(what, side, (16, 16, 16))()  # loads what the first call of a process loads
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident_mib("VmRSS")
    run()
    print(resident_mib("VmHWM") - before)


def resident_mib(name: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 2**10
    raise SystemExit(f"/proc/self/status has no {name}: memory can be measured on Linux only")


def peak_mib(what: str, side: str, size: tuple[int, ...]) -> float:
    command = [sys.executable, "-m", "benchmarks.position_attention", "--memory", what, side, *map(str, size)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def check() -> str:
    own = attention("ours", (8, 9, 10))()
    other = attention("written out", (8, 9, 10))()
    apart = float((own - other).abs().max() / other.abs().max())
    if apart > 1e-5:
        raise SystemExit(f"position attention differs from the written-out module by {apart:.1e}")
    return f"largest relative difference {apart:.1e}"


def row(what: str, case: str, peer: str, size: tuple[int, ...], **more: Any) -> dict[str, Any]:
    times = compare(call(what, "ours", size), call(what, peer, size), warmup=1, repeats=5, budget_s=40)
    memory = [peak_mib(what, side, size) for side in ("ours", peer)]
    return {
        "case": case,
        "peer": "AttentionUnet of MONAI" if peer == "MONAI" else peer,
        "ours_s": times.ours_s,
        "peer_s": times.peer_s,
        "repeats": times.repeats,
        "ours_mib": memory[0],
        "peer_mib": memory[1],
        "memory_ratio": memory[0] / memory[1],
        **more,
    }


def growth() -> dict[str, Any]:
    found = []
    for side in SIDES:
        run, times = network("ours", (side,) * 3), []
        run()
        for _ in range(3):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        found.append({"side": side, "seconds": sorted(times)[1], "mib": peak_mib("network", "ours", (side,) * 3)})
    voxels = 3 * math.log(SIDES[-1] / SIDES[0])
    exponents = {key: math.log(found[-1][key] / found[0][key]) / voxels for key in ("seconds", "mib")}
    return {"case": "DAUNet, a volume", "sizes": found, "exponent_of_voxels": exponents}


def main() -> int:
    if "--memory" in sys.argv:
        what, side, *sizes = sys.argv[sys.argv.index("--memory") + 1 :]
        measure_memory(what, side, tuple(map(int, sizes)))
        return 0
    correct = check()
    positions = math.prod(GRID)
    rows = [
        row(
            "attention",
            f"position attention N={positions} C={CHANNELS}",
            "written out",
            GRID,
            at_least=FASTER,
            memory_at_most=SMALLER,
        )
    ]
    count = sum(parameter.numel() for parameter in DAUNet(DAUNet.Config(filters=FILTERS)).parameters())
    shape = " × ".join(map(str, VOLUME))
    rows.append(row("network", f"whole volume {shape}, DAUNet of {count:,} parameters", "MONAI", VOLUME))
    document = {
        "title": "position attention and whole volumes",
        "threads": torch.get_num_threads(),
        "correct": correct,
        "rows": rows,
        "growth": growth(),
    }
    print(json.dumps(document, indent=2))
    over = [each["case"] for each in rows if each["memory_ratio"] > each.get("memory_at_most", math.inf)]
    for case in over:
        print(f"{case}: more memory than claimed", file=sys.stderr)
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
