"""What ``kernels verify`` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from polyhead.errors import KernelError, UnknownNameError
from polyhead.ops.commands.said import Said
from polyhead.ops.selection import registry

__all__ = ["verify_kernels"]


def verify_kernels(
    operator: str | None = None,
    kernel: str | None = None,
    dtypes: Sequence[str] = (),
    device: str = "cpu",
) -> Said:
    """Hold kernels against the definition in float64 on the operators' cases; all of them unless named.

    Raises:
        UnknownNameError: no such operator, kernel or dtype.
        KernelError: the device is not here.
    """
    _check_device(device)
    from polyhead.testing.operators import implementations, verify

    rows = []
    for name in [operator] if operator else registry.operators():
        tolerances = registry.operator(name).tolerances
        for unknown in set(dtypes) - set(tolerances):
            raise UnknownNameError(f"dtype of {name}", unknown, tolerances)
        chosen = implementations(name)
        if kernel is not None:
            chosen = [each for each in chosen if each.name == kernel] or [registry.kernel(name, kernel)]
        for each in chosen:
            for dtype in dtypes or [dtype for dtype in tolerances if not each.dtypes or dtype in each.dtypes]:
                rows.append(verify(each, dtype, device))
    head = f"{'operator':<28}{'kernel':<16}{'form':<12}{'dtype':<10}{'cases':>6}{'passes':>8}{'refused':>9}  worst"
    lines = [head]
    for row in rows:
        worst = max(row.worst.values(), default=0.0)
        result = f"{worst:5.0%} of the budget" if row.cases else "not run: " + "; ".join(_reasons(row.refused))
        lines.append(
            f"{row.operator:<28}{row.kernel:<16}{row.form:<12}{row.dtype:<10}{row.cases:>6}{row.passes:>8}"
            f"{len(row.refused):>9}  {result}" + (f"  {len(row.failures)} FAILED" if row.failures else "")
        )
    failures = [f"{row.operator} by {row.kernel} ({row.form}): {failure}" for row in rows for failure in row.failures]
    cases, served = sum(row.cases for row in rows), sum(1 for row in rows if row.cases)
    lines += failures
    lines.append(f"{cases} cases in {served} of {len(rows)} rows: {len(failures) or 'no'} failures.")
    data = {"device": device, "rows": [row.data() for row in rows], "cases": cases, "failures": len(failures)}
    return Said(data, "\n".join(lines), passed=not failures and served > 0)


def _check_device(device: str) -> None:
    if device == "meta":
        raise KernelError('Device "meta" cannot be used here: its tensors have no values.')
    try:
        torch.ones(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise KernelError(f'Device "{device}" cannot be used here: {str(error).splitlines()[0]}') from error


def _reasons(refused: Mapping[str, list[str]]) -> list[str]:
    """Return the distinct reasons, in the order they came."""
    return list(dict.fromkeys(reason for reasons in refused.values() for reason in reasons))
