"""What linear attention with decay says about itself."""

from __future__ import annotations

import torch

from polyhead.errors import ShapeError
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.decay_attention.cases import cases
from polyhead.ops.spec import Cost, KernelSpec, OperatorSpec

__all__ = ["SPEC", "cost", "describe"]

_HERE = "polyhead.ops.decay_attention"
_CHUNK = 64
"""What ``cost`` counts with; kernels may use other sizes."""


def describe(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    *,
    value_dim: int | None = None,
    by_token: bool = False,
    state: bool = False,
    sequences: int | None = None,
    grad: bool = False,
    learned_decay: bool = False,
) -> Call:
    """Return the call for q of ``shape``; k and v are like it unless said otherwise.

    Args:
        shape: (B, H, S, D).
        dtype: of q, k and v.
        device: where they are.
        value_dim: Dv.
        by_token: whether each token has its own decay.
        state: whether there is an initial state.
        sequences: how many are packed in a batch of 1; none if None.
        grad: whether gradients are asked for.
        learned_decay: whether those of the decay are.
    """
    if len(shape) != 4:
        raise ShapeError(f"The shape of q has {len(shape)} numbers, expected 4: batch,heads,seq,head_dim.")
    batch, heads, length, head_dim = shape
    value_dim = head_dim if value_dim is None else value_dim
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    decays = (batch, heads, length) if by_token else (heads,)
    states = (batch if sequences is None else sequences, heads, head_dim, value_dim)
    tensors = {
        "q": TensorInfo(shape, dtype, device, grad),
        "k": TensorInfo(shape, dtype, device, grad),
        "v": TensorInfo((batch, heads, length, value_dim), dtype, device, grad),
        "log_decay": TensorInfo(decays, wide, device, grad and learned_decay),
        "initial_state": TensorInfo(states, wide, device, grad) if state else None,
        "cu_seqlens": None if sequences is None else TensorInfo((sequences + 1,), torch.int32, device),
    }
    return Call("decay_attention", tensors, {"scale": 1.0}, length)


def cost(call: Call, *, backward: bool = False) -> Cost:
    """Count the chunked form: products with states, and half of each square inside of a chunk of 64 tokens."""
    q, v, decay, packed = (call.tensors[name] for name in ("q", "v", "log_decay", "cu_seqlens"))
    batch, heads, length, head_dim = q.shape
    value_dim = v.shape[3]
    between, inside = 2 * head_dim * value_dim, (head_dim + value_dim)
    if backward:
        between, inside = 4 * head_dim * value_dim, 3 * head_dim + 2 * value_dim
    flops = 2 * batch * heads * length * (between + min(_CHUNK, length) * inside // 2)
    sequences = batch if packed is None else packed.shape[0] - 1
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    state = TensorInfo((sequences, heads, head_dim, value_dim), wide, q.device)
    tensors = [q, q, v, v, decay, packed, call.tensors["initial_state"], state]
    if backward:
        tensors += [q, q, v, state]  # gradients of q, k and v are written, of the final state read
    return Cost.of(flops, tensors)


SPEC = OperatorSpec(
    name="decay_attention",
    summary="causal linear attention with decay: S ← e^g·S + kᵀv, o = scale·q·S",
    function=f"{_HERE}:decay_attention",
    forms={
        "recurrent": f"{_HERE}.reference:decay_attention",
        "parallel": f"{_HERE}.reference:parallel",
        "chunked": f"{_HERE}.torch_kernel:decay_attention",
        "streaming": f"{_HERE}.streaming:streamed",
    },
    complexity="O(B·H·S·(C·(D + Dv) + D·Dv)) time for chunks of C tokens, O(B·H·D·Dv) state; reference O(B·H·S·D·Dv), "
    "one token after another",
    source="Qin et al. 2024, Lightning Attention-2, arXiv:2401.04658",
    # Sums over a chunk and over the states of a group, each some tens of units in the last place; for 16-bit one unit.
    tolerances={"float64": 2e-14, "float32": 4e-6, "bfloat16": 8e-3, "float16": 1e-3},
    kernels=(
        KernelSpec(
            "decay_attention",
            "reference",
            f"{_HERE}.reference:decay_attention",
            priority=0,
            form="recurrent",
            slow_on=("cuda", "xpu", "mps"),
            double_backward=True,
        ),
        KernelSpec("decay_attention", "torch", f"{_HERE}.torch_kernel:decay_attention", priority=10, form="chunked"),
    ),
    describe=describe,
    cost=cost,
    cases=cases,
    measures=f"{_HERE}.measures:MEASURES",
    faults=f"{_HERE}.faults:FAULTS",
)
