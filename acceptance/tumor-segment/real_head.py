"""A real head with unseen lesions of 1 to 30 ml: volume error, Dice, false volume, and whole-volume inference.

.venv/bin/python acceptance/tumor-segment/real_head.py

The recipe: `tumor-segment fit` on 60 scans made of one head (nilearn's MNI152, 1 mm) by implanting a lesion into each,
12 more for validation, 64³ voxels, DAUNet (small), 400 steps of 2 volumes. Measured by `tumor-segment predict` on 24
scans with other lesions, and on the head without any. It is one head: this shows that volumes are measured well, not
that lesions are found in other people.
"""

from __future__ import annotations

import csv
import resource
import statistics
import sys
import time
from typing import Any

import nibabel
import numpy as np
from support import claims, heads

TRAINED, TESTED = 72, 24
MOST_ERROR = 5.0
RECIPE = (
    "--set", "data.size=[64,64,64]", "--set", "data.folds=6", "--set", "train.steps=400", "--set", "train.batch_size=2",
    "--set", "train.epochs=null", "--set", "train.lr=0.002", "--set", "train.validate_epochs=3",
    "--set", "data.rotation_deg=10",
    "--set", "data.translation=0.05", "--set", "data.flips=[0]", "--set", "model.preset=small",
    "--set", "task.threshold_for=volume",
)  # fmt: skip


def main() -> int:
    """Make the scans, fit, predict, measure, print."""
    folder = claims.BUILD / "real-head"
    head = heads.load(heads.fetch(folder))
    scans = folder / "scans"
    for seed in range(TRAINED):
        name = f"lesion-{seed:03d}.nii.gz"
        if not (scans / "images" / name).is_file():
            image, label = heads.implant(head, seed)
            heads.write(scans / "labels" / name, label, head.affine)
            heads.write(scans / "images" / name, image, head.affine)
    unseen = folder / "unseen"
    truth = {}
    for seed in range(1000, 1000 + TESTED):
        image, label = heads.implant(head, seed)
        truth[f"lesion-{seed}"] = label
        heads.write(unseen / f"lesion-{seed}.nii.gz", image, head.affine)
    heads.write(unseen / "unmodified.nii.gz", heads.disturb(head.image, np.random.default_rng(7)), head.affine)

    run = folder / f"run-{claims.digest(RECIPE, TRAINED)}"
    if not (run / "metrics.json").is_file():
        begun = (run / "config.yaml").is_file()
        what = ("--resume",) if begun else ("--data", str(scans), *RECIPE, "--force")
        claims.run("fit", *what, "--out", str(run), "--json")
    out = folder / "predictions"
    begin = time.perf_counter()
    claims.run("predict", "--model", str(run), "--data", str(unseen), "--out", str(out), "--force")
    seconds = (time.perf_counter() - begin) / (TESTED + 1)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10

    with (out / "volumes.csv").open(encoding="utf-8") as stream:
        rows = {row["scan"]: row for row in csv.DictReader(stream)}
    errors, dice, kept = [], [], True
    for name, label in truth.items():
        stored: Any = nibabel.load(out / f"{name}-seg.nii.gz")
        found = np.asarray(stored.dataobj) > 0
        kept = kept and found.shape == label.shape and bool(np.allclose(stored.affine, head.affine, atol=1e-5))
        true_ml = int(label.sum()) / 1000
        errors.append(100 * abs(float(rows[name]["volume_ml"]) - true_ml) / true_ml)
        dice.append(2 * int((found & (label > 0)).sum()) / (int(found.sum()) + int(label.sum())))
    return claims.finish(
        {
            "title": "a real head with implanted lesions",
            "recipe": list(RECIPE),
            "lesions": TESTED,
            "true_ml": {name: int(label.sum()) / 1000 for name, label in truth.items()},
            "volume_error_percent": {"median": statistics.median(errors), "all": [round(e, 2) for e in errors]},
            "dice": {"mean": statistics.fmean(dice), "least": min(dice)},
            "false_ml": float(rows["unmodified"]["volume_ml"]),
            "test_split": claims.read(run / "metrics.json")["metrics"],
            "inference": {"seconds_a_scan": seconds, "peak_mib": peak, "voxels": list(head.image.shape)},
            "claims": [
                claims.at_most("median volume error over unseen lesions, %", statistics.median(errors), MOST_ERROR),
                claims.at_least("masks keep the scan's affine and shape", float(kept), 1.0),
            ],
        }
    )


if __name__ == "__main__":
    sys.exit(main())
