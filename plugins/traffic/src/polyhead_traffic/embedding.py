"""Vectors that tell a model where a sensor is in the road network: node2vec, or eigenvectors of the Laplacian."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from torch_geometric.data import Data

    from polyhead_traffic.data import SensorGraph

__all__ = ["graph_data", "laplacian", "node2vec", "skip_gram", "spectral_partition", "walks"]

DENSE_NODES = 2000
"""Up to this many sensors all eigenvectors are computed, which is exact; beyond, only those that are wanted."""
ROWS = 512
"""Sensors whose dot products with all others are in memory at a time."""


def graph_data(graph: SensorGraph, nodes: int) -> Data:
    """Return a sensor graph as torch-geometric's ``Data``: ``edge_index`` (2, E), ``edge_weight`` (E,); no self-loops.

    A sensor's edge to itself, which distance files list with distance 0, says nothing about where it is.
    """
    geometric = _geometric()
    edges = torch.from_numpy(np.ascontiguousarray(graph.edges, dtype=np.int64))
    weights = torch.from_numpy(np.ascontiguousarray(graph.weights, dtype=np.float32))
    edges, weights = geometric.utils.remove_self_loops(edges, weights)
    return geometric.data.Data(edge_index=edges, edge_weight=weights, num_nodes=nodes)


def node2vec(
    graph: SensorGraph,
    nodes: int,
    *,
    dim: int = 64,
    seed: int = 0,
    p: float = 2.0,
    q: float = 1.0,
    walks_per_node: int = 100,
    walk_length: int = 80,
    window: int = 10,
    steps: int = 300,
) -> NDArray[np.float32]:
    """Embed sensors so that those which random walks visit together are alike.

    Args:
        graph: directed, weighted.
        nodes: number of sensors N; those without an edge get vectors too, alike no other's.
        dim: size of a vector.
        seed: of walks and start values; the same seed gives the same vectors on the same machine.
        p: divides the chance of going straight back.
        q: divides the chance of leaving the neighbourhood of the sensor before.
        walks_per_node: walks that start at each sensor.
        walk_length: sensors of a walk.
        window: how many sensors apart two may be to count as visited together.
        steps: steps of the optimiser.

    Returns:
        Shape (nodes, dim), float32.

    Complexity: O(N · walks_per_node · walk_length · window) time for the walks, O(steps · N² · dim) for the vectors;
    O(edges + N · walk_length + ROWS · N) memory.
    Source: Grover and Leskovec 2016, arXiv:1607.00653; sizes of GMAN, section "Experimental settings".
    Differs: skip-gram sums over the counted pairs instead of drawing them one by one (`skip_gram`).
    """
    together = _pairs(graph, nodes, p, q, walks_per_node, walk_length, window, seed)
    return skip_gram(together, dim=dim, steps=steps, seed=seed)


def walks(
    graph: SensorGraph, starts: NDArray[np.int64], *, p: float, q: float, length: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Walk from each start, biased by where the walk was two steps ago.

    The next sensor is drawn by weight and kept with a chance proportional to node2vec's bias (1/p back, 1 to a
    neighbour of the sensor before, 1/q elsewhere), else drawn anew: exact, and in memory proportional to the edges.

    Args:
        graph: directed, weighted.
        starts: first sensors, shape (W,).
        p: divides the chance of going straight back.
        q: divides the chance of leaving the neighbourhood of the sensor before.
        length: sensors of a walk.
        generator: draws.

    Returns:
        Shape (W, length); −1 after a sensor from which no edge leads on.
    """
    nodes = int(max(starts.max(initial=-1), graph.edges.max(initial=-1))) + 1
    data = graph_data(graph, nodes)
    edge_index, edge_weight = _geometric().utils.coalesce(
        data.edge_index, data.edge_weight, num_nodes=nodes, reduce="max"
    )
    source, target = edge_index.numpy()
    keys = source * nodes + target  # sorted: coalesce sorts by source, then target
    last = np.cumsum(edge_weight.numpy().astype(np.float64))
    first_edge = np.searchsorted(source, np.arange(nodes + 1))
    before = np.concatenate([[0.0], last])

    def draw(at: NDArray[np.int64]) -> NDArray[np.int64]:
        low, high = before[first_edge[at]], before[first_edge[at + 1]]
        edge = np.searchsorted(last, low + generator.random(len(at)) * (high - low), side="right")
        # Rounding may reach the end of a row; it must not reach the next sensor's edges.
        return target[np.clip(edge, first_edge[at], first_edge[at + 1] - 1)]

    path = np.full((len(starts), length), -1, dtype=np.int64)
    path[:, 0] = starts
    largest = max(1 / p, 1.0, 1 / q)
    for step in range(1, length):
        here = path[:, step - 1]
        open_ = np.flatnonzero((here >= 0) & (first_edge[here] < first_edge[here + 1]))
        while len(open_):
            at = here[open_]
            to = draw(at)
            if step > 1:
                back = path[open_, step - 2]
                key = back * nodes + to
                found = np.searchsorted(keys, key)
                near = keys[np.minimum(found, len(keys) - 1)] == key
                bias = np.where(to == back, 1 / p, np.where(near, 1.0, 1 / q))
                kept = generator.random(len(to)) * largest < bias
            else:
                kept = np.ones(len(to), dtype=bool)
            path[open_[kept], step] = to[kept]
            open_ = open_[~kept]
    return path


