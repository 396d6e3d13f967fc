"""The command `tumor-segment`."""

from __future__ import annotations

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["app", "main"]

_MIRROR = {
    "data.flips": [1],
    "task.loss": "dice",
    "task.smallest_voxels": 0,
    "train.epochs": None,
    "train.steps": 170,
    "train.lr": 3e-3,
    "train.validate_epochs": 3.0,
    "model.preset": "small",
}
_QUICK = {
    "data.train_cases": 16,
    "data.validation_cases": 4,
    "data.test_cases": 6,
    "train.steps": 8,
    "train.validate_epochs": 2.0,
    "model.filters": [4, 8, 8],
}
_REMOTE = {
    "data.size": [64, 64],
    "data.validation_cases": 20,
    "model.preset": "remote",
    "train.epochs": None,
    "train.steps": 300,
    "train.lr": 3e-3,
    "train.schedule": "cosine",
    "train.validate_epochs": 2.0,
}
_REMOTE_QUICK = {
    "data.train_cases": 24,
    "data.validation_cases": 8,
    "data.test_cases": 8,
    "model.preset": "tiny",
    "train.steps": 6,
}

app = App(
    name="tumor-segment",
    plugin="medical",
    summary="Measure tumours in your own scans, in ml, with attention U-Nets.",
    tasks=("tumor", "organs"),
    demo=Demo(
        settings=_MIRROR,
        quick=_QUICK,
        arms=(
            Arm("DAUNet", {"model.name": "daunet"}),
            Arm("AGUNet", {"model.name": "agunet", "model.filters": [8, 16, 40, 48]}),
            Arm("U-Net", {"model.name": "unet", "model.filters": [8, 16, 40, 68]}),
        ),
        seeds=3,
        note="Synthetic volumes: they show what attention can do, not how well a tumour is measured.",
    ),
    demos={
        "organs": Demo(
            settings=_REMOTE,
            quick=_REMOTE_QUICK,
            arms=(
                Arm("guided attention"),
                Arm("attention, no guide", {"model.guided": False}),
                Arm("no attention", {"model.position": False, "model.channel": False, "model.guided": False}),
            ),
            seeds=3,
            note="Synthetic images made so that only far context can tell: they show the mechanism, and no more.",
        )
    },
    epilog="Own scans: tumor-segment predict --data scan.nii.gz --out seg.nii.gz. Research software, no medical device",
)


def main() -> None:
    """Run the command."""
    run(app)
