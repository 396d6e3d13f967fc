"""Check that a kernel computes its operator: outputs, every gradient, and the contract, on the operator's own cases."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor

from polyhead.errors import KernelError, PolyheadError
from polyhead.manifest import resolve
from polyhead.ops import Call, Case, Inputs, KernelSpec, OperatorSpec, registry, use_kernel
from polyhead.testing.report import Report, RuleError
from polyhead.testing.tracing import report_tracing
from polyhead.testing.values import leaves

__all__ = ["Verified", "check_kernel", "check_operator", "implementations", "verify"]

_CONTRACT = "polyhead.ops.spec.Inputs"
_LONGEST = 10
"""How many failures a message lists; it gives the count of all."""


@dataclass
class Verified:
    """What was run of one kernel in one dtype, and what was wrong."""

    operator: str
    kernel: str
    form: str
    dtype: str
    device: str
    cases: int = 0
    """Cases that the kernel served; each is at least one forward and one backward pass."""
    passes: int = 0
    """Forward passes compared, those with poisoned or left-out inputs included."""
    refused: dict[str, list[str]] = field(default_factory=dict)
    """By case that the kernel does not support, its reasons."""
    worst: dict[str, float] = field(default_factory=dict)
    """By output and gradient, the largest share of the error budget that was used; at most 1."""
    failures: list[str] = field(default_factory=list)

    def data(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "worst": {name: round(share, 4) for name, share in self.worst.items()}}


def implementations(operator: str) -> list[KernelSpec]:
    """Return an operator's kernels, and its forms that no kernel computes as kernels named ``form_NAME``."""
    spec = registry.operator(operator)
    kernels = list(registry.kernels(operator))
    computed = {kernel.form for kernel in kernels}
    for form, function in spec.forms.items():
        if form not in computed:
            kernels.append(KernelSpec(operator, f"form_{form}", function, form=form, double_backward=True))
    return kernels


def check_operator(
    operator: str, *, dtypes: Sequence[str] | None = None, device: str = "cpu", traced: bool = True
) -> list[str]:
    """Check every kernel that runs on a device, and every form of an operator; see ``check_kernel``.

    Raises:
        CheckError: something breaks the operator's contract; a line each.
        UnknownNameError: no such operator.
    """
    report = Report(f"operator {operator}")
    for kernel in implementations(operator):
        if not kernel.devices or torch.device(device).type in kernel.devices:
            _report(report, kernel, dtypes, device, traced)
    return report.finish()


def check_kernel(
    operator: str,
    kernel: str | KernelSpec,
    *,
    dtypes: Sequence[str] | None = None,
    device: str = "cpu",
    traced: bool = True,
) -> list[str]:
    """Check a kernel on its operator's cases against the definition in float64.

    Outputs and the gradient of every differentiable input may be twice as far from float64 as the definition is in the
    same dtype, plus the operator's stated tolerance. Fresh memory is filled with NaN. What the contract calls
    unreachable is filled with NaN and Inf and must change nothing; rows of the batch are run without the others;
    inputs must be left alone; empty rows must be exactly zero.

    Args:
        operator: its name.
        kernel: a registered kernel's name, or a ``KernelSpec`` that need not be registered.
        dtypes: names, such as "float32"; those that kernel and operator know if None.
        device: where to run.
        traced: whether torch.compile(fullgraph=True, dynamic=True), torch.export and, for operators registered with
            torch.library, opcheck are tried too, which takes seconds.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: the kernel breaks the operator's contract; a line each.
        UnknownNameError: no such operator or kernel.
    """
    chosen = registry.kernel(operator, kernel) if isinstance(kernel, str) else kernel
    report = Report(f'kernel "{chosen.name}" of {operator}')
    _report(report, chosen, dtypes, device, traced)
    return report.finish()


