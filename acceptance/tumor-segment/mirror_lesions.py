"""Attention finds the lesion that only the other side of the head tells: DAUNet and AGUNet against a plain U-Net.

.venv/bin/python acceptance/tumor-segment/mirror_lesions.py

The full demo's runs (made here if they are not yet): as many parameters, steps and volumes for each, three seeds.
"""

from __future__ import annotations

import sys

from support import claims

MARGIN = 0.03
PARAMETERS = 0.05
NAMES = ("dice", "voxel_recall", "voxel_precision", "patient_recall", "volume_error")
TERCILES = ("recall_small", "recall_middle", "recall_large")


def main() -> int:
    """Run the demo, compare, print."""
    document = claims.demo("demo")
    counts = claims.parameters(document)
    mean = {arm["name"]: arm["mean"] for arm in document["arms"]}
    most = max(abs(count / counts["U-Net"] - 1) for count in counts.values())
    found = [claims.at_most("parameters of all networks agree (largest deviation from the U-Net's)", most, PARAMETERS)]
    for name in ("AGUNet", "DAUNet"):
        ahead = mean[name]["dice"] - mean["U-Net"]["dice"]
        found.append(claims.at_least(f"{name}'s mean Dice is {MARGIN} above the plain U-Net's", ahead, MARGIN))
    thirds = {name: [figures.get(each) for each in TERCILES] for name, figures in mean.items()}
    small, *others = thirds["DAUNet"]
    text = "DAUNet finds the smallest third of the lesions no better than the others"
    found.append(claims.at_most(text, small, min(others)))
    return claims.finish(
        {
            "title": "mirror lesions",
            "data": document["data"],
            "parameters": counts,
            "table": claims.table(document, (*NAMES, *TERCILES)),
            "claims": found,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
