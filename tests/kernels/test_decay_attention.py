"""decay_attention in Triton: the operator's cases in the interpreter, what it refuses, and what is compiled ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import KernelError, ShapeError
from polyhead.ops import Call, decay_attention, explain, use_kernel
from polyhead.testing import check_kernel
from polyhead_kernels import compiling
from polyhead_kernels.programs import FAMILIES, INTERPRETED, interpreted
from polyhead_kernels.specs import DECAY_ATTENTION

triton = pytest.importorskip("triton", reason="triton is not installed")
compiled = pytest.mark.skipif(interpreted(), reason="the interpreter replaces what would be compiled")


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def inputs(b: int, h: int, s: int, d: int, dv: int) -> tuple[Tensor, ...]:
    q, k, v = (draw(b, h, s, dim, seed=seed) for seed, dim in enumerate((d, d, dv)))
    return q, k, v, -draw(b, h, s, seed=3).abs()


@pytest.mark.interpret
def test_keeps_the_contract() -> None:
    def small(call: Call) -> list[str]:
        rows, heads, length, _ = call.tensors["q"].shape
        return ["takes seconds"] if rows * heads * length > 200 else []

    check_kernel("decay_attention", replace(DECAY_ATTENTION, limits=small), dtypes=["float64"], traced=False)


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize("dtype", INTERPRETED)
def test_keeps_the_contract_on_every_case(dtype: str) -> None:
    check_kernel("decay_attention", DECAY_ATTENTION, dtypes=[dtype], traced=False)


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_keeps_the_contract_on_a_gpu(dtype: str) -> None:
    check_kernel("decay_attention", "triton", dtypes=[dtype], device="cuda")


@pytest.mark.interpret
@pytest.mark.parametrize("dims", [(70, 20), (32, 48)])
def test_float32_over_several_blocks_of_both_widths(dims: tuple[int, int]) -> None:
    """The second one's strides are all divisible by 16, which is another program on a GPU."""
    given = [x.requires_grad_() for x in inputs(2, 1, 130, *dims)]
    results = []
    for kernel in ("triton", "torch"):
        with use_kernel(decay_attention=kernel):
            output, final = decay_attention(*given, scale=0.3)
        results.append((output, final, *torch.autograd.grad((output * output).sum() + final.sum(), given)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))


@pytest.mark.interpret
def test_is_registered_with_torch() -> None:
    """The registered operators keep torch.library's rules, and one compiled function serves another length."""
    import polyhead_kernels.decay_attention  # noqa: F401 - registers them

    q, k, v, log_decay = inputs(1, 2, 9, 4, 3)
    state, ends = draw(2, 2, 4, 3, seed=5), torch.tensor([0, 4, 9], dtype=torch.int32)
    forward = torch.ops.polyhead.decay_attention_triton_forward.default
    backward = torch.ops.polyhead.decay_attention_triton_backward.default
    rules = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for packed, given in ((None, state[:1]), (ends, state)):
        _, final, states = forward(q, k, v, log_decay, given, packed, 1.0, True)
        torch.library.opcheck(forward, (q, k, v, log_decay, given, packed, 1.0, True), test_utils=rules)
        gradients = (v, final, q, k, v, log_decay, packed, states, 1.0, True)
        torch.library.opcheck(backward, gradients, test_utils=rules)

    def run(*given: Tensor) -> Tensor:
        return decay_attention(*given).output

    traced = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    with use_kernel(decay_attention="triton"):
        for length in (9, 20):
            arguments = tuple(x.requires_grad_() for x in inputs(2, 2, length, 4, 3))
            got, expected = (torch.autograd.grad(each(*arguments).square().sum(), arguments) for each in (traced, run))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.interpret
def test_gradients_of_gradients_are_refused() -> None:
    given = [x.requires_grad_() for x in inputs(1, 1, 5, 2, 2)]
    with use_kernel(decay_attention="triton"):
        (first, *_) = torch.autograd.grad(decay_attention(*given).output.sum(), given, create_graph=True)
    with pytest.raises(KernelError, match=r'Kernel "triton" of decay_attention has no gradients of gradients'):
        first.sum().backward()


@pytest.mark.interpret
def test_wrong_boundaries_are_refused() -> None:
    ends = torch.tensor([0, 7, 3], dtype=torch.int32)
    with (
        use_kernel(decay_attention="triton"),
        pytest.raises(ShapeError, match=r"cu_seqlens must rise from 0 to at most seq = 9: \[0, 7, 3\]"),
    ):
        decay_attention(*inputs(1, 2, 9, 4, 3), cu_seqlens=ends)


@pytest.mark.interpret
def test_sixteen_bit_is_refused_in_the_interpreter() -> None:
    given = [x.bfloat16() for x in inputs(1, 1, 5, 2, 2)]
    with (
        use_kernel(decay_attention="triton"),
        pytest.raises(KernelError, match=r"dtype is bfloat16 \(the interpreter is right in float64, float32 only\)"),
    ):
        decay_attention(*given)


@compiled
def test_needs_a_gpu_and_no_float64() -> None:
    with (
        use_kernel(decay_attention="triton"),
        pytest.raises(KernelError, match=r'"triton" cannot run decay_attention on this call: device is cpu \(needs cu'),
    ):
        decay_attention(*inputs(1, 1, 5, 2, 2))
    assert explain("decay_attention", (1, 8, 4096, 64), "bfloat16", "cuda").chosen == "triton"
    rejected = explain("decay_attention", (1, 8, 4096, 64), "float64", "cuda").rejected["triton"]
    assert rejected == ("dtype is float64 (needs float32, bfloat16, float16)",)


@compiled
def test_every_program_says_what_its_arguments_are() -> None:
    from polyhead_kernels.decay_attention import CHUNKS, PROGRAMS

    for target in FAMILIES:
        for point in compiling.points_of(PROGRAMS, [target], True):
            compiling._source(point)
            assert point.constants()["CHUNK"] == CHUNKS[point.dtype]


@compiled
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_the_largest_program_fits_its_registers(target: str) -> None:
    from polyhead_kernels.decay_attention import GRADIENTS

    def largest(point: Any) -> bool:
        return bool(point.dtype == "float16" and point.variant["PACKED"])

    (point,) = filter(largest, compiling.points_of([GRADIENTS], [target], False))
    assert compiling.build(point).problems() == []
