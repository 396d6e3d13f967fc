from __future__ import annotations

from polyhead_apps import App, Demo

app = App(
    name="line-fit",
    plugin="fake",
    summary="Fit straight lines.",
    tasks=("line-fit", "sign"),
    demo=Demo(
        settings={"train.epochs": 4}, quick={"train.epochs": None, "train.steps": 4}, note="These points are drawn."
    ),
    commands={"draw": "polyhead_fake.draw:draw"},
    epilog="Lines of your own: line-fit fit --data points.csv",
)
