"""A pointer's loss in Triton: how the programs are compiled and launched."""

from __future__ import annotations

import torch
from torch import Tensor

from polyhead.ops.pointer_nll.gradients import differentiable
from polyhead_kernels.additive_attention_scores import Work, program

__all__ = ["PROGRAMS", "pointer_nll"]

_OF_LOSS = {"grad": "*{dtype}", "targets": "*i64", "total": "*{wide}"}
LOSSES = program("pointer_nll", "losses", {"targets": "*i64", "total": "*{wide}", "chosen": "*{wide}"}, loss=True)
QUERY_GRADIENTS = program(
    "pointer_nll", "query_gradients", _OF_LOSS | {"dq": "*{dtype}", "dweight": "*{wide}"}, loss=True
)
KEY_GRADIENTS = program("pointer_nll", "key_gradients", _OF_LOSS | {"dk": "*{dtype}"}, loss=True)
PROGRAMS = (LOSSES, QUERY_GRADIENTS, KEY_GRADIENTS)


def _run_forward(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, Tensor]:
    work = Work(q, k, weight, mask, lengths, query_lengths, clip)
    total = torch.empty(q.shape[:3], dtype=work.wide, device=q.device)
    chosen = torch.empty_like(total)
    work.launch(LOSSES, work.queries, targets=targets.contiguous(), total=total, chosen=chosen)
    total.masked_fill_(chosen == -torch.inf, torch.inf)  # the loss of what is impossible, and no gradient
    nll = (total - chosen).to(q.dtype)
    if work.part is not None:
        return nll.masked_fill_(~work.part.queries, 0), total
    return nll if work.keys else nll.zero_(), total


def _run_backward(
    grad_nll: Tensor,
    total: Tensor,
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    lengths: Tensor | None,
    query_lengths: Tensor | None,
    clip: float | None,
) -> tuple[Tensor, ...]:
    work = Work(q, k, weight, mask, lengths, query_lengths, clip)
    return work.gradients(
        QUERY_GRADIENTS,
        KEY_GRADIENTS,
        weight,
        grad=grad_nll.contiguous(),
        targets=targets.contiguous(),
        total=total,
    )


pointer_nll = differentiable("pointer_nll_triton", "triton", _run_forward, _run_backward)
