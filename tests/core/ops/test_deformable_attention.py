"""deformable_attention: the definition against independent statements, published values, and the contract."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from polyhead.errors import DtypeError, KernelError, ShapeError
from polyhead.ops import deformable_attention, explain, registry, use_kernel
from polyhead.ops.deformable_attention.spec import cost, describe

torch_kernel = importlib.import_module("polyhead.ops.deformable_attention.torch_kernel")

KERNELS = ("reference", "torch")
SEVERAL = ((9, 14), (5, 7), (4, 3), (2, 1))
SMALL = ((2, 3), (1, 2), (0, 4))
quick = settings(deadline=None, max_examples=20)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(deformable_attention=request.param):
        yield request.param


def draw(
    shapes: tuple[tuple[int, int], ...] = SEVERAL,
    *,
    batch: int = 2,
    heads: int = 3,
    queries: int = 5,
    dim: int = 4,
    points: int = 3,
    margin: float = 0.3,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return value, locations away from kinks, and weights."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    value = 2 * rand(batch, heads, sum(h * w for h, w in shapes), dim) - 1
    extents = torch.tensor([[w, h] for h, w in shapes]).reshape(-1, 1, 2)
    samples = (batch, heads, queries, len(shapes), points)
    whole = ((rand(*samples, 2) * (1 + 2 * margin) - margin) * extents).floor()
    locations = (whole + 0.6 + 0.8 * rand(*samples, 2)) / extents.clamp(min=1)
    return value.to(dtype), locations.to(dtype), rand(*samples).to(dtype)


def sampled(maps: np.ndarray[Any, Any], x: float, y: float) -> np.ndarray[Any, Any]:
    """Return the bilinear sample of a map (height, width, D) at x, y in pixels, zeros outside."""
    height, width, dim = maps.shape
    total = np.zeros(dim)
    for row in range(height):
        for column in range(width):
            total += max(0, 1 - abs(x - column)) * max(0, 1 - abs(y - row)) * maps[row, column]
    return total


def grid_sampled(value: Tensor, shapes: tuple[tuple[int, int], ...], locations: Tensor, weights: Tensor) -> Tensor:
    """State it by grid_sample, which knows no empty maps."""
    batch, heads, queries = locations.shape[:3]
    total = value.new_zeros(batch, heads, queries, value.shape[3])
    maps = value.split([height * width for height, width in shapes], 2)
    for level, (height, width) in enumerate(shapes):
        image = maps[level].mT.reshape(batch * heads, -1, height, width)
        grid = (2 * locations[:, :, :, level] - 1).flatten(0, 1)
        read = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        read = read.unflatten(0, (batch, heads))
        total = total + torch.einsum("bhdqp,bhqp->bhqd", read, weights[:, :, :, level])
    return total


def test_reference_equals_loops() -> None:
    """Weigh every pixel of every map by how near it is."""
    shapes = ((3, 4), (0, 2), (1, 3), (2, 2))
    value, locations, weights = draw(shapes, queries=4)
    expected, start = np.zeros((2, 3, 4, 4)), 0
    for level, (height, width) in enumerate(shapes):
        maps = value[:, :, start : start + height * width].reshape(2, 3, height, width, 4).numpy()
        start += height * width
        for b, h, q, p in np.ndindex(2, 3, 4, 3):
            x, y = locations[b, h, q, level, p].tolist()
            read = sampled(maps[b, h], x * width - 0.5, y * height - 0.5)
            expected[b, h, q] += weights[b, h, q, level, p].item() * read
    with use_kernel(deformable_attention="reference"):
        np.testing.assert_allclose(deformable_attention(value, shapes, locations, weights).output, expected, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_equals_grid_sample(kernel: str, dtype: torch.dtype, tolerance: float) -> None:
    inputs = [x.requires_grad_() for x in draw(dtype=dtype)]
    output = deformable_attention(inputs[0], SEVERAL, *inputs[1:]).output
    expected = grid_sampled(inputs[0], SEVERAL, *inputs[1:])
    cotangent = torch.cos(torch.arange(output.numel(), dtype=dtype)).view(output.shape)
    pairs = [(output, expected)]
    pairs += zip(*(torch.autograd.grad(x, inputs, cotangent) for x in (output, expected)), strict=True)
    for got, wanted in pairs:
        assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_published_values(kernel: str, dtype: str, shared: Path) -> None:
    """The official implementation's output and gradients, and samples exactly on pixels."""
    golden = load_file(shared / "golden" / "focus-detr" / "case_msda.safetensors")
    kind, tolerance, ending = getattr(torch, dtype), 2e-5, ""
    if dtype == "float64":
        tolerance, ending = 1e-10, "_f64"
    shapes = tuple((int(height), int(width)) for height, width in golden["inputs/value_spatial_shapes"])

    def read(name: str) -> Tensor:
        return golden[f"inputs/core/{name}"].to(kind).transpose(1, 2)

    def compare(name: str, got: Tensor) -> None:
        expected = golden[f"outputs/core/{name}"]
        off = (got - expected).abs().max() / expected.abs().max()
        assert off <= tolerance, f"{name} is off by {off:.2g}"

    names = ("value", "sampling_locations", "attention_weights")
    inputs = [read(name).requires_grad_() for name in names]
    output = deformable_attention(inputs[0], shapes, *inputs[1:]).output.transpose(1, 2).flatten(2)
    compare(f"out{ending}", output)
    for name, x in zip(
        names, torch.autograd.grad(output, inputs, golden["inputs/core/cotangent"].to(kind)), strict=True
    ):
        compare(f"grad_{name}{ending}", x.transpose(1, 2))
    if dtype == "float32":
        centred = deformable_attention(inputs[0], shapes, read("centre_locations"), read("centre_weights")).output
        compare("out_centre", centred.transpose(1, 2).flatten(2))


