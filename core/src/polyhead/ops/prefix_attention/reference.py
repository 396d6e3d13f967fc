"""The definition of attention over prefixes, and its parallel scan; nothing faster."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyhead.ops.prefix_attention import PrefixAttention
from polyhead.ops.prefix_attention.state import PrefixState, wide_dtype

__all__ = ["by_logits", "joined", "prefix_attention", "ratio", "scan"]

Form = Callable[[Tensor, Tensor, PrefixState], tuple[Tensor, PrefixState]]
"""Maps logits (B, H, S), −∞ where a key is masked, values (B, H, S, Dv) and a state to output and final state."""


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, *, scale: float
) -> PrefixAttention:
    """Run the recurrence token by token; arguments as the public function validated them.

    Complexity: O(B·H·S·(D + Dv)) time and memory.
    """
    return by_logits(_recurrence, q, k, v, key_mask, PrefixState(m, u, w), scale)


def scan(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, m: Tensor, u: Tensor, w: Tensor, *, scale: float
) -> PrefixAttention:
    """Run the parallel scan of Hillis and Steele, as published; arguments as the public function validated them.

    Complexity: O(B·H·S·(D + Dv·log S)) time in O(log S) steps, O(B·H·S·Dv·log S) memory with gradients.
    """
    return by_logits(_scan, q, k, v, key_mask, PrefixState(m, u, w), scale)


def joined(earlier: PrefixState, later: PrefixState) -> PrefixState:
    """Return the state of two sets of tokens together: associative, with (−∞, 0, 0) as the neutral element."""
    m = torch.maximum(earlier.m, later.m).detach()
    shift = m.masked_fill(m == -torch.inf, 0)  # without a token, exp(−∞ − 0) = 0 instead of exp(−∞ + ∞) = NaN
    a, b = (earlier.m - shift).exp(), (later.m - shift).exp()
    w = earlier.w * a.unsqueeze(-1) + later.w * b.unsqueeze(-1)
    return PrefixState(m, earlier.u * a + later.u * b, w)


def ratio(state: PrefixState) -> Tensor:
    """Return the weighted mean of the values; zero without a token."""
    return state.w / state.u.masked_fill(state.u == 0, 1).unsqueeze(-1)


def _recurrence(logits: Tensor, v: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
    outputs = []
    for t in range(logits.shape[2]):
        state = joined(state, PrefixState(logits[:, :, t], torch.ones_like(logits[:, :, t]), v[:, :, t]))
        outputs.append(ratio(state))
    return torch.stack(outputs, 2) if outputs else v, state


def _scan(logits: Tensor, v: Tensor, state: PrefixState) -> tuple[Tensor, PrefixState]:
    """Join each token with those before it, twice as many in each round; the state comes before token 0."""
    length = logits.shape[2]
    if not length:
        return v, state
    tokens = PrefixState(logits, torch.ones_like(logits), v)
    spans = PrefixState(*(torch.cat([x.unsqueeze(2), y], 2) for x, y in zip(state, tokens, strict=True)))
    reach = 1
    while reach <= length:
        later = joined(PrefixState(*(x[:, :, :-reach] for x in spans)), PrefixState(*(x[:, :, reach:] for x in spans)))
        spans = PrefixState(*(torch.cat([x[:, :, :reach], y], 2) for x, y in zip(spans, later, strict=True)))
        reach *= 2
    spans = PrefixState(*(x[:, :, 1:] for x in spans))
    return ratio(spans), PrefixState(*(x[:, :, -1] for x in spans))


def by_logits(
    form: Form, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, state: PrefixState, scale: float
) -> PrefixAttention:
    """Run a form on masked logits and values, in float32 at least."""
    dtype = v.dtype
    wide = wide_dtype(dtype)
    q, k, v = q.to(wide), k.to(wide), v.to(wide)
    state = PrefixState(*(x.to(wide) for x in state))
    if key_mask is not None:
        hidden = ~key_mask[:, None, :, None]
        k, v = k.masked_fill(hidden, 0), v.masked_fill(hidden, 0)
    logits = scale * (k * q.unsqueeze(-2)).sum(-1)
    if key_mask is not None:
        logits = logits.masked_fill(hidden.squeeze(-1), -torch.inf)
    output, final = form(logits, v, state)
    return PrefixAttention(output.to(dtype), PrefixState(final.m.detach(), final.u, final.w))
