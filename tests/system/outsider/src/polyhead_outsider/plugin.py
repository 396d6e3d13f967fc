"""The manifest."""

from __future__ import annotations

from polyhead import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec, hookimpl


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="outsider",
        summary="classify the rows of a table",
        models=(
            ModelSpec(
                name="table-attention",
                target="polyhead_outsider.model:TableAttention",
                summary="a token for each column, attention across columns",
                paper="Gorishniy et al. 2021, arXiv:2106.11959",
                presets={"tiny": {"dim": 8, "heads": 2, "depth": 1}, "paper": {"dim": 192, "heads": 8, "depth": 3}},
            ),
        ),
        datasets=(
            DatasetSpec(
                name="three-rings",
                target="polyhead_outsider.data:open_rings",
                summary="simulated: three rings in a plane, and two columns of noise",
                embedded=True,
                source="drawn when opened",
                licence="CC0-1.0",
            ),
            DatasetSpec(
                name="table",
                target="polyhead_outsider.data:open_csv",
                summary="your own table",
                formats=("CSV with a header: numbers, and one column of classes",),
                source="https://archive.ics.uci.edu",
                licence="that of the file",
            ),
        ),
        tasks=(
            TaskSpec(
                name="classify",
                target="polyhead_outsider.task:ClassifyTask",
                settings="polyhead_outsider.settings:ClassifySettings",
                summary="the class of each row",
                models=("table-attention",),
                datasets=("three-rings", "table"),
            ),
        ),
        apps=(AppSpec("table-classify", target="polyhead_outsider.app:app", summary="classify the rows of a table"),),
    )
