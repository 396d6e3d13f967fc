"""decay_attention through torch.compile and torch.export: shapes and boundaries are values of the run."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyhead.ops import decay_attention, use_kernel
from polyhead.testing import check_kernel


@pytest.mark.parametrize("name", ["torch", "reference"])
def test_can_be_traced(name: str) -> None:
    kept = check_kernel("decay_attention", name, dtypes=["float32"])
    assert sum("torch.compile(fullgraph=True, dynamic=True)" in rule for rule in kept) == 2
    assert sum("torch.export" in rule for rule in kept) == 2
    assert sum("opcheck passes for polyhead.decay_attention" in rule for rule in kept) == (4 if name == "torch" else 0)


def test_packed_sequences_can_be_traced() -> None:
    """Boundaries are values, which only the registered operator reads."""

    def run(x: Tensor, log_decay: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
        return tuple(decay_attention(x, x, x, log_decay, cu_seqlens=ends))

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    for ends in ([0, 3, 9], [0, 30, 70, 71, 80]):
        x = torch.randn(1, 2, ends[-1], 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        log_decay = torch.tensor([-0.1, -1.0])
        arguments = (x, log_decay, torch.tensor(ends, dtype=torch.int32))
        results = []
        for function in (compiled, run):
            output, final = function(*arguments)
            results.append((output, final, *torch.autograd.grad(output.square().sum() + final.sum(), x)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)


def test_one_exported_program_serves_other_sizes() -> None:
    class Attend(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, ...]:
            return tuple(decay_attention(q, k, v, log_decay))

    def draw(batch: int, length: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(length)
        q, k, v = (torch.randn(batch, 2, length, 8, generator=generator) for _ in range(3))
        return q, k, v, -torch.rand(batch, 2, length, generator=generator)

    batch, length = (torch.export.Dim(name, min=2) for name in ("batch", "length"))
    exported = torch.export.export(Attend(), draw(3, 5), dynamic_shapes=({0: batch, 2: length},) * 4).module()
    for sizes in ((2, 9), (4, 133)):
        arguments = draw(*sizes)
        with use_kernel(decay_attention="reference"):
            expected = Attend()(*arguments)
        for a, b in zip(exported(*arguments), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
