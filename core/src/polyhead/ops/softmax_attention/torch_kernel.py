"""Softmax attention by PyTorch's ``scaled_dot_product_attention``, repaired where that leaves the contract.

This is a composition of PyTorch operators, not an operator registered with torch.library: SDPA is one already, traces
through torch.compile and torch.export, and picks the fused kernel of each device. Registering one around SDPA's forward
and backward was measured and dropped: a small call (B2 H4 S12 D8, one thread of a CPU) went from 18 to 27 µs, with
backward from 92 to 134 µs, inductor saw nothing of SDPA, and there was nothing to win.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops.softmax_attention import SoftmaxAttention
from polyhead.ops.softmax_attention.patterns import Pattern, narrowed
from polyhead.ops.softmax_attention.second import refusal
from polyhead.ops.softmax_attention.short import attend_short, is_short

__all__ = ["attend", "is_eager", "softmax_attention"]

TAME = 1e15
"""Values below this neither are NaN or Inf nor become so in a product of two, summed over head_dim, in float32."""
VECTOR = 16
"""Numbers in a vector of the processor: narrower float32 heads are padded to it, which takes 0.7 of the time at
head_dim 8 and length 512, forward and with backward."""
LONG = 128
"""Lengths from which padding costs less than it saves."""
_REFUSAL = refusal("torch")


def softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    scale: float,
    heads: tuple[int, ...] | None,
    pattern: Pattern | None = None,
) -> SoftmaxAttention:
    """Run SDPA; arguments as the public function validated them.

    Without mask and bias nothing needs repair: the last query sees each key, and queries without a key are cut off. A
    pattern becomes a mask of all pairs.
    """
    mask = narrowed(mask, pattern, q, k)
    if bias is not None and not torch.is_grad_enabled():
        bias = bias.detach()  # on the CPU, SDPA gives up its fused kernel for a bias that requires grad, even here
    allowed = _allowed(q, k, mask, causal) if mask is not None or bias is not None else None
    if allowed is None and bias is None:
        output = _unmasked(q, k, v, causal, scale)
    else:
        output = _masked(q, k, v, allowed, bias, scale)
    if heads is None:
        return SoftmaxAttention(output, None)
    if allowed is None:
        allowed = _allowed(q, k, mask, causal)
    return SoftmaxAttention(output, _weights(q, k, allowed, bias, scale, heads))


def _allowed(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor | None:
    """Return mask and causality as one mask, broadcastable to (B, H, Sq, Sk)."""
    if not causal:
        return mask
    queries, keys = q.shape[2], k.shape[2]
    triangle = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)[None, None]
    return triangle if mask is None else triangle & mask


def _unmasked(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Tensor:
    """Align SDPA's top-left triangle bottom right: it is the same for Sq = Sk, so make that of the other cases."""
    if is_eager() and is_short(q, k, v, causal):
        return attend_short(q, k, v, causal, scale)
    queries, keys = q.shape[2], k.shape[2]
    if not causal or queries == 1:
        return _fused(q, k, v, None, scale)
    if queries == keys:
        return _fused(q, k, v, None, scale, causal=True)
    if queries > keys:  # the first queries come before every key
        output = _fused(q[:, :, queries - keys :], k, v, None, scale, causal=True)
        return F.pad(output, (0, 0, queries - keys, 0))
    if 2 * queries > keys:
        # Queries that nobody reads cost less than a mask: they take no memory, and half of the work is skipped.
        return _fused(F.pad(q, (0, 0, keys - queries, 0)), k, v, None, scale, causal=True)[:, :, keys - queries :]
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return _fused(q, k, v, allowed[None, None], scale)


