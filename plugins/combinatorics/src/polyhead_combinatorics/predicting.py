"""What `predict` writes: the order of the user's own rows, with lengths, as CSV, GeoJSON and a picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyhead.artifacts import write_atomic
from polyhead.errors import DataError, nearest
from polyhead.protocols import Files
from polyhead_combinatorics.instances import Floats, Instance, Kind, normalised
from polyhead_combinatorics.metrics import tokens_of
from polyhead_combinatorics.settings import PredictSettings
from polyhead_combinatorics.touring import Tour, solve_tour

if TYPE_CHECKING:
    from torch import nn

    from polyhead_combinatorics.task import SolveTask

__all__ = ["write"]

_NAMES: Mapping[str, str] = {"tsp": "route", "hull": "hull", "delaunay": "triangles"}


def write(task: SolveTask, model: nn.Module, data: Any, out: Path, settings: PredictSettings) -> Files:
    """Write the answers for all instances of ``data``: one file of each kind that is asked for; lengths as figures.

    CSV of tours: ``order,id,x,y,leg,cumulative``; of hulls: ``order,id,x,y``; of triangulations: ``triangle,a,b,c``.
    Several instances: a column ``instance`` before them.

    Raises:
        DataError: a stop that is not there, a matrix where GeoJSON is asked for, or a picture of several instances.
    """
    instances: Sequence[Instance] = data.instances()
    several = len(instances) > 1
    answers = [_answer(task, model, instance, settings) for instance in instances]
    name = _NAMES[task.kind]
    made = Files()
    tours = [answer for answer in answers if isinstance(answer, Tour)]
    if tours:
        made.lines = [tours[0].sentence] if not several else []
        made.figures = {"tours": [tour.facts() for tour in tours]}
    for form in dict.fromkeys(settings.files):
        if form == "csv":
            content = _csv(task.kind, instances, answers, several)
        elif form == "geojson":
            content = _geojson(task.kind, instances, answers)
        else:
            content = _picture(task.kind, instances, answers)
        made.append(out / f"{name}.{form}")
        write_atomic(made[-1], content)
    return made


def _answer(task: SolveTask, model: nn.Module, instance: Instance, settings: Any) -> Tour | list[int]:
    if task.kind == "tsp":
        return solve_tour(task, model, instance, settings)
    tokens = decode(task, model, instance.points, beam=settings.beam)
    if not tokens:
        most = getattr(model, "max_points", None)
        raise DataError(
            f"{instance.name or 'This instance'} has {len(instance.points)} points, the model's dictionary {most}. "
            "Fit a pointer-network: it has no such limit."
        )
    return tokens


def decode(task: SolveTask, model: nn.Module, points: Floats, *, beam: int) -> list[int]:
    """Return the network's answer for one instance in any unit; empty if it has too many points for the model."""
    import dataclasses

    import torch

    device = next(model.parameters()).device
    batch = {
        "points": torch.from_numpy(normalised(points).astype(np.float32))[None].to(device),
        "lengths": torch.tensor([len(points)], device=device),
    }
    with torch.inference_mode():
        tokens = dataclasses.replace(task, beam=beam, constrained=True).predict(model.eval(), batch)
    return tokens_of(tokens[0].cpu().numpy())


def _csv(kind: Kind, instances: Sequence[Instance], answers: Sequence[Any], several: bool) -> bytes:
    stream = io.StringIO()
    rows = csv.writer(stream, lineterminator="\n")
    columns = {
        "tsp": ["order", "id", "x", "y", "leg", "cumulative"],
        "hull": ["order", "id", "x", "y"],
        "delaunay": ["triangle", "a", "b", "c"],
    }[kind]
    if not several and kind != "delaunay" and instances[0].geographic:
        columns = [{"x": "lon", "y": "lat"}.get(column, column) for column in columns]
    rows.writerow(["instance", *columns] if several else columns)
    for number, (instance, answer) in enumerate(zip(instances, answers, strict=True), 1):
        names = instance.names
        if isinstance(answer, Tour):
            lines = [
                [order, names[token - 1], *_place(instance, token), _text(leg), _text(total)]
                for order, (token, leg, total) in enumerate(answer.steps(), 1)
            ]
        elif kind == "hull":
            lines = [[order, names[token - 1], *_place(instance, token)] for order, token in enumerate(answer, 1)]
        else:
            triples = [answer[at : at + 3] for at in range(0, len(answer) - 2, 3)]
            lines = [[order, *(names[token - 1] for token in triple)] for order, triple in enumerate(triples, 1)]
        rows.writerows([[number, *line] for line in lines] if several else lines)
    return stream.getvalue().encode()


def _place(instance: Instance, token: int) -> list[str]:
    """Return x and y as the user has them; empty where the file gave distances only."""
    return ["", ""] if instance.placed else [_text(value) for value in instance.points[token - 1].tolist()]


def _text(value: float) -> str:
    return f"{value:.10g}"


def _geojson(kind: Kind, instances: Sequence[Instance], answers: Sequence[Any]) -> bytes:
    features: list[dict[str, Any]] = []
    for number, (instance, answer) in enumerate(zip(instances, answers, strict=True), 1):
        if instance.placed:
            raise DataError(f"{instance.name} holds distances and no coordinates: leave geojson out of --files.")
        points = instance.points.tolist()
        tokens = answer.tokens if isinstance(answer, Tour) else answer
        line = [points[token - 1] for token in tokens]
        if kind == "delaunay":
            rings = [[*line[at : at + 3], line[at]] for at in range(0, len(line) - 2, 3)]
            shape: dict[str, Any] = {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}
        elif kind == "hull":
            shape = {"type": "Polygon", "coordinates": [[*line, line[0]]]}
        else:
            shape = {"type": "LineString", "coordinates": [*line, line[0]] if answer.closed else line}
        facts = {"instance": number, **(answer.facts() if isinstance(answer, Tour) else {})}
        features.append({"type": "Feature", "geometry": shape, "properties": facts})
        for order, token in enumerate(tokens if kind != "delaunay" else (), 1):
            spot = {"type": "Point", "coordinates": points[token - 1]}
            told = {"instance": number, "order": order, "id": instance.names[token - 1]}
            features.append({"type": "Feature", "geometry": spot, "properties": told})
    return json.dumps({"type": "FeatureCollection", "features": features}, indent=1).encode()


def _picture(kind: Kind, instances: Sequence[Instance], answers: Sequence[Any]) -> bytes:
    from polyhead_combinatorics.report import picture_of

    if len(instances) > 1:
        raise DataError(f"A picture is of one instance, here are {len(instances)}: leave png out of --files.")
    answer = answers[0]
    if isinstance(answer, Tour):
        return picture_of(kind, instances[0].points, answer.tokens, answer.sentence, closed=answer.closed)
    return picture_of(kind, instances[0].points, answer, instances[0].name)


def find_stop(instance: Instance, name: str, option: str) -> int:
    """Return the token of a stop by the user's name.

    Raises:
        DataError: there is none of that name, or several; suggests the nearest.
    """
    found = [place for place, known in enumerate(instance.names, 1) if known == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f'{option} {name}: {len(found)} rows are called "{name}". Give names that occur once.')
    guess = nearest(name, instance.names)
    mend = f'Did you mean "{guess}"?' if guess else f"The first ones are {', '.join(instance.names[:5])}."
    raise DataError(f"{option} {name}: no such stop. {mend}")
