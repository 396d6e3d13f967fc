"""Multi-scale deformable attention in Triton: each query's samples read where they lie, forward and backward.

The gradient of value is added up by atomics, in an order that depends on the device's schedule; where gradients are to
be deterministic, it is that of core's torch kernel, which sorts. docs/operators/deformable_attention.md has the
mathematics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from polyhead.ops.deformable_attention.gradients import (
    BACKWARD,
    FORWARD,
    differentiable,
    fake_backward,
    fake_forward,
)
from polyhead.ops.deformable_attention.torch_kernel import value_gradients
from polyhead.ops.deformable_attention.windows import wide_of
from polyhead.ops.library import register
from polyhead_kernels.programs import Config, Constant, Program

__all__ = ["PROGRAMS", "deformable_attention"]

WIDTHS = (16, 32, 64, 128, 256)
"""Powers of two that hold a head_dim."""
TILE = 512
"""Numbers of a block of queries: four for each thread of four warps. Twice as many spill registers on some devices."""

_CONFIGS: Mapping[str, tuple[Config, ...]] = {
    "default": tuple(
        config
        for width in WIDTHS
        for config in (
            Config({"BLOCK_Q": TILE // width}, warps=4, stages=2, only={"BLOCK_D": (width,)}),
            Config({"BLOCK_Q": 2 * TILE // width}, warps=4, stages=2, only={"BLOCK_D": (width,)}),
        )
    ),
    "interpret": (Config({"BLOCK_Q": 16}),),
}
_READ = {"value": "*{dtype}", "locations": "*{wide}", "weights": "*{wide}", "levels": "*i32"}
_SIZES = {"heads": "i32", "queries": "i32", "level_count": "i32", "points": "i32", "head_dim": "i32:16"}


def _strides(*names: str) -> dict[str, str]:
    axes = {"v": "pixel", "dv": "pixel"}
    return {f"{name}_{axis}": "i32" for name in names for axis in ("batch", "head", axes.get(name, "query"))}


def _variants(*kinds: Mapping[str, Constant]) -> tuple[Mapping[str, Constant], ...]:
    """Return all kinds at the published width, and the first one where the most registers and unaligned rows are."""
    usual = [{"BLOCK_D": 32, "UNIT": 16, **kind} for kind in kinds]
    return (*usual, {"BLOCK_D": 256, "UNIT": 16, **kinds[0]}, {"BLOCK_D": 32, "UNIT": 1, **kinds[0]})


SAMPLED = Program(
    operator="deformable_attention",
    name="forward",
    function="polyhead_kernels.deformable_attention_programs:sample_forward",
    signature={**_READ, "output": "*{dtype}", **_strides("v", "l", "w"), **_SIZES},
    configs=_CONFIGS,
    variants=_variants({}),
)
GRADIENTS = Program(
    operator="deformable_attention",
    name="backward",
    function="polyhead_kernels.deformable_attention_programs:sample_backward",
    signature={
        **_READ,
        "g": "*{dtype}",
        **dict.fromkeys(("dvalue", "dlocations", "dweights"), "*{wide}"),
        **_strides("v", "l", "w", "g", "dv", "dl", "dw"),
        **_SIZES,
    },
    configs=_CONFIGS,
    variants=_variants(
        {"SAMPLES": True, "PIXELS": True},
        {"SAMPLES": True, "PIXELS": False, "dvalue": None},
        {"SAMPLES": False, "PIXELS": True, "dlocations": None, "dweights": None},
    ),
)
PROGRAMS = (SAMPLED, GRADIENTS)


class _Work:
    """Sizes and strides of a call, and how its programs are launched."""

    def __init__(self, sizes: list[int], value: Tensor, locations: Tensor, weights: Tensor, **more: Tensor) -> None:
        """Take the inputs, and the output's gradient as ``g`` if there is one."""
        wide = wide_of(value.dtype)
        aligned = {"v": _dense(value, 1)} | {name: _dense(x, 1) for name, x in more.items()}
        samples = {"l": _dense(locations.to(wide), 3), "w": _dense(weights.to(wide), 2)}
        strides = {name: _outer(x) for name, x in aligned.items()}
        self.unit = 1 if any(step % 16 for each in strides.values() for step in each) else 16
        starts = [0]
        for height, width in zip(sizes[::2], sizes[1::2], strict=True):
            starts.append(starts[-1] + height * width)
        table = [entry for level in zip(sizes[::2], sizes[1::2], starts[:-1], strict=True) for entry in level]
        self.value, self.wide = value, wide
        self.batch, self.heads, self.queries, levels, points = weights.shape
        self.arguments: dict[str, Any] = {
            "value": aligned["v"],
            "locations": samples["l"],
            "weights": samples["w"],
            **{name: aligned[name] for name in more},
            "levels": torch.tensor(table, dtype=torch.int32, device=value.device),
            "heads": self.heads,
            "queries": self.queries,
            "level_count": levels,
            "points": points,
            "head_dim": value.shape[3],
        }
        for name, each in strides.items():
            self.place(name, *(step // self.unit for step in each))
        for name, x in samples.items():
            self.place(name, *_outer(x))

    def place(self, name: str, *steps: int) -> None:
        """Say how far it is from one row of the batch, head, and pixel or query to the next."""
        last = "pixel" if name in ("v", "dv") else "query"
        for axis, step in zip(("batch", "head", last), steps, strict=True):
            self.arguments[f"{name}_{axis}"] = step

    def launch(self, program: Program, **variant: Constant) -> None:
        """Run a program for all queries of all heads."""
        variant |= {"UNIT": self.unit, "BLOCK_D": max(16, triton.next_power_of_2(self.value.shape[3]))}
        rows = self.batch * self.heads
        program.launch(
            lambda c: (rows * triton.cdiv(self.queries, c["BLOCK_Q"]),),
            self.value,
            variant=variant,
            **{name: x for name, x in self.arguments.items() if name in program.signature},
        )


def _dense(x: Tensor, axes: int) -> Tensor:
    """Return x with its last axes behind one another in memory, without a copy if they are."""
    expected = 1
    for size, step in reversed(list(zip(x.shape, x.stride(), strict=True))[-axes:]):
        if size > 1 and step != expected:
            return x.contiguous()
        expected *= size
    return x


def _outer(x: Tensor) -> tuple[int, ...]:
    """Return the strides of the first three axes; 0 along an axis of one, whose stride may be any number."""
    return tuple(step if size > 1 else 0 for size, step in zip(x.shape[:3], x.stride()[:3], strict=True))


def _run_forward(value: Tensor, locations: Tensor, weights: Tensor, sizes: list[int]) -> Tensor:
    output = fake_forward(value, locations, weights, sizes)
    work = _Work(sizes, value, locations, weights)
    work.arguments["output"] = output
    work.launch(SAMPLED)
    return output


def _run_backward(
    grad_output: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    sizes: list[int],
    deterministic: bool,
    value_grad: bool,
    sample_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    results = fake_backward(grad_output, value, locations, weights, sizes, deterministic, value_grad, sample_grad)
    work = _Work(sizes, value, locations, weights, g=grad_output)
    added = value_grad and not deterministic
    # By pointer: its result, whether it is asked for, and how many axes one query or pixel has.
    asked = {"dvalue": (added, 1), "dlocations": (sample_grad, 3), "dweights": (sample_grad, 2)}
    written: dict[str, Tensor | None] = dict.fromkeys(asked)
    for (name, (wanted, axes)), short, result in zip(asked.items(), ("dv", "dl", "dw"), results, strict=True):
        if not wanted:
            work.arguments[name] = None
            work.place(short, 0, 0, 0)
            continue
        target = _dense(result if result.dtype == work.wide else torch.empty_like(result, dtype=work.wide), axes)
        work.arguments[name] = written[name] = target.zero_() if name == "dvalue" else target
        work.place(short, *_outer(target))
    if added or sample_grad:
        left_out = {name: None for name, target in written.items() if target is None}
        work.launch(GRADIENTS, SAMPLES=sample_grad, PIXELS=added, **left_out)
    for buffer, result in zip(written.values(), results, strict=True):
        if buffer is not None and buffer is not result:
            result.copy_(buffer)
    if value_grad and deterministic:
        value_gradients(grad_output, locations, weights, sizes, results[0])
    return results


_forward = register(f"deformable_attention_triton_forward{FORWARD}", _run_forward, fake_forward)
_backward = register(
    f"deformable_attention_triton_backward{BACKWARD}",
    _run_backward,
    fake_backward,
    backward_of="triton of deformable_attention",
)
deformable_attention = differentiable(_forward, _backward)
