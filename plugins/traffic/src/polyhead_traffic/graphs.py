"""Sensor graphs for networks that come without one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from polyhead_traffic.data import SensorData, SensorGraph
from polyhead_traffic.formats.graph import kernel_weights
from polyhead_traffic.formats.table import scratch

__all__ = ["EARTH_RADIUS_KM", "find_graph", "graph_from_coordinates", "graph_from_readings"]

EARTH_RADIUS_KM = 6371.0088
NEIGHBOURS = 8
BLOCK = 256
"""Rows, or sensors, that are looked at together."""


def find_graph(data: SensorData) -> tuple[SensorGraph, str]:
    """Return the graph of a network and what it was made from: given, else from coordinates, else from readings."""
    if data.graph is not None:
        return data.graph, "the graph of the data"
    if data.coordinates is not None:
        return graph_from_coordinates(data.coordinates), f"the {NEIGHBOURS} nearest sensors by coordinates"
    return graph_from_readings(data), f"the {NEIGHBOURS} sensors of most similar training readings"


def graph_from_coordinates(
    coordinates: NDArray[np.float64], *, neighbours: int = NEIGHBOURS, sigma: float = 0.0
) -> SensorGraph:
    """Join each sensor to its nearest ones by great-circle distance, with weights by a Gaussian kernel.

    Args:
        coordinates: latitude and longitude in degrees, shape (N, 2).
        neighbours: edges from each sensor.
        sigma: width of the kernel in km; 0: the standard deviation of the distances of all edges.
    """
    latitude, longitude = np.radians(coordinates).T

    def distance_km(rows: slice) -> NDArray[np.float64]:
        haversine = np.square(np.sin((latitude[rows, None] - latitude) / 2))
        across = np.square(np.sin((longitude[rows, None] - longitude) / 2))
        haversine += np.cos(latitude[rows])[:, None] * np.cos(latitude) * across
        return 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(haversine, 0, 1)))

    edges, distances = _nearest(distance_km, len(coordinates), neighbours)
    # Without a threshold: a remote sensor keeps its edges, however weak.
    weights, _ = kernel_weights(distances, sigma=sigma, threshold=0.0)
    return SensorGraph(edges, np.maximum(weights, np.finfo(np.float32).tiny))


def graph_from_readings(data: SensorData, *, neighbours: int = NEIGHBOURS) -> SensorGraph:
    """Join each sensor to those whose training readings correlate most with its own, over what both observed.

    The daily course, which all sensors share, is taken out first: every reading counts as its difference from the mean
    of its slot of the day.
    """
    scaled = _scaled_residuals(data)

    def distance(rows: slice) -> NDArray[np.float64]:
        return 1 - np.clip(scaled[:, rows].T @ scaled, 0, 1).astype(np.float64)

    edges, distances = _nearest(distance, len(data.ids), neighbours)
    return SensorGraph(edges, np.maximum(1 - distances, np.finfo(np.float32).tiny))


def _scaled_residuals(data: SensorData) -> NDArray[np.float32]:
    """Return (rows, N): what training readings differ from the mean of their slot, of length 1 for each sensor.

    Row by row, and in a file where it is large, as the readings themselves may be.
    """
    rows, nodes = data.train_rows, len(data.ids)
    slot = data.calendar[:rows, 1]
    count, total = np.zeros((data.slots_per_day, nodes)), np.zeros((data.slots_per_day, nodes))
    parts = [slice(first, min(first + BLOCK, rows)) for first in range(0, rows, BLOCK)]
    for part in parts:
        np.add.at(count, slot[part], data.mask[part])
        np.add.at(total, slot[part], data.values[part])
    usual = total / np.maximum(count, 1)
    residual = scratch(data.name, rows, nodes)
    power = np.zeros(nodes)
    for part in parts:
        residual[part] = np.where(data.mask[part], data.values[part] - usual[slot[part]], 0)
        power += np.square(residual[part], dtype=np.float64).sum(axis=0)
    for part in parts:
        residual[part] /= np.sqrt(np.where(power > 0, power, 1))
    return residual


def _nearest(
    distance: Callable[[slice], NDArray[np.float64]], nodes: int, neighbours: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (2, E), from every sensor to its nearest others, and their distances; a few sensors at a time.

    Args:
        distance: gives those of some sensors to all, (rows, N).
        nodes: N.
        neighbours: at most that many for each sensor.
    """
    k = min(neighbours, nodes - 1)
    nearest, found = [], []
    for first in range(0, nodes, BLOCK):
        rows = slice(first, min(first + BLOCK, nodes))
        apart = distance(rows)
        apart[np.arange(len(apart)), np.arange(rows.start, rows.stop)] = np.inf
        order = np.argsort(apart, axis=1, kind="stable")[:, :k]
        nearest.append(order)
        found.append(np.take_along_axis(apart, order, axis=1))
    edges = np.stack([np.repeat(np.arange(nodes), k), np.concatenate(nearest).reshape(-1)])
    return edges.astype(np.int64), np.concatenate(found).reshape(-1)
