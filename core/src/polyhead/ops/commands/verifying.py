"""What ``kernels verify`` does: kernels held against the definition, Triton's ones in the interpreter too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from polyhead.errors import KernelError, UnknownNameError
from polyhead.ops.commands.cache import load, source_digest, store
from polyhead.ops.commands.said import Said
from polyhead.ops.selection import registry
from polyhead.ops.spec import KernelSpec, OperatorSpec

__all__ = ["break_kernels", "check_device", "verify_kernels"]


def verify_kernels(
    operator: str | None = None,
    kernel: str | None = None,
    dtypes: Sequence[str] = (),
    device: str = "cpu",
    *,
    changed: bool = False,
) -> Said:
    """Hold kernels against the definition in float64 on the operators' cases; all of them unless named.

    On the CPU, kernels that Triton's interpreter can run are run by it, in a process of their own. A kernel that this
    device cannot run is listed as skipped with the reason; one that could, and ran no case, is a failure.

    Args:
        operator: one operator.
        kernel: one kernel.
        dtypes: such as "float32"; those that operator and kernel know if empty.
        device: where to run.
        changed: whether what has passed with the same source is taken from the cache instead of run.

    Raises:
        UnknownNameError: no such operator, kernel or dtype.
        KernelError: the device is not here.
    """
    check_device(device)
    rows: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for spec, chosen in _chosen(operator, kernel):
        for unknown in set(dtypes) - set(spec.tolerances):
            raise UnknownNameError(f"dtype of {spec.name}", unknown, spec.tolerances)
        for each in chosen:
            apart = _apart(each, device)
            asked = [name for name in dtypes or spec.tolerances if not each.dtypes or name in each.dtypes]
            for dtype in asked:
                if reason := _missing(each, dtype, device):
                    names = {"operator": spec.name, "kernel": each.name, "form": each.form, "dtype": dtype}
                    skipped.append({**names, "reason": reason})
                    continue
                digest = _digest(spec, each, "verify", dtype, device)
                row = load("verify", digest) if changed else None
                if row is None:
                    row = _row_apart(each, dtype) if apart else _row(each, dtype, device)
                    if row["cases"] and not row["failures"]:
                        store("verify", digest, row)
                    row["cached"] = False
                else:
                    row["cached"] = True
                rows.append(row)
    return _said(rows, skipped, device)


def break_kernels(
    operator: str | None = None, kernel: str | None = None, device: str = "cpu", *, changed: bool = False
) -> Said:
    """Break kernels in every way that their operators know, and show that the operators' cases notice.

    Args: as for ``verify_kernels``. Every fault is tried in float32.

    Raises:
        UnknownNameError: no such operator or kernel.
        KernelError: the device is not here.
    """
    check_device(device)
    from polyhead.testing.selftest import absent
    from polyhead.testing.selftest import break_kernels as broken

    rows: list[dict[str, Any]] = []
    without = {}
    for spec, chosen in _chosen(operator, kernel):
        without[spec.name] = absent(spec)
        for each in chosen:
            if _missing(each, "float32", device) or (each.dtypes and "float32" not in each.dtypes):
                continue
            digest = _digest(spec, each, "self-test", "float32", device)
            found = load("self-test", digest) if changed else None
            if found is None:
                if _apart(each, device):
                    found = _interpreted("--self-test", "--op", spec.name, "--kernel", each.name)["rows"]
                else:
                    found = [result.data() for result in broken(spec, [each], "float32", device)]
                if all(row["caught"] for row in found):
                    store("self-test", digest, found)
            rows += found
    lines = [f"{'operator':<28}{'kernel':<16}{'fault':<32}{'cases':>6}  noticed by"]
    for row in rows:
        by = row["by"] if row["caught"] else "NOBODY"
        lines.append(f"{row['operator']:<28}{row['kernel']:<16}{row['fault']:<32}{row['tried']:>6}  {by}")
    lines += [f"{name} has none to break: {', '.join(kinds)}." for name, kinds in without.items() if kinds]
    missed = [row for row in rows if not row["caught"]]
    lines.append(f"{len(rows)} broken kernels, {len(rows) - len(missed)} of them noticed.")
    data = {"device": device, "rows": rows, "absent": without, "broken": len(rows), "missed": len(missed)}
    return Said(data, "\n".join(lines), passed=bool(rows) and not missed)


def _chosen(operator: str | None, kernel: str | None) -> Iterator[tuple[OperatorSpec, list[KernelSpec]]]:
    from polyhead.testing.operators import implementations

    for name in [operator] if operator else registry.operators():
        chosen = implementations(name)
        if kernel is not None:
            chosen = [each for each in chosen if each.name == kernel] or [registry.kernel(name, kernel)]
        yield registry.operator(name), chosen


def _apart(kernel: KernelSpec, device: str) -> bool:
    """Whether a kernel is run in a process of its own, by Triton's interpreter."""
    return bool(kernel.interpreted) and torch.device(device).type == "cpu" and not _interpreting()


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _missing(kernel: KernelSpec, dtype: str, device: str) -> str:
    """Return why nothing of a kernel can be run here, or nothing."""
    kind = torch.device(device).type
    if kernel.interpreted and kind == "cpu":
        if dtype not in kernel.interpreted:
            return f"needs a GPU: the interpreter is right in {', '.join(kernel.interpreted)} only"
        return ""
    if kernel.devices and kind not in kernel.devices:
        return f"device is {kind} (needs {', '.join(kernel.devices)})"
    return ""


