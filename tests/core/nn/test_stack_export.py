"""Stacks of every mixer through torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyhead.nn import Rotary, Stack

STACKS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "softmax", "mixer_settings": {"rotary": Rotary(6), "kv_heads": 2}},
    "window": {"mixer": "softmax", "mixer_settings": {"window": 3}},
    "lightning": {"mixer": "lightning", "norm": "rms", "activation": "swiglu"},
    "aaren": {"mixer": "aaren", "pre_norm": False},
}


def built(name: str) -> Stack:
    torch.manual_seed(0)
    return Stack(24, 1, 4, causal=True, **STACKS[name]).eval()


@pytest.mark.parametrize("name", STACKS)
def test_export(name: str) -> None:
    stack = built(name)
    batch, seq = torch.export.Dim("batch", min=2), torch.export.Dim("seq", min=2)
    shapes = {"x": {0: batch, 1: seq}, "key_mask": {0: batch, 1: seq}}
    arguments = {"x": torch.randn(3, 6, 24), "key_mask": torch.ones(3, 6, dtype=torch.bool)}
    program = torch.export.export(stack, (), arguments, dynamic_shapes=shapes).module()
    key_mask = torch.arange(11) < torch.tensor([[11], [4]])
    arguments = {"x": torch.randn(2, 11, 24), "key_mask": key_mask}
    expected = stack(**arguments).x
    with torch.no_grad():  # an exported program keeps no gradients of custom operators
        output = program(**arguments).x
    torch.testing.assert_close(output[key_mask], expected[key_mask], rtol=1e-4, atol=1e-5)


class Step(nn.Module):
    """One token of a stream, as a program for a device would be."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed = self.stack.step(x, state=state)
        return mixed.x, mixed.state


@pytest.mark.parametrize("name", STACKS)
def test_a_step_is_a_program(name: str) -> None:
    stack, x = built(name), torch.randn(2, 5, 24)
    capacity: dict[str, Any] = {"capacity": 6} if name == "softmax" else {}
    state: Any = stack.init_state(2, **capacity)
    with torch.no_grad():
        program = torch.export.export(Step(stack), (x[:, 0], state)).module()
        for t in range(5):
            output, state = program(x[:, t], state)
            torch.testing.assert_close(output, stack(x[:, : t + 1]).x[:, -1], rtol=1e-4, atol=1e-5)
