"""Stacks of every mixer through torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

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
def test_one_graph_serves_every_length(name: str) -> None:
    torch.compiler.reset()
    stack, graphs = built(name), []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(stack, fullgraph=True, dynamic=True, backend=backend)
    for length in (7, 12, 40):
        x = torch.randn(2, length, 24)
        torch.testing.assert_close(compiled(x).x, stack(x).x, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_compile(name: str) -> None:
    torch.compiler.reset()
    stack = built(name)

    def loss(x: Tensor) -> Tensor:
        return stack(x).x.square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (7, 12):
        x = torch.randn(2, length, 24)
        stack.zero_grad()
        compiled(x).backward()
        got = [p.grad.clone() for p in stack.parameters() if p.grad is not None]
        stack.zero_grad()
        loss(x).backward()
        for gradient, expected in zip(got, [p.grad for p in stack.parameters() if p.grad is not None], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-4)
