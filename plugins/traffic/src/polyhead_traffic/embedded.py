"""The dataset that ships with the plugin: 28 days of a simulated road network.

The arrays were made by ``traffic-forecast simulate`` with its defaults and were frozen before any model was trained on
them; they are read, never made again, because another version of UXsim or NumPy gives other traffic.
"""

from __future__ import annotations

import hashlib
import io
import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from polyhead.artifacts import json_bytes, write_atomic
from polyhead.errors import DataError
from polyhead_traffic.data import SensorData, SensorGraph
from polyhead_traffic.formats.graph import kernel_weights

if TYPE_CHECKING:
    from polyhead_traffic.simulate import Simulation

__all__ = ["NAME", "embedded_record", "freeze", "load_embedded"]

NAME = "simulated-roads"
LICENCE = "Apache-2.0"
_SCALE = 100
"""Speeds are stored as whole hundredths of a km/h, which is what the simulation gives."""
_LARGEST = 1 << 20


def freeze(simulation: Simulation, folder: Path) -> None:
    """Write a simulation as the two files that ``load_embedded`` reads: arrays (no pickles), and their record."""
    network = simulation.network
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        speed=np.round(simulation.speed_kmh * _SCALE).astype(np.uint16),
        free_flow=np.round(network.free_flow_kmh * _SCALE).astype(np.uint16),
        ids=np.array(network.ids),
        edges=network.edges.astype(np.uint16),
        distance_m=network.distance_m.astype(np.float32),
        coordinates=network.coordinates.round(6),
    )
    record = {
        "name": NAME,
        "licence": LICENCE,
        "file": f"{NAME}.npz",
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "scale": _SCALE,
        **simulation.record(),
    }
    write_atomic(folder / f"{NAME}.npz", buffer.getvalue())
    write_atomic(folder / f"{NAME}.json", json_bytes(record))


def load_embedded(
    *,
    history: int = 12,
    horizon: int = 12,
    protocol: Literal["gman", "dcrnn", "pems-6-2-2", "tgcn"] = "gman",
    fill: Literal["zero", "last"] = "zero",
    sigma: float = 0.0,
    threshold: float = 0.1,
    folder: Path | None = None,
) -> SensorData:
    """Return the simulated speeds: 2,688 steps of 15 minutes, 80 one-way links, km/h, none missing.

    Args:
        history: past steps of a window.
        horizon: future steps of a window.
        protocol: how windows are split and normalised.
        fill: what stands in for a missing reading.
        sigma: width of the kernel on distances, m; 0: their standard deviation.
        threshold: edges with a smaller weight are dropped.
        folder: where the files lie; None: in the installed package.

    Raises:
        DataError: the files are missing, damaged or of another version.
    """
    record, arrays = _read(folder or resources.files("polyhead_traffic").joinpath("assets"))
    edges, distances = arrays["edges"].astype(np.int64), arrays["distance_m"].astype(np.float64)
    weights, _ = kernel_weights(distances, sigma=sigma, threshold=threshold)
    kept = weights > 0
    speed = arrays["speed"] / record["scale"]
    first = np.datetime64(record["start"], "s")
    return SensorData.from_readings(
        speed,
        first + np.arange(len(speed)) * np.timedelta64(record["step_s"], "s"),
        step_s=record["step_s"],
        ids=tuple(str(name) for name in arrays["ids"]),
        name=record["name"],
        origin=_origin(record),
        licence=record["licence"],
        unit=record["unit"],
        graph=SensorGraph(edges[:, kept], weights[kept]),
        coordinates=arrays["coordinates"],
        zero_is_missing=True,
        history=history,
        horizon=horizon,
        protocol=protocol,
        fill=fill,
        notes=(
            f"{len(record['incidents'])} of {record['days']} days have an incident.",
            "An empty link has its free-flow speed, a standing queue 1 km/h.",
            "The place is made up: coordinates only tell how the links lie to each other.",
        ),
    )


def embedded_record(folder: Path | None = None) -> dict[str, Any]:
    """Return how the embedded dataset was made: versions, seed, recipe, start, incidents, digest.

    Raises:
        DataError: the files are missing, damaged or of another version.
    """
    return _read(folder or resources.files("polyhead_traffic").joinpath("assets"))[0]


def _origin(record: dict[str, Any]) -> str:
    side = record["recipe"]["side"]
    return (
        f"Simulated with UXsim {record['versions']['uxsim']} (a {side}x{side} grid of roads, generator "
        f"{record['generator']}, seed {record['seed']}); not measured traffic."
    )


def _read(folder: Traversable) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    mend = "Install polyhead-traffic again."
    try:
        record = dict(json.loads(folder.joinpath(f"{NAME}.json").read_bytes()))
        content = folder.joinpath(f"{NAME}.npz").read_bytes()
    except OSError as error:
        raise DataError(f"The embedded dataset {NAME} is incomplete: {error}. {mend}") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{NAME}.json is damaged: {error}. {mend}") from error
    if len(content) > _LARGEST or hashlib.sha256(content).hexdigest() != record.get("sha256"):
        raise DataError(f"{NAME}.npz is damaged: it does not match its digest in {NAME}.json. {mend}")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return record, dict(archive)
