"""What an operator and a kernel say about themselves: data that dispatch, the commands and the test kit read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from polyhead.errors import KernelError, PluginError
from polyhead.manifest import resolve
from polyhead.ops.call import Call, name_of

__all__ = ["FLOATS", "Case", "Cost", "Inputs", "KernelSpec", "Measure", "OperatorSpec"]

FLOATS = ("float64", "float32", "bfloat16", "float16")
"""The dtypes that operators know, as specs and commands name them."""


@dataclass(frozen=True)
class KernelSpec:
    """One implementation of an operator, its limits as data.

    Raises:
        KernelError: a field is malformed.

    >>> KernelSpec("softmax_attention", "mine", "my_package.kernels:attention", dtypes=("float32",)).priority
    10
    """

    operator: str
    name: str
    function: str | Callable[..., Any]
    """Takes the call's tensors and options as keywords, returns the operator's NamedTuple. As ``"module:function"`` it
    is imported at its first use."""
    priority: int = 10
    """The highest one that supports a call serves it: 0 reference, 10 torch, 20 triton."""
    form: str = "parallel"
    """Which of the operator's forms it computes."""
    devices: tuple[str, ...] = ()
    """Device types it runs on; empty means any."""
    dtypes: tuple[str, ...] = ()
    """Names of dtypes it takes; empty means any float."""
    wins_from: int = 0
    """The length from which it is faster than the kernels below it; it is not chosen for less, but can be forced."""
    slow_on: tuple[str, ...] = ()
    """Device types on which choosing it deserves a warning."""
    limits: Callable[[Call], list[str]] | None = None
    """Returns every further reason why it cannot serve a call, such as "head_dim is 24 (needs a power of two)"."""
    double_backward: bool = False
    """Whether gradients of gradients work; otherwise asking for them must raise a KernelError."""
    interpreted: tuple[str, ...] = ()
    """The dtypes in which Triton's interpreter can run it on a CPU: ``verify`` does so in a process of its own."""

    def __post_init__(self) -> None:
        """Refuse what would fail later, in a stranger's call."""
        if not self.operator.isidentifier() or not self.name.isidentifier():
            raise KernelError(f'Kernel "{self.name}" of "{self.operator}": both names must be identifiers.')
        if isinstance(self.function, str) and not all(self.function.partition(":")):
            raise KernelError(f'Kernel "{self.name}": function "{self.function}" is not of the form "module:function".')
        if unknown := sorted({*self.dtypes, *self.interpreted} - set(FLOATS)):
            raise KernelError(f'Kernel "{self.name}": no dtype {", ".join(unknown)}.  All: {", ".join(FLOATS)}')
        if self.wins_from < 0:
            raise KernelError(f'Kernel "{self.name}": wins_from is {self.wins_from}, expected a length of 0 or more.')

    def supports(self, call: Call) -> list[str]:
        """Return every reason why this kernel cannot serve ``call``; an empty list means that it can."""
        reasons = []
        if self.devices and call.device.type not in self.devices:
            reasons.append(f"device is {call.device.type} (needs {', '.join(self.devices)})")
        if self.dtypes and name_of(call.dtype) not in self.dtypes:
            reasons.append(f"dtype is {name_of(call.dtype)} (needs {', '.join(self.dtypes)})")
        if self.limits is not None:
            reasons += self.limits(call)
        return reasons

    def run(self, call: Call) -> Any:
        """Run the kernel on a call that it supports."""
        function = self.function if not isinstance(self.function, str) else _loaded(self.function)
        return function(**call.tensors, **call.options)


_FUNCTIONS: dict[str, Callable[..., Any]] = {}


@torch.compiler.assume_constant_result
def _import(reference: str) -> bool:
    """Import a kernel once. Dynamo runs this at trace time instead of tracing the import."""
    if reference not in _FUNCTIONS:
        try:
            _FUNCTIONS[reference] = resolve(reference)
        except (ImportError, PluginError) as error:
            raise KernelError(f'Kernel "{reference}" cannot be loaded: {error}') from error
    return True


def _loaded(reference: str) -> Callable[..., Any]:
    _import(reference)
    return _FUNCTIONS[reference]


