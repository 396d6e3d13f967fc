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
        "small": {
            "dim": 64,
            "heads": 4,
            "depth": 2,
            "decoder_depth": 2,
            "ff_dim": 128,
            "dropout": 0.1,
            "sigma": 1.0,  # neighbours are told apart sooner than by the published 2
        },
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
FILES = DatasetSpec(
    name="gaze-files",
    target="polyhead_gaze.formats:open_files",
    summary="your fixations and boxes, a display to predict on, or a public set",
    formats=(
        "csv: fixations trial,viewer,order,x,y,target beside boxes display,object,xmin,ymin,xmax,ymax or COCO JSON",
        "display: JSON with boxes, ids, image or size, target",
        "amazon: Amazon.json of the STI data set",
        "coco-search18: its JSON of fixations beside COCO's annotations",
        "shelf: time_Q1*.xlsx, time_Q3*.xlsx, or the same as .csv",
    ),
    source=(
        "https://github.com/DFKI-Interactive-Machine-Learning/STI-Dataset; "
        "https://sites.google.com/view/cocosearch; https://github.com/HKUST-NISL/oat_eccv24"
    ),
    licence="that of the files",
)
SCANPATH = TaskSpec(
    name="scanpath",
    target="polyhead_gaze.task:ScanpathTask",
    settings="polyhead_gaze.settings:ScanpathSettings",
    summary="which objects are fixated, in which order, and when the search ends",
    models=("oat",),
    datasets=("simulated-searchers", "gaze-files"),
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
        datasets=(SEARCHERS, FILES),
        tasks=(SCANPATH,),
        apps=(APP,),
    )