def skip_gram(
    together: csr_matrix, *, dim: int, steps: int = 300, negatives: int = 5, seed: int = 0
) -> NDArray[np.float32]:
    r"""Fit vectors to counts of pairs by skip-gram with negative sampling, in expectation.

    .. math:: \max \sum_{ij} c_{ij} \log \sigma(u_i \cdot v_j)
        + \text{negatives} \sum_{ij} c_i \, \pi_j \log \sigma(-u_i \cdot v_j), \qquad \pi_j \propto c_j^{3/4}

    Args:
        together: counts, shape (N, N).
        dim: size of a vector.
        steps: steps of Adam over all pairs.
        negatives: pairs drawn at random for each counted one.
        seed: of the start values.

    Returns:
        The vectors u, shape (N, dim), float32.

    Source: Mikolov et al. 2013, arXiv:1310.4546, eq. 4, with its expectation taken (Levy and Goldberg 2014, eq. 4).
    """
    nodes = together.shape[0]
    generator = torch.Generator().manual_seed(seed)
    u = (torch.rand(nodes, dim, generator=generator) - 0.5) / dim**0.5
    v = (torch.rand(nodes, dim, generator=generator) - 0.5) / dim**0.5
    u.requires_grad_()
    v.requires_grad_()
    total = float(together.sum())
    if total == 0:
        return u.detach().numpy()
    share = torch.from_numpy(np.asarray(together.sum(axis=1), dtype=np.float32).ravel() / total)
    noise = torch.from_numpy(np.asarray(together.sum(axis=0), dtype=np.float32).ravel()).pow(0.75)
    noise /= noise.sum()
    optimizer = torch.optim.Adam([u, v], lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        for first in range(0, nodes, ROWS):
            rows = slice(first, min(first + ROWS, nodes))
            counts = torch.from_numpy(together[rows].toarray().astype(np.float32) / total)
            logits = u[rows] @ v.T
            # log σ(−x) = log σ(x) − x, so one softplus serves both terms.
            against = negatives * share[rows, None] * noise
            loss = ((counts + against) * F.softplus(-logits)).sum() + (against * logits).sum()
            (loss * nodes).backward()
        optimizer.step()
    return u.detach().numpy()


def laplacian(graph: SensorGraph, nodes: int, *, dim: int = 64, seed: int = 0) -> NDArray[np.float32]:
    """Embed sensors by the smoothest eigenvectors of the normalised Laplacian of the graph, edges taken both ways.

    The constant eigenvector of each connected part counts as one of them. An eigenvector's sign is arbitrary: here the
    first of its largest entries is positive. Scaled to a mean square of 1; columns beyond the number of sensors are 0.

    Args:
        graph: directed, weighted.
        nodes: number of sensors N.
        dim: number of eigenvectors.
        seed: of the iteration that finds them where there are more than `DENSE_NODES` sensors.

    Returns:
        Shape (nodes, dim), float32.

    Source: Dwivedi and Bresson 2020, arXiv:2012.09699, section 2.1.
    """
    from scipy.sparse.linalg import eigsh

    utils = _geometric().utils
    data = graph_data(graph, nodes)
    both = utils.to_undirected(data.edge_index, data.edge_weight.double(), num_nodes=nodes, reduce="max")
    index, weight = utils.get_laplacian(*both, normalization="sym", num_nodes=nodes)
    matrix = utils.to_scipy_sparse_matrix(index, weight, num_nodes=nodes).tocsr()
    wanted = min(dim, nodes)
    if nodes <= DENSE_NODES:
        vectors = np.linalg.eigh(matrix.toarray())[1][:, :wanted]
    else:
        start = np.random.default_rng(seed).standard_normal(nodes)
        values, vectors = eigsh(matrix, k=wanted, sigma=-0.01, which="LM", v0=start)
        vectors = vectors[:, np.argsort(values)]
    size = np.abs(vectors)
    # The first of the largest: in a symmetric network several are equal up to rounding.
    largest = (size > 0.99 * size.max(axis=0)).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(wanted)]) * np.sqrt(nodes)
    return np.pad(vectors, ((0, 0), (0, dim - wanted))).astype(np.float32)


