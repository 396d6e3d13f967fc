"""The manifest of the medical plugin."""

from __future__ import annotations

from polyhead.manifest import AppSpec, DatasetSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

_PAPER = "Bouget et al. 2021, arXiv:2101.07715"
_SIZES = {
    "tiny": {"filters": [4, 8, 16]},
    "small": {"filters": [8, 16, 32, 32]},
    "paper": {"filters": [16, 32, 128, 256, 256]},
}

DAUNET = ModelSpec(
    name="daunet",
    target="polyhead_medical.attention_unet:DAUNet",
    summary="U-Net of the whole volume with position and channel attention at the bottleneck, guided",
    paper=_PAPER,
    presets=_SIZES,
)
AGUNET = ModelSpec(
    name="agunet",
    target="polyhead_medical.attention_unet:AGUNet",
    summary="U-Net of the whole volume with an attention gate on every skip connection",
    paper=_PAPER,
    presets=_SIZES,
)
UNET = ModelSpec(
    name="unet",
    target="polyhead_medical.attention_unet:UNet",
    summary="the paper's baseline: a plain U-Net of the whole volume",
    paper=_PAPER,
    presets=_SIZES,
)

SELF_GUIDED = ModelSpec(
    name="self-guided",
    target="polyhead_medical.self_guided:SelfGuidedNet",
    summary="maps of several scales, refined twice by position and channel attention under a guide",
    paper="Sinha & Dolz 2020, arXiv:1906.02849",
    presets={
        "tiny": {"stages": [4, 8], "stride": 2, "channels": 8},
        "remote": {"stages": [16, 32], "stride": 2, "channels": 16, "kernel": 1},
        "small": {"stages": [32, 64, 128, 256], "channels": 32},
        "paper": {"stages": [256, 512, 1024, 2048], "channels": 64},
    },
)

MIRROR = DatasetSpec(
    name="mirror-lesion",
    target="polyhead_medical.mirror:open_mirror",
    summary="synthetic heads of 32 voxels: the lesion is the sphere without a twin on the other side",
    embedded=True,
    source="generated: a function of seed and index",
    licence="Apache-2.0",
)
SCANS = DatasetSpec(
    name="scans",
    target="polyhead_medical.scans:open_scans",
    summary="your NIfTI scans, with masks to learn from",
    formats=(
        "brats: CASE/CASE-t1c.nii.gz, CASE-seg.nii.gz (or _t1ce, _flair, ...)",
        "decathlon: dataset.json, imagesTr/, labelsTr/",
        "raidionics: PATIENT_MRI.nii.gz, PATIENT_MRI_label_tumor.nii.gz, nested or flat",
        "folders: images/NAME.nii.gz, labels/NAME.nii.gz",
        "scans: a .nii or .nii.gz, or a folder of them, to predict on",
        "dicom: the folder of a series, or a folder of such folders, to predict on (extra dicom)",
    ),
    source="Medical Segmentation Decathlon: http://medicaldecathlon.com; BraTS: https://www.synapse.org/brats",
    licence="that of the files",
)
REMOTE = DatasetSpec(
    name="remote-attribute",
    target="polyhead_medical.remote:open_remote",
    summary="synthetic abdomens of 64 pixels: what the discs are is told by the liver, far away",
    embedded=True,
    source="generated: a function of seed and index",
    licence="Apache-2.0",
)
SLICES = DatasetSpec(
    name="slices",
    target="polyhead_medical.slices:open_slices",
    summary="your NIfTI volumes, read slice by slice, with masks to learn from",
    formats=SCANS.formats,
    source="CHAOS: https://zenodo.org/records/3431873, converted to NIfTI",
    licence="that of the files",
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="medical",
        summary="tumours and organs in scans, measured in ml",
        models=(DAUNET, AGUNET, UNET, SELF_GUIDED),
        datasets=(MIRROR, SCANS, REMOTE, SLICES),
        tasks=(
            TaskSpec(
                name="tumor",
                target="polyhead_medical.task:TumorTask",
                settings="polyhead_medical.settings:TumorSettings",
                summary="a tumour in the whole volume of a head",
                models=("daunet", "agunet", "unet"),
                datasets=("mirror-lesion", "scans"),
            ),
            TaskSpec(
                name="organs",
                target="polyhead_medical.organ_task:OrganTask",
                settings="polyhead_medical.organ_settings:OrganSettings",
                summary="organs, slice by slice",
                models=("self-guided",),
                datasets=("remote-attribute", "slices"),
            ),
        ),
        apps=(
            AppSpec(
                name="tumor-segment",
                target="polyhead_medical.app:app",
                summary="measure tumours in your own scans",
            ),
        ),
    )
