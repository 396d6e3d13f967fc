"""What a pointer's loss says about itself."""

from __future__ import annotations

import torch

from polyhead.ops.additive_attention_scores.spec import described, pair_flops
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.pointer_nll.cases import cases
from polyhead.ops.spec import Cost, KernelSpec, OperatorSpec

__all__ = ["SPEC", "cost", "describe"]

_HERE = "polyhead.ops.pointer_nll"


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
    tensors["targets"] = TensorInfo(shape[:3], torch.int64, device)
    return Call("pointer_nll", tensors, {"clip": clip}, tensors["k"].shape[2])


def cost(call: Call, *, backward: bool = False) -> Cost:
    """Count the tiled form without what lengths and masks save; the backward pass computes the logits again."""
    q, k, weight = (call.tensors[name] for name in ("q", "k", "weight"))
    batch, heads, queries, head_dim = q.shape
    nll = TensorInfo((batch, heads, queries), q.dtype, q.device)
    unit = pair_flops(backward) + (2 if backward else 0)
    flops = batch * heads * queries * k.shape[2] * head_dim * unit
    tensors = [*call.tensors.values(), nll]
    return Cost.of(flops, [*tensors, q, k, weight] if backward else tensors)


SPEC = OperatorSpec(
    name="pointer_nll",
    summary="negative log likelihood of the key that a query should point to, from additive scores",
    function=f"{_HERE}:pointer_nll",
    forms={"parallel": f"{_HERE}.reference:pointer_nll", "tiled": f"{_HERE}.torch_kernel:pointer_nll"},
    complexity="O(B·H·Sq·Sk·D) time, O(B·H·Sq) memory; reference: O(B·H·Sq·Sk·D) memory",
    source="Vinyals et al. 2015, arXiv:1506.03134, eq. 3 and section 2.3",
    # That of the logits, summed over keys with weights that sum to 1; for 16-bit one unit in the last place.
    tolerances={"float64": 4e-15, "float32": 2e-6, "bfloat16": 8e-3, "float16": 1e-3},
    kernels=(
        KernelSpec(
            "pointer_nll",
            "reference",
            f"{_HERE}.reference:pointer_nll",
            priority=0,
            slow_on=("cuda", "xpu", "mps"),
            double_backward=True,
        ),
        KernelSpec(
            "pointer_nll",
            "torch",
            f"{_HERE}.torch_kernel:pointer_nll",
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