def spectral_partition(graph: SensorGraph, sizes: Sequence[int]) -> NDArray[np.int64]:
    """Cut a network into groups of given sizes that few edges join: for attention in groups.

    The sensors, in the order of the second eigenvector of the normalised Laplacian (edges taken both ways), are cut
    in two, and each part again, until every part is one group. Equal networks give equal partitions.

    Args:
        graph: directed, weighted.
        sizes: sensors of each group, such as ``balanced_sizes(nodes, group_size)``; their sum is the number of sensors.

    Returns:
        The group of each sensor, shape (N,), numbered as in ``sizes``.

    Complexity: O(N³) up to `DENSE_NODES` sensors in a part; beyond, that of a sparse eigenvector.
    Source: Shi and Malik 2000, "Normalized Cuts and Image Segmentation", cut where the sizes ask for it.
    """
    utils = _geometric().utils
    nodes = sum(sizes)
    data = graph_data(graph, nodes)
    both = utils.to_undirected(data.edge_index, data.edge_weight.double(), num_nodes=nodes, reduce="max")
    matrix = utils.to_scipy_sparse_matrix(*both, num_nodes=nodes).tocsr()
    labels = np.empty(nodes, dtype=np.int64)
    parts = [(np.arange(nodes), 0, len(sizes))]
    while parts:
        own, first, last = parts.pop()
        if last - first == 1:
            labels[own] = first
            continue
        middle = (first + last) // 2
        order = own[np.argsort(_fiedler(matrix[own][:, own]), kind="stable")]
        cut = sum(sizes[first:middle])
        parts += [(np.sort(order[:cut]), first, middle), (np.sort(order[cut:]), middle, last)]
    return labels


def _fiedler(weights: csr_matrix) -> NDArray[np.float64]:
    """Return the second eigenvector of the random-walk Laplacian of symmetric weights."""
    from scipy.sparse import diags_array, eye_array
    from scipy.sparse.linalg import eigsh

    degree = np.asarray(weights.sum(axis=1)).ravel()
    # A sensor without edges keeps a row of its own.
    root = diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1.0)))
    laplacian = eye_array(weights.shape[0]) - root @ weights @ root
    if weights.shape[0] <= DENSE_NODES:
        second = np.linalg.eigh(laplacian.toarray())[1][:, 1]
    else:
        start = np.random.default_rng(0).standard_normal(weights.shape[0])
        values, vectors = eigsh(laplacian.tocsc(), k=2, sigma=-0.01, which="LM", v0=start)
        second = vectors[:, np.argsort(values)[1]]
    # An eigenvector of one part of a network is 0 elsewhere up to rounding, which must not decide an order.
    return np.round(root @ second, 9)


def _geometric() -> ModuleType:
    """Import torch-geometric without the deprecation of torch.jit.script, which torch raises on its classes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.script.*", category=FutureWarning)
        import torch_geometric

        for part in ("data", "utils"):
            importlib.import_module(f"torch_geometric.{part}")
    return torch_geometric


def _pairs(
    graph: SensorGraph, nodes: int, p: float, q: float, walks_per_node: int, length: int, window: int, seed: int
) -> csr_matrix:
    """Return how often two sensors were at most ``window`` apart on a walk, nearer pairs counting more."""
    from scipy.sparse import coo_matrix, csr_matrix

    generator = np.random.default_rng(seed)
    counts = csr_matrix((nodes, nodes), dtype=np.float64)
    for _ in range(walks_per_node):
        path = walks(graph, np.arange(nodes), p=p, q=q, length=length, generator=generator)
        rows, columns, values = [], [], []
        for apart in range(1, min(window, length - 1) + 1):
            one, other = path[:, :-apart].ravel(), path[:, apart:].ravel()
            # A walk that comes back makes a pair of a sensor with itself, as in word2vec: without these, vectors of
            # neighbours are much less alike.
            seen = (one >= 0) & (other >= 0)
            rows += [one[seen], other[seen]]
            columns += [other[seen], one[seen]]
            # word2vec draws its window from 1 to ``window``; this is the chance that the pair falls into it.
            values.append(np.full(2 * int(seen.sum()), (window - apart + 1) / window))
        counts = counts + coo_matrix(
            (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(nodes, nodes)
        )
    return counts.tocsr()
