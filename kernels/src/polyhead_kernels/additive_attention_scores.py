"""Additive attention scores in Triton: how the programs are compiled and launched, for both pointer operators."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from polyhead.ops.additive_attention_scores.gradients import differentiable
from polyhead.ops.additive_attention_scores.masks import reach
from polyhead.ops.additive_attention_scores.tiles import wide_dtype
from polyhead_kernels.programs import Config, Constant, Program, interpreted

__all__ = ["PROGRAMS", "Work", "additive_attention_scores", "program"]

_WIDTHS = (16, 32, 64, 128, 256, 512, 1024)
"""Hidden units, rounded up; all of a row are in registers."""
_OWNED = 2048
"""Numbers that a program owns: at most 16 a thread, of which a backward walk holds four kinds."""
_INTERPRETED = 16
"""Queries or keys that a program owns under the interpreter."""
_SIZES = dict.fromkeys(
    ("mask_batch", "mask_head", "mask_query", "mask_key", "heads", "queries", "keys", "head_dim"), "i32"
)
_PARTS = {"query_ok": "*u8", "key_ok": "*u8", "mask": "*u8", "clip": "*{wide}"}


def program(operator: str, name: str, pointers: Mapping[str, str], *, loss: bool = False) -> Program:
    """Return a program of an operator with ``pointers`` beside those that all have.

    Args:
        operator: the operator's name.
        name: the program's and its function's name.
        pointers: types by argument.
        loss: whether it serves a loss, and so has targets.
    """
    ends = "key_ends" if name in ("losses", "query_gradients") else "query_ends"
    signature = {"q": "*{dtype}", "k": "*{dtype}", "weight": "*{wide}", ends: "*i32"} | _PARTS | dict(pointers) | _SIZES
    given: dict[str, Constant] = {}
    if "gradients" in name and not loss:
        given = {"targets": None, "total": None}
        signature |= {"targets": "*i64", "total": "*{wide}"}
    everything: dict[str, Constant] = {"BLOCK_D": 1024, **given}
    plain: dict[str, Constant] = {"BLOCK_D": 256, **given, **dict.fromkeys((*_PARTS, ends))}
    return Program(
        operator=operator,
        name=name,
        function=f"polyhead_kernels.additive_attention_scores_programs:{name}",
        signature=signature,
        configs={
            "default": _configs(4),
            "gfx942": _configs(8),  # a loss's gradients spill registers at four
            "interpret": (Config({"BLOCK": _INTERPRETED}),),
        },
        variants=(plain, everything),
    )


def _configs(warps: int) -> tuple[Config, ...]:
    return tuple(
        Config({"BLOCK": _OWNED // width}, warps=8 if width > 256 else warps, stages=1, only={"BLOCK_D": (width,)})
        for width in _WIDTHS
    )


SCORES = program("additive_attention_scores", "scores", {"logits": "*{dtype}"})
QUERY_GRADIENTS = program(
    "additive_attention_scores", "query_gradients", {"grad": "*{dtype}", "dq": "*{dtype}", "dweight": "*{wide}"}
)
KEY_GRADIENTS = program("additive_attention_scores", "key_gradients", {"grad": "*{dtype}", "dk": "*{dtype}"})
PROGRAMS = (SCORES, QUERY_GRADIENTS, KEY_GRADIENTS)


class Work:
    """What takes part in a call, and how its programs are launched."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        weight: Tensor,
        mask: Tensor | None,
        lengths: Tensor | None,
        query_lengths: Tensor | None,
        clip: float | None,
    ) -> None:
        """Take the arguments of either operator."""
        self.q, self.k = q.contiguous(), k.contiguous()
        self.wide = wide_dtype(q.dtype)
        self.part = reach(q, k, mask, lengths, query_lengths)
        batch, self.heads, self.queries, self.head_dim = q.shape
        self.keys = k.shape[2]
        self.rows = batch * self.heads
        self.width = max(triton.next_power_of_2(self.head_dim), _WIDTHS[0])
        flags = self.part.mask if self.part is not None else None
        strides = (0, 0, 0, 0) if flags is None else flags.stride()
        self.arguments: dict[str, Any] = {
            "q": self.q,
            "k": self.k,
            "weight": weight.to(self.wide).contiguous(),
            "mask": None if flags is None else flags.view(torch.uint8),
            # A number reaches a program in float32, too coarse for float64.
            "clip": None if clip is None else torch.full((1,), clip, dtype=self.wide, device=q.device),
            **dict(zip(("mask_batch", "mask_head", "mask_query", "mask_key"), strides, strict=True)),
            "heads": self.heads,
            "queries": self.queries,
            "keys": self.keys,
            "head_dim": self.head_dim,
        }
        for name in ("query", "key"):
            taking = None if self.part is None else self.part.queries if name == "query" else self.part.keys
            self.arguments[f"{name}_ok"] = None if taking is None else taking.contiguous().view(torch.uint8)
            self.arguments[f"{name}_ends"] = None if taking is None else _ends(taking)

    def launch(self, program: Program, owned: int, **pointers: Tensor | None) -> None:
        """Run a program that owns some of ``owned`` queries or keys of each row."""
        given = {name: x for name, x in (self.arguments | pointers).items() if name in program.signature}
        variant: dict[str, Constant] = {name: None for name, x in given.items() if x is None}
        variant["BLOCK_D"] = self.width
        program.launch(lambda c: (self.rows * triton.cdiv(owned, c["BLOCK"]),), self.q, variant=variant, **given)

    def gradients(
        self, queries: Program, keys: Program, weight: Tensor, **pointers: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of q, k and weight by two programs."""
        dq, dk = torch.empty_like(self.q), torch.empty_like(self.k)
        batch, programs = self.q.shape[0], triton.cdiv(self.queries, _block(self.width))
        sums = torch.zeros(batch, self.heads, programs, self.head_dim, dtype=self.wide, device=dq.device)
        self.launch(queries, self.queries, dq=dq, dweight=sums, **pointers)
        self.launch(keys, self.keys, dk=dk, **pointers)
        return dq, dk, sums.sum((0, 2), dtype=torch.float64).to(weight.dtype)


def _block(width: int) -> int:
    """Return how many queries or keys a program owns."""
    return _INTERPRETED if interpreted() else _OWNED // width


def _ends(taking: Tensor) -> Tensor:
    """Return for each row of batch and head where the last one that takes part ends, int32."""
    places = torch.arange(1, taking.shape[2] + 1, dtype=torch.int32, device=taking.device)
    if not taking.shape[2]:
        return torch.zeros(taking.shape[:2], dtype=torch.int32, device=taking.device)
    return (taking * places).amax(2)


def _run_forward(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> Tensor:
    work = Work(q, k, weight, mask, lengths, query_lengths, clip)
    size = (*q.shape[:3], k.shape[2])
    if work.part is None:
        logits = torch.empty(size, dtype=q.dtype, device=q.device)
    else:
        logits = torch.full(size, -torch.inf, dtype=q.dtype, device=q.device)
    work.launch(SCORES, work.keys, logits=logits)
    return logits if work.part is None else logits.masked_fill_(~work.part.queries.unsqueeze(-1), 0)


def _run_backward(
    grad_logits: Tensor,
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, ...]:
    work = Work(q, k, weight, mask, lengths, query_lengths, clip)
    return work.gradients(
        QUERY_GRADIENTS, KEY_GRADIENTS, weight, grad=grad_logits.contiguous(), targets=None, total=None
    )


additive_attention_scores = differentiable("additive_attention_scores_triton", "triton", _run_forward, _run_backward)
