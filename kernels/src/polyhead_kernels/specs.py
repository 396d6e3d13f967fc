"""The Triton kernels as data, apart from their modules, so that a registration imports no triton.

One ``KernelSpec`` an operator, listed in ``polyhead_kernels.plugin``. Its ``limits`` begin with
``polyhead_kernels.programs.limits``, which asks for triton and a GPU or the interpreter.
"""

from __future__ import annotations

from polyhead.ops import Call, KernelSpec
from polyhead.ops.call import name_of
from polyhead_kernels.programs import INTERPRETED, interpreted, limits

__all__ = ["ADDITIVE_ATTENTION_SCORES", "DECAY_ATTENTION", "DEFORMABLE_ATTENTION", "POINTER_NLL", "PREFIX_ATTENTION"]


def _no_float64(call: Call) -> list[str]:
    """Return why a kernel that multiplies on matrix units cannot serve a call, of which float64 has none here."""
    reasons = limits(call)
    if name_of(call.dtype) == "float64" and not interpreted():
        reasons.append("dtype is float64 (needs float32, bfloat16, float16)")
    return reasons


def _in_registers(call: Call) -> list[str]:
    """Return why a kernel that holds whole rows of queries or keys in registers cannot serve a call."""
    reasons = limits(call)
    if (head_dim := call.tensors["q"].shape[3]) > 1024:
        reasons.append(f"head_dim is {head_dim} (needs 1024 at most)")
    return reasons


def _narrow(call: Call) -> list[str]:
    """Return why a kernel that holds whole rows of value in registers cannot serve a call."""
    reasons = limits(call)
    if (head_dim := call.tensors["value"].shape[3]) > 256:
        reasons.append(f"head_dim is {head_dim} (needs 256 at most)")
    return reasons


DECAY_ATTENTION = KernelSpec(
    "decay_attention",
    "triton",
    "polyhead_kernels.decay_attention:decay_attention",
    priority=20,
    form="chunked",
    limits=_no_float64,
    interpreted=INTERPRETED,
)
DEFORMABLE_ATTENTION = KernelSpec(
    "deformable_attention",
    "triton",
    "polyhead_kernels.deformable_attention:deformable_attention",
    priority=20,
    form="gathered",
    limits=_narrow,
    interpreted=INTERPRETED,
)
PREFIX_ATTENTION = KernelSpec(
    "prefix_attention",
    "triton",
    "polyhead_kernels.prefix_attention:prefix_attention",
    priority=20,
    form="chunked",
    limits=_no_float64,
    interpreted=INTERPRETED,
)
ADDITIVE_ATTENTION_SCORES = KernelSpec(
    "additive_attention_scores",
    "triton",
    "polyhead_kernels.additive_attention_scores:additive_attention_scores",
    priority=20,
    form="tiled",
    limits=_in_registers,
    interpreted=INTERPRETED,
)
POINTER_NLL = KernelSpec(
    "pointer_nll",
    "triton",
    "polyhead_kernels.pointer_nll:pointer_nll",
    priority=20,
    form="tiled",
    limits=_in_registers,
    interpreted=INTERPRETED,
)
