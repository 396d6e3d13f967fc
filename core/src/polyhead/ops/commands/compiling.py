"""What ``kernels compile`` does: every program built ahead of time for every device family, no GPU needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from polyhead.errors import KernelError, UnknownNameError
from polyhead.manifest import resolve
from polyhead.ops.builds import Build
from polyhead.ops.commands.said import Said
from polyhead.ops.roofline import DEVICES
from polyhead.ops.selection import registry
from polyhead.ops.spec import Measure, OperatorSpec

__all__ = ["compile_kernels", "measures_of"]

TARGETS = tuple(device.target for device in DEVICES)


def compile_kernels(
    operator: str | None = None, targets: Sequence[str] = (), *, every: bool = False, workers: int = 0
) -> Said:
    """Compile kernels for devices that need not be here, and read from the binaries what they need.

    Args:
        operator: one operator; all if None.
        targets: device families, such as "sm_90"; all of them if empty.
        every: whether the configurations that are there for tuning are built too.
        workers: processes; one for each processor if 0.

    Raises:
        UnknownNameError: no such operator or target.
        KernelError: no installed kernel is compiled, or this process runs Triton's interpreter.
    """
    from polyhead.plugins import compile_programs

    operators = (operator,) if operator else registry.operators()
    specs = [registry.operator(name) for name in operators]
    for unknown in set(targets) - set(TARGETS):
        raise UnknownNameError("target", unknown, TARGETS)
    found = compile_programs(operators=operators, targets=tuple(targets) or TARGETS, every=every, workers=workers)
    if not found:
        mend = "  pip install polyhead-kernels" if found is None else ""
        raise KernelError(f"No installed kernel of {', '.join(operators)} is compiled ahead of time.{mend}")
    builds: list[Build] = sorted(found, key=lambda b: (b.operator, b.program, TARGETS.index(b.target), not b.default))
    problems = [f"{build}: {problem}" for build in builds for problem in build.problems()]
    bounds = [row for spec in specs for row in _bounds(spec, targets or TARGETS)]
    lines = [*_table(builds), *(["", *_bound_lines(bounds)] if bounds else []), *problems]
    lines.append(
        f"{len(builds)} builds, {sum(b.cached for b in builds)} of them known: {len(problems) or 'no'} problems."
    )
    data = {
        "targets": list(targets or TARGETS),
        "every": every,
        "builds": [build.data() for build in builds],
        "problems": problems,
        "bounds": bounds,
    }
    return Said(data, "\n".join(lines), passed=not problems)


def measures_of(spec: OperatorSpec) -> tuple[Measure, ...]:
    """Return the sizes at which an operator is measured."""
    return tuple(resolve(spec.measures)) if spec.measures else ()


def _bounds(spec: OperatorSpec, targets: Sequence[str]) -> list[dict[str, Any]]:
    """Return the least time of each measure on each device."""
    rows = []
    for measure in measures_of(spec):
        for dtype in ("float32", "tf32", "bfloat16"):
            call = spec.describe(
                measure.shape,
                torch.float32 if dtype == "tf32" else getattr(torch, dtype),
                torch.device("cuda"),
                **measure.options,
            )
            costs = {"forward": spec.cost(call), "backward": spec.cost(call, backward=True)}
            for device in DEVICES:
                if device.target in targets:
                    row: dict[str, Any] = {"operator": spec.name, "case": measure.name, "dtype": dtype}
                    row |= {"device": device.name}
                    row |= {way: device.bound(cost, dtype) for way, cost in costs.items()}
                    rows.append(row)
    return rows


def _table(builds: Sequence[Build]) -> list[str]:
    head = f"{'operator':<24}{'program':<20}{'target':<8}{'dtype':<10}{'regs':>5}{'spills':>7}{'shared':>9}"
    lines = [f"{head}  matrix  constants"]
    for build in builds:
        constants = " ".join(f"{name}={value}" for name, value in build.constants.items())
        lines.append(
            f"{build.operator:<24}{build.program:<20}{build.target:<8}{build.dtype:<10}{build.registers:>5}"
            f"{build.spills:>7}{build.shared_bytes:>9}  {','.join(build.matrix) or '-'}  {constants} "
            f"warps={build.warps} stages={build.stages}{'' if build.default else ' (tuning)'}"
        )
    return lines


def _bound_lines(bounds: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [f"least time  {'operator':<24}{'case':<32}{'dtype':<10}{'device':<8}{'forward':>12}{'backward':>12}"]
    for row in bounds:
        times = [f"{1e6 * row[way]['seconds']:>9.3g} µs" for way in ("forward", "backward")]
        lines.append(
            f"{'':<12}{row['operator']:<24}{row['case']:<32}{row['dtype']:<10}{row['device']:<8}{''.join(times)}"
        )
    return lines
