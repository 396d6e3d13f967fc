"""Multi-head attention: self- and cross-attention, grouped heads, rotations, a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polyhead import recording
from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.nn.kv_state import KVCache, KVMemory, KVRing, KVState, windowed
from polyhead.nn.norms import make_norm
from polyhead.ops import softmax_attention

__all__ = ["Attended", "MultiHeadAttention"]


class Attended(NamedTuple):
    """What ``MultiHeadAttention`` returns."""

    output: Tensor
    """Shape (B, Sq, out_dim)."""
    weights: Tensor | None
    """Shape (B, heads asked for, Sq, Sk); None unless asked for."""
    state: KVState | None
    """The state for the next tokens; None if none was given."""


class MultiHeadAttention(nn.Module):
    r"""Attend with several heads, each in a space of its own.

    .. math:: y = W_o \, \text{concat}_h \, \text{softmax}(\text{scale} \cdot q_h k_h^\top + b) \, v_h, \qquad
        q = W_q x, \; k = W_k m, \; v = W_v m

    where the memory m is x itself in self-attention. Masks, empty rows and padding behave as
    ``polyhead.ops.softmax_attention`` says: a query that may attend nothing gets the bias of the last map.

    A ``state`` makes it stream: ``init_state`` begins one, and every call returns it with the new tokens. A stream
    gives what one call with all tokens gives. ``project`` makes the state of a memory that stays the same, for
    cross-attention whose keys and values are computed once.

    Where ``record(model, weights=…)`` is on, it records ``weights``.

    Complexity: O(B·(Sq + Sk)·dim²) for the maps and O(B·H·Sq·Sk·(D + Dv)) for the rest; memory linear in the lengths,
    except for a mask, a bias, a ``window`` shorter than the input, or weights. Parameters: dim·(2·H·D + 2·Hkv·D) for
    equal widths, and biases.

    Source: Vaswani et al. 2017, arXiv:1706.03762, sec. 3.2; grouped heads: Ainslie et al. 2023, arXiv:2305.13245;
    initial values as in ``torch.nn.MultiheadAttention``. Differs: dropout is on the output, not on the weights, since
    fused kernels and streams have none there.

    >>> attention = MultiHeadAttention(8, 2, causal=True)
    >>> x = torch.randn(1, 3, 8)
    >>> whole, state = attention(x).output, attention.init_state(1)
    >>> for t in range(3):
    ...     part, _, state = attention(x[:, t : t + 1], state=state)
    >>> torch.allclose(part, whole[:, 2:], atol=1e-6)
    True
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        value_head_dim: int | None = None,
        memory_dim: int | None = None,
        values_dim: int | None = None,
        out_dim: int | None = None,
        bias: bool = True,
        out_bias: bool | None = None,
        qk_norm: str = "none",
        rotary: Callable[[Tensor, Tensor], Tensor] | None = None,
        causal: bool = False,
        window: int | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        """Make a module.

        Args:
            dim: width of x.
            heads: H.
            kv_heads: Hkv, a divisor of H; H if None.
            head_dim: D; dim / heads if None.
            value_head_dim: Dv; D if None.
            memory_dim: width of the memory; dim if None.
            values_dim: width of ``values``; that of the memory if None.
            out_dim: width of the output; dim if None.
            bias: whether the maps to q, k and v have biases.
            out_bias: whether the last map has one; as ``bias`` if None.
            qk_norm: ``none``, or a norm of q and k over each head before rotation: ``rms`` (arXiv:2505.09388),
                ``layer`` (arXiv:2302.05442).
            rotary: called with q and k, shape (B, H, S, D), and positions; `Rotary`, or anything like it.
            causal: whether a token sees none behind it, unless a call says otherwise.
            window: a token sees itself and the window − 1 real tokens before it; needs ``causal``.
            scale: multiplies q·k; D**-0.5 if None.
            dropout: probability, on the output.
            eps: of the norm of q and k.

        Raises:
            ConfigError: numbers that do not divide, or a window that is not causal or below 1.
        """
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if head_dim is None and (heads < 1 or dim % heads):
            raise ConfigError(f"dim is {dim} and heads is {heads}: dim must be a multiple of heads. Or set head_dim.")
        if kv_heads < 1 or heads % kv_heads:
            raise ConfigError(f"heads is {heads} and kv_heads is {kv_heads}: heads must be a multiple of kv_heads.")
        if window is not None and (window < 1 or not causal):
            raise ConfigError(f"window is {window} and causal is {causal}: a window is 1 or more, and causal.")
        self.dim, self.heads, self.kv_heads = dim, heads, kv_heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.value_head_dim = self.head_dim if value_head_dim is None else value_head_dim
        self.memory_dim = dim if memory_dim is None else memory_dim
        self.values_dim = self.memory_dim if values_dim is None else values_dim
        self.causal, self.window, self.scale = causal, window, scale
        self.q_proj = nn.Linear(dim, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(self.memory_dim, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(self.values_dim, kv_heads * self.value_head_dim, bias=bias)
        self.out_proj = nn.Linear(
            heads * self.value_head_dim,
            dim if out_dim is None else out_dim,
            bias=bias if out_bias is None else out_bias,
        )
        self.q_norm = make_norm(qk_norm, self.head_dim, eps)
        self.k_norm = make_norm(qk_norm, self.head_dim, eps)
        self.rotary = rotary
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew: Xavier-uniform as one stacked matrix of q, k and v, and biases of zero."""
        for linear in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.xavier_uniform_(linear.weight, gain=2**-0.5)
        self.out_proj.reset_parameters()
        for linear in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(
        self,
        x: Tensor,
        memory: Tensor | None = None,
        values: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        causal: bool | None = None,
        positions: Tensor | None = None,
        memory_positions: Tensor | None = None,
        state: KVState | None = None,
        return_weights: bool | Sequence[int] = False,
    ) -> Attended:
        """Attend from x to the memory, or to itself.

        Args:
            x: what queries are made of, shape (B, Sq, dim).
            memory: what keys are made of, shape (B, Sk, memory_dim); x if None.
            values: what values are made of, shape (B, Sk, values_dim); the memory if None.
            key_mask: bool, shape (B, Sk), True = real token. With a state it is that of the new tokens.
            mask: bool, True = may attend, broadcastable to (B, H, Sq, Sk); Sk counts the cached tokens too.
            bias: float, added to the logits, broadcastable to (B, H, Sq, Sk).
            causal: whether queries see no later keys, bottom right aligned; as the module if None.
            positions: what ``rotary`` gets for x, usually shape (Sq,) or (B, Sq). If None it is the number of real
                tokens before, those in the state included, so padding on either side changes nothing.
            memory_positions: what it gets for the memory; counted if None.
            state: what ``init_state``, ``project`` or the last call gave.
            return_weights: True for the weights of all heads, or the heads wanted.

        Returns:
            Attended(output, weights, state): shapes (B, Sq, out_dim) and (B, heads asked for, Sq, Sk).

        Raises:
            ShapeError, DtypeError: shapes or dtypes do not fit.
            ConfigError: arguments that exclude one another, such as a memory and a state.
        """
        self._check(x, memory, values, key_mask, state)
        causal = self.causal if causal is None else causal
        if self.window is not None and (not causal or memory is not None or isinstance(state, KVMemory)):
            raise ConfigError("A module with a window attends causally and to itself only. Make another one without.")
        q = self._heads(self.q_norm, self.q_proj(x), self.heads)
        if self.rotary is not None:
            q = self.rotary(q, _counted(x, None if memory is not None else key_mask, state, positions))
        if isinstance(state, KVMemory):
            k, v, key_mask = state
        else:
            own = memory is None
            source = x if memory is None else memory
            where = _counted(x, key_mask, state, positions) if own else memory_positions
            k, v, _ = self.project(source, values, key_mask=key_mask, positions=where)
        allowed = None if mask is None else mask
        if isinstance(state, KVRing):
            if mask is not None or bias is not None:
                raise ConfigError("mask and bias have no order of keys in a ring. Use a state without a capacity.")
            if not causal:
                raise ConfigError(NOT_CAUSAL)
            old, state = state, state.append(k, v, key_mask)
            if x.shape[1] == 1:  # the new token is in the ring, and the one that it no longer sees is not
                k, v, allowed = state.k, state.v, (state.positions >= 0)[:, None, None]
            else:
                allowed = old.allowed(k, key_mask)
                k, v = torch.cat([old.k, k], 2), torch.cat([old.v, v], 2)
            causal = False
        else:
            if isinstance(state, KVCache):
                if not causal:
                    raise ConfigError(NOT_CAUSAL)
                state = state.append(k, v, key_mask)
                k, v, key_mask = state.k, state.v, state.key_mask
            elif self.window is not None and (torch.compiler.is_compiling() or self.window < x.shape[1]):
                # A traced program would be for lengths beyond the window only, or for those within.
                allowed = _both(allowed, self._band(x, key_mask))
            if key_mask is not None:
                allowed = _both(allowed, key_mask[:, None, None])
        output, weights = self._attend(q, k, v, allowed, bias, causal, return_weights)
        output = self.dropout(self.out_proj(output.transpose(1, 2).flatten(2)))
        return Attended(output, weights, state)

    def project(
        self,
        memory: Tensor,
        values: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> KVMemory:
        """Return the keys and values of a memory, to be given as ``state`` to any number of calls.

        Args:
            memory: shape (B, Sk, memory_dim).
            values: shape (B, Sk, values_dim); the memory if None.
            key_mask: bool, shape (B, Sk), True = real token.
            positions: what ``rotary`` gets; counted if None.

        Raises:
            ShapeError: a width does not fit.
        """
        values = memory if values is None else values
        if memory.shape[-1] != self.memory_dim or values.shape[-1] != self.values_dim:
            raise ShapeError(
                f"memory {tuple(memory.shape)} and values {tuple(values.shape)} do not have the widths "
                f"{self.memory_dim} and {self.values_dim}. Set memory_dim and values_dim, or give values."
            )
        k = self._heads(self.k_norm, self.k_proj(memory), self.kv_heads)
        v = self.v_proj(values).unflatten(-1, (self.kv_heads, self.value_head_dim)).transpose(1, 2)
        if self.rotary is not None:
            k = self.rotary(k, _counted(memory, key_mask, None, positions))
        return KVMemory(k, v, key_mask)

    def init_state(
        self,
        batch: int,
        *,
        capacity: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> KVCache | KVRing:
        """Return the state before the first token.

        Args:
            batch: B.
            capacity: slots allocated for each row, for states of constant shape (vectorised environments, compiled
                steps). Once they are full, the oldest token makes room: a sliding window. None grows, and is the window
                for modules that have one.
            device: that of the parameters if None.
            dtype: that of the parameters if None.

        Raises:
            ConfigError: capacity is below 1 or not the module's window.
        """
        size = self.window if capacity is None else capacity
        if size is not None and (size < 1 or self.window not in (None, size)):
            raise ConfigError(f"capacity is {size} and the window {self.window}: expected 1 or more, and the same.")
        like = self.k_proj.weight
        device, dtype = like.device if device is None else device, like.dtype if dtype is None else dtype
        k = torch.zeros(batch, self.kv_heads, size or 0, self.head_dim, device=device, dtype=dtype)
        v = torch.zeros(batch, self.kv_heads, size or 0, self.value_head_dim, device=device, dtype=dtype)
        length = torch.zeros(batch, dtype=torch.int64, device=device)
        if size is None:
            return KVCache(k, v, None, length)
        return KVRing(k, v, torch.full((batch, size), -1, dtype=torch.int64, device=device), length)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        grouped = "" if self.kv_heads == self.heads else f", kv_heads={self.kv_heads}"
        window = "" if self.window is None else f", window={self.window}"
        return f"{self.dim}, heads={self.heads}{grouped}, head_dim={self.head_dim}, causal={self.causal}{window}"

    def _heads(self, norm: nn.Module, x: Tensor, heads: int) -> Tensor:
        y: Tensor = norm(x.unflatten(-1, (heads, self.head_dim))).transpose(1, 2)
        return y

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        allowed: Tensor | None,
        bias: Tensor | None,
        causal: bool,
        asked: bool | Sequence[int],
    ) -> tuple[Tensor, Tensor | None]:
        """Run the operator; compute the weights of the heads that the caller or a recording wants, each once."""
        mine, taped = _indices(asked, self.heads), _indices(recording.wanted(self, "weights"), self.heads)
        chosen = sorted({*mine, *taped})
        output, weights = softmax_attention(
            q, k, v, mask=allowed, bias=bias, causal=causal, scale=self.scale, return_weights=chosen or False
        )
        if weights is None:
            return output, None
        if taped:
            recording.note(self, "weights", weights[:, [chosen.index(head) for head in taped]])
        return output, weights[:, [chosen.index(head) for head in mine]] if mine else None

    def _band(self, x: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return which tokens are within the window of which, counted over real ones."""
        assert self.window is not None
        if key_mask is None:
            return windowed(torch.arange(x.shape[1], device=x.device), self.window)
        return windowed(key_mask.cumsum(1), self.window).unsqueeze(1)

    def _check(
        self,
        x: Tensor,
        memory: Tensor | None,
        values: Tensor | None,
        key_mask: Tensor | None,
        state: KVState | None,
    ) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ShapeError(f"x {tuple(x.shape)} is not (batch, seq, dim) with dim {self.dim}.")
        if state is not None and memory is not None:
            raise ConfigError("memory and state exclude each other: a memory that stays is a state, made by project().")
        if isinstance(state, KVMemory) and (values is not None or key_mask is not None):
            raise ConfigError("values and key_mask belong to the memory: give them to project().")
        for name, each in (("memory", memory), ("values", values)):
            if each is not None and (each.ndim != 3 or each.shape[0] != x.shape[0]):
                raise ShapeError(
                    f"{name} {tuple(each.shape)} is not (batch, seq, width) with the batch of x {tuple(x.shape)}."
                )
        if key_mask is None:
            return
        keys = (x if memory is None else memory).shape[:2]
        if key_mask.dtype != torch.bool:
            raise DtypeError(f"key_mask is {key_mask.dtype}, expected torch.bool, True = real token.")
        if key_mask.shape != keys:
            raise ShapeError(f"key_mask {tuple(key_mask.shape)} is not (batch, keys) = {tuple(keys)}.")


NOT_CAUSAL = (
    "A state needs causal attention: tokens of a stream cannot see later ones. Make the module with causal=True, "
    "or give the memory that stays by project()."
)


def _counted(x: Tensor, key_mask: Tensor | None, state: KVState | None, positions: Tensor | None) -> Tensor:
    """Return the positions given, or count the real tokens before each token: int64, shape (S,) or (B, S)."""
    if positions is not None:
        return positions
    counted = torch.arange(x.shape[1], device=x.device) if key_mask is None else (key_mask.cumsum(1) - 1).clamp(min=0)
    return counted if state is None or isinstance(state, KVMemory) else state.length[:, None] + counted


def _both(a: Tensor | None, b: Tensor) -> Tensor:
    return b if a is None else a & b


def _indices(asked: bool | Sequence[int], heads: int) -> list[int]:
    if isinstance(asked, bool):
        return list(range(heads)) if asked else []
    return list(asked)
