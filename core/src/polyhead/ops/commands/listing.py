"""What ``kernels list`` and ``explain`` say."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from typing import Any

from polyhead.errors import ConfigError, UnknownNameError
from polyhead.ops.commands.said import Said
from polyhead.ops.selection import explain, registry
from polyhead.ops.spec import KernelSpec, OperatorSpec

__all__ = ["explain_call", "list_kernels", "parse_shape"]


def list_kernels(operator: str | None = None) -> Said:
    """Return operators with their forms and kernels; one operator if named.

    Raises:
        UnknownNameError: no such operator.
    """
    specs = [registry.operator(name) for name in ([operator] if operator else registry.operators())]
    lines = []
    for spec in specs:
        lines += [f"{spec.name}: {spec.summary}"]
        lines += [f"  {kernel.name:<12} {_limits(kernel)}" for kernel in registry.kernels(spec.name)]
        lines += [f"  forms: {', '.join(spec.forms)}", f"  {spec.complexity}", f"  {spec.source}"]
    return Said({"operators": [_operator(spec) for spec in specs]}, "\n".join(lines))


def explain_call(
    operator: str, shape: tuple[int, ...], dtype: str = "float32", device: str = "cpu", options: Sequence[str] = ()
) -> Said:
    """Return which kernel would serve a call, why not the others, and what it costs.

    Args:
        operator: its name.
        shape: of its first tensor.
        dtype: such as "float32".
        device: such as "cuda"; it need not exist here.
        options: ``"name=value"`` of the operator's ``describe``, such as ``"causal=true"``.

    Raises:
        UnknownNameError: no such operator, dtype or option.
        ConfigError: an option's value is malformed.
        ShapeError, KernelError: the shape or the device does not fit.
    """
    spec = registry.operator(operator)
    explanation = explain(operator, shape, dtype, device, **_options(spec, options))
    call = explanation.call
    costs = {name: spec.cost(call, backward=name == "backward") for name in ("forward", "backward")}
    lines = [str(explanation)]
    for name, cost in costs.items():
        lines.append(f"  {name}: {cost.flops / 1e9:.4g} GFLOP, {cost.bytes / 1e6:.4g} MB read and written")
    data = {
        "operator": operator,
        "call": str(call),
        "chosen": explanation.chosen,
        "forced": explanation.forced,
        "rejected": {name: list(reasons) for name, reasons in explanation.rejected.items()},
        "cost": {name: cost._asdict() for name, cost in costs.items()},
    }
    return Said(data, "\n".join(lines), explanation.chosen is not None)


def parse_shape(text: str) -> tuple[int, ...]:
    """Read a shape as people type it.

    Raises:
        ConfigError: it is not made of whole numbers.

    >>> parse_shape("2,8,128,64")
    (2, 8, 128, 64)
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f'--shape is "{text}", expected whole numbers with commas, such as 2,8,128,64.')
    return tuple(int(part) for part in parts)


def _operator(spec: OperatorSpec) -> dict[str, Any]:
    kernels = [
        {
            "name": kernel.name,
            "form": kernel.form,
            "priority": kernel.priority,
            "devices": list(kernel.devices),
            "dtypes": list(kernel.dtypes),
            "wins_from": kernel.wins_from,
            "double_backward": kernel.double_backward,
        }
        for kernel in registry.kernels(spec.name)
    ]
    return {
        "name": spec.name,
        "summary": spec.summary,
        "function": spec.function,
        "forms": list(spec.forms),
        "complexity": spec.complexity,
        "source": spec.source,
        "tolerances": dict(spec.tolerances),
        "kernels": kernels,
    }


def _limits(kernel: KernelSpec) -> str:
    """Return a kernel's limits in a line."""
    parts = [f"priority {kernel.priority}", kernel.form]
    parts.append(", ".join(kernel.devices) or "any device")
    parts.append(", ".join(kernel.dtypes) or "any float")
    if kernel.wins_from:
        parts.append(f"chosen from length {kernel.wins_from}")
    return "; ".join(parts)


def _options(spec: OperatorSpec, texts: Sequence[str]) -> dict[str, Any]:
    """Read ``name=value`` texts by the types of the operator's description."""
    hints = typing.get_type_hints(spec.describe)
    known = [p.name for p in inspect.signature(spec.describe).parameters.values() if p.kind is p.KEYWORD_ONLY]
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if name not in known:
            raise UnknownNameError(f"option of {spec.name}", name, known)
        if bool in (hint := typing.get_args(hints[name]) or (hints[name],)):
            if value not in ("true", "false"):
                raise ConfigError(f'Option "{text}": expected {name}=true or {name}=false.')
            options[name] = value == "true"
        elif int in hint:
            if not equals or not value.isdecimal():
                raise ConfigError(f'Option "{text}": expected {name}=NUMBER, a whole one.')
            options[name] = int(value)
        else:
            options[name] = value
    return options
