"""The pointer operators in Triton: their cases in the interpreter, what they refuse, and what is compiled ahead."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import KernelError
from polyhead.manifest import resolve
from polyhead.ops import Call, additive_attention_scores, explain, pointer_nll, use_kernel
from polyhead.testing import check_kernel
from polyhead_kernels import compiling
from polyhead_kernels.programs import FAMILIES, INTERPRETED, interpreted
from polyhead_kernels.specs import ADDITIVE_ATTENTION_SCORES, POINTER_NLL

triton = pytest.importorskip("triton", reason="triton is not installed")
compiled = pytest.mark.skipif(interpreted(), reason="the interpreter replaces what would be compiled")
OPERATORS = {"additive_attention_scores": ADDITIVE_ATTENTION_SCORES, "pointer_nll": POINTER_NLL}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(b: int = 2, h: int = 2, m: int = 3, n: int = 4, d: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    targets = torch.randint(n, (b, h, m), generator=torch.Generator().manual_seed(4))
    return draw(b, h, m, d), draw(b, h, n, d, seed=1), draw(h, d, seed=2), targets


@pytest.mark.interpret
@pytest.mark.parametrize("operator", OPERATORS)
def test_keeps_the_contract(operator: str) -> None:
    def small(call: Call) -> list[str]:
        rows, heads, queries, _ = call.tensors["q"].shape
        return ["takes seconds"] if rows * heads * (queries + call.tensors["k"].shape[2]) > 44 else []

    check_kernel(operator, replace(OPERATORS[operator], limits=small), dtypes=["float64"], traced=False)


@pytest.mark.slow
@pytest.mark.interpret
@pytest.mark.parametrize("dtype", INTERPRETED)
@pytest.mark.parametrize("operator", OPERATORS)
def test_keeps_the_contract_on_every_case(operator: str, dtype: str) -> None:
    check_kernel(operator, OPERATORS[operator], dtypes=[dtype], traced=False)


@pytest.mark.gpu
@compiled
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_keeps_the_contract_on_a_gpu(operator: str, dtype: str) -> None:
    check_kernel(operator, "triton", dtypes=[dtype], device="cuda")


@pytest.mark.interpret
def test_several_programs_a_row() -> None:
    """33 queries and 49 keys are more than two blocks of the interpreter, both walks masked."""
    q, k, weight, targets = inputs(1, 1, 33, 49, 17)
    given = [x.requires_grad_() for x in (q, k, weight)]
    mask = draw(1, 1, 33, 49, seed=5) > -1
    results = []
    for kernel in ("triton", "torch"):
        with use_kernel(op=kernel):
            nll = pointer_nll(q, k, weight, targets, mask=mask, clip=4.3).nll
            logits = additive_attention_scores(q, k, weight, mask=mask, lengths=torch.tensor([40])).logits
        nll, logits = nll.masked_fill(nll.isinf(), 0), logits.masked_fill(logits.isinf(), 0)
        results.append((nll, logits, *torch.autograd.grad(nll.square().sum() + logits.square().sum(), given)))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.interpret
def test_are_registered_with_torch() -> None:
    """The registered operators keep torch.library's rules, and one compiled function serves other sizes."""
    for operator in OPERATORS:
        resolve(f"polyhead_kernels.{operator}:{operator}")  # registers them
    q, k, weight, targets = inputs()
    lengths = torch.tensor([4, 2])
    rules = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    given: tuple[Any, ...] = (q, k, weight, None, lengths, None, 2.5)
    forward = torch.ops.polyhead.additive_attention_scores_triton_forward.default
    backward = torch.ops.polyhead.additive_attention_scores_triton_backward.default
    torch.library.opcheck(forward, given, test_utils=rules)
    torch.library.opcheck(backward, (draw(2, 2, 3, 4), *given), test_utils=rules)
    given = (q, k, weight, targets, None, lengths, None, 2.5)
    forward = torch.ops.polyhead.pointer_nll_triton_forward.default
    backward = torch.ops.polyhead.pointer_nll_triton_backward.default
    torch.library.opcheck(forward, given, test_utils=rules)
    nll, total = forward(*given)
    torch.library.opcheck(backward, (torch.ones_like(nll), total, *given), test_utils=rules)

    def run(*arguments: Tensor) -> Tensor:
        return pointer_nll(*arguments).nll

    traced = torch.compile(run, fullgraph=True, dynamic=True, backend="aot_eager")
    with use_kernel(pointer_nll="triton"):
        for sizes in ((2, 1, 3, 4, 5), (3, 1, 5, 6, 5)):
            arguments = tuple(x.requires_grad_(x.is_floating_point()) for x in inputs(*sizes))
            got, expected = (torch.autograd.grad(each(*arguments).sum(), arguments[:3]) for each in (traced, run))
            for a, b in zip(got, expected, strict=True):
                torch.testing.assert_close(a, b)


@pytest.mark.interpret
def test_gradients_of_gradients_are_refused() -> None:
    q, k, weight, targets = inputs()
    q.requires_grad_()
    with use_kernel(op="triton"):
        results = {
            "additive_attention_scores": additive_attention_scores(q, k, weight).logits,
            "pointer_nll": pointer_nll(q, k, weight, targets).nll,
        }
    for operator, x in results.items():
        (first,) = torch.autograd.grad(x.sum(), q, create_graph=True)
        with pytest.raises(KernelError, match=f'Kernel "triton" of {operator} has no gradients of gradients'):
            first.sum().backward()


@compiled
@pytest.mark.parametrize("operator", OPERATORS)
def test_says_what_it_needs(operator: str) -> None:
    assert explain(operator, (64, 1, 100, 256), "bfloat16", "cuda").chosen == "triton"
    rejected = explain(operator, (64, 1, 100, 1025), "float32", "cuda").rejected["triton"]
    assert rejected == ("head_dim is 1025 (needs 1024 at most)",)
    q, k, weight, _ = inputs()
    with (
        use_kernel(additive_attention_scores="triton"),
        pytest.raises(KernelError, match=r'"triton" cannot run additive_attention_scores on this call: device is cpu'),
    ):
        additive_attention_scores(q, k, weight)


@compiled
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_program_says_what_its_arguments_are(operator: str) -> None:
    for target in FAMILIES:
        for point in compiling.points_of(resolve(f"polyhead_kernels.{operator}:PROGRAMS"), [target], True):
            compiling._source(point)
            width = point.constants()["BLOCK_D"]
            assert isinstance(width, int)
            assert point.constants()["BLOCK"] == 2048 // width


@compiled
@pytest.mark.parametrize("target", ["sm_80", "gfx942"])
def test_the_largest_program_fits_its_registers(target: str) -> None:
    from polyhead_kernels.pointer_nll import QUERY_GRADIENTS

    def largest(point: Any) -> bool:
        return bool(point.dtype == "bfloat16" and point.variant["BLOCK_D"] == 1024)

    (point,) = filter(largest, compiling.points_of([QUERY_GRADIENTS], [target], False))
    assert compiling.build(point).problems() == []
