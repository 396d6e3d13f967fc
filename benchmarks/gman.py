"""Time and peak memory of a training step and a forecast of GMAN, against one that writes attention out.

    .venv/bin/python -m benchmarks.gman

Sizes are those of METR-LA (207 sensors) and PEMS07 (883), one block, 8 heads of 8, a causal temporal attention, no
dropout. The peer is `_gman_peer.py`; a second one shares every layer of ours and writes out the attention alone. At 883
sensors the batch is 2, where the peer already needs gigabytes. Memory is the growth of the resident set in a process of
its own during one call. Batch norm is folded for forecasts. One more row shows what a forecast cannot go below: its
matrix products and fused attention, recorded and called again alone.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks._gman_peer import WrittenOut
from benchmarks.timing import compare
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import polyhead_traffic.attention
from polyhead.nn import ReducedBatchNorm
from polyhead_traffic.gman import GMAN, fold_batch_norm
from polyhead_traffic.group_attention import best_group_size

HISTORY = 12
SIDES = ("ours", "written out", "attention written out", "in groups")
WRITTEN_OUT = [
    # (what, sensors, batch, least ratio of time, largest ratio of memory)
    ("train", 207, 16, 2.0, 0.6),
    ("forecast", 207, 16, 2.5, None),
    ("train", 883, 2, 2.5, 0.3),
    ("forecast", 883, 2, 4.0, None),
]


@contextmanager
def attention_written_out() -> Iterator[None]:
    """Make all models write attention out for a while."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
        logits = q @ k.mT * q.shape[-1] ** -0.5
        if causal:
            logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        return logits.softmax(-1) @ v

    kept = polyhead_traffic.attention.attend
    polyhead_traffic.attention.attend = attend
    try:
        yield
    finally:
        polyhead_traffic.attention.attend = kept


def make(side: str, nodes: int) -> nn.Module:
    """Return a model with the same weights and running statistics on every side but "in groups"."""
    torch.manual_seed(0)
    size = best_group_size(nodes) if side == "in groups" else 0
    config = GMAN.Config(nodes=nodes, depth=1, dropout=0.0, group_size=size)
    model = GMAN(config).set_data(mean=55.0, std=12.0)
    for norm in (module for module in model.modules() if isinstance(module, ReducedBatchNorm)):
        norm.running_mean.normal_(0, 0.1)
        norm.running_var.uniform_(0.5, 2)
    return WrittenOut(model) if side == "written out" else model


