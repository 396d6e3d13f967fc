"""Claims on five photographs of scikit-image: `predict` at 800 × 1333 in bounded memory, and ragged batches.

.venv/bin/python acceptance/object-detect/photographs.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from polyhead.models import save_pretrained
from polyhead_detection.convert import coco_categories
from polyhead_detection.focus_detr import FocusDETR, FocusDETRConfig
from polyhead_detection.images import read_image
from polyhead_detection.task import DetectTask
from polyhead_detection.transforms import Sample, fit_size, resize

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "acceptance" / "object-detect" / "photographs"
COMMAND = Path(sys.executable).with_name("object-detect")
NAMES = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "rocket")
MOST_GIB = 3.0
GROWTH = 1.15
RAGGED = (240, 400)
APART = 1e-6


def main() -> int:
    """Write the photographs and a model with a ResNet-50, predict, compare, print."""
    shutil.rmtree(BUILD, ignore_errors=True)
    pictures = write_photographs(BUILD / "five")
    (BUILD / "one").mkdir()
    shutil.copy(pictures[0], BUILD / "one")
    torch.manual_seed(0)
    model = FocusDETR(FocusDETRConfig()).eval()
    task = DetectTask(coco_categories(None), 800, 1333)
    state: dict[str, Any] = {"plugin": "detection", "task": "detect", "state": dict(task.state())}
    save_pretrained(model, BUILD / "model", extra={"task.json": state})
    five, one = predict("five"), predict("one")
    document = json.loads((BUILD / "found-five" / "detections.json").read_text(encoding="utf-8"))
    apart = ragged(model, pictures)
    claims: list[dict[str, Any]] = [
        {"claim": "all photographs are answered", "value": len(document["images"]), "at_least": len(NAMES)},
        {"claim": "peak memory, GiB", "value": five["peak_gib"], "at_most": MOST_GIB},
        {
            "claim": "peak memory of five photographs, in that of one",
            "value": five["peak_gib"] / one["peak_gib"],
            "at_most": GROWTH,
        },
        {"claim": f"a ragged batch differs from one by one, float64, at {RAGGED}", "value": apart, "at_most": APART},
    ]
    for claim in claims:
        claim["holds"] = claim.get("at_least", 0) <= claim["value"] <= claim.get("at_most", claim["value"])
    sizes = [read_image(path).shape[1:] for path in pictures]
    shown = {name: list(fit_size((size[0], size[1]), 800, 1333)) for name, size in zip(NAMES, sizes, strict=True)}
    print(
        json.dumps(
            {
                "title": "Five photographs through Focus-DETR with a ResNet-50, fresh weights",
                "pixels": shown,
                "five": five,
                "one": one,
                "claims": claims,
            },
            indent=2,
        )
    )
    broken = [claim["claim"] for claim in claims if not claim["holds"]]
    for text in broken:
        print(f"does not hold: {text}", file=sys.stderr)
    return int(bool(broken))


def write_photographs(folder: Path) -> list[Path]:
    """Write the photographs as PNG, in the order of their names."""
    from skimage import data

    folder.mkdir(parents=True)
    made = []
    for name in NAMES:
        made.append(folder / f"{name}.png")
        Image.fromarray(getattr(data, name)()).convert("RGB").save(made[-1])
    return made


def predict(name: str) -> dict[str, float]:
    """Run the command in a process of its own; return its peak memory and time."""
    out = BUILD / f"found-{name}"
    options = ("--threshold", "0", "--files", "coco,pictures,keep-maps", "--threads", "1", "-q")
    command = [str(COMMAND), "predict", "--model", str(BUILD / "model"), "--data", str(BUILD / name), *options]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"the command failed: {' '.join(command)}")
    return {"peak_gib": usage.ru_maxrss / 2**20, "seconds": round(time.perf_counter() - began, 1)}


def ragged(model: FocusDETR, pictures: list[Path]) -> float:
    """Return how far logits and boxes of one batch are from those of each photograph alone."""
    model = model.double()
    images = []
    for path in pictures:
        image = read_image(path)
        sample = Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        images.append(resize(sample, fit_size((image.shape[1], image.shape[2]), *RAGGED)).image)
    worst = 0.0
    with torch.inference_mode():
        together = model(images)
        for row, image in enumerate(images):
            alone = model([image])
            pairs: list[tuple[Tensor, Tensor]] = [
                (alone.logits[0], together.logits[row]),
                (alone.boxes[0], together.boxes[row]),
            ]
            real = together.query_mask[row]
            worst = max(worst, *(float((a - b[real]).abs().max() / a.abs().max()) for a, b in pairs))
    return worst


if __name__ == "__main__":
    sys.exit(main())
