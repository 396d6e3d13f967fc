"""What ``kernels bench`` does: kernels timed against a peer and this machine's roofline, correctness first."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyhead.errors import ConfigError, KernelError, UnknownNameError
from polyhead.manifest import resolve
from polyhead.ops.choice import use_kernel
from polyhead.ops.commands.compiling import measures_of
from polyhead.ops.commands.said import Said
from polyhead.ops.commands.verifying import check_device
from polyhead.ops.roofline import Device
from polyhead.ops.selection import registry
from polyhead.ops.spec import Inputs, KernelSpec, Measure, OperatorSpec

__all__ = ["bench_kernels"]

_PEER_TOLERANCE = {"float64": 1e-12, "float32": 1e-4, "bfloat16": 2e-2, "float16": 5e-3}
"""How far a peer may be from a kernel, relative to the largest value: they add up in another order."""


def bench_kernels(
    operator: str | None = None,
    dtypes: Sequence[str] = ("float32",),
    device: str = "cpu",
    *,
    threads: int = 2,
    repeats: int = 9,
    claims: bool = True,
) -> Said:
    """Time every kernel at the sizes that its operator names, forward and with backward.

    A kernel is first held against the definition on all cases of its operator, and against the peer at full size where
    the peer computes the same. One that is wrong is not timed. All sides of a row take turns, so that a slow minute of
    the machine hits each of them; times are medians.

    Args:
        operator: one operator; all if None.
        dtypes: such as "bfloat16".
        device: where to run.
        threads: of torch, on a CPU.
        repeats: how often each side runs.
        claims: whether the repository's benchmarks of the operators are run too, where this is its source tree; they
            hold the ratios that the documentation claims.

    Raises:
        UnknownNameError: no such operator or dtype.
        ConfigError: threads or repeats is below 1.
        KernelError: the device is not here.
    """
    for name, value in (("threads", threads), ("repeats", repeats)):
        if value < 1:
            raise ConfigError(f"--{name} is {value}, expected 1 or more.")
    check_device(device)
    specs = [registry.operator(name) for name in ([operator] if operator else registry.operators())]
    for spec in specs:
        for unknown in set(dtypes) - set(spec.tolerances):
            raise UnknownNameError(f"dtype of {spec.name}", unknown, spec.tolerances)
    rows: list[dict[str, Any]] = []
    wrong: list[str] = []
    with _threads(threads):
        reached = {dtype: _reached(dtype, device) for dtype in dtypes}
        for spec in specs:
            for dtype in dtypes:
                kernels, failures = _right(spec, dtype, device)
                wrong += failures
                for measure in measures_of(spec):
                    rows += _rows(spec, measure, kernels, dtype, device, reached[dtype], repeats, wrong)
    claimed = _claims([spec.name for spec in specs]) if claims else {}
    data = {
        "device": device if torch.device(device).type == "cpu" else torch.cuda.get_device_name(device),
        "threads": threads,
        "reached": {
            dtype: {"flops_per_s": d.flops_per_s[dtype], "bytes_per_s": d.bytes_per_s} for dtype, d in reached.items()
        },
        "rows": rows,
        "wrong": wrong,
        "claims": claimed,
    }
    return Said(data, "\n".join(_lines(data)), passed=not wrong and bool(rows or claimed))


def _right(spec: OperatorSpec, dtype: str, device: str) -> tuple[list[KernelSpec], list[str]]:
    """Return the kernels that are worth timing and keep the contract on every case, and what the others break."""
    from polyhead.testing.operators import verify

    found, wrong = [], []
    for kernel in registry.kernels(spec.name):
        if kernel.name == "reference" or (kernel.dtypes and dtype not in kernel.dtypes):
            continue  # the definition is not made to be fast
        result = verify(kernel, dtype, device)
        wrong += [f"{spec.name} by {kernel.name}: {failure}" for failure in result.failures]
        if result.cases and not result.failures:
            found.append(kernel)
    return found, wrong


def _rows(
    spec: OperatorSpec,
    measure: Measure,
    kernels: Sequence[KernelSpec],
    dtype: str,
    device: str,
    reached: Device,
    repeats: int,
    wrong: list[str],
) -> list[dict[str, Any]]:
    """Time one measure, forward and with backward; a row for each kernel that serves it."""
    from polyhead.testing.operators import call_of

    inputs = measure.make(torch.Generator().manual_seed(0), getattr(torch, dtype)).map(lambda _, x: x.to(device))
    call = call_of(spec, inputs)
    serving = {kernel.name: kernel for kernel in kernels if not kernel.supports(call)}
    if not serving:
        return []
    public = resolve(spec.function)
    rows = []
    for direction in ("forward", "forward+backward"):
        sides: dict[str, Callable[[], list[Tensor]]] = {
            name: partial(_run, public, inputs, direction, {spec.name: kernel}) for name, kernel in serving.items()
        }
        if measure.peer:
            sides["peer"] = partial(_run, resolve(measure.peer), inputs, direction, {})
        if measure.peer and measure.same and (problems := _disagreements(sides, dtype)):
            wrong += [f"{spec.name}, {measure.name}, {direction}, {dtype}: {problem}" for problem in problems]
            continue
        times = _times(sides, device, repeats)
        costs = [spec.cost(call)] + ([spec.cost(call, backward=True)] if direction != "forward" else [])
        bound = sum(reached.bound(cost, dtype)["seconds"] for cost in costs)
        for name in serving:
            row: dict[str, Any] = {"operator": spec.name, "case": measure.name, "direction": direction, "dtype": dtype}
            row |= {"kernel": name, "seconds": times[name], "roofline": round(bound / times[name], 4)}
            row |= {"flops": sum(cost.flops for cost in costs), "bytes": sum(cost.bytes for cost in costs)}
            if measure.peer:
                row |= {"peer": measure.peer_name, "peer_seconds": times["peer"]}
                row["ratio"] = round(times["peer"] / times[name], 3)
            rows.append(row)
    return rows


def _run(
    function: Callable[..., Any], inputs: Inputs, direction: str, kernel: Mapping[str, KernelSpec]
) -> list[Tensor]:
    """Return the first output, and the gradients if asked."""
    with use_kernel(**kernel):
        if direction == "forward":
            with torch.no_grad():
                return [_first(function(**inputs.arguments()))]
        tensors = {
            name: x.detach().requires_grad_() if name in inputs.differentiable else x
            for name, x in inputs.tensors.items()
        }
        output = _first(function(**inputs.arguments(tensors)))
    wanted = [tensors[name] for name in inputs.differentiable]
    return [output.detach(), *torch.autograd.grad(output, wanted, torch.ones_like(output), materialize_grads=True)]


def _first(returned: Any) -> Tensor:
    first: Tensor = returned if isinstance(returned, Tensor) else returned[0]
    return first


def _disagreements(sides: Mapping[str, Callable[[], list[Tensor]]], dtype: str) -> list[str]:
    """Return where kernels and peer compute something else."""
    from polyhead.testing.operators import error

    expected = sides["peer"]()
    problems = []
    for name, side in sides.items():
        if name != "peer":
            off = max(error(a, b.double()) for a, b in zip(side(), expected, strict=True))
            if off > _PEER_TOLERANCE[dtype]:
                problems.append(f"{name} and its peer differ by {off:.2g}, allowed {_PEER_TOLERANCE[dtype]}")
    return problems


def _times(sides: Mapping[str, Callable[[], Any]], device: str, repeats: int) -> dict[str, float]:
    """Return the median time of each side in seconds; they run in turn, each round starting with another one."""
    names = list(sides)
    for name in names:
        sides[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for count in range(repeats):
        shift = count % len(names)
        for name in names[shift:] + names[:shift]:
            times[name].append(_time(sides[name], device))
    return {name: statistics.median(each) for name, each in times.items()}


def _time(side: Callable[[], Any], device: str) -> float:
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    side()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _reached(dtype: str, device: str) -> Device:
    """Return the best of several matrix products and of several copies past every cache, on this machine."""
    on_gpu = torch.device(device).type == "cuda"
    size, count = (8192, 2**29) if on_gpu else (1536, 2**25)
    a = torch.rand(size, size, device=device).to(getattr(torch, dtype))
    big = torch.rand(count, device=device)
    target = torch.empty_like(big)
    product = min(_time(lambda: torch.mm(a, a), device) for _ in range(7))
    copy = min(_time(lambda: target.copy_(big), device) for _ in range(7))
    return Device(device, "", {dtype: 2 * size**3 / product}, 2 * 4 * count / copy)


@contextmanager
def _threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _claims(operators: Sequence[str]) -> dict[str, Any]:
    """Run the repository's own benchmarks of these operators and return their documents; none outside of it."""
    root = _repository()
    if root is None:
        return {}
    found = {}
    for name in operators:
        if not (root / "benchmarks" / f"{name}.py").exists():
            continue
        command = [sys.executable, "-m", "benchmarks.run", name]
        result = subprocess.run(command, cwd=root, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False)
        if result.returncode:
            raise KernelError(
                f"The benchmark of {name} failed, so no figure of it counts. Again: {' '.join(command[1:])}"
            )
        document = json.loads((root / "build" / "bench" / f"{name}.json").read_text(encoding="utf-8"))
        found[name] = {key: document[key] for key in ("title", "threads", "correct", "rows", "roofline")}
    return found


