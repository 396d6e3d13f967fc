r"""What Triton modules say about their programs: signatures, configurations by device family, and how they start.

A module with Triton kernels exports ``PROGRAMS``, a tuple of ``Program``. `polyhead kernels compile` builds each one
ahead of time for every family; the module's own Python launches them by ``Program.launch``, which picks the shipped
configuration of the device at hand. A small module, whole::

    import torch
    import triton
    import triton.language as tl

    from polyhead_kernels.programs import Config, Program


    @triton.jit(do_not_specialize=["length"])  # or a length of 1, or divisible by 16, would compile anew
    def scale_rows(x, y, factor, length, BLOCK: tl.constexpr):
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        inside = at < length
        value = tl.load(x + at, mask=inside, other=0).to(tl.float32)
        tl.store(y + at, (factor * value).to(y.dtype.element_ty), mask=inside)


    SCALE = Program(
        operator="scaling",
        name="forward",
        function="my_package.scaling:scale_rows",
        signature={"x": "*{dtype}", "y": "*{dtype}", "factor": "fp32", "length": "i32"},
        configs={
            "default": (Config({"BLOCK": 1024}), Config({"BLOCK": 2048}, warps=8)),
            "gfx942": (Config({"BLOCK": 2048}),),
            "interpret": (Config({"BLOCK": 16}),),
        },
    )
    PROGRAMS = (SCALE,)


    def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
        x = x.contiguous()
        y = torch.empty_like(x)
        SCALE.launch(lambda c: (triton.cdiv(x.numel(), c["BLOCK"]),), x, x=x, y=y, factor=factor, length=x.numel())
        return y

The kernel's ``KernelSpec`` stands in ``polyhead_kernels.specs``, because this module imports triton and a registration
must not. Tests under the interpreter (marker ``interpret``, TRITON_INTERPRET=1) call
``polyhead.testing.check_kernel(OPERATOR, "triton", dtypes=INTERPRETED, traced=False)``.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyhead.errors import KernelError
from polyhead.manifest import resolve
from polyhead.ops.call import Call, name_of
from polyhead_kernels import tuning

__all__ = ["FAMILIES", "INTERPRETED", "Config", "Constant", "Point", "Program", "family", "interpreted", "limits"]

FAMILIES = ("sm_80", "sm_90", "sm_100", "gfx942")
"""Device families that programs are compiled for ahead of time."""
INTERPRETED = ("float64", "float32")
"""The dtypes that may run under Triton's interpreter: in bfloat16 it is silently wrong."""
Constant = bool | int | float | str | None
"""What a ``tl.constexpr`` may be; None stands for a pointer that is not given."""
Grid = Callable[[Mapping[str, Any]], Sequence[int]]
"""From all constants to the number of programs along up to three axes."""

_FOUND = importlib.util.find_spec("triton") is not None
_KEYS = (*FAMILIES, "default", "interpret")
_TYPES = {
    "float64": ("fp64", "fp64"),
    "float32": ("fp32", "fp32"),
    "bfloat16": ("bf16", "fp32"),
    "float16": ("fp16", "fp32"),
}
"""By dtype, what ``{dtype}`` and ``{wide}`` stand for in a signature."""


@dataclass(frozen=True)
class Config:
    """One way to compile a program: sizes of blocks, warps and stages of the pipeline."""

    constants: Mapping[str, Constant]
    """By name, the ``tl.constexpr`` arguments that are tuned, such as block sizes."""
    warps: int = 4
    stages: int = 2
    dtypes: tuple[str, ...] = ()
    """The dtypes that it is meant for; empty means all."""
    only: Mapping[str, tuple[Constant, ...]] = field(default_factory=dict)
    """The variants that it is meant for: by constant, the values that fit. ``{"BLOCK_D": (16, 32, 64)}``"""

    def suits(self, dtype: str, variant: Mapping[str, Constant]) -> bool:
        """Return whether it is meant for a dtype and a variant."""
        fits = all(variant.get(name) in values for name, values in self.only.items())
        return fits and (not self.dtypes or dtype in self.dtypes)


