"""GeoJSON: a FeatureCollection of points, or a MultiPoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from polyhead.errors import DataError
from polyhead_combinatorics.formats.checks import check_points
from polyhead_combinatorics.formats.table import refuse_limits
from polyhead_combinatorics.instances import Instance, Kind, Metric
from polyhead_combinatorics.settings import InstanceSettings

__all__ = ["read_geojson"]

MOST_BYTES = 200_000_000


def read_geojson(path: Path, settings: InstanceSettings, kind: Kind) -> list[Instance]:
    """Return the one instance of a GeoJSON file; names are the features' ``id``, or their property id or name.

    Raises:
        DataError: names the file, the feature, and the mend.
    """
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path.name} has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are read.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise DataError(f"{path.name} is no JSON: {error}.") from error
    points, names = [], []
    for at, (coordinates, facts, name) in enumerate(_spots(content, path.name, settings.id), 1):
        refuse_limits(f"{path.name}, feature {at}", [str(key).lower() for key in facts], settings.ignore)
        if not (isinstance(coordinates, list) and len(coordinates) >= 2) or not all(
            _finite(x) for x in coordinates[:2]
        ):
            raise DataError(f"{path.name}, feature {at}: {coordinates!r} are no longitude and latitude.")
        points.append(coordinates[:2])
        names.append(str(at) if name is None else str(name))
    array = np.array(points, dtype=np.float64).reshape(-1, 2)
    check_points(array, names, path.name, kind)
    outside = np.flatnonzero((np.abs(array[:, 0]) > 180) | (np.abs(array[:, 1]) > 90))
    if settings.metric != "euclidean" and len(outside):
        raise DataError(
            f"{path.name}, feature {int(outside[0]) + 1}: {array[outside[0]].tolist()} is not on the globe. GeoJSON is "
            "longitude, latitude; metres need --metric euclidean."
        )
    metric: Metric = "euclidean" if settings.metric == "euclidean" else "haversine"
    return [Instance(array, tuple(names), metric=metric, name=path.name, unit="km" if metric == "haversine" else "")]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _spots(content: Any, where: str, by: str) -> list[tuple[Any, dict[str, Any], Any]]:
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "MultiPoint":
        return [(coordinates, {}, None) for coordinates in content.get("coordinates") or []]
    if kind != "FeatureCollection" or not isinstance(content.get("features"), list):
        raise DataError(f"{where} is no GeoJSON of points: it needs a FeatureCollection or a MultiPoint.")
    found = []
    for at, feature in enumerate(content["features"], 1):
        shape = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(shape, dict) or shape.get("type") != "Point":
            raise DataError(f"{where}, feature {at} is no point. Leave other shapes out.")
        facts = feature.get("properties") or {}
        if not isinstance(facts, dict):
            raise DataError(f"{where}, feature {at}: its properties are no object.")
        if by and by not in facts:
            raise DataError(f'{where}, feature {at} has no property "{by}" (--id).')
        name = facts[by] if by else feature.get("id", facts.get("id", facts.get("name")))
        found.append((shape.get("coordinates"), facts, name))
    return found
