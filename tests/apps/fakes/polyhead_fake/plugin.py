from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

LINE = ModelSpec(
    name="line",
    target="polyhead_fake.model:Line",
    summary="a straight line",
    paper="Galton 1886",
    presets={"tiny": {"hidden": 2}, "wide": {"hidden": 16}},
)
BENT = ModelSpec(name="bent", target="polyhead_fake.model:Bent", summary="a line with a bend")
TOY = DatasetSpec(
    name="toy-lines", target="polyhead_fake.data:open_toy", summary="drawn lines", embedded=True, licence="CC0"
)
POINTS = DatasetSpec(
    name="points",
    target="polyhead_fake.data:open_points",
    summary="points in a file",
    formats=("csv: a,b,y",),
    source="https://example.org/points",
)
FIT = TaskSpec(
    name="line-fit",
    target="polyhead_fake.task:LineTask",
    settings="polyhead_fake.settings:LineSettings",
    summary="fit y to a and b",
    models=("line", "bent"),
    datasets=("toy-lines", "points"),
)
OTHER = TaskSpec(
    name="sign",
    target="polyhead_fake.task:SignTask",
    settings="polyhead_fake.settings:SignSettings",
    summary="fit the sign of y",
    models=("line",),
    datasets=("toy-lines",),
)


@hookimpl
def polyhead_plugin() -> Plugin:
    return Plugin(
        name="fake",
        summary="straight lines",
        models=(LINE, BENT),
        datasets=(TOY, POINTS),
        tasks=(FIT, OTHER),
        apps=(AppSpec(name="line-fit", target="polyhead_fake.app:app", summary="fit lines"),),
    )
