"""Every kernel of softmax_attention on all cases, and broken ones that must be caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from polyhead.manifest import resolve
from polyhead.ops import KernelSpec, SoftmaxAttention, explain, registry
from polyhead.testing import check_operator
from polyhead.testing.operators import verify

torch_kernel = resolve("polyhead.ops.softmax_attention.torch_kernel:softmax_attention")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_every_kernel_keeps_the_contract(dtype: str) -> None:
    kept = check_operator("softmax_attention", dtypes=[dtype], traced=False)
    assert any(f'of "torch" (parallel), {dtype}, keep' in rule for rule in kept)
    assert any(f'of "reference" (parallel), {dtype}, keep' in rule for rule in kept)


def wrong_sign(**call: Any) -> SoftmaxAttention:
    result = torch_kernel(**call)
    return result._replace(output=-result.output)


def missing_scale(**call: Any) -> SoftmaxAttention:
    return torch_kernel(**{**call, "scale": 1.0})


def top_left(**call: Any) -> SoftmaxAttention:
    queries, keys = call["q"].shape[2], call["k"].shape[2]
    triangle = torch.ones(queries, keys, dtype=torch.bool).tril()[None, None]
    mask = call["mask"] if not call["causal"] else triangle if call["mask"] is None else triangle & call["mask"]
    return torch_kernel(**{**call, "causal": False, "mask": mask})


def dropped_tail(**call: Any) -> SoftmaxAttention:
    """Leave the last 1 of 33 queries unwritten, as a kernel without a mask for its last block does."""
    result = torch_kernel(**call)
    kept = result.output.shape[2] // 32 * 32 if result.output.shape[2] > 32 else result.output.shape[2]
    output = torch.empty_like(result.output)
    output = torch.cat([result.output[:, :, :kept], output[:, :, kept:]], 2)
    return result._replace(output=output)


def plain_sdpa(**call: Any) -> SoftmaxAttention:
    """What users write: leaks NaN out of padding and is NaN-free only by luck."""
    if call["causal"] or call["bias"] is not None or call["heads"] is not None:
        return torch_kernel(**call)
    grouped = call["q"].shape[1] != call["k"].shape[1]
    output = F.scaled_dot_product_attention(
        call["q"], call["k"], call["v"], attn_mask=call["mask"], scale=call["scale"], enable_gqa=grouped
    )
    return SoftmaxAttention(output, None)


def no_gradient_for_bias(**call: Any) -> SoftmaxAttention:
    return torch_kernel(**{**call, "bias": None if call["bias"] is None else call["bias"].detach() + 0 * call["bias"]})


def sixteen_bit_sums(**call: Any) -> SoftmaxAttention:
    """Round everything to 10 bits, which float32 must not tolerate."""
    return torch_kernel(**{**call, **{name: call[name].half().to(call[name].dtype) for name in "qkv"}})


def written_input(**call: Any) -> SoftmaxAttention:
    result = torch_kernel(**call)
    with torch.no_grad():
        call["v"].mul_(1)
    return result


def mixed_batch(**call: Any) -> SoftmaxAttention:
    """Subtract the batch's mean, which a softmax hides from the output of finite rows but not from NaN."""
    return torch_kernel(**{**call, "k": call["k"] - call["k"].detach().mean((0, 2), keepdim=True)})


def other_dtype(**call: Any) -> SoftmaxAttention:
    result = torch_kernel(**call)
    return result._replace(output=result.output.double())


def raises(**call: Any) -> SoftmaxAttention:
    raise IndexError("out of bounds")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (wrong_sign, "output is off by"),
        (missing_scale, "output is off by"),
        (top_left, 'case "causal, few queries", float32: output is off by'),
        (dropped_tail, 'case "length 33", float32: output is off by inf'),
        (plain_sdpa, "with nan where nothing attends, output is off by inf"),
        (no_gradient_for_bias, "gradient of bias is off by"),
        (sixteen_bit_sums, "output is off by"),
        (written_input, "v was written into"),
        (mixed_batch, "NaN in the other rows of the batch"),
        (other_dtype, "output is torch.float64 on cpu, expected torch.float32 on cpu"),
        (raises, "raised IndexError: out of bounds"),
    ],
)
def test_broken_kernels_are_caught(broken: Callable[..., SoftmaxAttention], message: str) -> None:
    kernel = KernelSpec("softmax_attention", "broken", broken, priority=99)
    failures = verify(kernel, "float32").failures
    assert any(message in failure for failure in failures), failures[:5]


def test_the_generator_covers_what_it_should() -> None:
    spec = registry.operator("softmax_attention")
    made = [case.make(torch.Generator().manual_seed(0), torch.float32) for case in spec.cases()]
    shapes = [(each.tensors["q"].shape, each.tensors["v"].shape) for each in made]
    assert {1, 0, 33, 801} <= {q[2] for q, _ in shapes}
    assert 0 in {q[0] for q, _ in shapes}
    assert 0 in {v[2] for _, v in shapes}
    assert any(q[1] != v[1] for q, v in shapes)
    assert any(q[3] < v[3] for q, v in shapes)
    assert any(q[3] > v[3] for q, v in shapes)
    assert any(each.tensors["q"].stride(-1) != 1 for each in made)
    assert any(each.tensors["k"].stride(0) == 0 < each.tensors["k"].shape[0] for each in made)
    for name in "qkv":
        assert sum(bool(each.unreachable[name].any()) for each in made) >= 3
    assert len({case.name for case in spec.cases()}) == len(made)


def test_cost() -> None:
    """By hand: causal 3 × 3 has 6 pairs, 2 × 3 has 5, 3 × 2 has 3; two products of 2 · pairs · width."""
    spec = registry.operator("softmax_attention")
    for queries, keys, pairs in ((3, 3, 6), (2, 3, 5), (3, 2, 3)):
        call = explain("softmax_attention", (1, 2, queries, 4), causal=True, keys=keys, value_dim=5).call
        assert spec.cost(call).flops == 2 * 2 * pairs * (4 + 5)
        assert spec.cost(call, backward=True).flops == 2 * 2 * pairs * (3 * 4 + 2 * 5)
    call = explain("softmax_attention", (1, 2, 3, 4), "bfloat16", mask=True, bias=True, kv_heads=1).call
    assert spec.cost(call).flops == 2 * 2 * 9 * 8
    assert spec.cost(call).bytes == 2 * (24 + 12 + 12 + 24) + 9 + 2 * 18
    assert spec.cost(call, backward=True).bytes == spec.cost(call).bytes + 2 * (24 + 24 + 12 + 12)
