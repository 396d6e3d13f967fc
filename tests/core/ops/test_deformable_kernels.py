"""deformable_attention: every kernel on the operator's cases, and through torch.compile and torch.export."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polyhead.ops import deformable_attention, use_kernel
from polyhead.testing import check_kernel
from polyhead.testing.operators import implementations

KERNELS = {kernel.name: kernel for kernel in implementations("deformable_attention") if kernel.name != "triton"}


def test_every_form_is_checked() -> None:
    assert {kernel.form for kernel in KERNELS.values()} == {"gathered", "bags"}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", KERNELS)
def test_keeps_the_contract(name: str, dtype: str) -> None:
    check_kernel("deformable_attention", KERNELS[name], dtypes=[dtype], traced=False)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_keeps_the_contract_in_sixteen_bit(dtype: str) -> None:
    check_kernel("deformable_attention", "torch", dtypes=[dtype], traced=False)


@pytest.mark.parametrize("name", KERNELS)
def test_can_be_traced(name: str) -> None:
    kept = check_kernel("deformable_attention", name, dtypes=["float32"])
    assert sum("torch.compile(fullgraph=True, dynamic=True)" in rule for rule in kept) == 1
    assert sum("torch.export" in rule for rule in kept) == 1
    passed = sum("opcheck passes for polyhead.deformable_attention" in rule for rule in kept)
    assert passed == (2 if name == "torch" else 0)


def draw(height: int, width: int, queries: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(height)
    image = torch.randn(2, 8, height, width, generator=generator)
    locations = torch.rand(2, 2, queries, 2, 3, 2, generator=generator)
    return image, locations, torch.rand(2, 2, queries, 2, 3, generator=generator)


class Detect(nn.Module):
    """Two maps of an image, whose sizes are what the image has."""

    def forward(self, image: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        maps = [image, image[..., ::2, ::2]]
        value = torch.cat([x.flatten(2) for x in maps], 2).unflatten(1, (2, 4)).mT
        shapes = [(x.shape[-2], x.shape[-1]) for x in maps]
        return deformable_attention(value, shapes, locations, weights).output


def test_one_compiled_function_serves_images_of_all_sizes() -> None:
    compiled = torch.compile(Detect(), fullgraph=True, dynamic=True, backend="aot_eager")
    for sizes in ((6, 8, 5), (10, 4, 9)):
        image, *samples = draw(*sizes)
        image.requires_grad_()
        results = []
        for function in (compiled, Detect()):
            output = function(image, *samples)
            results.append((output, *torch.autograd.grad(output.square().sum(), image)))
        for got, expected in zip(*results, strict=True):
            torch.testing.assert_close(got, expected)


def test_one_exported_program_serves_images_of_all_sizes() -> None:
    height, width = (2 * torch.export.Dim(name, min=2, max=100) for name in ("height", "width"))
    queries = torch.export.Dim("queries", min=2)
    dynamic = ({2: height, 3: width}, {2: queries}, {2: queries})
    exported = torch.export.export(Detect(), draw(6, 8, 5), dynamic_shapes=dynamic).module()
    for sizes in ((4, 12, 3), (10, 4, 9)):
        arguments = draw(*sizes)
        with use_kernel(deformable_attention="reference"):
            expected = Detect()(*arguments)
        torch.testing.assert_close(exported(*arguments), expected, rtol=1e-5, atol=1e-5)