def _report(report: Report, kernel: KernelSpec, dtypes: Sequence[str] | None, device: str, traced: bool) -> None:
    spec = registry.operator(kernel.operator)
    for dtype in dtypes or [name for name in spec.tolerances if not kernel.dtypes or name in kernel.dtypes]:
        result = verify(kernel, dtype, device)
        rule = f'{result.cases} cases of "{kernel.name}" ({kernel.form}), {dtype}, keep the contract'
        with report.check(rule, _CONTRACT):
            if not result.cases:
                raise RuleError("no case was run. The kernel supports none, or the operator has none")
            if result.failures:
                more = len(result.failures) - _LONGEST
                lines = [f"\n    {line}" for line in result.failures[:_LONGEST]]
                raise RuleError("".join(lines) + (f"\n    and {more} more" if more > 0 else ""))
    with report.check(f'gradients of gradients by "{kernel.name}" are right or refused', "polyhead.ops.KernelSpec"):
        _check_double_backward(spec, kernel, device)
    if traced:
        report_tracing(report, spec, kernel, device)


def verify(kernel: KernelSpec, dtype: str = "float32", device: str = "cpu") -> Verified:
    """Run a kernel on all cases of its operator in one dtype; failures are collected, not raised."""
    spec = registry.operator(kernel.operator)
    result = Verified(spec.name, kernel.name, kernel.form, dtype, device)
    for case in spec.cases():
        inputs = draw(case, dtype, device)
        if reasons := kernel.supports(call_of(spec, inputs)):
            result.refused[case.name] = reasons
            continue
        result.cases += 1
        for problem in _problems(spec, kernel, inputs, result):
            result.failures.append(f'case "{case.name}", {dtype}: {problem}')
    return result


def draw(case: Case, dtype: str, device: str) -> Inputs:
    """Return the inputs of a case; the same ones every time."""
    inputs = case.make(torch.Generator().manual_seed(0), getattr(torch, dtype))
    return inputs if device == "cpu" else inputs.map(lambda _, x: x.to(device))


def call_of(spec: OperatorSpec, inputs: Inputs) -> Call:
    """Return the call that the operator's public function makes of these arguments, without running it."""
    seen: list[Call] = []

    def look(call: Call) -> list[str]:
        seen.append(call)
        return ["this only looks"]

    try:
        with use_kernel(**{spec.name: KernelSpec(spec.name, "look", spec.reference, limits=look)}):
            resolve(spec.function)(**inputs.arguments())
    except KernelError:
        if not seen:
            raise
    return seen[0]


def run(spec: OperatorSpec, kernel: KernelSpec, inputs: Inputs) -> dict[str, Tensor]:
    """Return outputs by name, and gradients as "gradient of NAME", for cotangents that depend on the shapes only."""
    tensors = {
        name: x.detach().requires_grad_() if name in inputs.differentiable else x for name, x in inputs.tensors.items()
    }
    with use_kernel(**{spec.name: kernel}):
        returned = resolve(spec.function)(**inputs.arguments(tensors))
    outputs = {name: x for name, x in leaves(returned) if isinstance(x, Tensor)}
    wanted = {name: tensors[name] for name in inputs.differentiable}
    paired = [(x, cotangent(x, at)) for at, x in enumerate(outputs.values()) if x.requires_grad]
    if not wanted or not paired:
        return outputs
    gradients = torch.autograd.grad(
        [x for x, _ in paired], list(wanted.values()), [g for _, g in paired], materialize_grads=True
    )
    named = {f"gradient of {name}": x for name, x in zip(wanted, gradients, strict=True)}
    return {name: x.detach() for name, x in outputs.items()} | named


def cotangent(x: Tensor, seed: int) -> Tensor:
    """Return what is multiplied with an output before summing: numbers in [-1, 1] that every dtype can represent.

    They depend on an element's place only, so that the first row of a batch keeps its own if it is alone.
    """
    place = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    return ((place * 179 + seed * 31) % 127 / 64 - 1).to(x.device, x.dtype)


def reference_of(spec: OperatorSpec) -> KernelSpec:
    """Return the definition as a kernel that can be forced."""
    return KernelSpec(spec.name, "reference", spec.reference, form=next(iter(spec.forms)), double_backward=True)


def doubled(inputs: Inputs) -> Inputs:
    """Return the same values in float64."""
    return inputs.map(lambda _, x: x.double() if x.is_floating_point() else x)


