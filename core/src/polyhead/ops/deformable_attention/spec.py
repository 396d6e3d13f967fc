"""What multi-scale deformable attention says about itself."""

from __future__ import annotations

import torch

from polyhead.errors import ShapeError
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.deformable_attention.cases import cases
from polyhead.ops.spec import Cost, KernelSpec, OperatorSpec

__all__ = ["SPEC", "cost", "describe"]

_HERE = "polyhead.ops.deformable_attention"


def describe(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    queries: int | None = None,
    levels: str = "",
    points: int = 4,
    grad: bool = False,
    deterministic: bool = False,
) -> Call:
    """Return the call for value of ``shape``.

    Args:
        shape: (B, H, S, D).
        dtype: of value; locations and weights have float32 at least.
        device: where they are.
        queries: Q; as many as pixels if None.
        levels: height and width of each, such as "100x167,50x84"; one level of S rows and one column if empty.
        points: P.
        grad: whether gradients are asked for.
        deterministic: whether they are to be the same bit by bit each time.
    """
    if len(shape) != 4:
        raise ShapeError(f"The shape of value has {len(shape)} numbers, expected 4: batch,heads,pixels,head_dim.")
    batch, heads, pixels, _ = shape
    shapes = _levels(levels) if levels else ((pixels, 1),)
    if sum(height * width for height, width in shapes) != pixels:
        raise ShapeError(f'The pixels of levels "{levels}" do not add up to {pixels}, those of value {shape}.')
    queries = pixels if queries is None else queries
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    samples = (batch, heads, queries, len(shapes), points)
    tensors = {
        "value": TensorInfo(shape, dtype, device, grad),
        "locations": TensorInfo((*samples, 2), wide, device, grad),
        "weights": TensorInfo(samples, wide, device, grad),
    }
    return Call("deformable_attention", tensors, {"shapes": shapes, "deterministic": deterministic}, queries)


def _levels(text: str) -> tuple[tuple[int, int], ...]:
    pairs = []
    for part in text.split(","):
        height, times, width = part.strip().partition("x")
        if not (times and height.isdecimal() and width.isdecimal()):
            raise ShapeError(f'levels is "{text}": "{part.strip()}" is not HEIGHTxWIDTH, such as 100x167.')
        pairs.append((int(height), int(width)))
    return tuple(pairs)


def cost(call: Call, *, backward: bool = False) -> Cost:
    """Count four products with a row of value for each sample; backward, as many for samples and for value."""
    value, locations, weights = (call.tensors[name] for name in ("value", "locations", "weights"))
    batch, heads, queries, levels, points = weights.shape
    dim = value.shape[3]
    flops = 2 * 4 * batch * heads * queries * levels * points * dim
    output = TensorInfo((batch, heads, queries, dim), value.dtype, value.device)
    tensors = [value, locations, weights, output]
    if backward:
        return Cost.of(2 * flops, tensors + tensors[:3])  # the output's gradient is read, the others' written
    return Cost.of(flops, tensors)


def _reference_limits(call: Call) -> list[str]:
    if not call.options["deterministic"] or call.device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        return []
    return [f"deterministic on {call.device.type} (needs torch.use_deterministic_algorithms(True) beside it)"]


SPEC = OperatorSpec(
    name="deformable_attention",
    summary="multi-scale deformable attention: bilinear samples of maps at several scales, weighted and summed",
    function=f"{_HERE}:deformable_attention",
    forms={
        "gathered": f"{_HERE}.reference:deformable_attention",
        "bags": f"{_HERE}.torch_kernel:deformable_attention",
    },
    complexity="O(B·H·Q·L·P·D) time, O(B·H·D·(S + Q)) memory; reference O(B·H·Q·L·P·D) memory",
    source="Zhu et al. 2021, Deformable DETR, arXiv:2010.04159, eq. 3",
    # Positions in pixels have an error of a unit in the last place of the map's size, which the slopes multiply.
    tolerances={"float64": 2e-14, "float32": 4e-6, "bfloat16": 8e-3, "float16": 1e-3},
    kernels=(
        KernelSpec(
            "deformable_attention",
            "reference",
            f"{_HERE}.reference:deformable_attention",
            priority=0,
            form="gathered",
            slow_on=("cuda", "xpu", "mps"),
            limits=_reference_limits,
            double_backward=True,
        ),
        KernelSpec(
            "deformable_attention",
            "torch",
            f"{_HERE}.torch_kernel:deformable_attention",
            priority=10,
            form="bags",
            slow_on=("cuda", "xpu", "mps"),
        ),
    ),
    describe=describe,
    cost=cost,
    cases=cases,
    measures=f"{_HERE}.measures:MEASURES",
    faults=f"{_HERE}.faults:FAULTS",
)
