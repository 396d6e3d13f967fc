"""Which operators and kernels there are, and which kernel serves a call."""

from __future__ import annotations

import inspect
import shlex
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from polyhead.errors import KernelError, UnknownNameError
from polyhead.manifest import resolve
from polyhead.ops.call import Call, name_of
from polyhead.ops.choice import forced
from polyhead.ops.spec import KernelSpec, OperatorSpec
from polyhead.ops.validation import autocast_dtype

__all__ = ["Explanation", "Registry", "SlowKernelWarning", "dispatch", "explain", "registry"]

_LISTING = "python -m polyhead kernels list"


class SlowKernelWarning(UserWarning):
    """A call on an accelerator is served by a slow kernel."""


@dataclass(frozen=True)
class Explanation:
    """Which kernel serves a call, and why the others do not."""

    call: Call
    chosen: str | None
    """None if no kernel, or not the forced one, can serve the call."""
    forced: str | None
    """The kernel that ``use_kernel`` or POLYHEAD_KERNEL asks for."""
    rejected: Mapping[str, tuple[str, ...]]
    """By kernel, every reason. Kernels below the chosen one were not needed; their list may be empty."""

    def __str__(self) -> str:
        """Return the lines for people."""
        lines = [f"{self.call.operator}: {self.call}"]
        if self.forced:
            lines.append(f"  forced by use_kernel or POLYHEAD_KERNEL: {self.forced}")
        lines.append(f"  chosen: {self.chosen or 'none, an error'}")
        for name, reasons in self.rejected.items():
            lines.append(f"  {name}: {'; '.join(reasons) or 'can serve, has lower priority'}")
        return "\n".join(lines)


class Registry:
    """Operators by name, loaded when they are asked for, with the kernels of core and of plugins.

    Args:
        operators: ``"module:SPEC"`` by operator.
        plugins: whether installed plugins may add kernels.
    """

    def __init__(self, operators: Mapping[str, str], *, plugins: bool = False) -> None:
        """Make a registry; nothing is imported yet."""
        self._references = dict(operators)
        self._specs: dict[str, OperatorSpec] = {}
        self._added: dict[str, list[KernelSpec]] = {}
        self._kernels: dict[str, tuple[KernelSpec, ...]] = {}
        self._plugins = plugins
        self._warned: set[tuple[str, ...]] = set()
        self._lock = threading.RLock()

    def operators(self) -> tuple[str, ...]:
        """Return the names of all operators."""
        return tuple(sorted(self._references))

    def operator(self, name: str) -> OperatorSpec:
        """Return an operator by name.

        Raises:
            UnknownNameError: no such operator; suggests the nearest one.
        """
        self._known(name)
        with self._lock:
            if name not in self._specs:
                self._specs[name] = resolve(self._references[name])
            return self._specs[name]

    def register(self, kernel: KernelSpec) -> None:
        """Add a kernel.

        Raises:
            UnknownNameError: its operator does not exist.
            KernelError: the operator has a kernel of this name or priority.
        """
        self._known(kernel.operator)
        with self._lock:
            self._added.setdefault(kernel.operator, []).append(kernel)
            self._kernels.pop(kernel.operator, None)
            try:
                self._collect(kernel.operator)
            except KernelError:
                self._added[kernel.operator].remove(kernel)
                raise

    def kernels(self, operator: str) -> tuple[KernelSpec, ...]:
        """Return an operator's kernels, the highest priority first.

        Raises:
            UnknownNameError: no such operator; suggests the nearest one.
        """
        _prepare(self, operator)
        return self._kernels[operator]

    def kernel(self, operator: str, name: str) -> KernelSpec:
        """Return a kernel by name.

        Raises:
            UnknownNameError: no such operator or kernel; suggests the nearest one.
        """
        for kernel in self.kernels(operator):
            if kernel.name == name:
                return kernel
        names = [kernel.name for kernel in self.kernels(operator)]
        raise UnknownNameError(f"kernel of {operator}", name, names, f"{', '.join(names)}  ({_LISTING})")

    def select(self, call: Call) -> KernelSpec:
        """Return the kernel that serves a call: the forced one, or the highest priority that supports it.

        Raises:
            KernelError: the forced kernel, or every kernel, cannot serve the call; gives all reasons.
        """
        asked = forced(call.operator)
        if asked is not None:
            kernel = self.kernel(call.operator, asked) if isinstance(asked, str) else asked
            if reasons := kernel.supports(call):
                raise KernelError(
                    f'Kernel "{kernel.name}" cannot run {call.operator} on this call: {"; ".join(reasons)}. {call}.'
                )
            return kernel
        rejected: dict[str, list[str]] = {}
        for kernel in self.kernels(call.operator):
            reasons = kernel.supports(call)
            if not reasons and call.length >= kernel.wins_from:
                if call.device.type in kernel.slow_on:
                    self._warn(call, kernel, rejected)
                return kernel
            if reasons:
                rejected[kernel.name] = reasons
        raise KernelError(
            f"No kernel can run {call.operator} on this call: {call}."
            + "".join(f"\n  {name}: {'; '.join(reasons)}" for name, reasons in rejected.items())
        )

    def explain(self, call: Call) -> Explanation:
        """Return which kernel serves a call and every reason against the others, without running anything."""
        asked = forced(call.operator)
        name = asked if isinstance(asked, str | None) else asked.name
        chosen, rejected = None, {}
        for kernel in self.kernels(call.operator):
            reasons = kernel.supports(call)
            if name is None and call.length < kernel.wins_from:
                reasons.append(f"length is {call.length} (wins from {kernel.wins_from})")
            if name is not None and kernel.name != name:
                reasons.append(f'"{name}" is forced')
            if reasons or chosen is not None:
                rejected[kernel.name] = tuple(reasons)
            else:
                chosen = kernel.name
        return Explanation(call, chosen, name, rejected)

    def _known(self, operator: str) -> None:
        if operator not in self._references:
            raise UnknownNameError("operator", operator, self._references, _LISTING)

    def _collect(self, operator: str) -> None:
        """Put core's and added kernels in order; the lock makes two threads' first calls see the same list."""
        with self._lock:
            if self._plugins:
                self._plugins = False  # first, since a hook may itself ask for operators
                from polyhead.plugins import register_kernels

                register_kernels(self)
            if operator in self._kernels:
                return
            kernels: dict[str, KernelSpec] = {}
            for kernel in (*self.operator(operator).kernels, *self._added.get(operator, ())):
                for other in kernels.values():
                    if kernel.name == other.name:
                        owners = f"{_owner(other)} and {_owner(kernel)}"
                        raise KernelError(f'Kernel "{kernel.name}" of {operator} belongs to both {owners}. Rename one.')
                    if kernel.priority == other.priority:
                        raise KernelError(
                            f'Kernels "{other.name}" and "{kernel.name}" of {operator} both have priority '
                            f"{kernel.priority}, so the choice would depend on their order. Change one."
                        )
                kernels[kernel.name] = kernel
            ordered = sorted(kernels.values(), key=lambda kernel: -kernel.priority)
            self._kernels[operator] = tuple(ordered)

    def _warn(self, call: Call, kernel: KernelSpec, rejected: Mapping[str, list[str]]) -> None:
        """Say once per cause that an accelerator does not get a fast kernel."""
        if torch.compiler.is_compiling():
            return  # the eager call that people profile first has said it
        device = call.device.type
        causes = [f"{name}: {'; '.join(reasons)}" for name, reasons in rejected.items()]
        key = (call.operator, kernel.name, device, *causes)
        if key in self._warned:
            return
        self._warned.add(key)
        shape = ",".join(str(size) for size in next(iter(call.tensors.values())).shape)
        command = ["python", "-m", "polyhead", "kernels", "explain", call.operator, "--shape", shape]
        command += ["--dtype", name_of(call.dtype), "--device", device]
        warnings.warn(
            f'{call.operator} runs on {device} by kernel "{kernel.name}", which is slow there. '
            f"{' '.join(causes) or 'No other kernel is installed.'}  Explain: {shlex.join(command)}",
            SlowKernelWarning,
            stacklevel=5,
        )