class Point(NamedTuple):
    """One thing to compile: a program in one family, dtype, variant and configuration."""

    program: Program
    family: str
    dtype: str
    variant: Mapping[str, Constant]
    config: Config
    default: bool
    """Whether this configuration is what a launch picks."""

    def constants(self) -> dict[str, Constant]:
        """Return every ``tl.constexpr`` by name."""
        return {**self.variant, **self.config.constants}

    def signature(self) -> dict[str, str]:
        """Return the type of every argument that is no constant, such as "*bf16" or "i32:16"."""
        dtype, wide = _TYPES[self.dtype]
        types = {name: text.format(dtype=dtype, wide=wide) for name, text in self.program.signature.items()}
        return {name: text for name, text in types.items() if name not in self.constants()}

    def __str__(self) -> str:
        """Return a line for people."""
        constants = ", ".join(f"{name}={value}" for name, value in self.constants().items())
        size = f"warps={self.config.warps}, stages={self.config.stages}"
        return f"{self.program.operator}.{self.program.name} {self.family} {self.dtype} ({constants}; {size})"


@dataclass(frozen=True)
class Program:
    """One Triton function, and everything that is needed to compile and to launch it.

    Raises:
        KernelError: a field is malformed.
    """

    operator: str
    name: str
    """Such as "forward" or "backward_keys"; one name once in an operator."""
    function: str
    """``"module:function"`` of the ``@triton.jit`` function."""
    signature: Mapping[str, str]
    """By argument that is no ``tl.constexpr``, its type: "i32", "fp32", "*{dtype}" for a pointer to the call's dtype,
    "*{wide}" for float32, or float64 beside float64. Pointers count as aligned to 16 bytes, as fresh tensors are; a
    number that is always divisible by 16 is "i32:16". An argument that a variant names is a constant there."""
    configs: Mapping[str, tuple[Config, ...]]
    """By device family, "default" for those not named, "interpret" for the interpreter: the first one that suits
    dtype and variant is launched, the others are for tuning, and for devices with less memory."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")
    """What it is compiled for ahead of time."""
    variants: tuple[Mapping[str, Constant], ...] = ({},)
    """Values of the other ``tl.constexpr`` arguments, which a call decides, not tuning: flags, widths rounded to a
    power of two, None for a pointer that is left out. The ones that are compiled ahead of time."""
    product: bool = False
    """Whether there is a matrix product, which must be on matrix units in 16 bit and tf32."""
    precision: str | None = None
    """The ``tl.constexpr`` that is ``tl.dot``'s input_precision: "ieee", or "tf32" where torch allows it in float32."""

    def __post_init__(self) -> None:
        """Refuse what would fail at a stranger's launch."""
        where = f"Program {self.name} of {self.operator}"
        if not all(self.function.partition(":")):
            raise KernelError(f'{where}: function "{self.function}" is not of the form "module:function".')
        if unknown := sorted(set(self.configs) - set(_KEYS)):
            raise KernelError(f'{where}: no device family "{unknown[0]}".  All: {", ".join(_KEYS)}')
        if unknown := sorted(set(self.dtypes) - set(_TYPES)):
            raise KernelError(f'{where}: no dtype "{unknown[0]}".  All: {", ".join(_TYPES)}')
        for name in FAMILIES:
            for dtype in self.dtypes:
                for variant in self.variants:
                    self._suiting(name, dtype, variant)

    def points(self, name: str, *, every: bool = False) -> Iterator[Point]:
        """Yield what is compiled for a family: default configurations, or every one.

        Args:
            name: the family, such as "sm_90".
            every: whether configurations that are there for tuning are yielded too.
        """
        for dtype in self.dtypes:
            for given in self.variants:
                for variant in self._precisions(dtype, given):
                    for at, config in enumerate(self._suiting(name, dtype, variant)):
                        if every or not at:
                            yield Point(self, name, dtype, variant, config, not at)

    def launch(
        self,
        grid: Grid,
        like: Tensor,
        *,
        variant: Mapping[str, Constant] | None = None,
        **arguments: Any,
    ) -> None:
        """Run the program on the device of ``like``, in the configuration that is shipped for it.

        With POLYHEAD_AUTOTUNE=1, the fastest of the shipped configurations is found at the first launch instead.

        Args:
            grid: from all constants to the number of programs along up to three axes; nothing runs if one is 0.
            like: a tensor of the call's dtype on the call's device.
            variant: the constants that the call decides, apart from ``precision``, which is added here.
            arguments: the function's other arguments by name; a pointer that is None belongs into ``variant`` as well.

        Raises:
            KernelError: no shipped configuration fits the device's memory.
        """
        constants = dict(variant or {})
        if self.precision is not None:
            constants[self.precision] = precision(like.dtype)
        given = {name: value for name, value in arguments.items() if name not in constants}
        choices = self._suiting(family(like.device), name_of(like.dtype), constants)
        if interpreted():
            self._start(grid, choices[0], constants, given)
            return
        with torch.cuda.device(like.device):
            if len(choices) > 1 and tuning.wanted():
                run = partial(self._starts, grid, constants)
                choices = tuning.order(self, like, constants, choices, given, run)
            if any(self._starts(grid, constants, config, given) for config in choices):
                return
        raise KernelError(
            f"No shipped configuration of {self.operator}.{self.name} fits the shared memory of {like.device}. "
            f'Run it by another kernel: polyhead.use_kernel({self.operator}="torch").'
        )

    def _starts(self, grid: Grid, constants: Mapping[str, Constant], config: Config, given: Mapping[str, Any]) -> bool:
        """Run one configuration; False if the device has less memory than the rest of its family."""
        try:
            self._start(grid, config, constants, given, num_warps=config.warps, num_stages=config.stages)
        except _out_of_resources():
            return False
        return True

    def _start(
        self,
        grid: Grid,
        config: Config,
        constants: Mapping[str, Constant],
        given: Mapping[str, Any],
        **options: int,
    ) -> None:
        together = {**constants, **config.constants}
        size = tuple(grid(together))
        if 0 not in size:
            resolve(self.function)[size](**given, **together, **options)

    def _suiting(self, name: str, dtype: str, variant: Mapping[str, Constant]) -> list[Config]:
        """Return the configurations of a family that are meant for a dtype and a variant, the default one first."""
        known = self.configs.get(name) or self.configs.get("default") or self.configs.get("sm_80", ())
        if found := [config for config in known if config.suits(dtype, variant)]:
            return found
        raise KernelError(
            f"Program {self.name} of {self.operator} has no configuration for {name}, {dtype}, {dict(variant)}."
        )

    def _precisions(self, dtype: str, variant: Mapping[str, Constant]) -> Iterator[Mapping[str, Constant]]:
        if self.precision is None:
            yield variant
            return
        for value in ("ieee", "tf32") if dtype == "float32" else ("ieee",):
            yield {**variant, self.precision: value}


