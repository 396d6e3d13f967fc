"""The command `table-classify`."""

from __future__ import annotations

from polyhead_apps import App, Demo, run

app = App(
    name="table-classify",
    plugin="outsider",
    summary="Classify the rows of a table.",
    tasks=("classify",),
    demo=Demo(
        settings={"train.epochs": 30},
        quick={"model.preset": "tiny", "train.epochs": None, "train.steps": 30},
        note="The rings are simulated: the figures say nothing about tables of yours.",
    ),
    commands={"columns": "polyhead_outsider.columns:columns"},
    epilog="Own table: table-classify fit --data table.csv --target species",
)


def main() -> None:
    """Run the command."""
    run(app)