def _row(kernel: KernelSpec, dtype: str, device: str) -> dict[str, Any]:
    from polyhead.testing.operators import verify

    row = verify(kernel, dtype, device).data()
    return {**row, "interpreted": bool(kernel.interpreted) and _interpreting()}


def _row_apart(kernel: KernelSpec, dtype: str) -> dict[str, Any]:
    found = _interpreted("--op", kernel.operator, "--kernel", kernel.name, "--dtype", dtype)
    row: dict[str, Any] = found["rows"][0]
    return row


def _interpreted(*arguments: str) -> dict[str, Any]:
    """Run ``kernels verify`` in a process in which Triton's interpreter is on, which it must be from the start.

    Raises:
        KernelError: it ended without an answer: out-of-bounds loads of an interpreted kernel kill the process.
    """
    command = [sys.executable, "-m", "polyhead", "kernels", "verify", "--json", *arguments]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    try:
        answer: dict[str, Any] = json.loads(result.stdout)
    except ValueError:
        last = (result.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise KernelError(
            f"Triton's interpreter ended with {result.returncode}: {last}  "
            f"Again: TRITON_INTERPRET=1 python -m polyhead kernels verify {' '.join(arguments)}"
        ) from None
    return answer


def _digest(spec: OperatorSpec, kernel: KernelSpec, kind: str, dtype: str, device: str) -> str | None:
    """Return a digest of what a result depends on: the operator, the kernel, the kit, and the versions."""
    function = kernel.function if isinstance(kernel.function, str) else kernel.function.__module__
    names = [spec.function, *spec.forms.values(), spec.faults, function, spec.describe.__module__]
    modules = [name.partition(":")[0] for name in names if name]
    where = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    facts = [kind, torch.__version__, spec.name, kernel.name, kernel.form, dtype, where, str(_interpreting())]
    others = [f"polyhead.ops.{name}" for name in registry.operators() if name != spec.name]
    return source_digest([*modules, "polyhead.testing.operators", "polyhead.testing.selftest"], facts, others)


def _said(rows: Sequence[Mapping[str, Any]], skipped: Sequence[Mapping[str, Any]], device: str) -> Said:
    head = f"{'operator':<28}{'kernel':<16}{'form':<12}{'dtype':<10}{'cases':>6}{'passes':>8}{'refused':>9}  worst"
    lines, failures = [head], []
    for row in rows:
        worst = max(row["worst"].values(), default=0.0)
        result = f"{worst:5.0%} of the budget" if row["cases"] else "NO CASE: " + "; ".join(_reasons(row["refused"]))
        notes = ["interpreted"] * row["interpreted"] + ["known"] * row["cached"]
        lines.append(
            f"{row['operator']:<28}{row['kernel']:<16}{row['form']:<12}{row['dtype']:<10}{row['cases']:>6}"
            f"{row['passes']:>8}{len(row['refused']):>9}  {result}"
            + (f"  ({', '.join(notes)})" if notes else "")
            + (f"  {len(row['failures'])} FAILED" if row["failures"] else "")
        )
        name = f"{row['operator']} by {row['kernel']} ({row['form']})"
        failures += [f"{name}: {failure}" for failure in row["failures"]]
        if not row["cases"]:
            failures.append(f"{name}, {row['dtype']}: no case was run.")
    for row in skipped:
        lines.append(f"{row['operator']:<28}{row['kernel']:<16}{row['form']:<12}{row['dtype']:<10} {row['reason']}")
    cases = sum(row["cases"] for row in rows)
    lines += failures
    lines.append(f"{cases} cases in {len(rows)} rows: {len(failures) or 'no'} failures.")
    data = {"device": device, "rows": list(rows), "skipped": list(skipped), "cases": cases, "failures": len(failures)}
    return Said(data, "\n".join(lines), passed=not failures and bool(rows))


def check_device(device: str) -> None:
    """Refuse a device on which nothing can be run.

    Raises:
        KernelError: it is not here, or its tensors have no values.
    """
    if device == "meta":
        raise KernelError('Device "meta" cannot be used here: its tensors have no values.')
    try:
        torch.ones(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise KernelError(f'Device "{device}" cannot be used here: {str(error).splitlines()[0]}') from error


def _reasons(refused: Mapping[str, list[str]]) -> list[str]:
    """Return the distinct reasons, in the order they came."""
    return list(dict.fromkeys(reason for reasons in refused.values() for reason in reasons))
