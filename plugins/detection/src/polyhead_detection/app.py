"""The command `object-detect`."""

from __future__ import annotations

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["app", "main"]

app = App(
    name="object-detect",
    plugin="detection",
    summary="Find objects in your own pictures with Focus-DETR.",
    tasks=("detect",),
    demo=Demo(
        settings={
            "model.preset": "small",
            "train.steps": 300,
            "train.lr": 1.5e-3,
            "train.warmup_steps": 40,
            "train.clip_norm": 0.5,
        },
        quick={"model.preset": "tiny", "train.steps": 15, "train.batch_size": 8, "data.scenes": 20},
        arms=(
            Arm("focus-detr", {"model.name": "focus-detr"}),
            Arm("random tokens", {"model.name": "focus-detr", "model.fts": "random"}),
            Arm("all tokens (dino)", {"model.name": "dino"}),
        ),
        seeds=2,
        function="polyhead_detection.demo:demo",
        note="Synthetic scenes: the figures say nothing about photographs.",
    ),
    commands={"convert": "polyhead_detection.convert:convert"},
    epilog="Own pictures: object-detect fit --data FOLDER. What is read: object-detect datasets.",
)


def main() -> None:
    """Run the command."""
    run(app)
