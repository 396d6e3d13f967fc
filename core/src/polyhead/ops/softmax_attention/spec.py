"""What softmax attention says about itself."""

from __future__ import annotations

from typing import Any

import torch

from polyhead.errors import ConfigError, ShapeError
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.softmax_attention.cases import cases
from polyhead.ops.softmax_attention.limits import flex, tiled
from polyhead.ops.softmax_attention.patterns import Neighbourhood
from polyhead.ops.softmax_attention.patterns import pairs as kept
from polyhead.ops.spec import Cost, KernelSpec, OperatorSpec

__all__ = ["SPEC", "cost", "describe"]

_HERE = "polyhead.ops.softmax_attention"


def describe(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    keys: int | None = None,
    kv_heads: int | None = None,
    value_dim: int | None = None,
    causal: bool = False,
    mask: bool = False,
    bias: bool = False,
    grad: bool = False,
    return_weights: bool = False,
    grid: str | None = None,
    window: str | None = None,
) -> Call:
    """Return the call for q of ``shape``; k and v are like it unless said otherwise.

    Args:
        shape: (B, H, Sq, D).
        dtype: of q, k and v.
        device: where they are.
        keys: Sk.
        kv_heads: Hkv.
        value_dim: Dv.
        causal: whether the call is causal.
        mask: whether there is a mask of shape (B, 1, Sq, Sk).
        bias: whether there is a bias of shape (1, H, Sq, Sk).
        grad: whether gradients are asked for, of the bias too.
        return_weights: whether the weights of all heads are.
        grid: positions of a neighbourhood along each axis, such as "56x56"; one axis if only a window is given.
        window: of a neighbourhood, such as "7x7"; none if None.
    """
    if len(shape) != 4:
        raise ShapeError(f"The shape of q has {len(shape)} numbers, expected 4: batch,heads,seq,head_dim.")
    batch, heads, queries, head_dim = shape
    keys, kv_heads, value_dim = (
        default if given is None else given
        for given, default in ((keys, queries), (kv_heads, heads), (value_dim, head_dim))
    )
    tensors = {
        "q": TensorInfo(shape, dtype, device, grad),
        "k": TensorInfo((batch, kv_heads, keys, head_dim), dtype, device, grad),
        "v": TensorInfo((batch, kv_heads, keys, value_dim), dtype, device, grad),
        "mask": TensorInfo((batch, 1, queries, keys), torch.bool, device) if mask else None,
        "bias": TensorInfo((1, heads, queries, keys), dtype, device, grad) if bias else None,
    }
    asked = tuple(range(heads)) if return_weights else None
    options: dict[str, Any] = {"causal": causal, "scale": head_dim**-0.5, "heads": asked}
    if window is not None:
        pattern = Neighbourhood((queries,) if grid is None else _numbers("grid", grid), _numbers("window", window))
        pattern.check(queries, keys)
        options["pattern"] = pattern
    return Call("softmax_attention", tensors, options, keys)


def _numbers(name: str, text: str) -> tuple[int, ...]:
    parts = text.split("x")
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f'{name} is "{text}", expected whole numbers with x between them, such as 7x7.')
    return tuple(int(part) for part in parts)


def cost(call: Call, *, backward: bool = False) -> Cost:
    """Count the products with each pair that causality and pattern allow; a mask saves no work in a fused kernel."""
    q, k, v = (call.tensors[name] for name in "qkv")
    batch, heads, queries, head_dim = q.shape
    keys, value_dim = v.shape[2:]
    pairs = queries * keys
    if call.options["causal"]:
        rows = min(queries, keys)  # the last rows see keys - rows + 1 up to keys; the ones before see nothing
        pairs = rows * (keys - rows) + rows * (rows + 1) // 2
    if (pattern := call.options.get("pattern")) is not None:
        pairs = kept(pattern, queries, keys, call.options["causal"])
    output = TensorInfo((batch, heads, queries, value_dim), q.dtype, q.device)
    # Forward: q·k, w·v. Backward: both again in transposed form for each factor, and q·k once more to recompute w.
    products = 3 * head_dim + 2 * value_dim if backward else head_dim + value_dim
    tensors = [q, k, v, output, call.tensors["mask"], call.tensors["bias"]]
    if backward:
        tensors += [output, q, k, v]  # gradients: of the output read, of q, k and v written
    return Cost.of(2 * batch * heads * pairs * products, tensors)


SPEC = OperatorSpec(
    name="softmax_attention",
    summary="softmax(scale·q·kᵀ + bias)·v over the keys that mask and causality allow",
    function=f"{_HERE}:softmax_attention",
    forms={"parallel": f"{_HERE}.reference:softmax_attention"},
    complexity="O(B·H·Sq·Sk·(D + Dv)) time; memory beyond inputs and outputs O(B·H·Sq), reference O(B·H·Sq·Sk)",
    source="Vaswani et al. 2017, arXiv:1706.03762, eq. 1",
    # 16 units in the last place; for 16-bit one unit, since fused kernels round the weights before the product with v.
    tolerances={"float64": 4e-15, "float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3},
    kernels=(
        KernelSpec(
            "softmax_attention",
            "reference",
            f"{_HERE}.reference:softmax_attention",
            priority=0,
            slow_on=("cuda", "xpu", "mps"),
            double_backward=True,
        ),
        KernelSpec("softmax_attention", "torch", f"{_HERE}.torch_kernel:softmax_attention", priority=10),
        KernelSpec(
            "softmax_attention",
            "tiled",
            f"{_HERE}.tiled_kernel:softmax_attention",
            priority=12,
            devices=("cpu",),
            limits=tiled,
            wins_from=768,
        ),
        KernelSpec(
            "softmax_attention",
            "flex",
            f"{_HERE}.flex_kernel:softmax_attention",
            priority=15,
            devices=("cuda",),
            dtypes=("float32", "bfloat16", "float16"),
            limits=flex,
            wins_from=1024,
        ),
    ),
    describe=describe,
    cost=cost,
    cases=cases,
    measures=f"{_HERE}.measures:MEASURES",
    faults=f"{_HERE}.faults:FAULTS",
)
