"""softmax_attention through torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyhead.ops import softmax_attention, use_kernel
from polyhead.testing import check_kernel


@pytest.mark.parametrize("kernel", ["reference", "torch"])
def test_every_kernel_can_be_traced(kernel: str) -> None:
    kept = check_kernel("softmax_attention", kernel, dtypes=["float32"])
    assert sum("torch.compile(fullgraph=True, dynamic=True)" in rule for rule in kept) >= 4
    assert sum("torch.export" in rule for rule in kept) >= 4


def test_one_exported_program_serves_other_sizes() -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor) -> Tensor:
            return softmax_attention(q, k, v, mask=key_mask[:, None, None]).output

    def draw(batch: int, queries: int, keys: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(keys)
        q, k, v = (torch.randn(batch, 2, length, 8, generator=generator) for length in (queries, keys, keys))
        return q, k, v, torch.arange(keys) < torch.randint(1, keys, (batch, 1), generator=generator)

    batch, queries, keys = (torch.export.Dim(name, min=2) for name in ("batch", "queries", "keys"))
    dims = ({0: batch, 2: queries}, {0: batch, 2: keys}, {0: batch, 2: keys}, {0: batch, 1: keys})
    exported = torch.export.export(Attend(), draw(3, 5, 7), dynamic_shapes=dims).module()
    for sizes in ((2, 9, 4), (4, 33, 65)):
        q, k, v, key_mask = draw(*sizes)
        k = k.masked_fill(~key_mask[:, None, :, None], torch.nan)
        with use_kernel(softmax_attention="reference"):
            expected = Attend()(q, k, v, key_mask)
        torch.testing.assert_close(exported(q, k, v, key_mask), expected)


@pytest.mark.slow
def test_inductor_equals_eager() -> None:
    """The traced checks generate no code; this does, for new lengths too."""
    compiled = torch.compile(
        lambda q, k, v, mask: softmax_attention(q, k, v, mask=mask).output, fullgraph=True, dynamic=True
    )
    for length in (17, 40):
        generator = torch.Generator().manual_seed(length)
        q, k, v = (torch.randn(2, 3, length, 8, generator=generator).requires_grad_() for _ in range(3))
        mask = torch.rand(2, 1, length, length, generator=generator) < 0.5
        results = []
        for function in (compiled, lambda q, k, v, mask: softmax_attention(q, k, v, mask=mask).output):
            output = function(q, k, v, mask)
            results.append((output, *torch.autograd.grad(output.square().sum(), (q, k, v))))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)
