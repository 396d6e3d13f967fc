"""The manifest of the detection plugin."""

from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

_TINY = {
    "backbone": "small",
    "backbone_lr": 1.0,
    "widths": [16, 16, 24],
    "levels": 3,
    "dim": 16,
    "groups": 4,
    "heads": 2,
    "points": 2,
    "ff_dim": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "queries": 20,
    "denoising": 2,
}
_SMALL = {
    "backbone": "small",
    "backbone_lr": 1.0,
    "widths": [64, 96, 128],
    "levels": 3,
    "dim": 64,
    "groups": 16,
    "heads": 4,
    "points": 4,
    "ff_dim": 128,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "queries": 30,
    "denoising": 16,
}
_SCENES = {"ranges": [[-1.0, 10.0], [7.0, 14.0], [11.0, 1e9]]}
_BACKBONES = {
    "resnet50": {"backbone": "resnet50"},
    "swin-t": {"backbone": "swin_tiny_patch4_window7_224"},
    "convnext-t": {"backbone": "convnext_tiny"},
}

FOCUS = ModelSpec(
    name="focus-detr",
    target="polyhead_detection.focus_detr:FocusDETR",
    summary="DETR whose encoder updates only the tokens that look like objects",
    paper="Zheng et al. 2023, arXiv:2307.12612",
    presets={
        "tiny": {**_TINY, **_SCENES, "cascade": [1.0, 0.5], "rho": 0.3, "fine_tokens": 8},
        "small": {**_SMALL, **_SCENES, "cascade": [1.0, 0.6, 0.3], "rho": 0.3, "fine_tokens": 24},
        **_BACKBONES,
    },
)
PLAIN = ModelSpec(
    name="dino",
    target="polyhead_detection.focus_detr:DINO",
    summary="the same detector whose encoder updates every token",
    paper="Zhang et al. 2023, arXiv:2203.03605",
    presets={"tiny": {**_TINY, **_SCENES}, "small": {**_SMALL, **_SCENES}, **_BACKBONES},
)

SCENES = DatasetSpec(
    name="digit-scenes",
    target="polyhead_detection.digits:open_digits",
    summary="synthetic scenes of 64 x 64 pixels with real handwritten digits",
    embedded=True,
    source="generated from scikit-learn's digits: a function of seed and index",
    licence="Apache-2.0; the digits CC BY 4.0",
)
PICTURES = DatasetSpec(
    name="pictures",
    target="polyhead_detection.formats:open_pictures",
    summary="your own pictures, with boxes to train on or without to predict",
    formats=(
        "coco: a JSON with images, annotations and categories, and the folder of its pictures; or COCO's own folders",
        "yolo: data.yaml or classes.txt, images/ and labels/ with a text file a picture",
        "voc: Annotations/*.xml, JPEGImages/, ImageSets/Main/*.txt",
        "images: a picture, or a folder of them, without boxes",
        "video: mp4, mov, avi, mkv, webm; needs polyhead-detection[video]",
    ),
    source="https://cocodataset.org (COCO 2017: annotations CC BY 4.0, pictures under Flickr's terms)",
    licence="that of the files",
)
DETECT = TaskSpec(
    name="detect",
    target="polyhead_detection.task:DetectTask",
    settings="polyhead_detection.settings:DetectSettings",
    summary="find objects of given classes and their boxes",
    models=("focus-detr", "dino"),
    datasets=("digit-scenes", "pictures"),
)
APP = AppSpec(
    name="object-detect",
    target="polyhead_detection.app:app",
    summary="find objects in your own pictures",
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="detection",
        summary="object detection on your own pictures",
        models=(FOCUS, PLAIN),
        datasets=(SCENES, PICTURES),
        tasks=(DETECT,),
        apps=(APP,),
    )
