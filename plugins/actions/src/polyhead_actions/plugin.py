"""The manifest of the actions plugin."""

from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

BMN = ModelSpec(
    name="bmn",
    target="polyhead_actions.bmn:BMN",
    summary="boundary-matching network with class-semantics attention: every start, end and proposal in one pass",
    paper="Lin et al. 2019, arXiv:1907.09702; Sridhar et al. 2021, arXiv:2109.02613",
    presets={
        "tiny": {"hidden": 16, "base": 16, "reduced": 16, "hidden_3d": 16, "hidden_2d": 8, "samples": 4},
        "small": {"hidden": 64, "base": 64, "reduced": 64, "hidden_3d": 64, "hidden_2d": 32, "samples": 8},
        "medium": {"hidden": 128, "base": 128, "reduced": 64, "hidden_3d": 128, "hidden_2d": 64, "samples": 16},
        "port": {},
        "paper": {"variant": "paper", "base": 128, "reduced": 128},
    },
)

GATED = DatasetSpec(
    name="context-gated-actions",
    target="polyhead_actions.generated:open_generated",
    summary="made-up sequences in which a burst is an action only where its context goes on",
    embedded=True,
    source="made by polyhead_actions.generated, a function of seed and index",
    licence="Apache-2.0",
)

VIDEOS = DatasetSpec(
    name="videos",
    target="polyhead_actions.formats:open_videos",
    summary="features of your own videos or signals, and annotations in ActivityNet's JSON",
    formats=(
        "annotations: ActivityNet v1.3 or THUMOS-14 JSON (database, annotations, segment in seconds)",
        "annotations: BMN's anet_anno_action.json, with video_info_new.csv for the subsets",
        "features: a file a video, NAME or v_NAME, .npy, .npz, .csv or .h5, a row for each piece of time",
        "features: one .h5 or .hdf5 with a dataset for each video (ActivityNet C3D)",
        "beside them: features.json with fps, stride, offset and backbone",
    ),
    source="https://github.com/activitynet/ActivityNet, https://www.crcv.ucf.edu/THUMOS14",
    licence="that of the files",
)

DETECT = TaskSpec(
    name="detect",
    target="polyhead_actions.task:DetectTask",
    settings="polyhead_actions.settings:DetectSettings",
    summary="find when actions start and end, and which they are",
    models=("bmn",),
    datasets=("context-gated-actions", "videos"),
)

APP = AppSpec(
    name="action-detect",
    target="polyhead_actions.app:app",
    summary="find what happens when in videos and signals",
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="actions",
        summary="temporal action detection in your own videos and signals",
        models=(BMN,),
        datasets=(GATED, VIDEOS),
        tasks=(DETECT,),
        apps=(APP,),
    )
