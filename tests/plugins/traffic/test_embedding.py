"""Where sensors are: walks follow the edges and node2vec's bias, vectors of neighbours are alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyhead_traffic.data import SensorGraph
from polyhead_traffic.embedding import graph_data, laplacian, node2vec, skip_gram, spectral_partition, walks


def grid(side: int) -> SensorGraph:
    """Join each cell of a square to those beside and below it, both ways."""
    cells = np.arange(side * side).reshape(side, side)
    across = np.stack([cells[:, :-1].ravel(), cells[:, 1:].ravel()])
    down = np.stack([cells[:-1].ravel(), cells[1:].ravel()])
    one = np.concatenate([across, down], axis=1)
    edges = np.concatenate([one, one[::-1]], axis=1)
    return SensorGraph(edges, np.ones(edges.shape[1]))


def likeness(vectors: np.ndarray, graph: SensorGraph) -> tuple[float, float]:
    """Return the mean cosine of joined and of other pairs."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = unit @ unit.T
    joined = graph.dense(len(vectors)) > 0
    np.fill_diagonal(joined, False)
    other = ~joined & ~np.eye(len(vectors), dtype=bool)
    return float(cosine[joined].mean()), float(cosine[other].mean())


def walk(graph: SensorGraph, starts: list[int], *, p: float = 2.0, q: float = 1.0, length: int = 10) -> np.ndarray:
    return walks(graph, np.array(starts), p=p, q=q, length=length, generator=np.random.default_rng(0))


def test_walks_follow_edges_and_end_where_none_leads_on() -> None:
    graph = SensorGraph(np.array([[0, 1, 2], [1, 2, 3]]), np.ones(3))
    assert walk(graph, [0, 2, 3], length=5).tolist() == [[0, 1, 2, 3, -1], [2, 3, -1, -1, -1], [3, -1, -1, -1, -1]]


def test_first_steps_are_drawn_by_weight() -> None:
    graph = SensorGraph(np.array([[0, 0], [1, 2]]), np.array([1.0, 3.0]))
    share = (walk(graph, [0] * 20_000, length=2)[:, 1] == 2).mean()
    assert share == pytest.approx(0.75, abs=0.02)


def test_later_steps_have_the_bias_of_node2vec() -> None:
    # From 0 to 1, and then back to 0 (1/p), to 2, which 0 is joined to as well (1), or to 3, which it is not (1/q).
    edges = np.array([[0, 1, 1, 1, 0], [1, 0, 2, 3, 2]])
    graph = SensorGraph(edges, np.ones(5))
    path = walk(graph, [0] * 60_000, p=4.0, q=0.5, length=3)
    third = path[path[:, 1] == 1, 2]
    shares = np.bincount(third, minlength=4) / len(third)
    want = np.array([1 / 4, 0, 1, 2]) / 3.25
    np.testing.assert_allclose(shares, want, atol=0.02)


def test_self_loops_are_left_out() -> None:
    graph = SensorGraph(np.array([[0, 0, 1], [0, 1, 1]]), np.ones(3))
    assert graph_data(graph, 2).edge_index.tolist() == [[0], [1]]


def test_neighbours_are_alike() -> None:
    graph = grid(8)
    joined, other = likeness(node2vec(graph, 64, dim=16, walks_per_node=10, walk_length=20, window=3), graph)
    assert joined > other + 0.3


def test_the_seed_decides() -> None:
    graph = grid(4)

    def draw(seed: int) -> np.ndarray:
        return node2vec(graph, 16, dim=4, seed=seed, walks_per_node=2, walk_length=5, window=2, steps=20)

    np.testing.assert_array_equal(draw(1), draw(1))
    assert not np.allclose(draw(1), draw(2))


def test_sensors_without_edges_get_vectors() -> None:
    alone = SensorGraph(np.zeros((2, 0), dtype=np.int64), np.zeros(0))
    assert np.isfinite(node2vec(alone, 3, dim=4, walks_per_node=2, walk_length=4)).all()
    lonely = SensorGraph(np.array([[0, 1], [1, 0]]), np.ones(2))
    assert np.isfinite(laplacian(lonely, 3, dim=4)).all()
    assert node2vec(lonely, 3, dim=4, walks_per_node=2, walk_length=4).shape == (3, 4)


