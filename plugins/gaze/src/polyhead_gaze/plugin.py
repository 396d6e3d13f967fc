"""The manifest of the gaze plugin."""

from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

OAT = ModelSpec(
    name="oat",
    target="polyhead_gaze.oat:OAT",
    summary="points at the object that is fixated next, or stops: any number of objects, in any order",
    paper="Fang et al. 2024, arXiv:2407.13335",
    presets={
        "tiny": {"dim": 24, "heads": 2, "depth": 1, "decoder_depth": 1, "ff_dim": 48, "dropout": 0.0},
        "small": {"dim": 64, "heads": 4, "depth": 2, "decoder_depth": 2, "ff_dim": 128, "dropout": 0.1},
        "paper": {"dim": 512, "heads": 4, "depth": 4, "decoder_depth": 4, "ff_dim": 512, "dropout": 0.1},
    },
)
SEARCHERS = DatasetSpec(
    name="simulated-searchers",
    target="polyhead_gaze.searchers:open_searchers",
    summary="simulated viewers who search among 24 to 40 objects",
    embedded=True,
    source="generated: a function of seed and index",
    licence="Apache-2.0",
)
SCANPATH = TaskSpec(
    name="scanpath",
    target="polyhead_gaze.task:ScanpathTask",
    settings="polyhead_gaze.settings:ScanpathSettings",
    summary="which objects are fixated, in which order, and when the search ends",
    models=("oat",),
    datasets=("simulated-searchers",),
)
APP = AppSpec(
    name="gaze-scanpath",
    target="polyhead_gaze.app:app",
    summary="predict where a person will look next",
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="gaze",
        summary="where a person will look next",
        models=(OAT,),
        datasets=(SEARCHERS,),
        tasks=(SCANPATH,),
        apps=(APP,),
    )
