"""What has to hold exactly, on the defaults: equivalences, invariances, and what the encoder leaves alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polyhead.ops import deformable_attention
from polyhead_detection.costs import encoder_macs
from polyhead_detection.deformable import MultiScaleDeformableAttention
from polyhead_detection.denoising import denoising_queries
from polyhead_detection.focus_detr import DINO, Detected, DINOConfig, FocusDETR, FocusDETRConfig
from polyhead_detection.losses import Targets, detection_losses
from polyhead_detection.selector import ForegroundSelector
from polyhead_detection.targets import size_ranges

SIZES: dict[str, Any] = {
    "classes": 4,
    "backbone": "small",
    "widths": (8, 8, 16),
    "levels": 4,
    "dim": 16,
    "groups": 4,
    "heads": 2,
    "points": 2,
    "ff_dim": 24,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "queries": 12,
    "denoising": 6,
}
FOCUS = FocusDETRConfig(**SIZES, rho=0.4, cascade=(1.0, 0.6, 0.3), fine_tokens=6)


def _model(config: FocusDETRConfig = FOCUS, kind: type[FocusDETR] = FocusDETR, seed: int = 0) -> FocusDETR:
    torch.manual_seed(seed)
    model = kind(config).double()
    with torch.no_grad():  # initial values that are small or constant would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _images(*sizes: tuple[int, int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


def _rows(detected: Detected, row: int) -> dict[str, Tensor]:
    real = detected.query_mask[row]
    mask = detected.token_mask[row]
    found = {
        "logits": detected.logits[row, real],
        "boxes": detected.boxes[row, real],
        "proposals": detected.proposals.boxes[row, real],
        "foreground": detected.foreground[row, mask],
    }
    return {**found, **{f"kept {i}": layer[row, mask] for i, layer in enumerate(detected.kept)}}


@pytest.mark.parametrize("levels", [1, 2])
def test_a_the_operator_is_grid_sample_forward_and_backward(levels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3, 4)][:levels]
    count = sum(h * w for h, w in shapes)
    value = torch.randn(2, 2, count, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    places = torch.rand(2, 2, 6, levels, 3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 2, 6, levels, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    ours = deformable_attention(value, shapes, places, weights).output
    parts = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], 2)):
        maps = part.transpose(2, 3).unflatten(3, shapes[level]).flatten(0, 1)
        grid = 2 * places[:, :, :, level].flatten(0, 1) - 1
        read = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        parts.append((read.unflatten(0, (2, 2)) * weights[:, :, None, :, level]).sum(-1))
    theirs = torch.stack(parts).sum(0).transpose(2, 3)
    assert torch.allclose(ours, theirs, atol=1e-10)
    cotangent = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    inputs = (value, places, weights)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, cotangent), torch.autograd.grad(theirs, inputs, cotangent), strict=True
    ):
        assert torch.allclose(mine, other, atol=1e-10)


def test_b_a_pixel_centre_gives_its_row_and_a_constant_map_its_constant() -> None:
    value = torch.randn(1, 1, 20, 3, dtype=torch.float64)
    centre = torch.tensor([(2 + 0.5) / 5, (1 + 0.5) / 4], dtype=torch.float64).view(1, 1, 1, 1, 1, 2)
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    assert torch.allclose(deformable_attention(value, [(4, 5)], centre, one).output[0, 0, 0], value[0, 0, 5 + 2])
    layer = MultiScaleDeformableAttention(8, 2, 2, 3).double()
    constant = torch.randn(8, dtype=torch.float64)
    tokens = constant.expand(1, 30 * 30 + 15 * 15, 8)
    inside = torch.full((1, 5, 2, 2), 0.5, dtype=torch.float64)
    read = layer(torch.randn(1, 5, 8, dtype=torch.float64), inside, tokens, [(30, 30), (15, 15)])
    assert torch.allclose(read, layer.out_proj(layer.value_proj(constant)).expand_as(read))


def test_c_shifting_map_and_locations_by_a_pixel_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.zeros(12, 12, 4, dtype=torch.float64)
    maps[3:8, 3:8] = torch.randn(5, 5, 4, generator=generator, dtype=torch.float64)
    places = (torch.rand(1, 1, 20, 1, 2, 2, generator=generator, dtype=torch.float64) * 4 + 3) / 12
    weights = torch.rand(1, 1, 20, 1, 2, generator=generator, dtype=torch.float64)

    def read(down: int, across: int) -> Tensor:
        moved = torch.roll(maps, (down, across), (0, 1)).reshape(1, 1, 144, 4)
        shift = torch.tensor([across, down], dtype=torch.float64) / 12
        return deformable_attention(moved, [(12, 12)], places + shift, weights).output

    assert torch.allclose(read(0, 0), read(2, 3), atol=1e-12)


def test_d_with_every_token_and_no_fine_attention_it_is_dino() -> None:
    whole = dataclasses.replace(FOCUS, rho=1.0, cascade=(1.0, 1.0, 1.0), fine_tokens=0)
    focus = _model(whole)
    plain = DINO(DINOConfig(**SIZES)).double().eval()
    missing, unexpected = plain.load_state_dict(focus.state_dict(), strict=False)
    assert not missing
    assert all(name.startswith("selector.") for name in unexpected)
    images = _images((40, 56))
    ours, theirs = focus(images), plain(images)
    for name in ("logits", "boxes"):
        assert torch.allclose(getattr(ours, name), getattr(theirs, name), atol=1e-6)
    assert all(layer.all() for layer in ours.kept)


@pytest.mark.parametrize("value", ["refreshed", "static"])
def test_e_selections_are_nested_and_tokens_outside_stay_the_necks(value: Any) -> None:
    model = _model(dataclasses.replace(FOCUS, value=value))
    images = _images((48, 64), (40, 30))
    front = model._front(*_canvas(model, images[0]))
    tokens = torch.cat(front.maps, 1)
    detected = model(images[:1])
    memory = model._encode(tokens, front.geometry, None, torch.cat(front.scores, 1)).memory
    untouched = ~detected.kept[0][0]
    assert torch.equal(memory[0, untouched], tokens[0, untouched])
    assert not torch.allclose(memory[0, ~untouched], tokens[0, ~untouched])
    for outer, inner in zip(detected.kept[:-1], detected.kept[1:], strict=True):
        assert not bool((inner & ~outer).any())
    counts = [int(layer.sum()) for layer in detected.kept]
    own = int(0.4 * front.geometry.tokens) + 1
    assert counts == [own, int(0.6 * own), int(0.3 * own)]
    best = detected.foreground[0].topk(own).indices
    assert bool(detected.kept[0][0, best].all())


def _canvas(model: FocusDETR, image: Tensor) -> tuple[Any, Any, Any]:
    pixels, canvas, sizes, _ = model._groups([image], None)[0]
    return model.backbone(pixels), canvas, sizes


@pytest.mark.parametrize("config", [FOCUS, DINOConfig(**SIZES), dataclasses.replace(FOCUS, queries=40)])
@pytest.mark.parametrize("sizes", [((40, 56), (64, 33), (40, 56), (24, 24)), ((17, 70), (70, 17))])
def test_f_a_batch_of_ragged_sizes_gives_what_each_picture_gives_alone(
    config: FocusDETRConfig, sizes: tuple[tuple[int, int], ...]
) -> None:
    model = _model(config, DINO if isinstance(config, DINOConfig) else FocusDETR)
    images = _images(*sizes)
    together = model(images)
    for row, image in enumerate(images):
        alone = model([image])
        own, batched = _rows(alone, 0), _rows(together, row)
        for name, value in own.items():
            same = torch.equal if value.dtype == torch.bool else _close
            assert same(value, batched[name]), f"{name} of picture {row}"


def test_f_padding_at_the_right_and_bottom_changes_nothing() -> None:
    model = _model()
    (image,) = _images((40, 56))
    padded = F.pad(image, (0, 24, 0, 8), value=77)
    alone, inside = model([image]), model(padded[None], [(40, 56)])
    for name, value in _rows(alone, 0).items():
        assert torch.equal(value, _rows(inside, 0)[name]), name


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-9)


def _learn(model: FocusDETR, order: list[int]) -> tuple[dict[str, Tensor], Detected, Any]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 4, (5,), generator=generator)[order]
    boxes = (0.2 + 0.4 * torch.rand(5, 4, generator=generator, dtype=torch.float64))[order]
    images = _images((40, 56), (32, 32))
    targets = Targets([labels, labels[:0]], [boxes, boxes[:0]])
    torch.manual_seed(4)
    queries = denoising_queries(targets.labels, targets.boxes, classes=4, number=6, label_noise=0.0, box_noise=0.0)
    detected = model.train()(images, None, queries)
    losses = detection_losses(
        detected,
        targets,
        queries,
        sizes=[(40, 56), (32, 32)],
        ranges=size_ranges(model.strides, model.config.ranges),
        mask_padding=True,
    )
    return {name: ratio.total / ratio.count for name, ratio in losses.items()}, detected, queries


def test_g_the_order_of_the_boxes_does_not_matter() -> None:
    model = _model()
    ours, _, _ = _learn(model, [0, 1, 2, 3, 4])
    theirs, _, _ = _learn(model, [3, 1, 4, 0, 2])
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-9), name


def test_h_matching_queries_do_not_see_denoising_ones() -> None:
    model = _model()
    _, detected, _ = _learn(model, [0, 1, 2, 3, 4])
    assert model.label_embedding is not None
    table = model.label_embedding.weight
    matching = torch.stack([layer.logits.sum() + layer.boxes.sum() for layer in detected.layers]).sum()
    (gradient,) = torch.autograd.grad(matching, table, allow_unused=True, retain_graph=True)
    assert gradient is None or not bool(gradient.any())
    (gradient,) = torch.autograd.grad(detected.denoised[-1].logits.sum(), table)
    assert bool(gradient.any())
    plain = model(_images((40, 56), (32, 32)))
    assert torch.allclose(plain.logits, detected.logits, atol=1e-12)


def test_i_without_alpha_each_level_is_scored_on_its_own() -> None:
    torch.manual_seed(0)
    selector = ForegroundSelector(16, 3).double()
    shapes = [(8, 6), (4, 3), (2, 2)]
    levels = [torch.randn(2, h * w, 16, dtype=torch.float64) for h, w in shapes]
    assert selector.alpha is not None
    modulated = selector(levels, shapes)
    with torch.no_grad():
        selector.alpha.zero_()
    together = selector(levels, shapes)
    for level, shape in enumerate(shapes):
        assert torch.equal(together[level], selector([levels[level]], [shape])[0])
    assert torch.equal(modulated[2], together[2])
    assert not torch.allclose(modulated[0], together[0])
    bare = ForegroundSelector(16, 3, top_down=False).double()
    bare.load_state_dict(selector.state_dict(), strict=False)
    assert all(torch.equal(a, b) for a, b in zip(bare(levels, shapes), together, strict=True))


def test_j_the_encoders_work_is_linear_in_its_tokens() -> None:
    shapes = [(100, 167), (50, 84), (25, 42), (13, 21)]
    focus = FocusDETRConfig()
    count = sum(h * w for h, w in shapes)
    full = encoder_macs(DINOConfig(), count)
    ours = encoder_macs(focus, count)
    assert full.total == pytest.approx(172.6e9, rel=2e-3)
    assert ours.total == pytest.approx(58.6e9, rel=2e-2)
    plain = dataclasses.replace(focus, fine_tokens=0)
    half, quarter = (encoder_macs(dataclasses.replace(plain, rho=rho), count) for rho in (0.5, 0.25))
    assert half.values == quarter.values == full.values
    assert half.tokens / full.tokens == pytest.approx(0.5 * 3.6 / 6, rel=1e-3)
    assert quarter.tokens / half.tokens == pytest.approx(0.5, rel=1e-3)


def test_switches_change_what_they_name() -> None:
    images = _images((40, 56))
    plain = _model()
    assert plain.selector is not None
    assert plain.selector.alpha is not None
    with torch.no_grad():
        plain.selector.alpha.fill_(1.0)
    base = plain(images)
    changes: tuple[dict[str, Any], ...] = (
        {"fine_score": "foreground"},
        {"fine_tokens": 0},
        {"value": "static"},
        {"top_down": False},
        {"cascade": (1.0, 1.0, 1.0)},
        {"rho": 0.9},
        {"fts": "random"},
    )
    for changed in changes:
        model = _model(dataclasses.replace(FOCUS, **changed))
        model.load_state_dict(plain.state_dict(), strict=False)
        found = model(images)
        same = [_close(found.logits, base.logits), _close(found.foreground, base.foreground)]
        assert not all(same), changed


@pytest.mark.parametrize("kind", ["product", "foreground", "category", "release"])
def test_the_fine_score_is_what_it_is_called(kind: Any) -> None:
    model = _model(dataclasses.replace(FOCUS, fine_score=kind))
    tokens, foreground = torch.randn(2, 9, 16, dtype=torch.float64), torch.randn(2, 9, dtype=torch.float64)
    category = model.class_heads[-1](tokens).amax(-1)
    expected = {
        "product": category.sigmoid() * foreground.sigmoid(),
        "foreground": foreground,
        "category": category,
        "release": category * foreground,
    }
    assert torch.equal(model._fine_score(tokens, foreground), expected[kind])
    assert torch.equal(model._fine_score(tokens, None), category)


def test_random_tokens_are_drawn_anew_in_training_and_stay_in_evaluation() -> None:
    model = _model(dataclasses.replace(FOCUS, fts="random"))
    images = _images((40, 56), (40, 56))
    first = model(images).kept[0]
    assert torch.equal(first, model(images).kept[0])
    assert torch.equal(first[0], first[1])
    model.train()
    assert not torch.equal(model(images).kept[0], model(images).kept[0])
