"""prefix_attention in Triton: the operator's cases in the interpreter, and what is compiled ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.ops import Call, explain, prefix_attention, use_kernel
from polyhead.testing import check_kernel
from polyhead_kernels import compiling
from polyhead_kernels.programs import FAMILIES, INTERPRETED, interpreted
from polyhead_kernels.specs import PREFIX_ATTENTION

triton = pytest.importorskip("triton", reason="triton is not installed")
compiled = pytest.mark.skipif(interpreted(), reason="the interpreter replaces what would be compiled")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.interpret
def test_keeps_the_contract() -> None:
    def small(call: Call) -> list[str]:
        rows, heads, length, _ = call.tensors["k"].shape
        return ["takes seconds"] if rows * heads * length > 140 else []

    check_kernel("prefix_attention", replace(PREFIX_ATTENTION, limits=small), dtypes=["float64"], traced=False)


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize("dtype", INTERPRETED)
def test_keeps_the_contract_on_every_case(dtype: str) -> None:
    check_kernel("prefix_attention", PREFIX_ATTENTION, dtypes=[dtype], traced=False)


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_keeps_the_contract_on_a_gpu(dtype: str) -> None:
    check_kernel("prefix_attention", "triton", dtypes=[dtype], device="cuda")


@pytest.mark.interpret
@pytest.mark.parametrize("dims", [(70, 20), (32, 48)])
def test_float32_over_several_blocks_of_both_widths(dims: tuple[int, int]) -> None:
    """The second one's strides are all divisible by 16, which is another program on a GPU."""
    head_dim, value_dim = dims
    q, k, v = draw(1, head_dim), draw(2, 1, 100, head_dim, seed=1), draw(2, 1, 100, value_dim, seed=2)
    mask = torch.rand(2, 100, generator=torch.Generator().manual_seed(3)) < 0.7
    given = [x.requires_grad_() for x in (q, k, v)]
    results = []
    for kernel in ("triton", "torch"):
        with use_kernel(prefix_attention=kernel):
            got = prefix_attention(*given, key_mask=mask)
        loss = got.output.square().sum() + got.final_state.w.sum()
        results.append((got.output, *got.final_state, *torch.autograd.grad(loss, given)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max()))


@pytest.mark.interpret
def test_is_registered_with_torch() -> None:
    """The registered operators keep torch.library's rules."""
    import polyhead_kernels.prefix_attention  # noqa: F401 - registers them

    q, k, v = draw(1, 2, 4), draw(1, 2, 9, 4, seed=1), draw(1, 2, 9, 3, seed=2)
    m, u, w = draw(1, 2, seed=3), 1 + draw(1, 2, seed=4).abs(), draw(1, 2, 3, seed=5)
    forward = torch.ops.polyhead.prefix_attention_triton_forward.default
    backward = torch.ops.polyhead.prefix_attention_triton_backward.default
    rules = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for mask in (None, torch.arange(9)[None] > 2):
        arguments: tuple[Any, ...] = (q, k, v, mask, m, u, w)
        _, last_m, _, _, *kept = forward(*arguments, 0.5)
        torch.library.opcheck(forward, (*arguments, 0.5), test_utils=rules)
        torch.library.opcheck(backward, (draw(1, 2, 9, 3), u, w, *arguments, last_m, *kept, 0.5), test_utils=rules)


@pytest.mark.interpret
@pytest.mark.parametrize(("dtype", "kernel"), [("float32", "triton"), ("bfloat16", "torch")])
def test_the_interpreter_serves_the_dtypes_it_is_right_in(dtype: str, kernel: str) -> None:
    assert explain("prefix_attention", (1, 2, 8, 4), dtype).chosen == kernel


@compiled
def test_serves_a_gpu_but_not_in_float64() -> None:
    assert explain("prefix_attention", (1, 2, 8, 4), "bfloat16", "cuda").chosen == "triton"
    rejected = explain("prefix_attention", (1, 2, 8, 4), "float64", "cuda").rejected["triton"]
    assert "dtype is float64 (needs float32, bfloat16, float16)" in rejected


@compiled
def test_every_program_says_what_its_arguments_are() -> None:
    from polyhead_kernels.prefix_attention import PROGRAMS

    for target in FAMILIES:
        for point in compiling.points_of(PROGRAMS, [target], True):
            compiling._source(point)


@compiled
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_the_largest_program_fits_its_registers(target: str) -> None:
    from polyhead_kernels.prefix_attention import GRADIENTS

    points = compiling.points_of([GRADIENTS], [target], False)
    (point,) = (point for point in points if point.dtype == "float16")
    assert compiling.build(point).problems() == []
