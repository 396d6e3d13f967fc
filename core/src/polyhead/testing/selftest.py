"""Break kernels on purpose and see whether their operator's cases notice: a test of the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from polyhead.manifest import resolve
from polyhead.ops import Inputs, KernelSpec, OperatorSpec
from polyhead.ops.faults import Fault, Function, negated
from polyhead.testing.operators import Budget, call_of, draw, poisoned_memory, run

__all__ = ["FIVE", "Broken", "absent", "break_kernels", "faults_of"]

FIVE = ("sign", "off-by-one block", "missing scale", "dropped tail", "stale state")
"""What every operator's kernels are broken by, unless it has no block, no scale or no state."""
GRADIENT = "sign of the gradient of "


@dataclass
class Broken:
    """One kernel with one fault, and whether a case noticed."""

    operator: str
    kernel: str
    form: str
    fault: str
    dtype: str
    caught: bool = False
    by: str = ""
    """The case that noticed, and what it said."""
    tried: int = 0
    """Cases that were run, the one that noticed included."""

    def data(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def faults_of(spec: OperatorSpec) -> dict[str, Fault]:
    """Return an operator's faults by name: its own, and a wrong sign in the gradient of each argument."""
    faults: dict[str, Fault] = dict(resolve(spec.faults)) if spec.faults else {"sign": negated}
    generator = torch.Generator().manual_seed(0)
    names: dict[str, None] = {}
    for case in spec.cases():
        names |= dict.fromkeys(name.partition(".")[0] for name in case.make(generator, torch.float32).differentiable)
    return faults | {f"{GRADIENT}{name}": _gradient_negated(name) for name in names}


def absent(spec: OperatorSpec) -> list[str]:
    """Return which of the five ways to break a kernel an operator does not have."""
    return [name for name in FIVE if name not in faults_of(spec)]


def break_kernels(
    spec: OperatorSpec, kernels: Sequence[KernelSpec], dtype: str = "float32", device: str = "cpu"
) -> list[Broken]:
    """Run each kernel with each fault on the operator's cases, the small ones first, until one notices.

    A wrong gradient is looked for in the cases that check this gradient; a kernel that serves none of them has none.
    """
    faults = faults_of(spec)
    results = [Broken(spec.name, k.name, k.form, fault, dtype) for k in kernels for fault in faults]
    waiting = {
        (result.kernel, result.fault): (result, _broken(kernel, faults[result.fault]))
        for kernel in kernels
        for result in results
        if result.kernel == kernel.name
    }
    drawn = [(case, draw(case, dtype, device)) for case in spec.cases()]
    for case, inputs in sorted(drawn, key=lambda pair: sum(x.numel() for x in pair[1].tensors.values())):
        if not waiting:
            break
        call = call_of(spec, inputs)
        budget = None
        for key, (result, kernel) in list(waiting.items()):
            if kernel.supports(call) or not _concerns(result.fault, inputs):
                continue
            budget = budget or Budget(spec, inputs)
            result.tried += 1
            if problem := _problem(spec, kernel, inputs, budget):
                result.caught, result.by = True, f'case "{case.name}": {problem}'
                del waiting[key]
    return [result for result in results if result.tried or not result.fault.startswith(GRADIENT)]


def _concerns(fault: str, inputs: Inputs) -> bool:
    """Return whether a case can notice a fault: one in a gradient only if it is computed."""
    if not fault.startswith(GRADIENT):
        return True
    return fault.removeprefix(GRADIENT) in {name.partition(".")[0] for name in inputs.differentiable}


def _problem(spec: OperatorSpec, kernel: KernelSpec, inputs: Inputs, budget: Budget) -> str:
    """Return what is wrong with a kernel on one case, or nothing."""
    try:
        with poisoned_memory():
            got = run(spec, kernel, inputs)
    except Exception as failure:  # a broken kernel may break anywhere
        return f"raised {type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
    return next((text for _, share, text in budget.shares(got) if not share <= 1), "")


def _broken(kernel: KernelSpec, fault: Fault) -> KernelSpec:
    function: Function = resolve(kernel.function) if isinstance(kernel.function, str) else kernel.function
    return replace(kernel, function=fault(function))


def _gradient_negated(name: str) -> Fault:
    def fault(function: Function) -> Function:
        def broken(**arguments: Any) -> Any:
            return function(**{**arguments, name: tree_map(_flipped, arguments[name])})

        return broken

    return fault


def _flipped(x: Any) -> Any:
    return _Flip.apply(x) if isinstance(x, Tensor) and x.requires_grad else x


class _Flip(torch.autograd.Function):
    """Identity with the wrong sign backwards."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(_ctx: Any, *gradients: Tensor) -> Any:
        return -gradients[0]
