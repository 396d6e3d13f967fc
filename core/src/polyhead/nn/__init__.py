"""Modules built on the operators, one file a module; names resolve when they are used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyhead.nn import mixers, positions, states
    from polyhead.nn.aaren import Aaren
    from polyhead.nn.feed_forward import FeedForward
    from polyhead.nn.kv_state import KVCache, KVMemory, KVRing
    from polyhead.nn.lightning_attention import LightningAttention
    from polyhead.nn.mixing import Context, Mixed, TokenMixer, after_step
    from polyhead.nn.multi_head_attention import Attended, MultiHeadAttention
    from polyhead.nn.positions import (
        LearnedPositions,
        Rotary,
        ScaledSinusoidPositions,
        SinePositions2d,
        SinusoidPositions,
        rotate,
        sinusoid,
    )
    from polyhead.nn.reduced_batch_norm import ReducedBatchNorm
    from polyhead.nn.softmax_mixer import SoftmaxMixer
    from polyhead.nn.stack import Stack
    from polyhead.nn.transformer_block import BlockState, TransformerBlock

__all__ = [
    "Aaren",
    "Attended",
    "BlockState",
    "Context",
    "FeedForward",
    "KVCache",
    "KVMemory",
    "KVRing",
    "LearnedPositions",
    "LightningAttention",
    "Mixed",
    "MultiHeadAttention",
    "ReducedBatchNorm",
    "Rotary",
    "ScaledSinusoidPositions",
    "SinePositions2d",
    "SinusoidPositions",
    "SoftmaxMixer",
    "Stack",
    "TokenMixer",
    "TransformerBlock",
    "after_step",
    "mixers",
    "positions",
    "rotate",
    "sinusoid",
    "states",
]

_MODULES = {"mixers", "positions", "states"}
_HOMES = {
    "Aaren": "aaren",
    "Attended": "multi_head_attention",
    "BlockState": "transformer_block",
    "Context": "mixing",
    "FeedForward": "feed_forward",
    "KVCache": "kv_state",
    "KVMemory": "kv_state",
    "KVRing": "kv_state",
    "LearnedPositions": "positions",
    "LightningAttention": "lightning_attention",
    "Mixed": "mixing",
    "MultiHeadAttention": "multi_head_attention",
    "ReducedBatchNorm": "reduced_batch_norm",
    "Rotary": "positions",
    "ScaledSinusoidPositions": "positions",
    "SinePositions2d": "positions",
    "SinusoidPositions": "positions",
    "SoftmaxMixer": "softmax_mixer",
    "Stack": "stack",
    "TokenMixer": "mixing",
    "TransformerBlock": "transformer_block",
    "after_step": "mixing",
    "rotate": "positions",
    "sinusoid": "positions",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"polyhead.nn.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"polyhead.nn.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