def test_skip_gram_recovers_the_shifted_pointwise_mutual_information() -> None:
    # With as many dimensions as nodes the optimum is known: u·v = log(c_ij Σc / (c_i π_j Σc)) − log(negatives).
    from scipy.sparse import csr_matrix

    counts = np.array([[4.0, 2.0, 1.0], [2.0, 6.0, 2.0], [1.0, 2.0, 3.0]])
    noise = counts.sum(0) ** 0.75 / (counts.sum(0) ** 0.75).sum()
    want = np.log(counts / (counts.sum(1, keepdims=True) * noise)) - np.log(5)
    vectors = skip_gram(csr_matrix(counts), dim=3, steps=1500)
    # The vectors u alone must span the rows of the optimum: the residual of the least-squares fit vanishes.
    fitted = vectors @ np.linalg.lstsq(vectors, want, rcond=None)[0]
    np.testing.assert_allclose(fitted, want, atol=1e-2)


def test_laplacian_gives_smooth_eigenvectors_with_a_fixed_sign() -> None:
    graph = grid(5)
    vectors = laplacian(graph, 25, dim=6)
    dense = graph.dense(25)
    degree = dense.sum(1)
    matrix = np.eye(25) - dense / np.sqrt(np.outer(degree, degree))
    values = np.einsum("nd,nm,md->d", vectors, matrix, vectors) / 25
    np.testing.assert_allclose(values, np.linalg.eigvalsh(matrix)[:6], atol=1e-5)
    for column in vectors.T:
        assert column[np.abs(column) > 0.99 * np.abs(column).max()][0] > 0


def test_laplacian_of_few_sensors_is_filled_with_zeros() -> None:
    vectors = laplacian(grid(2), 4, dim=6)
    assert vectors.shape == (4, 6)
    assert not vectors[:, 4:].any()


def test_metr_la_neighbours_are_as_alike_as_in_the_published_vectors(shared: Path) -> None:
    folder = shared / "data/traffic/metr-la-week"
    rows = np.loadtxt(folder / "Adj(METR).txt")
    rows = rows[rows[:, 2] > 0]
    graph = SensorGraph(rows[:, :2].T.astype(np.int64), rows[:, 2])
    lines = np.loadtxt(folder / "SE(METR).txt", skiprows=1)
    published = lines[np.argsort(lines[:, 0]), 1:]
    joined, other = likeness(published, graph)
    own_joined, own_other = likeness(node2vec(graph, 207, walks_per_node=10, steps=100), graph)
    assert own_joined - own_other > joined - other


def inside(graph: SensorGraph, labels: np.ndarray) -> float:
    """Return the share of edges that stay within a group."""
    return float((labels[graph.edges[0]] == labels[graph.edges[1]]).mean())


def test_spectral_partition_cuts_few_edges() -> None:
    graph = grid(8)
    labels = spectral_partition(graph, (4,) * 16)
    assert np.bincount(labels).tolist() == [4] * 16
    # Squares of four keep 64 of 112 edges, chance 5 %.
    assert inside(graph, labels) > 0.4
    np.testing.assert_array_equal(labels, spectral_partition(graph, (4,) * 16))


def test_spectral_partition_follows_the_order_of_a_line_and_the_sizes() -> None:
    line = SensorGraph(np.stack([np.arange(9), np.arange(1, 10)]), np.ones(9))
    labels = spectral_partition(line, (5, 3, 2))
    assert np.bincount(labels).tolist() == [5, 3, 2]
    assert (np.diff(labels) != 0).sum() == 2


def test_spectral_partition_keeps_separate_networks_apart() -> None:
    one, other = grid(3).edges, grid(3).edges + 9
    graph = SensorGraph(np.concatenate([one, other], axis=1), np.ones(2 * one.shape[1]))
    assert inside(graph, spectral_partition(graph, (9, 9))) == 1
    alone = SensorGraph(np.zeros((2, 0), dtype=np.int64), np.zeros(0))
    assert np.bincount(spectral_partition(alone, (2, 2, 1))).tolist() == [2, 2, 1]


def test_spectral_partition_of_a_large_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sparse eigenvector cuts as well as the exact one."""
    graph, sizes = grid(12), (12,) * 12
    exact = inside(graph, spectral_partition(graph, sizes))
    monkeypatch.setattr("polyhead_traffic.embedding.DENSE_NODES", 30)
    assert inside(graph, spectral_partition(graph, sizes)) == pytest.approx(exact, abs=0.1)
