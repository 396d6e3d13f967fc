"""prefix_attention: every kernel and form on the operator's cases, and broken ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from polyhead.manifest import resolve
from polyhead.ops import Call
from polyhead.ops.prefix_attention.faults import FAULTS
from polyhead.testing import check_kernel
from polyhead.testing.operators import implementations, verify

KERNELS = {kernel.name: kernel for kernel in implementations("prefix_attention") if kernel.name != "triton"}


def test_every_form_is_checked() -> None:
    assert {kernel.form for kernel in KERNELS.values()} == {"recurrent", "scan", "chunked", "streaming"}


def no_longer_than(length: int) -> Callable[[Call], list[str]]:
    """Leave the longest cases to the chunked form, the only one for which they differ from the others."""
    return lambda call: [] if call.length <= length else ["long"]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_keeps_the_contract(name: str, dtype: str) -> None:
    kernel = KERNELS[name]
    if kernel.form != "chunked":
        kernel = replace(kernel, limits=no_longer_than(70))
    check_kernel("prefix_attention", kernel, dtypes=[dtype], traced=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_keeps_the_contract_in_sixteen_bit(dtype: str) -> None:
    kernel = replace(KERNELS["torch"], limits=no_longer_than(140))
    check_kernel("prefix_attention", kernel, dtypes=[dtype], traced=False)


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_kernel_is_caught(name: str) -> None:
    kernel = KERNELS["torch"]
    assert isinstance(kernel.function, str)
    function = FAULTS[name](resolve(kernel.function))
    assert verify(replace(kernel, name="broken", function=function, limits=no_longer_than(35)), "float32").failures
