"""Focus-DETR against a recorded run of the official release: every stage by its name, losses and gradients."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import polyhead
from polyhead_detection.deformable import MultiScaleDeformableAttention
from polyhead_detection.denoising import Noise, denoising_queries
from polyhead_detection.focus_detr import Detected, FocusDETR, FocusDETRConfig
from polyhead_detection.inference import best_boxes
from polyhead_detection.losses import Targets, detection_losses, foreground_loss, match
from polyhead_detection.released import convert_weights
from polyhead_detection.targets import foreground_targets, size_ranges

Golden = tuple[dict[str, Tensor], dict[str, Any]]


def _load(shared: Path, name: str) -> Golden:
    folder = shared / "golden" / "focus-detr"
    return load_file(folder / f"{name}.safetensors"), json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def case(shared: Path) -> Golden:
    return _load(shared, "case")


def _config(about: dict[str, Any]) -> FocusDETRConfig:
    sizes = about["config"]
    return dataclasses.replace(
        FocusDETRConfig.release("12-epoch"),
        classes=sizes["classes"],
        backbone="small",
        widths=tuple(sizes["channels"]),
        dim=sizes["C"],
        groups=sizes["groups"],
        heads=sizes["heads"],
        ff_dim=sizes["ffn"],
        encoder_layers=sizes["layers"],
        decoder_layers=sizes["layers"],
        queries=sizes["queries"],
        fine_tokens=sizes["k_fine"],
        cascade=tuple(sizes["cascade"]),
        rho=sizes["rho"],
        denoising=sizes["dn_number"],
    )


@pytest.fixture(scope="module")
def model(case: Golden) -> FocusDETR:
    tensors, about = case
    config = _config(about)
    # The published names of the four levels' strides, which the small backbone's are not.
    model = FocusDETR(config)
    model.strides = (8, 16, 32, 64)
    weights = {name.removeprefix("weights/"): value for name, value in tensors.items() if name.startswith("weights/")}
    converted = convert_weights(weights, config)
    result = model.load_state_dict(converted, strict=False)
    assert not result.unexpected_keys
    assert all(name.startswith("backbone.") for name in result.missing_keys)
    return model


def _targets(tensors: dict[str, Tensor]) -> Targets:
    return Targets(
        [tensors[f"inputs/gt/{i}/labels"] for i in range(2)],
        [tensors[f"trace/targets/{i}/boxes_cxcywh"] for i in range(2)],
    )


def _queries(tensors: dict[str, Tensor], about: dict[str, Any]) -> Any:
    flip = tensors["inputs/cdn/label_flip_u"]
    labels = torch.zeros(len(flip), dtype=torch.int64)
    labels[flip < 0.25] = tensors["inputs/cdn/new_labels_for_flipped"]
    noise = Noise(flip, labels, tensors["inputs/cdn/box_sign_bit"] * 2.0 - 1, tensors["inputs/cdn/box_u"])
    targets = _targets(tensors)
    sizes = about["config"]
    return denoising_queries(
        targets.labels,
        targets.boxes,
        classes=sizes["classes"],
        number=sizes["dn_number"],
        label_noise=0.5,
        box_noise=1.0,
        noise=noise,
    )


def _close(ours: Tensor, theirs: Tensor, name: str, relative: float = 1e-4) -> None:
    assert ours.shape == theirs.shape, f"{name}: {tuple(ours.shape)} and {tuple(theirs.shape)}"
    # What is below a thousandth is a difference of larger numbers.
    worst = float((ours.detach().double() - theirs.double()).abs().max()) / max(float(theirs.abs().max()), 1e-3)
    assert worst <= relative, f"{name} differs by {worst:.2g} of its largest value"


@pytest.fixture(scope="module")
def run(case: Golden, model: FocusDETR) -> tuple[Detected, Any, Any, list[Tensor]]:
    tensors, about = case
    maps = [tensors[f"inputs/features/res{i}"].clone().requires_grad_() for i in (3, 4, 5)]
    sizes = [(int(h), int(w)) for h, w in tensors["inputs/image_sizes_hw"].tolist()]
    queries = _queries(tensors, about)
    model.train()
    with polyhead.record(
        model, detach=False, index=True, fine_score=True, fine=True, fine_sum=True, deformable_sum=True, output=True
    ) as tape:
        detected = model.from_maps(maps, (96, 128), sizes, queries)
    return detected, tape, queries, maps


def test_every_stage_of_the_training_pass(case: Golden, model: FocusDETR, run: Any) -> None:
    tensors, _ = case
    detected, tape, _, maps = run
    levels = model.neck(maps)
    for level, x in enumerate(levels):
        _close(x, tensors[f"trace/neck/{level}"], f"neck {level}", 1e-5)
    geometry = model._front(maps, (96, 128), [(96, 128), (72, 100)]).geometry
    sines = geometry.positions(32, 10_000.0, -0.5)
    for level, x in enumerate(sines):
        theirs = tensors[f"trace/pos_embed/{level}"].flatten(2).transpose(1, 2)
        real = geometry.split(geometry.token_mask())[level]
        _close(x[real], theirs[real], f"sines {level}", 1e-5)
    assert torch.equal(~detected.token_mask, tensors["trace/padding_mask_flat"])
    _close(geometry.ratios(), tensors["trace/valid_ratios"], "valid ratios", 1e-6)
    places = geometry.centres()[:, :, None] * geometry.ratios()[:, None]
    _close(places, tensors["trace/encoder_reference_points"], "reference points", 1e-5)
    for level, scores in enumerate(geometry.split(detected.foreground)):
        _close(scores, tensors[f"trace/foreground_score/level{level}"][..., 0], f"foreground {level}", 1e-5)
    for layer in range(3):
        name = f"trace/encoder/layer{layer}"
        assert torch.equal(tape["encoder.index"][layer], tensors[f"trace/selected_tokens/layer{layer}"])
        _close(tape["encoder.fine_score"][layer], tensors[f"{name}/fine_score"], f"{name} fine score")
        chosen = tape[f"encoder.layers.{layer}.fine"][0]
        assert torch.equal(chosen, tensors[f"{name}/fine_token_position_in_selection"])
        for kind, official in (
            ("fine_sum", "fine_attention_plus_residual"),
            ("deformable_sum", "msda_plus_residual"),
            ("output", "out"),
        ):
            _close(tape[f"encoder.layers.{layer}.{kind}"][0], tensors[f"{name}/{official}"], f"{name}/{official}")
        _close(tape["decoder.output"][layer], tensors[f"trace/decoder/layer{layer}/out"], f"decoder layer {layer}")
    _close(detected.proposals.boxes, tensors["outputs/train/enc_pred_boxes"], "proposals' boxes")
    _close(detected.proposals.logits, tensors["outputs/train/enc_pred_logits"], "proposals' logits")
    for layer, name in enumerate(("aux0/", "aux1/", "")):
        for part in ("logits", "boxes"):
            expected = tensors[f"outputs/train/{name}pred_{part}"]
            _close(getattr(detected.layers[layer], part), expected, f"layer {layer} {part}")
            name_dn = f"outputs/train/dn_{name}pred_{part}"
            _close(getattr(detected.denoised[layer], part), tensors[name_dn], f"denoised {layer} {part}")


def test_denoising_queries_and_their_mask(case: Golden, model: FocusDETR) -> None:
    tensors, about = case
    queries = _queries(tensors, about)
    _close(torch.logit(queries.boxes), tensors["outputs/cdn/query_box_logit"], "boxes", 1e-5)
    assert model.label_embedding is not None
    _close(queries.embed(model.label_embedding), tensors["outputs/cdn/query_label_embed"], "labels", 1e-6)
    assert torch.equal(~queries.mask(20, exact=False), tensors["outputs/cdn/attn_mask"])


def _losses(model: FocusDETR, detected: Detected, targets: Targets, queries: Any) -> dict[str, Tensor]:
    losses = detection_losses(
        detected,
        targets,
        queries,
        sizes=[(96, 128), (72, 100)],
        ranges=size_ranges(model.strides, "release"),
        mask_padding=False,
    )
    return {name: ratio.total / ratio.count for name, ratio in losses.items()}


def test_matching_losses_and_gradients(case: Golden, model: FocusDETR, run: Any) -> None:
    tensors, _ = case
    detected, _, queries, maps = run
    targets = _targets(tensors)
    for layer, name in ((detected.layers[0], "aux0"), (detected.layers[2], "last"), (detected.proposals, "enc")):
        found = match(layer, targets)
        for image in range(2):
            own = found.image == image
            assert torch.equal(
                torch.stack([found.query[own], found.box[own]]), tensors[f"outputs/matching/{name}/{image}"]
            )
    losses = _losses(model, detected, targets, queries)
    theirs = {
        name.removeprefix("outputs/loss_weighted/"): value
        for name, value in tensors.items()
        if name.startswith("outputs/loss_weighted/")
    }
    kinds = {"class": "loss_class", "box": "loss_bbox", "giou": "loss_giou"}
    for prefix, ends in (("", ("", "_0", "_1")), ("denoising_", ("_dn", "_dn_0", "_dn_1")), ("proposal_", ("_enc",))):
        for kind, loss in kinds.items():
            total = sum(theirs[loss + end] for end in ends)
            _close(losses[prefix + kind], torch.as_tensor(total), prefix + kind, 1e-4)
    _close(losses["foreground"], theirs["select_loss"], "foreground", 1e-4)
    total = torch.stack(list(losses.values())).sum()
    _close(total, tensors["outputs/loss_total"], "total", 1e-4)

    model.zero_grad()
    total.backward()
    for stage, x in zip((3, 4, 5), maps, strict=True):
        assert x.grad is not None
        _close(x.grad, tensors[f"outputs/grad/features/res{stage}"], f"gradient of res{stage}", 1e-3)
    recorded = {
        name.removeprefix("outputs/grad/")
        .replace("transformer.decoder.class_embed", "class_embed")
        .replace("transformer.decoder.bbox_embed", "bbox_embed"): value
        for name, value in tensors.items()
        if name.startswith("outputs/grad/") and "features/" not in name
    }
    parameters = dict(model.named_parameters())
    compared = 0
    for ours, theirs_name in _pairs(model.config, recorded):
        gradient = parameters[ours].grad
        assert gradient is not None, ours
        _close(gradient, recorded[theirs_name], f"gradient of {ours}", 2e-3)
        compared += 1
    assert compared > 100


def _pairs(config: FocusDETRConfig, recorded: dict[str, Tensor]) -> list[tuple[str, str]]:
    from polyhead_detection.released import _names

    return [(ours, name) for ours, name in _names(config, recorded) if name in recorded and "in_proj" not in name]


def test_detections_as_released_ignoring_padding(case: Golden, model: FocusDETR) -> None:
    tensors, about = case
    maps = [tensors[f"inputs/features/res{i}"] for i in (3, 4, 5)]
    with torch.no_grad():
        detected = model.eval().from_maps(maps, (96, 128), [(96, 128)] * 2)
    _close(detected.foreground, tensors["trace/eval/foreground_logits"][..., 0], "foreground")
    for image, (height, width) in enumerate(tensors["inputs/image_sizes_hw"].tolist()):
        found = best_boxes(detected, [(height, width)] * 2, count=about["config"]["select"])[image]
        name = f"outputs/eval/{image}"
        assert torch.equal(found.labels, tensors[f"{name}/labels"])
        _close(found.scores, tensors[f"{name}/scores"], "scores")
        _close(found.boxes, tensors[f"{name}/boxes_xyxy_pixels"], "boxes")


def test_label_assignment_and_foreground_loss(shared: Path) -> None:
    tensors, about = _load(shared, "case_targets")
    sizes = about["config"]
    rows = []
    for level, ((h, w), stride) in enumerate(zip(sizes["levels_hw"], sizes["strides"], strict=True)):
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        at = [x * stride + stride // 2, y * stride + stride // 2, torch.full_like(x, level)]
        rows.append(torch.stack(at, -1).flatten(0, 1).float())
    places = torch.cat(rows)
    height, width = sizes["image_hw"]
    scale = torch.tensor([width, height, width, height], dtype=torch.float64)
    rules: dict[str, Any] = {"targets": "release", "targets_overlap_ranges": "overlap"}
    for kind, rule in rules.items():
        found = []
        for boxes, real in zip(tensors["inputs/boxes_xyxy_pixels"], tensors["inputs/valid_box"], strict=True):
            own = boxes[real].double()
            centres = torch.cat([(own[:, :2] + own[:, 2:]) / 2, own[:, 2:] - own[:, :2]], -1) / scale
            ranges = size_ranges(sizes["strides"], rule)
            found.append(foreground_targets(places.double(), centres, (height, width), ranges))
        truth = torch.stack(found)
        assert torch.equal(truth.float(), tensors[f"outputs/{kind}"][..., 0]), kind
    truth = tensors["outputs/targets"][..., 0].bool()
    logits = tensors["inputs/foreground_logits"][..., 0].clone().requires_grad_()
    loss = foreground_loss(logits, truth)
    _close(loss, tensors["outputs/loss_per_image"], "loss", 1e-5)
    _close(loss.mean(), tensors["outputs/select_loss"], "mean", 1e-5)
    (gradient,) = torch.autograd.grad(loss.mean(), logits)
    _close(gradient, tensors["outputs/grad_foreground_logits"][..., 0], "gradient", 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reference", [2, 4])
def test_the_deformable_layer(shared: Path, reference: int, dtype: torch.dtype) -> None:
    tensors, about = _load(shared, "case_msda")
    sizes = about["config"]
    layer = MultiScaleDeformableAttention(sizes["embed_dim"], sizes["heads"], 4, sizes["points"])
    names = {"offsets": "sampling_offsets", "weights": "attention_weights", "value_proj": "value_proj"}
    names["out_proj"] = "output_proj"
    layer.load_state_dict(
        {
            f"{own}.{kind}": tensors[f"weights/msda.{old}.{kind}"]
            for own, old in names.items()
            for kind in ("weight", "bias")
        }
    )
    layer = layer.to(dtype)
    inputs = {
        name: tensors[f"inputs/module/{name}"].to(dtype).requires_grad_()
        for name in ("query", "query_pos", "value", f"reference_points_{reference}")
    }
    query, value, points = inputs["query"], inputs["value"], inputs[f"reference_points_{reference}"]
    shapes = [(h, w) for h, w in tensors["inputs/value_spatial_shapes"].tolist()]
    mask = ~tensors["inputs/module/padding_mask"]
    out = query + layer(query + inputs["query_pos"], points, value, shapes, mask)
    name = f"outputs/module/ref{reference}"
    suffix, tolerance = ("_f64", 1e-10) if dtype == torch.float64 else ("", 2e-5)
    _close(out, tensors[f"{name}/out{suffix}"], "output", tolerance)
    (out * tensors["inputs/module/cotangent"].to(dtype)).sum().backward()
    if dtype == torch.float32:
        for own, old in names.items():
            for kind in ("weight", "bias"):
                gradient = getattr(getattr(layer, own), kind).grad
                _close(gradient, tensors[f"{name}/grad/msda.{old}.{kind}"], f"gradient of {own}.{kind}", 2e-4)
        _close(query.grad, tensors[f"{name}/grad_query"], "gradient of the query", 2e-4)  # type: ignore[arg-type]
        _close(value.grad, tensors[f"{name}/grad_value"], "gradient of the value", 2e-4)  # type: ignore[arg-type]
        _close(points.grad, tensors[f"{name}/grad_reference_points"], "of the references", 2e-4)  # type: ignore[arg-type]
