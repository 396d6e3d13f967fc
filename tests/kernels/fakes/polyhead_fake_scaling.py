"""The smallest Triton module: an element-wise program and one with a matrix product, as an author would write them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from polyhead_kernels.programs import Config, Program

HERE = "polyhead_fake_scaling"


@triton.jit(do_not_specialize=["length"])
def scale_rows(x, y, offset, factor, length, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < length
    value = tl.load(x + at, mask=inside, other=0).to(tl.float32) * factor
    if offset is not None:
        value += tl.load(offset)
    tl.store(y + at, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def square(x, y, WIDTH: tl.constexpr, PRECISION: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    at = tl.arange(0, WIDTH)[:, None] * WIDTH + tl.arange(0, WIDTH)[None]
    value = tl.load(x + at)
    tl.store(y + at, tl.dot(value, value, input_precision=PRECISION))


SCALE = Program(
    operator="softmax_attention",
    name="scale",
    function=f"{HERE}:scale_rows",
    signature={"x": "*{dtype}", "y": "*{dtype}", "offset": "*{wide}", "factor": "fp32", "length": "i32"},
    configs={
        "default": (Config({"BLOCK": 1024}), Config({"BLOCK": 2048}, warps=8)),
        "gfx942": (Config({"BLOCK": 512}, dtypes=("float32",)), Config({"BLOCK": 2048})),
        "interpret": (Config({"BLOCK": 16}),),
    },
    variants=({"offset": None}, {}),
)
SQUARE = Program(
    operator="softmax_attention",
    name="square",
    function=f"{HERE}:square",
    signature={"x": "*{dtype}", "y": "*fp32"},
    configs={
        "default": (Config({}, only={"WIDTH": (16, 32)}), Config({}, warps=8, only={"WIDTH": (32, 64)})),
    },
    variants=({"WIDTH": 32},),
    product=True,
    precision="PRECISION",
)
PROGRAMS = (SCALE, SQUARE)


def scaled(x: Tensor, factor: float, offset: Tensor | None = None) -> Tensor:
    """Return factor · x, and the offset added."""
    x = x.contiguous()
    y = torch.empty_like(x)
    variant = {"offset": None} if offset is None else {}
    SCALE.launch(
        lambda constants: (triton.cdiv(x.numel(), constants["BLOCK"]),),
        x,
        variant=variant,
        x=x,
        y=y,
        offset=offset,
        factor=factor,
        length=x.numel(),
    )
    return y


def squared(x: Tensor) -> Tensor:
    """Return x · x of a square matrix."""
    y = torch.empty_like(x, dtype=torch.float32)
    SQUARE.launch(lambda _: (1,), x, variant={"WIDTH": x.shape[0]}, x=x, y=y)
    return y
