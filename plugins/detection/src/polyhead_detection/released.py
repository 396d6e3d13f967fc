"""Released checkpoints: their names for our weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from torch import Tensor

from polyhead.errors import CheckpointError
from polyhead_detection.focus_detr import FocusDETRConfig

__all__ = ["convert_weights"]

_ATTENTION = {"sampling_offsets": "offsets", "attention_weights": "weights", "value_proj": "value_proj"}
_RESNET = re.compile(r"backbone\.res(\d)\.(\d+)\.(?:conv(\d)|(shortcut))(?:\.norm)?\.(\w+)")


def convert_weights(weights: Mapping[str, Tensor], config: FocusDETRConfig) -> dict[str, Tensor]:
    """Return the weights of a published Focus-DETR or DINO under the names of our model, with those of the config.

    Args:
        weights: a ``state_dict`` of the official PyTorch release (detectron2's names in the backbone).
        config: of the model that takes them.

    Raises:
        CheckpointError: a weight is missing; names the first ones.
    """
    found: dict[str, Tensor] = {}
    missing = []
    for ours, theirs in _names(config, weights):
        if theirs not in weights:
            missing.append(theirs)
            continue
        found[ours] = weights[theirs]
    for ours in [name for name in found if name.endswith((".in_proj_weight", ".in_proj_bias"))]:
        stacked = found.pop(ours)
        kind = ours.rpartition("_")[2]
        for part, chunk in zip("qkv", stacked.chunk(3), strict=True):
            found[f"{ours.rpartition('.')[0]}.{part}_proj.{kind}"] = chunk.clone()
    if missing:
        raise CheckpointError(
            f"The checkpoint lacks {len(missing)} weights of this model, such as {', '.join(missing[:5])}. Is it a "
            f"Focus-DETR of {config.encoder_layers}+{config.decoder_layers} layers with the backbone {config.backbone}?"
        )
    return {name: tensor.clone() for name, tensor in found.items()}


def _names(config: FocusDETRConfig, weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield our names with theirs."""

    def both(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.{kind}", f"{theirs}.{kind}"

    def deformable(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        for old, new in (*_ATTENTION.items(), ("output_proj", "out_proj")):
            yield from both(f"{ours}.{new}", f"{theirs}.{old}")

    def attention(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        for kind in ("weight", "bias"):
            yield f"{ours}.in_proj_{kind}", f"{theirs}.in_proj_{kind}"
        yield from both(f"{ours}.out_proj", f"{theirs}.out_proj")

    def feed_forward(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
        yield from both(f"{ours}.up", f"{theirs}.layers.0.0")
        yield from both(f"{ours}.down", f"{theirs}.layers.1")

    yield from _backbone_names(weights)
    sides = min(3, config.levels) if config.backbone != "small" else len(config.widths)
    for level in range(config.levels):
        place = f"neck.convs.{level}" if level < sides else f"neck.extra_convs.{level - sides}"
        conv = f"neck.sides.{level}" if level < sides else f"neck.extra.{level - sides}"
        yield from both(conv, f"{place}.conv")
        yield from both(f"neck.norms.{level}", f"{place}.norm")
    yield "level_embedding", "transformer.level_embeds"
    yield "queries", "transformer.tgt_embed.weight"
    yield from both("token_proj", "transformer.enc_output")
    yield from both("token_norm", "transformer.enc_output_norm")
    if config.fts == "score":
        mask = "transformer.enc_mask_predictor"
        yield from both("selector.embed.0", f"{mask}.layer1.0")
        yield from both("selector.embed.1", f"{mask}.layer1.1")
        for layer in (0, 2, 4):
            yield from both(f"selector.score.{layer}", f"{mask}.layer2.{layer}")
        if config.top_down and config.levels > 1:
            yield "selector.alpha", "transformer.alpha"
    for layer in range(config.encoder_layers):
        ours, theirs = f"encoder.layers.{layer}", f"transformer.encoder.layers.{layer}"
        if config.fine_tokens:
            yield from attention(f"{ours}.fine", f"{theirs}.attentions.0.attn")
            yield from both(f"{ours}.fine_norm", f"{theirs}.norm2")
        yield from deformable(f"{ours}.deformable", f"{theirs}.attentions.{1 if config.fine_tokens else 0}")
        yield from both(f"{ours}.deformable_norm", f"{theirs}.norms.0")
        yield from feed_forward(f"{ours}.feed_forward", f"{theirs}.ffns.0")
        yield from both(f"{ours}.feed_forward_norm", f"{theirs}.norms.1")
    for layer in range(config.decoder_layers):
        ours, theirs = f"decoder.layers.{layer}", f"transformer.decoder.layers.{layer}"
        yield from attention(f"{ours}.attention", f"{theirs}.attentions.0.attn")
        yield from deformable(f"{ours}.deformable", f"{theirs}.attentions.1")
        for number, norm in enumerate(("attention_norm", "deformable_norm", "feed_forward_norm")):
            yield from both(f"{ours}.{norm}", f"{theirs}.norms.{number}")
        yield from feed_forward(f"{ours}.feed_forward", f"{theirs}.ffns.0")
    yield from both("decoder.norm", "transformer.decoder.norm")
    for number in (0, 1):
        yield from both(f"decoder.position.layers.{number}", f"transformer.decoder.ref_point_head.layers.{number}")
    for head in range(config.decoder_layers + 1):
        yield from both(f"class_heads.{head}", f"class_embed.{head}")
        for number in range(3):
            yield from both(f"box_heads.{head}.layers.{number}", f"bbox_embed.{head}.layers.{number}")
    if config.denoising:
        yield "label_embedding.weight", "label_enc.weight"


def _backbone_names(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Yield timm's names for the ResNet of a checkpoint with detectron2's."""
    for theirs in weights:
        if not theirs.startswith("backbone."):
            continue
        kind = theirs.rpartition(".")[2]
        norm = ".norm." in theirs
        if theirs.startswith("backbone.stem."):
            yield f"backbone.network.{'bn1' if norm else 'conv1'}.{kind}", theirs
            continue
        match = _RESNET.fullmatch(theirs)
        if match is None:
            continue
        stage, block, conv, shortcut, _ = match.groups()
        part = f"downsample.{1 if norm else 0}" if shortcut else f"{'bn' if norm else 'conv'}{conv}"
        yield f"backbone.network.layer{int(stage) - 1}.{block}.{part}.{kind}", theirs
