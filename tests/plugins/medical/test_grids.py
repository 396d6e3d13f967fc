"""The way to the network and back: orientation, crop and size are undone exactly, volumes stay."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation as apply_nibabel
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from polyhead_medical.grids import Grid, head_box

ORIENTATIONS = [
    "".join(codes) for order in itertools.permutations(("LR", "PA", "IS")) for codes in itertools.product(*order)
]


def stored_as(codes: str, array: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]) -> tuple[Any, Any]:
    """Return a RAS array and its affine as a scanner of another orientation would have stored them."""
    change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes))
    return np.ascontiguousarray(apply_nibabel(array, change)), affine @ inv_ornt_aff(change, array.shape)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_all_48_orientations_are_seen_alike_and_undone_exactly(codes: str) -> None:
    rng = np.random.default_rng(0)
    array, affine = rng.random((6, 7, 8)), np.diag([0.9, 1.1, 1.5, 1.0])
    turned, other = stored_as(codes, array, affine)
    grid = Grid.whole(turned.shape, other)
    assert grid.orientation == codes
    assert grid.voxel_ml == pytest.approx(0.9 * 1.1 * 1.5 / 1000)
    seen = grid.to_network(torch.from_numpy(turned)[None])
    assert torch.equal(seen[0], torch.from_numpy(array))
    assert torch.equal(grid.to_stored(seen)[0], torch.from_numpy(turned))


def test_a_ball_of_10_mm_survives_the_network_grid_and_keeps_its_volume() -> None:
    shape, spacing = (150, 160, 90), (0.9, 0.9, 1.5)
    places = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"))
    truth = ((places - np.array([70.3, 66.1, 61.7])[:, None, None, None]) ** 2).sum(0) <= 100
    grid = Grid.whole(shape, np.diag([*spacing, 1]), (64, 64, 72)).cut_to(((5, 145), (10, 150), (2, 88)))
    back = grid.to_stored(grid.to_network(torch.from_numpy(truth).float()[None]))[0].numpy() >= 0.5
    assert back.shape == shape
    assert 2 * (back & truth).sum() / (back.sum() + truth.sum()) >= 0.93
    assert back.sum() == pytest.approx(truth.sum(), rel=0.08)  # a coarse grid rounds off what is convex
    assert truth.sum() * grid.voxel_ml == pytest.approx(4 / 3 * np.pi, rel=0.02)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.integers(4, 20)] * 3), st.tuples(*[st.integers(4, 20)] * 3), st.sampled_from(ORIENTATIONS))
def test_a_constant_stays_constant_inside_the_box_and_0_outside(
    shape: tuple[int, int, int], size: tuple[int, int, int], codes: str
) -> None:
    array, affine = stored_as(codes, np.ones(shape), np.eye(4))
    grid = Grid.whole(array.shape, affine, size).cut_to(((1, shape[0]), (0, shape[1] - 1), (1, shape[2])))
    seen = grid.to_network(torch.from_numpy(array)[None])
    torch.testing.assert_close(seen, torch.ones_like(seen))
    back = grid.to_stored(seen)
    inside = (shape[0] - 1) * (shape[1] - 1) * (shape[2] - 1)
    assert float(back.sum()) == pytest.approx(inside)
    assert back.shape[1:] == array.shape


def test_sheared_grids_are_measured_by_the_determinant() -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 1.0
    grid = Grid.whole((4, 4, 4), affine)
    assert grid.voxel_ml == pytest.approx(0.002)
    assert grid.spacing_mm[2] == pytest.approx(5**0.5)


def test_the_head_is_the_largest_bright_part() -> None:
    scan = torch.zeros(40, 30, 20)
    scan[10:30, 5:25, 4:16] = 0.6
    scan[0, 0, 0] = 1.0
    assert head_box(scan) == ((9, 31), (4, 26), (3, 17))
    assert head_box(torch.zeros(5, 6, 7)) == ((0, 5), (0, 6), (0, 7))
