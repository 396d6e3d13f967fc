"""Check that an operator survives torch.compile, torch.export and, where it is registered, opcheck."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from polyhead.manifest import resolve
from polyhead.ops import Inputs, KernelSpec, OperatorSpec, use_kernel
from polyhead.testing.report import Report, RuleError

__all__ = ["report_tracing"]

_RULES = "polyhead.testing.check_kernel"
_BUILTIN = {"aten", "prim", "prims"}


class _Module(nn.Module):
    """The operator as torch.export wants it: a module of tensors only."""

    def __init__(self, spec: OperatorSpec, inputs: Inputs) -> None:
        super().__init__()
        self.function = resolve(spec.function)
        self.names = tuple(inputs.tensors)
        self.arguments = replace(inputs, tensors={}).arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        returned = self.function(**self.arguments(dict(zip(self.names, tensors, strict=True))))
        return tuple(x for x in tree_leaves(returned) if isinstance(x, Tensor))


def report_tracing(report: Report, spec: OperatorSpec, kernel: KernelSpec, device: str) -> None:
    """Add what torch's tracers say of a kernel, on the operator's traced cases."""
    from polyhead.testing.operators import call_of, draw

    dtype = "float32" if not kernel.dtypes or "float32" in kernel.dtypes else kernel.dtypes[0]
    for case in spec.cases():
        if not case.traced:
            continue
        inputs = draw(case, dtype, device)
        if kernel.supports(call_of(spec, inputs)):
            continue
        where = f'"{kernel.name}", case "{case.name}"'
        with use_kernel(**{spec.name: kernel}):
            with report.check(f"torch.compile(fullgraph=True, dynamic=True) of {where} equals eager", _RULES), _short():
                _check_compile(spec, inputs)
            with report.check(f"torch.export of {where} equals eager", _RULES), _short():
                _check_export(spec, inputs)
            for operator, arguments in _registered(spec, inputs).items():
                with report.check(f"opcheck passes for {operator} of {where}", _RULES):
                    _check_registered(operator, *arguments)


@contextmanager
def _short() -> Iterator[None]:
    """Keep the first lines of what torch's tracers say; the rest is their own stack."""
    try:
        yield
    except RuleError:
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RuleError(f"raised {type(error).__name__}: {' '.join(lines[:6])[:600]}") from error


def _check_compile(spec: OperatorSpec, inputs: Inputs) -> None:
    """Compare forward and backward; aot_eager traces all that inductor would, and generates no code."""
    module = _Module(spec, inputs)
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
    _compare(spec, inputs, _outputs_and_gradients(module, inputs), _outputs_and_gradients(compiled, inputs))


def _check_export(spec: OperatorSpec, inputs: Inputs) -> None:
    module = _Module(spec, inputs)
    tensors = tuple(inputs.tensors.values())
    exported = torch.export.export(module, tensors).module()
    # Weights require gradients wherever a user runs the program, with or without no_grad.
    returned = exported(*_with_gradients(inputs))
    _compare(spec, inputs, dict(enumerate(module(*tensors))), {at: x.detach() for at, x in enumerate(returned)})


def _check_registered(operator: Any, arguments: Any, keywords: Any) -> None:
    for test, result in torch.library.opcheck(operator, arguments, keywords, raise_exception=False).items():
        if result != "SUCCESS":
            raise RuleError(f"{test} says {result}")


def _registered(spec: OperatorSpec, inputs: Inputs) -> Mapping[Any, tuple[Any, Any]]:
    """Return the first arguments of each operator outside of PyTorch's own that forward and backward pass call."""
    calls: dict[Any, tuple[Any, Any]] = {}

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.namespace not in _BUILTIN and func not in calls:
                copies = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, (args, kwargs or {}))
                calls[func] = copies
            return func(*args, **(kwargs or {}))

    with Recorder():
        _outputs_and_gradients(_Module(spec, inputs), inputs)
    return calls


def _outputs_and_gradients(function: Any, inputs: Inputs) -> dict[Any, Tensor]:
    from polyhead.testing.operators import cotangent

    tensors = _with_gradients(inputs)
    outputs = function(*tensors)
    paired = [(x, cotangent(x, at)) for at, x in enumerate(outputs) if x.requires_grad]
    wanted = [x for x in tensors if x.requires_grad]
    gradients = torch.autograd.grad([x for x, _ in paired], wanted, [g for _, g in paired]) if paired else ()
    return {f"output {at}": x.detach() for at, x in enumerate(outputs)} | dict(
        zip([f"gradient of {name}" for name in inputs.differentiable], gradients, strict=False)
    )


def _with_gradients(inputs: Inputs) -> list[Tensor]:
    return [x.detach().requires_grad_() if name in inputs.differentiable else x for name, x in inputs.tensors.items()]


def _compare(spec: OperatorSpec, inputs: Inputs, eager: Mapping[Any, Tensor], traced: Mapping[Any, Tensor]) -> None:
    from polyhead.testing.operators import error

    for name, x in eager.items():
        floor = spec.tolerances[str(x.dtype).removeprefix("torch.")] * inputs.condition
        if (off := error(traced[name], x.double())) > 2 * floor:
            raise RuleError(f"{name} is off by {off:.2g}, allowed {2 * floor:.2g}")