class Budget:
    """What a kernel may be off on given inputs: twice the definition's own error in their dtype, plus the tolerance."""

    def __init__(self, spec: OperatorSpec, inputs: Inputs) -> None:
        """Run the definition twice."""
        floating = next(x for x in inputs.tensors.values() if x.is_floating_point())
        self.floor = spec.tolerances[str(floating.dtype).removeprefix("torch.")] * inputs.condition
        self.truth = run(spec, reference_of(spec), doubled(inputs))
        self.own = run(spec, reference_of(spec), inputs)

    def shares(self, got: Mapping[str, Tensor]) -> Iterator[tuple[str, float, str]]:
        """Yield, by output and gradient, the share of the budget that is used, and a sentence about it."""
        if missing := sorted(self.truth.keys() ^ got.keys()):
            yield missing[0], torch.inf, f"only one of kernel and definition gives {', '.join(missing)}"
            return
        for name, truth in self.truth.items():
            if got[name].shape != truth.shape:
                yield name, torch.inf, f"{name} has shape {tuple(got[name].shape)}, expected {tuple(truth.shape)}"
                continue
            own, off = error(self.own[name], truth), error(got[name], truth)
            allowed = 2 * own + self.floor
            text = f"{name} is off by {off:.2g}, allowed {allowed:.2g}: twice {own:.2g} of the definition"
            yield name, off / allowed, f"{text} plus {self.floor:.2g}"


def error(x: Tensor, truth: Tensor) -> float:
    """Return the largest difference relative to the largest value, or to 1; Inf for NaN where the truth is a number."""
    if not x.numel():
        return 0.0
    x = x.double()
    same = (x == truth) | (x.isnan() & truth.isnan())
    difference = torch.where(same, 0, (x - truth).abs())
    scale = torch.where(truth.isfinite(), truth.abs(), 0).max().clamp(min=1)
    return float(difference.nan_to_num(torch.inf).max() / scale)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fill fresh memory with NaN (the largest integer), so that an element nobody wrote shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic = cast(Any, torch.utils.deterministic)  # a module whose attributes are made by its class
    filled = deterministic.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a deterministic implementation.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            deterministic.fill_uninitialized_memory = filled


def _problems(spec: OperatorSpec, kernel: KernelSpec, inputs: Inputs, result: Verified) -> Iterator[str]:
    """Yield a sentence for everything that is wrong on one case."""
    budget = Budget(spec, inputs)
    before = {name: (x.clone(), x._version) for name, x in inputs.tensors.items()}
    try:
        with poisoned_memory():
            got = run(spec, kernel, inputs)
    except Exception as failure:
        yield f"raised {type(failure).__name__}: {failure}"
        return
    result.passes += 1
    for name, share, text in budget.shares(got):
        result.worst[name] = max(share, result.worst.get(name, 0.0))
        if not share <= 1:
            yield text
    for name, (copy, version) in before.items():
        x = inputs.tensors[name]
        if x._version != version or not torch.equal(x.nan_to_num(), copy.nan_to_num()):
            yield f"{name} was written into"
    yield from _wrong_kind(got, budget)
    yield from _not_zero(inputs, got)
    for label, changed, rows in _variations(inputs):
        result.passes += 1
        try:
            with poisoned_memory():
                other = run(spec, kernel, changed)
        except Exception as failure:
            yield f"with {label}, raised {type(failure).__name__}: {failure}"
            continue
        expected = budget if rows is None else _sliced(budget, inputs, rows)
        if rows is not None:
            other = _rows_of(other, inputs, rows)
        yield from (f"with {label}, {text}" for _, share, text in expected.shares(other) if not share <= 1)
        if rows is None:
            yield from (f"with {label}, {text}" for text in _not_zero(inputs, other))


def _wrong_kind(got: Mapping[str, Tensor], budget: Budget) -> Iterator[str]:
    """Yield outputs and gradients of another dtype or device than the definition gives."""
    for name, x in got.items():
        expected = budget.own.get(name)
        if expected is not None and (x.dtype != expected.dtype or x.device != expected.device):
            yield f"{name} is {x.dtype} on {x.device}, expected {expected.dtype} on {expected.device}"


