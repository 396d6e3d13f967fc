"""The command `traffic-forecast`."""

from __future__ import annotations

from polyhead_apps.app import App, Demo, run

__all__ = ["app", "main"]

app = App(
    name="traffic-forecast",
    plugin="traffic",
    summary="Forecast speeds or flows of road sensors with GMAN.",
    tasks=("forecast",),
    demo=Demo(
        settings={"model.preset": "small", "train.epochs": 6, "train.step_epochs": 2},
        quick={"model.preset": "tiny", "train.epochs": None, "train.steps": 20},
        note="These data are simulated: the figures say nothing about real roads.",
    ),
    commands={"fill": "polyhead_traffic.fill:fill", "simulate": "polyhead_traffic.simulate:simulate"},
    epilog="Own sensors: traffic-forecast fit --data FOLDER. What is read: traffic-forecast datasets.",
)


def main() -> None:
    """Run the command."""
    run(app)
