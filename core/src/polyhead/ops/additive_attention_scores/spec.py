"""What additive attention scores say about themselves."""

from __future__ import annotations

from typing import Any

import torch

from polyhead.errors import ShapeError
from polyhead.ops.additive_attention_scores.cases import cases
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.spec import Cost, KernelSpec, OperatorSpec

__all__ = ["SPEC", "cost", "describe", "described", "pair_flops"]

_HERE = "polyhead.ops.additive_attention_scores"


def describe(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    keys: int | None = None,
    ragged: bool = False,
    mask: bool = False,
    clip: float | None = None,
    grad: bool = False,
) -> Call:
    """Return the call for q of ``shape``; k is like it unless said otherwise.

    Args:
        shape: (B, H, Sq, D).
        dtype: of q, k and weight.
        device: where they are.
        keys: Sk.
        ragged: whether lengths of keys and queries are given.
        mask: whether a mask of all pairs is given.
        clip: bound of the logits.
        grad: whether gradients are asked for.
    """
    tensors = described(shape, dtype, device, keys, ragged, mask, grad)
    return Call("additive_attention_scores", tensors, {"clip": clip}, tensors["k"].shape[2])


def described(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    keys: int | None,
    ragged: bool,
    mask: bool,
    grad: bool,
) -> dict[str, Any]:
    """Return the tensors of a call that scores keys additively."""
    if len(shape) != 4:
        raise ShapeError(f"The shape of q has {len(shape)} numbers, expected 4: batch,heads,seq,head_dim.")
    batch, heads, queries, head_dim = shape
    keys = queries if keys is None else keys
    rows = TensorInfo((batch,), torch.int64, device) if ragged else None
    return {
        "q": TensorInfo(shape, dtype, device, grad),
        "k": TensorInfo((batch, heads, keys, head_dim), dtype, device, grad),
        "weight": TensorInfo((heads, head_dim), dtype, device, grad),
        "mask": TensorInfo((batch, heads, queries, keys), torch.bool, device) if mask else None,
        "lengths": rows,
        "query_lengths": rows,
    }


def pair_flops(backward: bool) -> int:
    """Return what a hidden unit of a pair costs, tanh by its factors, the longest it can be.

    Forward: a multiply-add, a quotient, a difference and a multiply-add. Backward: the first four again, three for the
    derivative of tanh, a multiply-add for the gradient of the weight and two sums.
    """
    return 11 if backward else 6


def cost(call: Call, *, backward: bool = False) -> Cost:
    """Count the tiled form without what lengths and masks save."""
    q, k, weight = (call.tensors[name] for name in ("q", "k", "weight"))
    batch, heads, queries, head_dim = q.shape
    logits = TensorInfo((batch, heads, queries, k.shape[2]), q.dtype, q.device)
    flops = batch * heads * queries * k.shape[2] * head_dim * pair_flops(backward)
    tensors = [*call.tensors.values(), logits]
    return Cost.of(flops, [*tensors, q, k, weight] if backward else tensors)


SPEC = OperatorSpec(
    name="additive_attention_scores",
    summary="logits of additive attention: w · tanh(q + k), the hidden layer never stored",
    function=f"{_HERE}:additive_attention_scores",
    forms={
        "parallel": f"{_HERE}.reference:additive_attention_scores",
        "tiled": f"{_HERE}.torch_kernel:additive_attention_scores",
    },
    complexity="O(B·H·Sq·Sk·D) time, O(1) memory; reference: O(B·H·Sq·Sk·D) memory",
    source="Bahdanau et al. 2015, arXiv:1409.0473; Vinyals et al. 2015, arXiv:1506.03134, eq. 3",
    # Sums of D terms of either sign, each some units in the last place of 1; for 16-bit one unit.
    tolerances={"float64": 4e-15, "float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3},
    kernels=(
        KernelSpec(
            "additive_attention_scores",
            "reference",
            f"{_HERE}.reference:additive_attention_scores",
            priority=0,
            slow_on=("cuda", "xpu", "mps"),
            double_backward=True,
        ),
        KernelSpec(
            "additive_attention_scores",
            "torch",
            f"{_HERE}.torch_kernel:additive_attention_scores",
            priority=10,
            form="tiled",
            slow_on=("cuda", "xpu", "mps"),
        ),
    ),
    describe=describe,
    cost=cost,
    cases=cases,
    measures=f"{_HERE}.measures:MEASURES",
    faults=f"{_HERE}.faults:FAULTS",
)
