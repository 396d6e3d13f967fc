"""Sensor graphs for networks that come without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from polyhead_traffic.data import SensorData, SensorGraph
from polyhead_traffic.formats.graph import kernel_weights

__all__ = ["EARTH_RADIUS_KM", "find_graph", "graph_from_coordinates", "graph_from_readings"]

EARTH_RADIUS_KM = 6371.0088
NEIGHBOURS = 8


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
    haversine = np.square(np.sin((latitude[:, None] - latitude) / 2))
    haversine += np.cos(latitude)[:, None] * np.cos(latitude) * np.square(np.sin((longitude[:, None] - longitude) / 2))
    distance_km = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(np.clip(haversine, 0, 1)))
    edges = _nearest(distance_km, neighbours)
    # Without a threshold: a remote sensor keeps its edges, however weak.
    weights, _ = kernel_weights(distance_km[edges[0], edges[1]], sigma=sigma, threshold=0.0)
    return SensorGraph(edges, np.maximum(weights, np.finfo(np.float32).tiny))


def graph_from_readings(data: SensorData, *, neighbours: int = NEIGHBOURS) -> SensorGraph:
    """Join each sensor to those whose training readings correlate most with its own, over what both observed.

    The daily course, which all sensors share, is taken out first: every reading counts as its difference from the mean
    of its slot of the day.
    """
    rows = slice(0, data.train_rows)
    values, mask = data.values[rows].astype(np.float64), data.mask[rows]
    slot = data.calendar[rows, 1]
    count = np.zeros((data.slots_per_day, values.shape[1]))
    total = np.zeros_like(count)
    np.add.at(count, slot, mask)
    np.add.at(total, slot, values)
    residual = np.where(mask, values - (total / np.maximum(count, 1))[slot], 0)
    norm = np.sqrt(np.square(residual).sum(axis=0))
    scaled = residual / np.where(norm > 0, norm, 1)
    correlation = np.clip(scaled.T @ scaled, 0, 1)
    edges = _nearest(1 - correlation, neighbours)
    weights = correlation[edges[0], edges[1]]
    return SensorGraph(edges, np.maximum(weights, np.finfo(np.float32).tiny))


def _nearest(distance: NDArray[np.float64], neighbours: int) -> NDArray[np.int64]:
    """Return (2, E): from every sensor to its nearest others."""
    nodes = len(distance)
    k = min(neighbours, nodes - 1)
    apart = distance + np.diag(np.full(nodes, np.inf))
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :k]
    return np.stack([np.repeat(np.arange(nodes), k), nearest.reshape(-1)]).astype(np.int64)
