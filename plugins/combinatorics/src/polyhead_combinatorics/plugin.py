"""The manifest of the combinatorics plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

_PAPER = "Vinyals, Fortunato, Jaitly 2015, arXiv:1506.03134"
_SIZES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"dim": 32},
    "small": {"dim": 128},
    "paper": {"dim": 512, "input_init": 0.08},
}

POINTER = ModelSpec(
    name="pointer-network",
    target="polyhead_combinatorics.pointer_network:PointerNetwork",
    summary="points to its own inputs: any number of points, one set of weights",
    paper=_PAPER,
    presets=_SIZES,
)
SEQ2SEQ = ModelSpec(
    name="lstm-seq2seq",
    target="polyhead_combinatorics.fixed_dictionary:Seq2Seq",
    summary="the paper's baseline: LSTM sequence to sequence over a fixed dictionary of positions",
    paper=_PAPER,
    presets=_SIZES,
)
ATTENTION = ModelSpec(
    name="lstm-attention",
    target="polyhead_combinatorics.fixed_dictionary:LSTMAttention",
    summary="the paper's baseline: LSTM with attention over a fixed dictionary of positions",
    paper=_PAPER,
    presets=_SIZES,
)
MODELS = ("pointer-network", "lstm-attention", "lstm-seq2seq")

_FILES = (
    "released: .txt or .zip of the paper's release, x1 y1 ... output i1 i2 ...",
    "tsplib: EUC_2D, CEIL_2D, GEO, ATT, EXPLICIT",
    "csv: a row a point, columns x,y or lat,lon, and id",
    "matrix: CSV of distances, named rows and columns or bare",
    "geojson: points",
)


def _generated(kind: str, summary: str) -> DatasetSpec:
    return DatasetSpec(
        name=f"uniform-{kind}",
        target=f"polyhead_combinatorics.generated:open_{kind}",
        summary=summary,
        embedded=True,
        source="generated: a function of seed and index",
        licence="Apache-2.0",
    )


def _files(kind: str, what: str) -> DatasetSpec:
    return DatasetSpec(
        name=f"{kind}-files",
        target=f"polyhead_combinatorics.formats:open_{kind}",
        summary=what,
        formats=_FILES if kind == "tsp" else (_FILES[0], *_FILES[2:3], *_FILES[4:]),
        source="the paper's release behind https://goo.gl/NDcOIG; TSPLIB: http://comopt.ifi.uni-heidelberg.de/software/TSPLIB95/",
        licence="that of the files",
    )


def _task(kind: str, summary: str) -> TaskSpec:
    title = {"tsp": "Tour", "hull": "Hull", "delaunay": "Delaunay"}[kind]
    return TaskSpec(
        name=kind,
        target=f"polyhead_combinatorics.task:{title}Task",
        settings=f"polyhead_combinatorics.settings:{title}Settings",
        summary=summary,
        models=MODELS,
        datasets=(f"uniform-{kind}", f"{kind}-files"),
    )


APP = AppSpec(
    name="geometry-solve",
    target="polyhead_combinatorics.app:app",
    summary="order your own points: tours, convex hulls, Delaunay triangulations",
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="combinatorics",
        summary="tours, hulls and triangulations of your own points",
        models=(POINTER, ATTENTION, SEQ2SEQ),
        datasets=(
            _generated("tsp", "uniform points with shortest tours"),
            _generated("hull", "uniform points with convex hulls"),
            _generated("delaunay", "uniform points with Delaunay triangulations"),
            _files("tsp", "your stops, or a public benchmark"),
            _files("hull", "your points, or the paper's release"),
            _files("delaunay", "your points"),
        ),
        tasks=(
            _task("tsp", "a short tour through all points"),
            _task("hull", "the convex hull, counter-clockwise"),
            _task("delaunay", "the Delaunay triangulation"),
        ),
        apps=(APP,),
    )