def test_gradients_of_the_reference() -> None:
    inputs = [x.requires_grad_() for x in draw(SMALL, batch=1, heads=2, queries=2, dim=2, points=2)]

    def function(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        with use_kernel(deformable_attention="reference"):
            return deformable_attention(value, SMALL, locations, weights).output

    torch.autograd.gradcheck(function, inputs)
    torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("samples", [1, 9, 40])
def test_gradients_of_the_torch_kernel(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one query, of some, and of several rows of the batch."""
    for name in ("SAMPLES", "SAMPLES_BACKWARD", "SAMPLES_SORTED"):
        monkeypatch.setattr(torch_kernel, name, {"cpu": samples})
    monkeypatch.setattr(torch_kernel, "GATHERED", {"cpu": 5 * samples})
    inputs = [x.requires_grad_() for x in draw(SMALL, batch=3, heads=2, queries=2, dim=2, points=1)]

    def function(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return deformable_attention(value, SMALL, locations, weights).output

    with use_kernel(deformable_attention="torch"):
        torch.autograd.gradcheck(function, inputs)


def test_only_gradients_asked_for_are_computed(kernel: str) -> None:
    value, locations, weights = draw()
    wanted: dict[int, Tensor] = {}
    for asked in ((0,), (1,), (2,), (0, 1, 2)):
        inputs = [x.clone().requires_grad_(at in asked) for at, x in enumerate((value, locations, weights))]
        output = deformable_attention(inputs[0], SEVERAL, *inputs[1:]).output
        for at, x in zip(asked, torch.autograd.grad(output.sum(), [inputs[at] for at in asked]), strict=True):
            assert torch.equal(x, wanted.setdefault(at, x))


def test_a_pixel_at_its_centre(kernel: str) -> None:
    """The gradient of a location on a pixel is that to the right and below."""
    value = torch.arange(12.0, dtype=torch.float64).square().reshape(1, 1, 12, 1)
    for row, column in ((1, 2), (2, 3), (0, 0)):
        at = torch.tensor([(column + 0.5) / 4, (row + 0.5) / 3], dtype=torch.float64).requires_grad_()
        weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
        output = deformable_attention(value, [(3, 4)], at.view(1, 1, 1, 1, 1, 2), weights).output
        grid = F.pad(value.view(3, 4), (0, 1, 0, 1))
        here = grid[row, column]
        assert output.item() == pytest.approx(float(here), abs=1e-9)
        expected = [4 * (grid[row, column + 1] - here).item(), 3 * (grid[row + 1, column] - here).item()]
        if column != 0:  # (0.5 / 3) · 3 − 0.5 is a little less than 0 in float64
            assert torch.autograd.grad(output, at)[0].tolist() == pytest.approx(expected)


def test_constant_maps_stay_constant(kernel: str) -> None:
    _, locations, weights = draw(margin=-0.45)
    weights = weights.flatten(3).softmax(-1).view(weights.shape)
    value = torch.full((2, 3, 175, 4), 2.5, dtype=torch.float64)
    inside = locations.clamp(0.3, 0.7)
    inside[:, :, :, 3] = torch.tensor([0.5, 0.5])  # the map of one column has no place between two pixels
    torch.testing.assert_close(
        deformable_attention(value, SEVERAL, inside, weights).output, torch.full((2, 3, 5, 4), 2.5).double()
    )


@quick
@given(seed=st.integers(0, 999), right=st.integers(-4, 4), down=st.integers(-4, 4))
def test_maps_and_samples_move_together(seed: int, right: int, down: int) -> None:
    value, locations, weights = draw(((6, 5),), batch=1, heads=1, points=2, margin=0.0, seed=seed)
    image = F.pad(value.mT.reshape(1, 4, 6, 5), (5, 5, 5, 5))
    moved = torch.roll(image, (down, right), (2, 3)).reshape(1, 1, 4, 16 * 15).mT
    place = locations * torch.tensor([5, 6]) + 5 + torch.tensor([right, down])
    for name in KERNELS:
        with use_kernel(deformable_attention=name):
            expected = deformable_attention(value, [(6, 5)], locations, weights).output
            got = deformable_attention(moved, [(16, 15)], place / torch.tensor([15, 16]), weights).output
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@quick
@given(seed=st.integers(0, 999), queries=st.integers(1, 40), points=st.integers(1, 5))
def test_order_and_grouping_of_samples_do_not_matter(seed: int, queries: int, points: int) -> None:
    value, locations, weights = draw(batch=1, queries=queries, points=points, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name in KERNELS:
        with use_kernel(deformable_attention=name):
            whole = deformable_attention(value, SEVERAL, locations, weights).output
            order = torch.randperm(queries, generator=generator)
            turned = deformable_attention(value, SEVERAL, locations[:, :, order], weights[:, :, order]).output
            parts = [
                deformable_attention(value, SEVERAL, locations[..., [at], :], weights[..., [at]]).output
                for at in range(points)
            ]
        torch.testing.assert_close(turned, whole[:, :, order], rtol=0, atol=1e-13)
        torch.testing.assert_close(torch.stack(parts).sum(0), whole, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30, -1e30])
def test_samples_that_are_nowhere(kernel: str, bad: float) -> None:
    """They count as outside, in either coordinate, whatever their weight."""
    value, locations, weights = draw(dtype=torch.float32)
    spoilt, expected = locations.clone(), weights.clone()
    spoilt[:, :, ::2, :, 0, 0] = bad
    spoilt[:, :, 1::2, :, 1, 1] = bad
    expected[:, :, ::2, :, 0] = 0
    expected[:, :, 1::2, :, 1] = 0
    heavy = torch.where(expected == 0, math.nan, weights)
    inputs = [x.requires_grad_() for x in (value, spoilt, heavy)]
    output = deformable_attention(inputs[0], SEVERAL, *inputs[1:]).output
    torch.testing.assert_close(output, deformable_attention(value, SEVERAL, locations, expected).output)
    for x in torch.autograd.grad(output.sum(), inputs):
        assert x.isfinite().all()
        if x.shape != value.shape:
            assert not x[:, :, ::2, :, 0].any()
            assert not x[:, :, 1::2, :, 1].any()


def test_what_is_read_and_not_finite_shows(kernel: str) -> None:
    value, locations, weights = draw(((4, 4),), margin=0.0)
    value[0, 1, 5] = math.nan
    locations[0, 1, 2] = 1.6 / 4
    spoilt = deformable_attention(value, [(4, 4)], locations, weights).output
    assert spoilt[0, 1, 2].isnan().all()
    assert spoilt[1].isfinite().all()


@pytest.mark.parametrize("layout", ["(B, S, H, D)", "one of two projections"])
def test_a_transposed_view_is_read_in_place(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tables: list[Tensor] = []
    bag = F.embedding_bag

    def look(index: Tensor, table: Tensor, **options: Any) -> Tensor:
        tables.append(table)
        return bag(index, table, **options)

    value, locations, weights = draw(dtype=torch.float32)
    stored = value.transpose(1, 2).contiguous()
    if layout != "(B, S, H, D)":
        stored = torch.cat([stored, stored], -1)[..., :4]
    monkeypatch.setattr(torch_kernel.F, "embedding_bag", look)
    with use_kernel(deformable_attention="torch"):
        output = deformable_attention(stored.transpose(1, 2), SEVERAL, locations, weights).output
    assert {x.untyped_storage().data_ptr() for x in tables} == {stored.untyped_storage().data_ptr()}
    torch.testing.assert_close(output, deformable_attention(value, SEVERAL, locations, weights).output)
    assert output.transpose(1, 2).is_contiguous()


def test_gradients_repeat_bit_by_bit() -> None:
    """Many samples of few pixels, summed by several threads."""
    shapes = ((5, 5), (2, 2))
    inputs = [x.requires_grad_() for x in draw(shapes, queries=900, points=4, dtype=torch.float32)]
    runs = []
    for _ in range(3):
        output = deformable_attention(inputs[0], shapes, *inputs[1:], deterministic=True).output
        runs.append(torch.autograd.grad(output.square().sum(), inputs))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_determinism_is_asked_of_kernels() -> None:
    assert describe((1, 2, 6, 4), torch.float32, torch.device("cpu"), deterministic=True).options["deterministic"]
    limits = registry.kernel("deformable_attention", "reference").supports
    on_gpu = describe((1, 2, 6, 4), torch.float32, torch.device("cuda"), deterministic=True)
    assert limits(on_gpu) == ["deterministic on cuda (needs torch.use_deterministic_algorithms(True) beside it)"]
    torch.use_deterministic_algorithms(True)
    try:
        assert limits(on_gpu) == []
        value, locations, weights = draw()
        deformable_attention(value, SEVERAL, locations, weights)
    finally:
        torch.use_deterministic_algorithms(False)


def test_autocast_casts_value_alone(kernel: str) -> None:
    value, locations, weights = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = deformable_attention(value, SEVERAL, locations, weights).output
    plain = deformable_attention(value.bfloat16(), SEVERAL, locations, weights).output
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, plain)


def test_gradients_have_the_dtype_of_their_inputs(kernel: str) -> None:
    value, locations, weights = draw(dtype=torch.float32)
    inputs = [x.requires_grad_() for x in (value.bfloat16(), locations, weights.half())]
    output = deformable_attention(inputs[0], SEVERAL, *inputs[1:]).output
    dtypes = [x.dtype for x in torch.autograd.grad(output.sum(), inputs)]
    assert (output.dtype, *dtypes) == (torch.bfloat16, torch.bfloat16, torch.float32, torch.float16)


def test_gradients_of_gradients_are_refused() -> None:
    inputs = [x.requires_grad_() for x in draw()]
    output = deformable_attention(inputs[0], SEVERAL, *inputs[1:]).output
    first, *_ = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
    with pytest.raises(KernelError, match=r'"torch" of deformable_attention has no gradients of gradients.*"refe'):
        first.sum().backward()


good: dict[str, Any] = {
    "value": torch.zeros(2, 3, 14, 4),
    "shapes": ((3, 4), (1, 2)),
    "locations": torch.zeros(2, 3, 5, 2, 6, 2),
    "weights": torch.zeros(2, 3, 5, 2, 6),
}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"value": torch.zeros(2, 14, 4)}, ShapeError, r"value has 3 dimensions, expected 4: \(batch, heads, pixels, "),
        ({"locations": torch.zeros(2, 3, 5, 2, 6)}, ShapeError, r"locations has 5 dimensions, expected 6"),
        ({"weights": torch.zeros(2, 3, 5, 12)}, ShapeError, r"weights has 4 dimensions, expected 5"),
        (
            {"weights": torch.zeros(2, 3, 5, 2, 7)},
            ShapeError,
            r"weights the same without the 2.*locations \(2, 3, 5, 2, 6, 2\), weights \(2, 3, 5, 2, 7\)",
        ),
        ({"value": torch.zeros(2, 1, 14, 4)}, ShapeError, r"value have their batch and heads\. value \(2, 1, 14, 4\)"),
        ({"shapes": ((3, 4), (1, 1), (1, 1))}, ShapeError, r"shapes has 3 levels and locations 2"),
        ({"shapes": ((3, 4), (1, 3))}, ShapeError, r"levels \[\(3, 4\), \(1, 3\)\] must add up to those of value"),
        ({"value": torch.zeros(2, 3, 14, 0)}, ShapeError, r"its head_dim be 1 or more"),
        ({"shapes": torch.tensor([[3, 4], [1, 2]])}, ShapeError, r"Give Python ints: shapes.tolist\(\)"),
        ({"shapes": ((3, 4), (-1, -2))}, ShapeError, r"pairs \(height, width\) of ints of 0 or more, not \[\(3, 4\), "),
        ({"shapes": ((3, 4.0), (1, 2))}, ShapeError, r"pairs \(height, width\) of ints"),
        ({"shapes": ((3, 4, 1), (1, 2))}, ShapeError, r"pairs \(height, width\) of ints"),
        ({"locations": torch.zeros(2, 3, 5, 2, 6, 2).int()}, DtypeError, r"locations is int32, expected a float dtype"),
        ({"weights": torch.zeros(2, 3, 5, 2, 6, device="meta")}, DtypeError, r"weights is on meta and value on cpu"),
    ],
)
def test_wrong_arguments(kernel: str, changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        deformable_attention(**(good | changes))


def test_description_and_cost() -> None:
    assert explain("deformable_attention", (1, 8, 22223, 32), queries=2000).chosen == "torch"
    assert explain("deformable_attention", (1, 2, 14, 4), levels="3x4, 1x2", points=2, grad=True).chosen == "torch"
    for shape, options, message in (
        ((8, 100, 32), {}, r"The shape of value has 3 numbers, expected 4: batch,heads,pixels,head_dim"),
        ((1, 2, 14, 4), {"levels": "3x4"}, r'The pixels of levels "3x4" do not add up to 14, those of value'),
        ((1, 2, 14, 4), {"levels": "3x4,2"}, r'levels is "3x4,2": "2" is not HEIGHTxWIDTH, such as 100x167'),
    ):
        with pytest.raises(ShapeError, match=message):
            explain("deformable_attention", shape, **options)
    call = describe((1, 2, 14, 16), torch.float32, torch.device("cpu"), queries=5, levels="3x4,1x2", points=3)
    forward, backward = cost(call), cost(call, backward=True)
    # By hand: 60 samples of four pixels of 16 numbers, a multiply-add each; backward for sample and pixel.
    assert forward.flops == 60 * 4 * 16 * 2
    assert backward.flops == 2 * forward.flops
    assert forward.bytes == 4 * (2 * 14 * 16 + 60 * 2 + 60 + 2 * 5 * 16)
    assert backward.bytes == forward.bytes + 4 * (2 * 14 * 16 + 60 * 2 + 60)
    assert registry.operator("deformable_attention").reference == registry.kernel(call.operator, "reference").function