class Cost(NamedTuple):
    """Counted, not measured: what a roofline needs."""

    flops: int
    """A multiply-add counts as two."""
    bytes: int
    """Each input read once and each output written once."""

    @classmethod
    def of(cls, flops: int, read_and_written: Iterable[Any]) -> Self:
        """Count the bytes of tensors (or TensorInfo, or None)."""
        total = 0
        for x in read_and_written:
            if x is not None:
                count = x.dtype.itemsize
                for size in x.shape:
                    count *= size
                total += count
        return cls(flops, total)


@dataclass(frozen=True)
class Inputs:
    """The arguments of one test case, and what the operator's contract says about them."""

    tensors: Mapping[str, Tensor]
    """By argument name of the public function, or ARGUMENT.PART for the parts, in order, of one that is a tuple."""
    options: Mapping[str, Any] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ()
    """Names of the tensors whose gradients are checked."""
    batched: tuple[str, ...] = ()
    """Names of the tensors whose axis 0 is the batch, if rows of the batch can be run one by one."""
    unreachable: Mapping[str, Tensor] = field(default_factory=dict)
    """Bool, broadcastable to the tensor of this name: True where no output may depend on it. NaN and Inf put there must
    change nothing, and its gradient is exactly zero."""
    empty: Mapping[str, Tensor] = field(default_factory=dict)
    """Bool, broadcastable to the output of this name: True where it must be exactly zero."""
    condition: float = 1.0
    """By what these values amplify rounding; the tolerance is multiplied by it."""

    def arguments(self, tensors: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the public function's keywords, with ``tensors`` of the same names in the place of its own."""
        keywords = dict(self.options)
        for name, x in (self.tensors if tensors is None else tensors).items():
            argument, part, _ = name.partition(".")
            keywords[argument] = (*keywords.get(argument, ()), x) if part else x
        return keywords

    def map(self, function: Callable[[str, Tensor], Tensor]) -> Inputs:
        """Return the inputs with ``function(name, tensor)`` applied to each tensor."""
        return replace(self, tensors={name: function(name, x) for name, x in self.tensors.items()})


@dataclass(frozen=True)
class Case:
    """One point of an operator's input space that a kernel is likely to get wrong."""

    name: str
    make: Callable[[torch.Generator, torch.dtype], Inputs]
    """Draws the tensors, on the CPU, in this dtype; integers and masks keep theirs. Layouts (strides) count."""
    traced: bool = False
    """Whether it is also run through torch.compile and torch.export, which takes seconds."""


@dataclass(frozen=True)
class Measure:
    """One size at which an operator is measured, and of which its bound on known devices is told."""

    name: str
    """Such as "B1 H8 S8192 D64, causal"."""
    shape: tuple[int, ...]
    """Of the first tensor, for the operator's ``describe``."""
    make: Callable[[torch.Generator, torch.dtype], Inputs]
    """Draws the arguments of the public function on the CPU."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What ``describe`` takes beside the shape to count the same call, without ``grad``."""
    peer: str = ""
    """``"module:function"``: what people write without this operator, same arguments and result; none if empty."""
    peer_name: str = ""
    """The peer's name in tables, such as "SDPA, causal"."""
    same: bool = True
    """Whether the peer computes the same, and is held to it; False for a peer that solves the same task otherwise."""


@dataclass(frozen=True)
class OperatorSpec:
    """One mathematical function: its definition, its kernels, and how they are held against it."""

    name: str
    summary: str
    function: str
    """``"module:function"``: what people call."""
    forms: Mapping[str, str]
    """``"module:function"`` by form, with a kernel's signature. The first one is the reference: the definition."""
    complexity: str
    source: str
    tolerances: Mapping[str, float]
    """By dtype, what a kernel may be off beyond twice the reference's own error; relative to the largest value or 1."""
    kernels: tuple[KernelSpec, ...]
    describe: Callable[..., Call]
    """``describe(shape, dtype, device, **options)``: the call that ``explain`` and ``bench`` speak of."""
    cost: Callable[..., Cost]
    """``cost(call, backward=False)``: arithmetic and traffic of the forward or of the backward pass."""
    cases: Callable[[], Iterable[Case]]
    measures: str = ""
    """``"module:MEASURES"``: a tuple of ``Measure``, for `kernels bench` and the bounds of `kernels compile`."""
    faults: str = ""
    """``"module:FAULTS"``: what `kernels verify --self-test` breaks, see ``polyhead.ops.faults``."""

    @property
    def reference(self) -> str:
        """The definition."""
        return next(iter(self.forms.values()))
