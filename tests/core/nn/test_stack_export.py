"""Stacks of every mixer through torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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
