"""Codes of places: how alike they are is a Gaussian of the distance."""

from __future__ import annotations

import pytest
import torch

from polyhead.errors import ConfigError
from polyhead_gaze.places import PLACES, PlaceCode, distance_table


def _cosine(code: torch.Tensor) -> torch.Tensor:
    unit = code / code.norm(dim=-1, keepdim=True)
    return unit @ unit.T


@pytest.mark.parametrize(("cells", "width", "sigma"), [(11, 86, 2.0), (14, 86, 2.0), (16, 11, 2.0), (9, 40, 1.5)])
def test_alike_as_a_gaussian_of_the_distance_wherever_it_is_measured(cells: int, width: int, sigma: float) -> None:
    found = _cosine(distance_table(cells, width, sigma))
    at = torch.arange(cells, dtype=torch.float64)
    expected = torch.exp(-((at[:, None] - at) ** 2) / (2 * sigma**2))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    for offset in range(cells):  # the same for any two cells that far apart
        band = found.diagonal(offset)
        assert float(band.max() - band.min()) < 1e-3


def test_between_cells_too() -> None:
    code = PlaceCode(96, "distance", cells=16, sigma=2.0)
    at = torch.linspace(0, 15, 61)
    place = torch.stack([at, torch.full_like(at, 3.3)], -1)
    axis = code(place, torch.zeros(61, dtype=torch.bool))[:, : code.width]
    expected = torch.exp(-((at[:, None] - at) ** 2) / 8)
    torch.testing.assert_close(_cosine(axis.double()).float(), expected, atol=5e-3, rtol=0)


def test_on_a_grid_it_is_the_table() -> None:
    between = PlaceCode(66, "distance", cells=12, sigma=2.0)
    table = PlaceCode(66, "table", cells=12, sigma=2.0)
    place = torch.stack(torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij"), -1).view(-1, 2)
    no = torch.zeros(len(place), dtype=torch.bool)
    rows, columns = 2 * between.width, 2 * table.width
    torch.testing.assert_close(between(place, no)[:, :rows], table(place, no)[:, :columns], atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", PLACES)
def test_the_target_is_marked_and_places_outside_count_as_the_outermost(kind: str) -> None:
    code = PlaceCode(30, kind, cells=8, sigma=2.0)
    place = torch.tensor([[1.0, 2.0], [7.0, 7.0], [40.0, 40.0]])
    plain, marked = (code(place, torch.full((3,), value)) for value in (False, True))
    assert plain.shape == (3, 30)
    assert not torch.equal(plain, marked)
    assert plain.isfinite().all()
    if kind in ("distance", "random", "none"):
        torch.testing.assert_close(plain[1], plain[2])


def test_random_codes_have_the_same_norm_and_no_distances() -> None:
    code = PlaceCode(96, "random", cells=16, sigma=2.0)
    at = torch.arange(16.0)
    axis = code(torch.stack([at, at], -1), torch.zeros(16, dtype=torch.bool))[:, : code.width]
    torch.testing.assert_close(axis.norm(dim=-1), torch.full((16,), code.width**0.5))
    assert float(_cosine(axis.detach()).diagonal(1).abs().mean()) < 0.4


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r'place is "polar", expected one of: distance, table'):
        PlaceCode(30, "polar", cells=8, sigma=2.0)
    with pytest.raises(ConfigError, match=r"cells is 1 and sigma 2.0: expected 2 cells or more"):
        PlaceCode(30, "distance", cells=1, sigma=2.0)
