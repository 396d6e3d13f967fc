"""What attention over prefixes says about itself."""

from __future__ import annotations

import torch

from polyhead.errors import ShapeError
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.prefix_attention.cases import cases
from polyhead.ops.prefix_attention.state import wide_dtype
from polyhead.ops.spec import Cost, KernelSpec, OperatorSpec

__all__ = ["SPEC", "cost", "describe"]

_HERE = "polyhead.ops.prefix_attention"
_CHUNK = 32
"""What ``cost`` counts with; kernels may use other sizes."""


def describe(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    value_dim: int | None = None,
    by_row: bool = False,
    masked: bool = False,
    grad: bool = False,
) -> Call:
    """Return the call for k of ``shape``; v is like it unless said otherwise.

    Args:
        shape: (B, H, S, D).
        dtype: of q, k and v.
        device: where they are.
        value_dim: Dv.
        by_row: whether each row of the batch has its own query.
        masked: whether there is a key_mask.
        grad: whether gradients are asked for.
    """
    if len(shape) != 4:
        raise ShapeError(f"The shape of k has {len(shape)} numbers, expected 4: batch,heads,seq,head_dim.")
    batch, heads, length, head_dim = shape
    value_dim = head_dim if value_dim is None else value_dim
    wide = wide_dtype(dtype)
    tensors = {
        "k": TensorInfo(shape, dtype, device, grad),
        "v": TensorInfo((batch, heads, length, value_dim), dtype, device, grad),
        "q": TensorInfo((batch, heads, head_dim) if by_row else (heads, head_dim), dtype, device, grad),
        "key_mask": TensorInfo((batch, length), torch.bool, device) if masked else None,
        "m": TensorInfo((batch, heads), wide, device),
        "u": TensorInfo((batch, heads), wide, device),
        "w": TensorInfo((batch, heads, value_dim), wide, device),
    }
    return Call("prefix_attention", tensors, {"scale": head_dim**-0.5}, length)


def cost(call: Call, *, backward: bool = False) -> Cost:
    """Count the chunked form: logits, and half of each square of weights inside of a chunk of 32 tokens."""
    tensors = call.tensors
    k, v = tensors["k"], tensors["v"]
    batch, heads, length, head_dim = k.shape
    value_dim = v.shape[3]
    pairs = (min(_CHUNK, length) + 1) // 2
    each = head_dim + (pairs + 2) * value_dim  # k·q; the triangle, what enters the chunk and what leaves it
    if backward:
        # <output, gradient> and <dv, v>, what enters and leaves, the triangle's transpose, dq and dk.
        each = 2 * value_dim + (pairs + 2) * value_dim + 2 * head_dim
    state = [tensors["m"], tensors["u"], tensors["w"]]
    read = [tensors["q"], k, v, tensors["key_mask"], *state]
    written = [v, *state]
    if backward:
        read += written  # output and the gradients of what the forward pass gave, of which v's shape comes twice
        written = [v, tensors["q"], k, v, *state]
    return Cost.of(2 * batch * heads * length * each, read + written)


SPEC = OperatorSpec(
    name="prefix_attention",
    summary="softmax attention of one query over every prefix: o = Σ exp(s)·v / Σ exp(s)",
    function=f"{_HERE}:prefix_attention",
    forms={
        "recurrent": f"{_HERE}.reference:prefix_attention",
        "scan": f"{_HERE}.reference:scan",
        "chunked": f"{_HERE}.torch_kernel:prefix_attention",
        "streaming": f"{_HERE}.streaming:streamed",
    },
    complexity="O(B·H·S·(D + C·Dv)) time for chunks of C tokens, O(B·H·Dv) state; reference O(B·H·S·(D + Dv)), "
    "one token after another",
    source="Feng et al. 2024, Attention as an RNN, arXiv:2405.13956",
    # Sums over a chunk and over the chunks of a group, each some tens of units in the last place; for 16-bit one unit.
    tolerances={"float64": 2e-14, "float32": 4e-6, "bfloat16": 8e-3, "float16": 1e-3},
    kernels=(
        KernelSpec(
            "prefix_attention",
            "reference",
            f"{_HERE}.reference:prefix_attention",
            priority=0,
            form="recurrent",
            slow_on=("cuda", "xpu", "mps"),
            double_backward=True,
        ),
        KernelSpec("prefix_attention", "torch", f"{_HERE}.torch_kernel:prefix_attention", priority=10, form="chunked"),
    ),
    describe=describe,
    cost=cost,
    cases=cases,
    measures=f"{_HERE}.measures:MEASURES",
    faults=f"{_HERE}.faults:FAULTS",
)
