"""What attention carries from token to token: keys and values, growing, in a ring, or of a memory that stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["KVCache", "KVMemory", "KVRing", "KVState"]


class KVCache(NamedTuple):
    """Keys and values of all tokens so far. It grows; the one given is left as it was."""

    k: Tensor
    """Shape (B, Hkv, S, D), after norm and rotation."""
    v: Tensor
    """Shape (B, Hkv, S, Dv)."""
    key_mask: Tensor | None
    """Bool, shape (B, S), True = real token; None if all are."""
    length: Tensor
    """int64, shape (B,): how many real tokens there were, which is the position of the next one."""

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> KVCache:
        """Return the cache with further tokens behind: k (B, Hkv, S, D), v (B, Hkv, S, Dv), key_mask (B, S)."""
        length = self.length + (k.shape[2] if key_mask is None else key_mask.sum(1))
        if self.key_mask is not None or key_mask is not None:
            old = _all_real(self.k) if self.key_mask is None else self.key_mask
            key_mask = torch.cat([old, _all_real(k) if key_mask is None else key_mask], 1)
        return KVCache(torch.cat([self.k, k], 2), torch.cat([self.v, v], 2), key_mask, length)

    def aligned(self, caches: Sequence[KVCache]) -> tuple[KVCache, ...]:
        """Return caches of one length, the shorter ones with masked tokens in front."""
        longest = max(cache.k.shape[2] for cache in caches)
        if all(cache.k.shape[2] == longest and cache.key_mask is None for cache in caches):
            return tuple(caches)
        padded = []
        for k, v, key_mask, length in caches:
            missing = longest - k.shape[2]
            key_mask = _all_real(k) if key_mask is None else key_mask
            k, v = F.pad(k, (0, 0, missing, 0)), F.pad(v, (0, 0, missing, 0))
            padded.append(KVCache(k, v, F.pad(key_mask, (missing, 0)), length))
        return tuple(padded)


class KVRing(NamedTuple):
    """Keys and values of the last C tokens of each row. Its shape is constant; the one given is left as it was."""

    k: Tensor
    """Shape (B, Hkv, C, D); the token at position p is in slot p modulo C."""
    v: Tensor
    """Shape (B, Hkv, C, Dv)."""
    positions: Tensor
    """int64, shape (B, C): which token is in the slot, counted over real ones; −1 if none is."""
    length: Tensor
    """int64, shape (B,): how many real tokens there were, which is the position of the next one."""

    def append(self, k: Tensor, v: Tensor, key_mask: Tensor | None) -> KVRing:
        """Return the ring after further tokens: k (B, Hkv, S, D), v (B, Hkv, S, Dv), key_mask (B, S)."""
        size, tokens = self.k.shape[2], k.shape[2]
        if tokens == 0:
            return self
        real = _all_real(k) if key_mask is None else key_mask
        at = self.following(k, key_mask)
        if tokens == 1:  # as most of the time: a copy, and one slot of it written
            slot = at % size

            def put(old: Tensor, new: Tensor) -> Tensor:
                index = slot[:, None, :, None].expand(-1, old.shape[1], -1, old.shape[3])
                kept = old.gather(2, index)
                return old.scatter(2, index, torch.where(real[:, None, :, None], new.to(old.dtype), kept))

            positions = self.positions.scatter(1, slot, torch.where(real, at, self.positions.gather(1, slot)))
            return KVRing(put(self.k, k), put(self.v, v), positions, self.length + real.sum(1))
        # Which of the new tokens stays in a slot: the last real one of those that belong there.
        order = torch.where(real, torch.arange(tokens, device=k.device), -1)
        none = torch.full_like(self.positions, -1)
        token = none.scatter_reduce(1, at % size, order, "amax")
        written, token = token >= 0, token.clamp(min=0)

        def write(old: Tensor, new: Tensor) -> Tensor:
            index = token[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3])
            return torch.where(written[:, None, :, None], new.gather(2, index), old)

        positions = torch.where(written, at.gather(1, token), self.positions)
        return KVRing(write(self.k, k), write(self.v, v), positions, self.length + real.sum(1))

    def following(self, k: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return the positions of further tokens, int64, shape (B, S); a masked one has that of the real one before."""
        real = _all_real(k) if key_mask is None else key_mask
        return self.length[:, None] + real.cumsum(1) - 1

    def allowed(self, k: Tensor, key_mask: Tensor | None) -> Tensor:
        """Return what further tokens may attend: those in the ring, then themselves; bool, shape (B, 1, S, C + S)."""
        at, size = self.following(k, key_mask), self.k.shape[2]
        old = (self.positions >= 0).unsqueeze(1) & (self.positions.unsqueeze(1) > at.unsqueeze(2) - size)
        new = windowed(at, size) & torch.ones(k.shape[2], k.shape[2], dtype=torch.bool, device=k.device).tril()
        if key_mask is not None:
            new = new & key_mask.unsqueeze(1)
        return torch.cat([old, new], 2).unsqueeze(1)


class KVMemory(NamedTuple):
    """Keys and values that a module attends to and never adds to, such as those of an encoder's output."""

    k: Tensor
    """Shape (B, Hkv, S, D)."""
    v: Tensor
    """Shape (B, Hkv, S, Dv)."""
    key_mask: Tensor | None
    """Bool, shape (B, S), True = real token; None if all are."""

    def aligned(self, memories: Sequence[Self]) -> tuple[KVMemory, ...]:
        """Return memories of one length, the shorter ones with masked tokens in front."""
        caches = [KVCache(memory.k, memory.v, memory.key_mask, memory.k.new_zeros(0)) for memory in memories]
        return tuple(KVMemory(cache.k, cache.v, cache.key_mask) for cache in caches[0].aligned(caches))


KVState = KVCache | KVRing | KVMemory


def windowed(positions: Tensor, window: int) -> Tensor:
    """Return which positions (..., S) are less than ``window`` behind which: bool, shape (..., S, S)."""
    return positions.unsqueeze(-1) - positions.unsqueeze(-2) < window


def _all_real(k: Tensor) -> Tensor:
    return torch.ones(k.shape[0], k.shape[2], dtype=torch.bool, device=k.device)
