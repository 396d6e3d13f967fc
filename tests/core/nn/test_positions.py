"""Positions equal hand-computed codes, published goldens and an independent rotation."""

from __future__ import annotations

import cmath
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.nn import (
    LearnedPositions,
    Rotary,
    ScaledSinusoidPositions,
    SinePositions2d,
    SinusoidPositions,
    rotate,
    sinusoid,
)


@pytest.mark.parametrize("dim", [1, 2, 5, 8])
@pytest.mark.parametrize("layout", ["interleaved", "halves"])
def test_sinusoid_by_hand(dim: int, layout: str) -> None:
    code = sinusoid(torch.tensor([[0.0, 3.5]], dtype=torch.float64), dim, base=100.0, layout=layout)
    pairs = -(-dim // 2)
    for at, position in enumerate((0.0, 3.5)):
        sines = [math.sin(position * 100 ** (-2 * i / dim)) for i in range(pairs)]
        cosines = [math.cos(position * 100 ** (-2 * i / dim)) for i in range(pairs)]
        expected = (
            sines + cosines if layout == "halves" else [x for pair in zip(sines, cosines, strict=True) for x in pair]
        )
        assert code[0, at].tolist() == pytest.approx(expected[:dim], abs=1e-15)


def test_scaled_positions_equal_the_published(shared: Path) -> None:
    golden = load_file(shared / "golden" / "transformer-tts" / "case_pieces.safetensors")
    x = golden["inputs/pe/x"]
    positions = ScaledSinusoidPositions(x.shape[-1], initial_scale=0.6)
    torch.testing.assert_close(positions(x), golden["outputs/pe/scaled_alpha_0.6"], rtol=0, atol=1e-5)
    torch.testing.assert_close(positions.code(x), golden["outputs/pe/table"][0], rtol=0, atol=1e-5)
    positions(x).sum().backward()
    assert positions.alpha.grad is not None
    torch.testing.assert_close(positions.alpha.grad, positions.code(x).sum() * x.shape[0])


def test_positions_of_each_row() -> None:
    x = torch.zeros(2, 3, 4)
    rows = torch.tensor([[0, 1, 2], [5, 6, 7]])
    for module in (SinusoidPositions(4), LearnedPositions(8, 4)):
        both = module(x, rows)
        torch.testing.assert_close(both[0], module(x)[0])
        torch.testing.assert_close(both[1], module(x, rows[1])[0])
    assert SinusoidPositions(4)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("module", [SinusoidPositions(4), LearnedPositions(8, 4)])
def test_what_does_not_fit_is_refused(module: torch.nn.Module) -> None:
    with pytest.raises(ShapeError, match=r"x \(2, 3, 5\) is not \(batch, seq, dim\) with dim 4\."):
        module(torch.zeros(2, 3, 5))
    with pytest.raises(ShapeError, match=r"positions \(4,\) is neither \(seq,\) nor \(batch, seq\) of x \(2, 3, 4\)\."):
        module(torch.zeros(2, 3, 4), torch.arange(4))


def test_positions_beyond_the_table_are_refused() -> None:
    module = LearnedPositions(2, 4)
    with pytest.raises(ShapeError, match=r"x \(1, 3, 4\) has 3 tokens and the table 2 positions: shorten x, or make"):
        module(torch.zeros(1, 3, 4))
    with pytest.raises(IndexError):
        module(torch.zeros(1, 1, 4), torch.tensor([2]))


def test_sine_2d_by_hand() -> None:
    """Equation and offsets as the detector's code writes them, pixel by pixel."""
    mask = torch.zeros(2, 3, 5, dtype=torch.bool)
    mask[0] = True
    mask[1, :2, :4] = True
    codes = SinePositions2d(8, base=20.0, offset=-0.5)(mask)
    assert codes.shape == (2, 8, 3, 5)
    for image, (height, width) in enumerate([(3, 5), (2, 4)]):
        for row in range(height):
            for column in range(width):
                expected = []
                for count, total in ((row + 1, height), (column + 1, width)):
                    place = (count - 0.5) / (total + 1e-6) * 2 * math.pi
                    for i in range(2):
                        expected += [math.sin(place / 20 ** (2 * i / 4)), math.cos(place / 20 ** (2 * i / 4))]
                assert codes[image, :, row, column].tolist() == pytest.approx(expected, abs=1e-6)


def test_sine_2d_equals_the_published(shared: Path) -> None:
    golden = load_file(shared / "golden" / "focus-detr" / "case.safetensors")
    flat = ~golden["trace/padding_mask_flat"]
    start = 0
    for level in range(4):
        expected = golden[f"trace/pos_embed/{level}"]
        height, width = expected.shape[2:]
        mask = flat[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        codes = SinePositions2d(expected.shape[1], base=10_000.0, offset=-0.5)(mask)
        real = mask.unsqueeze(1)  # in padding there is nothing to count, and codes mean nothing
        torch.testing.assert_close(codes * real, expected * real, rtol=0, atol=1e-5)


def test_sine_2d_counts_pixels_where_it_does_not_normalize() -> None:
    codes = SinePositions2d(4, normalize=False)(torch.ones(1, 2, 2, dtype=torch.bool))
    assert codes[0, 0].tolist() == [[pytest.approx(math.sin(1))] * 2, [pytest.approx(math.sin(2))] * 2]


@pytest.mark.parametrize("pairing", ["halves", "interleaved"])
@pytest.mark.parametrize("rotary_dim", [2, 4, 6])
def test_rotary_is_a_product_of_complex_numbers(pairing: str, rotary_dim: int) -> None:
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    positions = torch.tensor([[0, 1, 2, 3], [7, 9, 11, 200]])
    turned = Rotary(6, base=50.0, rotary_dim=rotary_dim, pairing=pairing)(x, positions)
    expected = x.clone()
    pairs = rotary_dim // 2
    for b in range(2):
        for s in range(4):
            for i in range(pairs):
                left, right = (i, pairs + i) if pairing == "halves" else (2 * i, 2 * i + 1)
                turn = cmath.exp(1j * positions[b, s].item() * 50.0 ** (-2 * i / rotary_dim))
                for h in range(3):
                    z = complex(x[b, h, s, left], x[b, h, s, right]) * turn
                    expected[b, h, s, left], expected[b, h, s, right] = z.real, z.imag
    torch.testing.assert_close(turned, expected)


@settings(deadline=None)
@given(shift=st.integers(-1000, 1000), seed=st.integers(0, 99))
def test_products_depend_on_distances_only(shift: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 5, 8, dtype=torch.float64, generator=generator)
    rotary, positions = Rotary(8), torch.arange(5)
    logits = rotary(q, positions) @ rotary(k, positions).mT
    torch.testing.assert_close(rotary(q, positions + shift) @ rotary(k, positions + shift).mT, logits)


def test_rotary_stretches_positions() -> None:
    x = torch.randn(1, 1, 4, 8)
    torch.testing.assert_close(Rotary(8, stretch=4.0)(x, 4 * torch.arange(4)), Rotary(8)(x, torch.arange(4)))


def test_angles_keep_their_precision_in_16_bits() -> None:
    """In bfloat16 the position 1001 is 1000; the angle must not be."""
    x = torch.ones(1, 1, 1, 2)
    exact = Rotary(2)(x, torch.tensor([1001]))
    rounded = Rotary(2).bfloat16()(x.bfloat16(), torch.tensor([1001]))
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.02)


def test_rotate_takes_any_angles() -> None:
    x = torch.randn(2, 3, 4, 6)
    angles: Tensor = torch.randn(2, 4, 3)
    torch.testing.assert_close(rotate(rotate(x, angles), -angles), x)
    torch.testing.assert_close(rotate(x, angles[:, None]), rotate(x, angles))
    with pytest.raises(ShapeError, match=r"angles \(4, 4\) turn 8 channels, but x \(2, 3, 4, 6\) has fewer\."):
        rotate(x, torch.zeros(4, 4))


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match=r'layout is "half", expected one of: interleaved, halves\.'):
        SinusoidPositions(4, layout="half")
    with pytest.raises(ConfigError, match=r"dim is 0, expected 1 or more\."):
        SinusoidPositions(0)
    with pytest.raises(ConfigError, match=r"dim is 6, expected a multiple of 4"):
        SinePositions2d(6)
    with pytest.raises(ShapeError, match=r"mask \(3, 5\) is not \(batch, height, width\)\."):
        SinePositions2d(8)(torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(DtypeError, match=r"mask is torch\.float32, expected torch\.bool, True = real pixel\."):
        SinePositions2d(8)(torch.ones(1, 3, 5))
    for rotary_dim in (0, 3, 10):
        with pytest.raises(ConfigError, match=rf"rotary_dim is {rotary_dim}, expected an even number from 2 to head"):
            Rotary(8, rotary_dim=rotary_dim)
    with pytest.raises(ConfigError, match=r'pairing is "pairs", expected one of: halves, interleaved\.'):
        Rotary(8, pairing="pairs")
    with pytest.raises(ConfigError, match=r'pairing is "pairs", expected one of: halves, interleaved\.'):
        rotate(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1), pairing="pairs")
    with pytest.raises(ShapeError, match=r"x \(1, 1, 2, 6\) has head_dim 6, rotary was made for 8\."):
        Rotary(8)(torch.zeros(1, 1, 2, 6), torch.arange(2))


def test_print_shows_the_settings() -> None:
    assert "8, base=10000, rotary_dim=4, pairing='halves'" in repr(Rotary(8, rotary_dim=4))
    assert "4, base=10000, layout='interleaved'" in repr(SinusoidPositions(4))
    assert "LearnedPositions(3, 4)" in repr(LearnedPositions(3, 4))
    assert "8, base=10000, offset=0, normalize=True" in repr(SinePositions2d(8))
