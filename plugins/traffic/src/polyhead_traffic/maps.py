"""Pictures of the network: where errors are, and which sensors one of them attends to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from polyhead.protocols import Batch, Picture
from polyhead_traffic.data import SensorData
from polyhead_traffic.drawing import MODEL, canvas, captioned, short, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from torch import Tensor, nn

    from polyhead_traffic.task import ForecastTask

__all__ = ["attention_of_sensor", "attention_picture", "error_of_sensors", "graph_layout"]

_LARGEST_LAYOUT = 1500
_LISTED = 12


def error_of_sensors(data: SensorData, mae: NDArray[np.floating], *, model: str = "forecast") -> Picture:
    """Draw the mean absolute error of each sensor: on the map, on the graph's layout, or in order of size.

    Args:
        data: the sensors; with ``coordinates`` a map is drawn, else its graph is laid out if it has one.
        mae: shape (N,), in the data's unit; NaN for a sensor without an observed reading.
        model: what made the forecast.
    """
    if not _has_places(data):
        return _error_in_order(data, mae, model)
    with canvas(data, 4.6) as (figure, finish):
        axes = figure.subplots()
        points, _ = _draw_network(axes, data, mae)
        figure.colorbar(points, ax=axes, label=f"MAE{unit(data, ', ')}", shrink=0.85)
        png = finish()
    caption = f"Mean absolute error of {model} at each sensor, all steps ahead, {_where(data)}"
    if (unseen := int((~np.isfinite(mae)).sum())) > 0:
        caption += f" Hollow: without an observed reading ({unseen})."
    return captioned("Where the error is", caption, data, png)


def _error_in_order(data: SensorData, mae: NDArray[np.floating], model: str) -> Picture:
    known = np.sort(mae[np.isfinite(mae)])
    with canvas(data, 3.4) as (figure, finish):
        axes = figure.subplots()
        axes.step(np.arange(1, len(known) + 1), known, color=MODEL, lw=1.8, where="mid")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("sensors, in order of their error")
        axes.set_ylabel(f"MAE{unit(data, ', ')}")
        axes.grid(alpha=0.3)
        png = finish()
    caption = (
        f"Mean absolute error of {model} at each of {len(known):,} sensors, all steps ahead, from least to largest."
    )
    return captioned("Where the error is", caption, data, png)


def attention_of_sensor(task: ForecastTask, model: nn.Module, batch: Batch, sensor: int) -> NDArray[np.float64] | None:
    """Return how much a sensor attends to each one in the model's first spatial attention, shape (N,), sum 1.

    The mean over windows, past steps and heads. With attention in groups: to the members of its group, NaN elsewhere,
    since what comes from other groups is one feature for all of them. None for a model without spatial attention.

    Args:
        task: runs the model.
        model: in evaluation mode.
        batch: windows, as a source gives them.
        sensor: its position.

    Complexity: one forward pass; O(B·P·N) memory for the weights.
    """
    import torch

    from polyhead_traffic.attention import SpatialAttention

    first = next((module for module in model.modules() if isinstance(module, SpatialAttention)), None)
    if first is None:
        return None
    kept: list[tuple[Tensor, ...]] = []
    handle = first.project.register_forward_hook(lambda _module, _inputs, output: kept.append(output[:2]))
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            task.predict(model, {name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        handle.remove()
    q, k = kept[0]
    # With groups, sensors stand in their order, group by group.
    order = getattr(model, "order", None)
    place = torch.arange(q.shape[2]) if order is None else order.cpu()
    at = int((place == sensor).nonzero())
    ends = np.cumsum(getattr(getattr(model, "config", None), "groups", ()) or (q.shape[2],))
    group = int(np.searchsorted(ends, at, side="right"))
    members = slice(int(ends[group - 1]) if group else 0, int(ends[group]))
    logits = torch.einsum("bshd,bsnhd->bshn", q[:, :, at], k[:, :, members]) * q.shape[-1] ** -0.5
    weights = np.full(q.shape[2], np.nan)
    weights[place[members].numpy()] = logits.double().softmax(-1).mean(dim=(0, 1, 2)).cpu().numpy()
    return weights


def attention_picture(
    data: SensorData, weights: NDArray[np.floating], sensor: int, *, model: str = "forecast", note: str = ""
) -> Picture:
    """Draw which sensors one of them attends to: on the map, on the graph's layout, or the most attended as bars.

    Args:
        data: the sensors.
        weights: of `attention_of_sensor`, shape (N,).
        sensor: whose weights they are; marked by a cross.
        model: what attends.
        note: ends the caption.
    """
    share = weights * np.isfinite(weights).sum()
    if _has_places(data):
        with canvas(data, 4.6) as (figure, finish):
            axes = figure.subplots()
            # Attention is often heaped on a few sensors: factors show the others too.
            points, places = _draw_network(axes, data, share, factors=True)
            axes.scatter(
                places[sensor, 0], places[sensor, 1], marker="x", s=90, color="#D55E00", linewidths=2.2, zorder=4
            )
            figure.colorbar(points, ax=axes, label="attention, 1 = even share", shrink=0.85)
            png = finish()
        where = f", {_where(data)}"
    else:
        listed = np.argsort(np.nan_to_num(share, nan=-1))[-_LISTED:]
        with canvas(data, 3.4) as (figure, finish):
            axes = figure.subplots()
            axes.barh([short(data.ids[i]) for i in listed], share[listed], color=MODEL)
            axes.set_xlabel("attention, 1 = even share")
            png = finish()
        where = f": the {len(listed)} that it attends to most."
    caption = (
        f"What sensor {short(data.ids[sensor])} attends to in the first spatial attention of {model}: mean over "
        f"windows of the test split, past steps and heads{where}"
    )
    if np.isnan(weights).any():
        caption += (
            f" Hollow: sensors of other groups ({int(np.isnan(weights).sum())}), seen through one common feature."
        )
    return captioned("What one sensor attends to", f"{caption}{note}", data, png)


def _has_places(data: SensorData) -> bool:
    return data.coordinates is not None or (data.graph is not None and len(data.ids) <= _LARGEST_LAYOUT)


def _where(data: SensorData) -> str:
    on = "on the map" if data.coordinates is not None else "on a layout of the graph (positions mean nothing else)"
    return f"{on}. Grey lines: the graph."


def _draw_network(
    axes: Axes, data: SensorData, values: NDArray[np.floating], *, factors: bool = False
) -> tuple[PathCollection, NDArray[np.float64]]:
    """Draw sensors by value, NaN hollow, and the graph; return the coloured points and the places (N, 2).

    With ``factors`` equal steps of colour are equal factors, down to a thousandth of the largest value.
    """
    from matplotlib.colors import LogNorm

    if data.coordinates is not None:
        places = data.coordinates[:, ::-1]
        axes.set_aspect(1 / max(np.cos(np.deg2rad(places[:, 1].mean())), 0.05), adjustable="datalim")
        axes.set_xlabel("longitude, °")
        axes.set_ylabel("latitude, °")
        axes.ticklabel_format(useOffset=False)
        axes.locator_params(nbins=4)
    else:
        places = graph_layout(data)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])
    _draw_edges(axes, data, places)
    unseen = ~np.isfinite(values)
    size = float(np.clip(3000 / len(data.ids), 8, 46))
    axes.scatter(places[unseen, 0], places[unseen, 1], s=size, facecolors="none", edgecolors="0.5", linewidths=0.8)
    high = max(float(np.nanmax(values, initial=0)), 1e-9)
    low = float(np.clip(np.nanmin(values, initial=high), high / 1000, high / 1.1))
    # The largest values come last, on top of their neighbours.
    order = np.flatnonzero(~unseen)[np.argsort(values[~unseen])]
    points = axes.scatter(
        places[order, 0],
        places[order, 1],
        c=values[order],
        s=size,
        cmap="cividis",
        norm=LogNorm(low, high) if factors else None,
        edgecolors="white",
        linewidths=0.4,
        zorder=3,
    )
    return points, places


def graph_layout(data: SensorData, *, rounds: int = 60) -> NDArray[np.float64]:
    """Lay out the sensors in the plane so that neighbours are near: positions (N, 2), the same at every call.

    Starts from the graph's two slowest Laplacian eigenvectors and moves the nodes by springs and repulsion.
    Complexity: O(N³) once and O(rounds · N²).
    Source: Fruchterman and Reingold 1991.
    """
    nodes = len(data.ids)
    weights = data.graph.dense(nodes) if data.graph is not None else np.zeros((nodes, nodes))
    near = np.minimum(weights + weights.T, 1.0)
    np.fill_diagonal(near, 0)
    # A touch of weight everywhere joins the parts of a graph that is in pieces.
    joined = near + 1e-3 / nodes
    degree = joined.sum(axis=1)
    _, vectors = np.linalg.eigh(np.eye(nodes) - joined / np.sqrt(np.outer(degree, degree)))
    places = vectors[:, [1, min(2, nodes - 1)]] * np.sqrt(nodes)
    # Sensors that the graph cannot tell apart would stay on top of each other.
    places = places + 1e-3 * np.random.default_rng(0).standard_normal(places.shape)
    ideal = 1 / np.sqrt(nodes)
    for reach in np.linspace(0.1, 0.005, rounds):
        offset = places[:, None] - places[None]
        distance = np.maximum(np.sqrt((offset**2).sum(-1)), 1e-3)
        force = ideal**2 / distance**2 - near * distance / ideal
        move = (offset * force[..., None]).sum(axis=1)
        length = np.maximum(np.sqrt((move**2).sum(-1, keepdims=True)), 1e-9)
        places = places + move / length * np.minimum(length, reach)
    return places


def _draw_edges(axes: Axes, data: SensorData, places: NDArray[np.float64]) -> None:
    if data.graph is None:
        return
    from matplotlib.collections import LineCollection

    tail, head = data.graph.edges[:, data.graph.edges[0] != data.graph.edges[1]]
    alpha = float(np.clip(400 / max(len(tail), 1), 0.08, 0.5))
    axes.add_collection(
        LineCollection(
            list(np.stack([places[tail], places[head]], axis=1)), colors="0.5", lw=0.6, alpha=alpha, zorder=1
        )
    )
