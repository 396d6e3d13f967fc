"""The pointer operators: every kernel on all cases, and through torch.compile and torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyhead.ops import additive_attention_scores, pointer_nll, use_kernel
from polyhead.testing import check_kernel

OPERATORS = ("additive_attention_scores", "pointer_nll")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_keeps_the_contract(operator: str, dtype: str) -> None:
    check_kernel(operator, "torch", dtypes=[dtype], traced=False)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_definition_keeps_the_contract(operator: str) -> None:
    check_kernel(operator, "reference", dtypes=["float32"], traced=False)


@pytest.mark.parametrize("operator", OPERATORS)
def test_can_be_traced(operator: str) -> None:
    kept = check_kernel(operator, "torch", dtypes=["float32"])
    for rule in ("torch.compile(fullgraph=True, dynamic=True)", "torch.export"):
        assert sum(rule in line for line in kept) == 3
    assert sum(f"opcheck passes for polyhead.{operator}" in line for line in kept) == 6


def test_one_exported_program_serves_other_sizes() -> None:
    class Point(nn.Module):
        def forward(self, q: Tensor, k: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            return pointer_nll(q, k, weight, targets).nll, additive_attention_scores(q, k, weight).logits

    def draw(batch: int, queries: int, keys: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(queries)
        q, k = (torch.randn(batch, 1, length, 8, generator=generator) for length in (queries, keys))
        targets = torch.randint(keys, (batch, 1, queries), generator=generator)
        return q, k, torch.randn(1, 8, generator=generator), targets

    batch, queries, keys = (torch.export.Dim(name, min=2) for name in ("batch", "queries", "keys"))
    shapes: tuple[dict[int, Any], ...] = ({0: batch, 2: queries}, {0: batch, 2: keys}, {}, {0: batch, 2: queries})
    exported = torch.export.export(Point(), draw(3, 5, 7), dynamic_shapes=shapes).module()
    for sizes in ((2, 9, 4), (4, 33, 50)):
        arguments = draw(*sizes)
        with use_kernel(op="reference"):
            expected = Point()(*arguments)
        for a, b in zip(exported(*arguments), expected, strict=True):
            torch.testing.assert_close(a, b)
