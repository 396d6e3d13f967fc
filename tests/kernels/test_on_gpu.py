"""Every kernel on a GPU, on the same cases as everywhere: for machines that have one."""

from __future__ import annotations

import pytest
import torch

from polyhead.ops import registry
from polyhead.ops.commands import bench_kernels, verify_kernels
from polyhead.testing import check_operator

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", registry.operators())
def test_every_kernel_keeps_the_contract(name: str) -> None:
    check_operator(name, device="cuda", traced=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.operators())
def test_every_kernel_can_be_traced(name: str) -> None:
    check_operator(name, device="cuda", dtypes=["float32"])


@pytest.mark.parametrize("name", registry.operators())
def test_no_kernel_for_gpus_is_skipped(name: str) -> None:
    said = verify_kernels(name, dtypes=["bfloat16"], device="cuda")
    assert said.passed, said.text
    on_gpu = {kernel.name for kernel in registry.kernels(name) if kernel.interpreted or "cuda" in kernel.devices}
    assert on_gpu <= {row["kernel"] for row in said.data["rows"]}


def test_kernels_are_timed() -> None:
    said = bench_kernels("softmax_attention", ["bfloat16"], "cuda", repeats=2, claims=False)
    assert said.passed, said.text
    assert said.data["device"] == torch.cuda.get_device_name()