def _repository() -> Path | None:
    """Return the root of the source tree that this package runs from, or None."""
    root = Path(__file__).resolve().parents[6]
    return root if (root / "benchmarks" / "run.py").exists() else None


def _lines(data: Mapping[str, Any]) -> list[str]:
    lines = [f"{data['device']}, {data['threads']} threads"]
    for dtype, reached in data["reached"].items():
        lines.append(
            f"  {dtype}: {reached['flops_per_s'] / 1e9:.4g} GFLOP/s in a matrix product, "
            f"{reached['bytes_per_s'] / 1e9:.4g} GB/s in a copy"
        )
    lines.append(
        f"{'operator':<28}{'case':<32}{'direction':<18}{'dtype':<10}{'kernel':<10}{'time':>12}{'roofline':>10}  "
        f"{'peer':<24}{'peer':>12}{'ratio':>8}"
    )
    for row in data["rows"]:
        line = (
            f"{row['operator']:<28}{row['case']:<32}{row['direction']:<18}{row['dtype']:<10}{row['kernel']:<10}"
            f"{_ms(row['seconds'])}{row['roofline']:>10.0%}"
        )
        if "peer" in row:
            line += f"  {row['peer']:<24}{_ms(row['peer_seconds'])}{row['ratio']:>8.2f}"
        lines.append(line)
    for name, document in data["claims"].items():
        lines.append(f"{name}: {document['title']} ({document['correct']})")
        for row in document["rows"]:
            ratio, least = row["peer_s"] / row["ours_s"], row.get("at_least")
            claim = "" if least is None else f", claimed {least:.2f}" + (": MISSED" if ratio < least else "")
            lines.append(f"  {row['case']} against {row['peer']}: {ratio:.2f}{claim}")
    lines += [f"wrong, so not timed: {problem}" for problem in data["wrong"]]
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:>9.3g} ms"