def inputs(nodes: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(batch, HISTORY, nodes, generator=generator) * 12 + 55 for _ in range(2))
    slot = torch.randint(0, 288, (batch, 1), generator=generator) + torch.arange(2 * HISTORY)
    te = torch.stack([slot // 288 % 7, slot % 288], -1)
    return x, te, y


def call(what: str, side: str, nodes: int, batch: int) -> Callable[[], Tensor]:
    """Return a function that does one training step, or one forecast."""
    model = make(side, nodes)
    x, te, y = inputs(nodes, batch)
    around = attention_written_out if side == "attention written out" else nullcontext
    if what == "train":
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        def step() -> Tensor:
            with around():
                optimizer.zero_grad()
                forecast: Tensor = model(x, te)
                (forecast - y).abs().mean().backward()
                optimizer.step()
                return forecast.detach()

        return step
    model.eval()
    if isinstance(model, GMAN):
        model = fold_batch_norm(model)

    def forecast() -> Tensor:
        with around(), torch.no_grad():
            result: Tensor = model(x, te)
            return result

    return forecast


class Products(TorchDispatchMode):
    """Records the calls that do a forecast's arithmetic."""

    KINDS = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self.KINDS:
            self.calls.append(partial(func, *args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))

    def again(self) -> None:
        with torch.no_grad():
            for each in self.calls:
                each()


def against_products(nodes: int, batch: int) -> dict[str, Any]:
    """Time a forecast against the products it consists of."""
    run, products = call("forecast", "ours", nodes, batch), Products()
    with products:
        run()
    times = compare(run, products.again, warmup=1, repeats=9, budget_s=40)
    return {
        "case": f"forecast N={nodes} B={batch}",
        "peer": "its products alone",
        "ours_s": times.ours_s,
        "peer_s": times.peer_s,
    }


def check(nodes: int = 60, batch: int = 2) -> str:
    """Compare forecasts and gradients of all sides in float64; the returned sentence says how far they are apart."""
    x, te, y = inputs(nodes, batch)
    results = []
    for side in SIDES[:3]:
        model: Any = make(side, nodes).double()
        peer = side == "written out"
        gate = model.encoder[0].gate_t if peer else model.encoder[0].fusion.temporal
        if peer:
            model.embedding = model.embedding.double()
        with attention_written_out() if side == SIDES[2] else nullcontext():
            evaluated = (model.eval() if peer else fold_batch_norm(model))(x.double(), te)
            forecast = model.train()(x.double(), te)
            (forecast - y).square().mean().backward()
        results.append((evaluated.detach(), forecast.detach(), gate.weight.grad, model.input[1].weight.grad))
    worst = max(
        ((got - want).abs().max() / want.abs().max()).item()
        for other in results[1:]
        for got, want in zip(results[0], other, strict=True)
    )
    if worst > 1e-9:
        raise SystemExit(f"forecasts or gradients differ by {worst:.1e} in float64")
    return f"forecasts and gradients in float64 differ by {worst:.0e} at most"


def peak_mib(what: str, side: str, nodes: int, batch: int) -> float:
    """Return the growth of the resident set during a call, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gman", "--memory", what, side, str(nodes), str(batch)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_memory(what: str, side: str, nodes: int, batch: int) -> None:
    run = call(what, side, nodes, batch)
    # The small run loads what the first call of a process loads.
    call(what, side, 8, 1)()
    # The peak of the process so far is forgotten: it is that of its imports, and getrusage's even that of its parent.
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


def row(what: str, nodes: int, batch: int, ours: str, peer: str, **claims: float | None) -> dict[str, Any]:
    times = compare(call(what, ours, nodes, batch), call(what, peer, nodes, batch), warmup=1, repeats=9, budget_s=40)
    memory = [peak_mib(what, side, nodes, batch) for side in (ours, peer)]
    name = f"{what} N={nodes} B={batch}" + (f", groups of {best_group_size(nodes)}" if ours == "in groups" else "")
    kept = {key: claim for key, claim in claims.items() if claim is not None}
    return {
        "case": name, "peer": "full, fused" if peer == "ours" else peer, "ours_s": times.ours_s, "peer_s": times.peer_s,
        "ours_mib": memory[0], "peer_mib": memory[1], "memory_ratio": memory[0] / memory[1], **kept,
    }  # fmt: skip


def main() -> None:
    if "--memory" in sys.argv:
        what, side, *sizes = sys.argv[-4:]
        measure_memory(what, side, *map(int, sizes))
        return
    correct = check()
    rows = []
    for what, nodes, batch, faster, smaller in WRITTEN_OUT:
        rows.append(row(what, nodes, batch, "ours", "written out", at_least=faster, memory_at_most=smaller))
        rows.append(row(what, nodes, batch, "ours", "attention written out"))
        if what == "forecast":
            rows.append(against_products(nodes, batch))
    rows.append(row("train", 883, 2, "in groups", "ours", at_least=1 / 0.45))
    rows.append(row("forecast", 883, 2, "in groups", "ours"))
    small, large = 883, 2000
    times = compare(call("train", "in groups", large, 2), call("train", "in groups", small, 2), warmup=1, repeats=9)
    growth = {
        "case": f"train in groups, from N={small} to N={large}, B=2",
        "exponent": math.log(times.ours_s / times.peer_s) / math.log(large / small),
        "at_most": 1.2,
    }
    document = {"title": "GMAN", "threads": torch.get_num_threads(), "correct": correct, "rows": rows, "growth": growth}
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
