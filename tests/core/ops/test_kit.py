"""The kit that checks operators, on an operator of the tests' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor

from polyhead.errors import KernelError, UnknownNameError
from polyhead.ops import KernelSpec
from polyhead.testing import CheckError, check_kernel, check_operator
from polyhead.testing.operators import implementations, poisoned_memory, verify

_LIBRARY = torch.library.Library("polyhead_test_kit", "DEF")
_LIBRARY.define("running_sum(Tensor x, float gain) -> Tensor")
_LIBRARY.define("wrong_fake(Tensor x, float gain) -> Tensor")


def _compute(x: Tensor, gain: float) -> Tensor:
    return gain * x.cumsum(-1)


for _name in ("running_sum", "wrong_fake"):
    _LIBRARY.impl(_name, _compute, "CompositeExplicitAutograd")
torch.library.register_fake("polyhead_test_kit::running_sum", lambda x, gain: torch.empty_like(x), lib=_LIBRARY)
torch.library.register_fake("polyhead_test_kit::wrong_fake", lambda x, gain: x.new_empty(x.numel()), lib=_LIBRARY)


def _refuse(ctx: Any, gradient: Tensor) -> NoReturn:
    raise KernelError("no gradients of gradients")


for _name in ("running_sum", "wrong_fake"):
    torch.library.register_autograd(f"polyhead_test_kit::{_name}", _refuse, lib=_LIBRARY)


def registered(name: str) -> Callable[..., Any]:
    """Return a kernel as they are registered: torch.library below, autograd in a Function outside."""
    operator = getattr(torch.ops.polyhead_test_kit, name)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, gain: float) -> Tensor:
            ctx.gain = gain
            return operator(x, gain)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            return operator(gradient.flip(-1), ctx.gain).flip(-1), None

    def kernel(x: Tensor, *, gain: float) -> Any:
        from tests_running_sum import reference  # type: ignore[import-not-found]

        return type(reference(x, gain=gain))(Function.apply(x, gain))

    return kernel


def test_forms_are_checked_like_kernels(add: Callable[..., None]) -> None:
    add()
    assert [(each.name, each.form) for each in implementations("running_sum")] == [
        ("reference", "parallel"),
        ("form_recurrent", "recurrent"),
    ]
    kept = check_operator("running_sum", traced=False)
    for dtype in ("float64", "float32"):
        assert f'3 cases of "form_recurrent" (recurrent), {dtype}, keep the contract' in kept


def test_counts_and_shares(add: Callable[..., None]) -> None:
    add()
    result = verify(implementations("running_sum")[1], "float32")
    assert (result.cases, result.passes, result.refused, result.failures) == (3, 3 + 2 * 2, {}, [])
    assert result.worst.keys() == {"output", "gradient of x"}
    assert 0 < result.worst["output"] < 1
    assert result.data()["kernel"] == "form_recurrent"


def test_registered_operators_pass_opcheck(add: Callable[..., None]) -> None:
    add()
    kernel = KernelSpec("running_sum", "mine", registered("running_sum"))
    kept = check_kernel("running_sum", kernel)
    assert 'opcheck passes for polyhead_test_kit.running_sum.default of "mine", case "odd"' in kept


def test_a_wrong_fake_is_found(add: Callable[..., None]) -> None:
    add()
    with pytest.raises(CheckError) as caught:
        check_kernel("running_sum", KernelSpec("running_sum", "mine", registered("wrong_fake")))
    lines = str(caught.value).splitlines()
    assert any(line.startswith("- opcheck passes for polyhead_test_kit.wrong_fake.default") for line in lines)
    assert any("torch.compile(fullgraph=True, dynamic=True)" in line for line in lines)


def test_a_kernel_that_cannot_be_traced(add: Callable[..., None], module: Any) -> None:
    def untraceable(x: Tensor, *, gain: float) -> Any:
        return module.reference(x, gain=gain) if float(x.detach().sum()) > -1e9 else None

    add()
    with pytest.raises(CheckError, match=r'torch.compile\(fullgraph=True, dynamic=True\) of "mine", case "odd"'):
        check_kernel("running_sum", KernelSpec("running_sum", "mine", untraceable))


def test_unwritten_memory_shows(add: Callable[..., None], module: Any) -> None:
    def first_only(x: Tensor, *, gain: float) -> Any:
        result = module.reference(x, gain=gain)
        rest = torch.empty_like(result.output[..., 1:])
        return type(result)(torch.cat([result.output[..., :1], rest], -1))

    add()
    failures = verify(KernelSpec("running_sum", "mine", first_only), "float32").failures
    assert 'case "odd", float32: output is off by inf' in failures[0]


def test_second_derivatives_are_compared_or_refused(add: Callable[..., None], module: Any) -> None:
    class Cube(torch.autograd.Function):
        """A cube whose backward pass forgets that it depends on x."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            return gradient * 3 * x.detach() ** 2

    def result(x: Tensor) -> Any:
        return type(module.recurrent(x, gain=1.0))(x)

    module.reference = lambda x, *, gain: result(x**3)
    add(forms={"parallel": "tests_running_sum:reference"})
    forgetful = KernelSpec("running_sum", "mine", lambda x, gain: result(Cube.apply(x)))
    with pytest.raises(CheckError, match="the second derivative of x is off by"):
        check_kernel("running_sum", forgetful, traced=False)


def test_refused_cases_are_counted_with_their_reasons(add: Callable[..., None], module: Any) -> None:
    def short(call: Any) -> list[str]:
        return ["length is 40 (needs at most 8)"] if call.length > 8 else []

    add()
    kernel = KernelSpec("running_sum", "mine", module.reference, limits=short)
    result = verify(kernel, "float32")
    assert (result.cases, result.refused) == (2, {"long": ["length is 40 (needs at most 8)"]})
    assert check_kernel("running_sum", kernel, dtypes=["float32"], traced=False)
    never = KernelSpec("running_sum", "mine", module.reference, devices=("cuda",))
    with pytest.raises(CheckError, match="no case was run"):
        check_kernel("running_sum", never, dtypes=["float32"], traced=False)


def test_kernels_of_other_devices_are_left_out(add: Callable[..., None], module: Any) -> None:
    reference = KernelSpec("running_sum", "reference", module.reference, priority=0, double_backward=True)
    add(kernels=(reference, KernelSpec("running_sum", "gpu", module.reference, devices=("cuda",))))
    assert not any('"gpu"' in rule for rule in check_operator("running_sum", traced=False))


def test_an_operator_without_a_traced_case(add: Callable[..., None]) -> None:
    add(cases=list)
    with pytest.raises(CheckError, match="the operator has no case with traced=True to try them on"):
        check_operator("running_sum")


def test_long_lists_are_cut(add: Callable[..., None]) -> None:
    def broken(q: Tensor, **_: Any) -> Any:
        raise IndexError("no")

    with pytest.raises(CheckError, match=r"    and \d+ more \(rule: polyhead.ops.spec.Inputs\)"):
        check_kernel(
            "softmax_attention", KernelSpec("softmax_attention", "mine", broken), dtypes=["float32"], traced=False
        )


def test_unknown_names(add: Callable[..., None]) -> None:
    with pytest.raises(UnknownNameError, match='No operator "stroll"'):
        check_operator("stroll")
    with pytest.raises(UnknownNameError, match='No kernel of softmax_attention "tritom"'):
        check_kernel("softmax_attention", "tritom")


def test_poisoned_memory_ends() -> None:
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
