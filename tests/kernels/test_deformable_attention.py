"""deformable_attention in Triton: the operator's cases in the interpreter, what it refuses, and what is compiled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import KernelError
from polyhead.ops import Call, deformable_attention, explain, use_kernel
from polyhead.testing import check_kernel
from polyhead_kernels import compiling
from polyhead_kernels.programs import FAMILIES, INTERPRETED, interpreted
from polyhead_kernels.specs import DEFORMABLE_ATTENTION

triton = pytest.importorskip("triton", reason="triton is not installed")
compiled = pytest.mark.skipif(interpreted(), reason="the interpreter replaces what would be compiled")

SHAPES = ((3, 5), (2, 2))


def draw(*, queries: int = 3, dim: int = 5, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 2, 19, dim, generator=generator, dtype=dtype)
    locations = torch.rand(1, 2, queries, 2, 1, 2, generator=generator, dtype=dtype) * 1.4 - 0.2
    weights = torch.rand(1, 2, queries, 2, 1, generator=generator, dtype=dtype)
    return [x.requires_grad_() for x in (value, locations, weights)]


def results(kernel: str, inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    with use_kernel(deformable_attention=kernel):
        output = deformable_attention(inputs[0], SHAPES, *inputs[1:], **options).output
    wanted = [x for x in inputs if x.requires_grad]
    return output.detach(), *torch.autograd.grad(output.square().sum(), wanted)


@pytest.mark.interpret
def test_keeps_the_contract() -> None:
    def small(call: Call) -> list[str]:
        batch, heads, queries, levels, points = call.tensors["weights"].shape
        steps = batch * heads * triton.cdiv(queries, 16) * levels * points
        return ["takes seconds"] if steps > 10 else []

    check_kernel("deformable_attention", replace(DEFORMABLE_ATTENTION, limits=small), dtypes=["float64"], traced=False)


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize("dtype", INTERPRETED)
def test_keeps_the_contract_on_every_case(dtype: str) -> None:
    check_kernel("deformable_attention", DEFORMABLE_ATTENTION, dtypes=[dtype], traced=False)


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_keeps_the_contract_on_a_gpu(dtype: str) -> None:
    check_kernel("deformable_attention", "triton", dtypes=[dtype], device="cuda")


@pytest.mark.interpret
@pytest.mark.parametrize("options", [{}, {"deterministic": True}])
def test_outputs_and_gradients(options: dict[str, bool]) -> None:
    """More queries than a block, columns past head_dim, and each way to add up the gradient of value."""
    inputs = draw(queries=19)
    for got, expected in zip(
        results("triton", inputs, **options), results("reference", inputs, **options), strict=True
    ):
        torch.testing.assert_close(got, expected)


@pytest.mark.interpret
@pytest.mark.parametrize("asked", [(0,), (1,), (1, 2)])
def test_only_gradients_asked_for_are_computed(asked: tuple[int, ...]) -> None:
    inputs = [x.detach().requires_grad_(at in asked) for at, x in enumerate(draw())]
    for got, expected in zip(results("triton", inputs), results("reference", inputs), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.interpret
def test_gradients_of_gradients_are_refused() -> None:
    inputs = draw()
    with use_kernel(deformable_attention="triton"):
        output = deformable_attention(inputs[0], SHAPES, *inputs[1:]).output
    first, *_ = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
    with pytest.raises(KernelError, match=r'"triton" of deformable_attention has no gradients of gradients'):
        first.sum().backward()


def test_says_what_it_cannot_serve() -> None:
    wide = explain("deformable_attention", (1, 2, 19, 300), device="cuda").rejected["triton"]
    assert "head_dim is 300 (needs 256 at most)" in wide
    if not interpreted():
        reasons = explain("deformable_attention", (1, 2, 19, 4)).rejected["triton"]
        assert "device is cpu (needs cuda, or TRITON_INTERPRET=1 set before Python starts)" in reasons
        assert explain("deformable_attention", (1, 2, 19, 4), device="cuda").chosen == "triton"


@compiled
def test_is_compiled_for_every_family() -> None:
    from polyhead_kernels.deformable_attention import PROGRAMS

    assert [program.name for program in PROGRAMS] == ["forward", "backward"]
    for program in PROGRAMS:
        for family in FAMILIES:
            assert len(list(program.points(family))) == 3 * len(program.variants)
    _, backward = PROGRAMS
    built = compiling.build(next(backward.points("sm_90")))
    assert not built.error
    assert not built.problems()
