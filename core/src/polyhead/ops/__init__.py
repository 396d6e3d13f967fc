"""Attention operators: one function each, several kernels, and the registry that picks between them.

Shapes are ``(batch, heads, seq, head_dim)``; boolean masks are True where attention is allowed; causal is aligned
bottom right. ``python -m polyhead kernels list`` shows what there is, ``explain`` why a call runs where it does.
"""

from polyhead.ops.additive_attention_scores import AdditiveAttentionScores, additive_attention_scores
from polyhead.ops.call import Call, TensorInfo
from polyhead.ops.choice import use_kernel
from polyhead.ops.decay_attention import DecayAttention, decay_attention
from polyhead.ops.deformable_attention import DeformableAttention, deformable_attention
from polyhead.ops.pointer_nll import PointerNLL, pointer_nll
from polyhead.ops.prefix_attention import PrefixAttention, PrefixState, prefix_attention
from polyhead.ops.selection import Explanation, Registry, SlowKernelWarning, dispatch, explain, registry
from polyhead.ops.softmax_attention import BlockMask, Neighbourhood, SoftmaxAttention, softmax_attention
from polyhead.ops.spec import Case, Cost, Inputs, KernelSpec, Measure, OperatorSpec

__all__ = [
    "AdditiveAttentionScores",
    "BlockMask",
    "Call",
    "Case",
    "Cost",
    "DecayAttention",
    "DeformableAttention",
    "Explanation",
    "Inputs",
    "KernelSpec",
    "Measure",
    "Neighbourhood",
    "OperatorSpec",
    "PointerNLL",
    "PrefixAttention",
    "PrefixState",
    "Registry",
    "SlowKernelWarning",
    "SoftmaxAttention",
    "TensorInfo",
    "additive_attention_scores",
    "decay_attention",
    "deformable_attention",
    "dispatch",
    "explain",
    "pointer_nll",
    "prefix_attention",
    "registry",
    "softmax_attention",
    "use_kernel",
]