def _not_zero(inputs: Inputs, got: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield what the contract says is exactly zero and is not."""
    places = dict(inputs.empty) | {f"gradient of {name}": where for name, where in inputs.unreachable.items()}
    for name, where in places.items():
        if name in got and bool((got[name] != 0).logical_and(where.to(got[name].device)).any()):
            yield f"{name} is not exactly zero where nothing can be attended"


def _variations(inputs: Inputs) -> Iterator[tuple[str, Inputs, slice | None]]:
    """Yield changed inputs, and the rows of the batch whose results must stay (None for all)."""
    unreachable = {name: where for name, where in inputs.unreachable.items() if where.any()}
    for value in (torch.nan, torch.inf, -torch.inf):
        if unreachable:
            filled = inputs.map(
                lambda name, x, value=value: (  # type: ignore[misc]  # a default binds the loop's value
                    x.masked_fill(unreachable[name].to(x.device), value) if name in unreachable else x
                )
            )
            yield f"{value} where nothing attends", filled, None
    batch = min((inputs.tensors[name].shape[0] for name in inputs.batched), default=0)
    if batch > 1:
        first = slice(0, 1)
        alone = inputs.map(lambda name, x: x[first] if name in inputs.batched else x)
        yield "the first row of the batch alone", replace(alone, unreachable={}, empty={}), first

        def spoil(name: str, x: Tensor) -> Tensor:
            if name not in inputs.batched or not x.is_floating_point():
                return x
            return torch.cat([x[first], torch.full_like(x[1:], torch.nan)])

        yield "NaN in the other rows of the batch", inputs.map(spoil), first


def _rows_of(got: Mapping[str, Tensor], inputs: Inputs, rows: slice) -> dict[str, Tensor]:
    """Return the outputs of these rows; gradients of what all rows share mix them and are left out."""
    kept = {}
    for name, x in got.items():
        owner = name.removeprefix("gradient of ")
        if owner == name or owner in inputs.batched:
            kept[name] = x[rows]
    return kept


def _sliced(budget: Budget, inputs: Inputs, rows: slice) -> Budget:
    part = object.__new__(Budget)
    part.floor = budget.floor
    part.truth, part.own = (_rows_of(values, inputs, rows) for values in (budget.truth, budget.own))
    return part


def _check_double_backward(spec: OperatorSpec, kernel: KernelSpec, device: str) -> None:
    """Compare second derivatives with the definition's on the first traced case, or expect a refusal that is ours."""
    case = next((case for case in spec.cases() if case.traced), None)
    if case is None:
        raise RuleError("the operator has no case with traced=True to try them on")
    dtype = "float64" if not kernel.dtypes or "float64" in kernel.dtypes else kernel.dtypes[0]
    inputs = draw(case, dtype, device)

    def second(by: KernelSpec) -> dict[str, Tensor]:
        tensors = dict(inputs.tensors) | {
            name: inputs.tensors[name].detach().requires_grad_() for name in inputs.differentiable
        }
        wanted = [tensors[name] for name in inputs.differentiable]
        with use_kernel(**{spec.name: by}):
            returned = resolve(spec.function)(**inputs.arguments(tensors))
        outputs = [x for _, x in leaves(returned) if isinstance(x, Tensor)]
        total = torch.stack([(x * x).sum() for x in outputs]).sum()
        first = torch.autograd.grad(total, wanted, create_graph=True)
        total = torch.stack([(x * x).sum() for x in first]).sum()
        return dict(zip(inputs.differentiable, torch.autograd.grad(total, wanted), strict=True))

    expected = second(reference_of(spec))
    try:
        got = second(kernel)
    except PolyheadError:
        if kernel.double_backward:
            raise
        return
    floor = 100 * spec.tolerances[dtype]  # two passes over what the tolerance bounds once
    for name, x in expected.items():
        if (off := error(got[name], x)) > floor:
            raise RuleError(f"the second derivative of {name} is off by {off:.2g}, allowed {floor:.2g}")
