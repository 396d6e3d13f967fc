"""decay_attention: every kernel and form on the operator's cases."""

from __future__ import annotations

import pytest

from polyhead.testing import check_kernel
from polyhead.testing.operators import implementations

KERNELS = {kernel.name: kernel for kernel in implementations("decay_attention") if kernel.name != "triton"}


def test_every_form_is_checked() -> None:
    assert {kernel.form for kernel in KERNELS.values()} == {"recurrent", "parallel", "chunked", "streaming"}


@pytest.mark.parametrize("name", KERNELS)
def test_keeps_the_contract(name: str) -> None:
    check_kernel("decay_attention", KERNELS[name], dtypes=["float64"], traced=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_keeps_the_contract_in_less_than_float64(dtype: str) -> None:
    """The forms that no kernel computes are checked in these by ``kernels verify``."""
    check_kernel("decay_attention", "torch", dtypes=[dtype], traced=False)
