"""prefix_attention through torch.compile, torch.export and opcheck."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from polyhead.ops import prefix_attention, registry, use_kernel
from polyhead.testing import check_kernel


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_can_be_traced(name: str) -> None:
    kernel = registry.kernel("prefix_attention", name)
    kernel = replace(kernel, limits=lambda call: [] if call.length == 5 else ["not traced"])
    kept = check_kernel("prefix_attention", kernel, dtypes=["float32"])
    assert sum("torch.compile(fullgraph=True, dynamic=True)" in rule for rule in kept) == 2
    assert sum("torch.export" in rule for rule in kept) == 2
    assert sum("opcheck passes for polyhead.prefix_attention" in rule for rule in kept) == (4 if name == "torch" else 0)


def test_one_exported_program_serves_other_sizes() -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> tuple[Tensor, ...]:
            output, state = prefix_attention(q, k, v, key_mask=key_mask)
            return output, *state

    def draw(batch: int, length: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(length)
        k, v = (torch.randn(batch, 2, length, 8, generator=generator) for _ in range(2))
        mask = torch.rand(batch, length, generator=generator) < 0.7
        return torch.randn(2, 8, generator=generator), k, v, mask

    batch, length = (torch.export.Dim(name, min=2) for name in ("batch", "length"))
    shapes = (None, {0: batch, 2: length}, {0: batch, 2: length}, {0: batch, 1: length})
    exported = torch.export.export(Attend(), draw(3, 5), dynamic_shapes=shapes).module()
    for sizes in ((2, 9), (4, 133)):
        arguments = draw(*sizes)
        with use_kernel(prefix_attention="reference"):
            expected = Attend()(*arguments)
        for a, b in zip(exported(*arguments), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
