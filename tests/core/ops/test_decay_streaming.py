"""decay_attention on a stream: what a long one adds up to, and what the verbs refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import DtypeError, ShapeError
from polyhead.ops import decay_attention
from polyhead.ops.decay_attention import init_state, prefill, step

TOKENS = 100_000


@pytest.mark.parametrize("decay", ["none", "constant", "by token"])
def test_a_long_stream_equals_the_whole(decay: str) -> None:
    """100 000 tokens in float32, in steps and chunks of random sizes, against all at once in float64."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, TOKENS, dim, generator=generator) for dim in (4, 4, 3))
    log_decay = {
        "none": torch.zeros(2),
        "constant": torch.tensor([-1e-4, -0.3]),
        "by token": -torch.rand(1, 2, TOKENS, generator=generator).square(),
    }[decay]
    whole = decay_attention(q.double(), k.double(), v.double(), log_decay.double())
    state = init_state(1, 2, 4, 3)
    size = state.shape
    outputs, at = [], 0
    while at < TOKENS:
        count = min(int(torch.randint(1, 1500, (), generator=generator)) if at % 3 else 1, TOKENS - at)
        part = slice(at, at + count)
        here = log_decay if log_decay.ndim == 1 else log_decay[:, :, part]
        if count == 1:
            here = here if here.ndim == 1 else here.squeeze(2)
            output, state = step(state, q[:, :, at], k[:, :, at], v[:, :, at], here)
            outputs.append(output.unsqueeze(2))
        else:
            output, state = prefill(state, q[:, :, part], k[:, :, part], v[:, :, part], here)
            outputs.append(output)
        at += count
        assert state.shape == size
        assert state.dtype == torch.float32
    for got, expected in ((torch.cat(outputs, 2), whole.output), (state, whole.final_state)):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_step_leaves_the_state_it_is_given() -> None:
    one, state = torch.ones(2, 3, 4), init_state(2, 3, 4)
    output, after = step(state, one, one, one, torch.zeros(2, 3), scale=0.5)
    assert not state.any()
    assert (after == 1).all()
    assert (output == 2).all()


def test_state_has_the_dtype_and_place_that_are_asked_for() -> None:
    state = init_state(2, 3, 4, 5, dtype=torch.float64, device="meta")
    assert (state.shape, state.dtype, state.device.type) == ((2, 3, 4, 5), torch.float64, "meta")


def test_sixteen_bit_streams_keep_a_float32_state() -> None:
    one = torch.ones(1, 1, 1, dtype=torch.bfloat16)
    state = init_state(1, 1, 1)
    for _ in range(300):
        output, state = step(state, one, one, one, torch.zeros(1))
    assert output.dtype == torch.bfloat16
    assert state.item() == 300


good: dict[str, Tensor] = {
    "state": torch.zeros(2, 3, 4, 5),
    "q": torch.zeros(2, 3, 4),
    "k": torch.zeros(2, 3, 4),
    "v": torch.zeros(2, 3, 5),
    "log_decay": torch.zeros(3),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"q": torch.zeros(2, 3, 1, 4)}, ShapeError, r"q has 4 dimensions, expected 3: \(batch, heads, head_dim\)"),
        ({"state": torch.zeros(2, 3, 5, 4)}, ShapeError, r"Expected state \(B, H, D, Dv\).*state \(2, 3, 5, 4\)"),
        ({"k": torch.zeros(2, 3, 5)}, ShapeError, r"Expected state.*k \(2, 3, 5\)"),
        ({"log_decay": torch.zeros(2)}, ShapeError, r"log_decay \(H,\) or \(B, H\).*log_decay \(2,\)"),
        ({"v": torch.zeros(2, 3, 5).double()}, DtypeError, r"v is float64 and q is float32"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        step(**(good | changes))