def family(device: torch.device) -> str:
    """Return the device family whose configurations suit a device, or "interpret"."""
    if interpreted():
        return "interpret"
    if device.type == "cuda" and torch.version.hip is None:
        major = torch.cuda.get_device_capability(device)[0]
        return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")  # consumer cards of any year have the older memory sizes
    return "gfx942" if device.type == "cuda" else "sm_80"


def interpreted() -> bool:
    """Return whether Triton's interpreter runs the programs; triton reads the same switch once, at its import."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def precision(dtype: torch.dtype) -> str:
    """Return the input_precision of ``tl.dot`` that torch's settings allow: "tf32" or "ieee"."""
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" and not interpreted()
    return "tf32" if allowed else "ieee"


def limits(call: Call) -> list[str]:
    """Return the reasons why no Triton kernel can serve a call: no triton, no GPU, or a dtype it spoils."""
    reasons = []
    if not _installed():
        reasons.append("triton is not installed (pip install triton)")
    if interpreted():
        if name_of(call.dtype) not in INTERPRETED:
            reasons.append(
                f"dtype is {name_of(call.dtype)} (the interpreter is right in {', '.join(INTERPRETED)} only)"
            )
    elif call.device.type != "cuda":
        reasons.append(f"device is {call.device.type} (needs cuda, or TRITON_INTERPRET=1 set before Python starts)")
    return reasons


def _installed() -> bool:
    return _FOUND  # found out at import: torch.compile traces this, and warns of a function that caches


def _out_of_resources() -> type[Exception]:
    from triton.runtime.errors import OutOfResources

    found: type[Exception] = OutOfResources
    return found