def _masked(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float) -> Tensor:
    """Run SDPA with a mask, so that what it multiplies by a weight of zero cannot be NaN or Inf.

    Whether anything is, costs one look at q, k and v. Where values cannot be looked at, everything is cleaned.
    """
    if q.device.type == "cpu" and is_eager() and all(_tame(x) for x in (q, k, v)):
        return _fused(q, k, v, _added(q, allowed, bias), scale)  # here SDPA itself gives zeros to a query without keys
    seen = _seen(allowed, bias)
    nothing, unseen = ~seen.any(-1, keepdim=True), ~seen.any(-2).unsqueeze(-1)
    if unseen.shape[1] not in (1, k.shape[1]):  # grouped heads: all queries of the group must ignore the key
        unseen = unseen.unflatten(1, (k.shape[1], q.shape[1] // k.shape[1])).all(2)
    q, k, v = q.masked_fill(nothing, 0), k.masked_fill(unseen, 0), v.masked_fill(unseen, 0)
    allowed = None if allowed is None else allowed | nothing
    bias = None if bias is None else bias.masked_fill(nothing, 0)
    return _fused(q, k, v, _added(q, allowed, bias), scale).masked_fill(nothing, 0)


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, scale: float) -> Tensor:
    """Return the output alone, shape (B, H, Sq, Dv), of queries that see the allowed keys; all if None."""
    return _fused(q, k, v, None, scale) if allowed is None else _masked(q, k, v, allowed, None, scale)


def _added(q: Tensor, allowed: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """Return mask and bias as the one argument that SDPA takes for both."""
    if bias is None:
        return allowed
    # The CPU's kernel takes a bias of float32 beside 16-bit inputs; the others want one dtype.
    added = bias if q.device.type == "cpu" and bias.dtype == torch.float32 else bias.to(q.dtype)
    return added if allowed is None else added.masked_fill(~allowed, -torch.inf)


def _seen(allowed: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return which keys a query attends to, given a mask, a bias or both."""
    if bias is None:
        assert allowed is not None
        return allowed
    above = bias > -torch.inf
    return above if allowed is None else allowed & above


def is_eager() -> bool:
    """Whether this runs now, on tensors that have values: neither traced nor under torch.func's vmap or grad."""
    # torch.autograd.Function asks the same private question; there is no public one.
    return not torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def _tame(x: Tensor) -> bool:
    if x.numel() == 0:
        return True
    low, high = torch.aminmax(x.detach())
    return low.item() > -TAME and high.item() < TAME


def _fused(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None, scale: float, *, causal: bool = False) -> Tensor:
    """Run SDPA on arguments that keep it on the fused path."""
    if causal and scale <= 0:  # SDPA scales after it has put -inf above the diagonal: +inf, or NaN
        q, scale = (-q, -scale) if scale < 0 else (q * 0, 1.0)
    width = v.shape[-1]
    if q.device.type == "cpu":
        # The CPU's fused kernel wants one width and contiguous rows; all else takes the path that stores the logits.
        wide = max(q.shape[-1], width)
        if (
            is_eager() and q.dtype == torch.float32 and min(q.shape[2], k.shape[2]) >= LONG
        ):  # no guard on a traced length
            wide = max(wide, VECTOR)
        q, k, v = (_padded(x, wide) for x in (q, k, v))
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}  # a branch, since a traced comparison is no bool
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=added, is_causal=causal, scale=scale, **grouped)
    # Only SDPA's fused node has no second derivative. Dynamo cannot trace a question about nodes, and needs no answer.
    if is_eager() and output.grad_fn is not None and "FlashAttentionForCpu" in output.grad_fn.name():
        output.grad_fn.register_hook(_REFUSAL)
    return output if output.shape[-1] == width else output[..., :width]


def _padded(x: Tensor, width: int) -> Tensor:
    if x.shape[-1] < width:
        return F.pad(x, (0, width - x.shape[-1]))
    return x if x.stride(-1) == 1 else x.contiguous()


def _weights(
    q: Tensor, k: Tensor, allowed: Tensor | None, bias: Tensor | None, scale: float, heads: tuple[int, ...]
) -> Tensor:
    """Return the weights of some heads; only their logits are ever in memory."""
    chosen, group = list(heads), q.shape[1] // k.shape[1]
    dtype = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
    queries, keys = q[:, chosen].to(dtype), k[:, [head // group for head in chosen]].to(dtype)
    if allowed is None and bias is None:
        return ((scale * queries) @ keys.mT).softmax(-1).to(q.dtype)
    bias = _of_heads(bias, chosen)
    seen = _seen(_of_heads(allowed, chosen), bias)
    nothing = ~seen.any(-1, keepdim=True)
    queries, keys = queries.masked_fill(nothing, 0), keys.masked_fill(~seen.any(-2).unsqueeze(-1), 0)
    logits = (scale * queries) @ keys.mT
    if bias is not None:
        logits = logits + bias.to(dtype)
    logits = logits.masked_fill(~seen, -torch.inf).masked_fill(nothing, 0)
    return logits.softmax(-1).masked_fill(~seen, 0).to(q.dtype)


def _of_heads(x: Tensor | None, heads: list[int]) -> Tensor | None:
    return x if x is None or x.shape[1] == 1 else x[:, heads]