def _owner(kernel: KernelSpec) -> str:
    function = kernel.function
    return function if isinstance(function, str) else f"{function.__module__}:{function.__qualname__}"


@torch.compiler.assume_constant_result
def _prepare(registry: Registry, operator: str) -> bool:
    """Load an operator's kernels, once. Dynamo runs this at trace time, before it looks at what this fills."""
    if operator not in registry._kernels:
        registry._known(operator)
        registry._collect(operator)
    return True


registry = Registry(
    {
        "additive_attention_scores": "polyhead.ops.additive_attention_scores.spec:SPEC",
        "decay_attention": "polyhead.ops.decay_attention.spec:SPEC",
        "deformable_attention": "polyhead.ops.deformable_attention.spec:SPEC",
        "pointer_nll": "polyhead.ops.pointer_nll.spec:SPEC",
        "prefix_attention": "polyhead.ops.prefix_attention.spec:SPEC",
        "softmax_attention": "polyhead.ops.softmax_attention.spec:SPEC",
    },
    plugins=True,
)
"""The operators of Polyhead; plugins add kernels by the hook ``polyhead_register_kernels(registry)``."""


def dispatch(call: Call) -> Any:
    """Run a validated call by the kernel that serves it, in the call's own dtype whatever autocast is on."""
    kernel = registry.select(call)
    if autocast_dtype(call.device) is not None:
        with torch.autocast(call.device.type, enabled=False):
            return kernel.run(call)
    return kernel.run(call)


def explain(
    operator: str, shape: tuple[int, ...], dtype: str = "float32", device: str = "cpu", **options: Any
) -> Explanation:
    """Return which kernel would serve a call, and every reason against the others.

    Args:
        operator: its name.
        shape: of the operator's first tensor.
        dtype: such as "float32".
        device: such as "cpu" or "cuda"; it need not exist here.
        options: what the operator's ``describe`` takes, such as ``causal=True``.

    Raises:
        UnknownNameError: no such operator or dtype.
        ShapeError, KernelError: the shape or an option does not fit the operator.

    >>> explain("softmax_attention", (2, 8, 128, 64)).chosen
    'torch'
    """
    spec = registry.operator(operator)
    if dtype not in spec.tolerances:
        raise UnknownNameError(f"dtype of {operator}", dtype, spec.tolerances)
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise KernelError(f'"{device}" is no device: {str(error).splitlines()[0]}') from error
    known = [p.name for p in inspect.signature(spec.describe).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {operator}", name, known)
    call = spec.describe(shape, getattr(torch, dtype), where, **options)
    return registry.explain(call)
