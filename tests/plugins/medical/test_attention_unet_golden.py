"""AGUNet and DAUNet against the official Keras definitions, run in TensorFlow."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyhead_medical.attention import AttentionGate, ChannelAttention, PositionAttention
from polyhead_medical.attention_unet import AGUNet, DAUNet

RELEASE = "mri_brain_tumor_segmentation"
SMALL: dict[str, Any] = {"filters": (4, 6, 16)}
CASES: dict[str, Any] = {
    "case": DAUNet(dataclasses.replace(DAUNet.Config.release(RELEASE), **SMALL)),
    "case_daunet_plain": DAUNet(
        dataclasses.replace(
            DAUNet.Config.release(RELEASE), guided=False, multi_scale_input=False, deep_supervision=False, **SMALL
        )
    ),
    "case_agunet": AGUNet(dataclasses.replace(AGUNet.Config.release(RELEASE), **SMALL)),
}


def layers(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """Yield (Keras kind, module) in the order in which Keras made the layers."""
    for level, block in enumerate(model.encoder):
        if str(level) in model.pyramid:
            yield "conv3d", model.pyramid[str(level)]
        yield from flat(block)
    if model.attention is not None:
        yield "pam", model.attention.position[0]
        yield from flat(model.attention.position[1:])
        yield "cam", model.attention.channel[0]
        yield from flat(model.attention.channel[1:])
        yield from flat(model.attention.out)
    for block in model.decoder:
        yield "conv3d_transpose", block.up.conv
        if block.guide is not None:
            yield "conv3d_transpose", block.guide.conv
        yield "batch_normalization", block.norm
        if block.gate is not None:
            gate: AttentionGate = block.gate
            yield "conv3d", gate.of_up[0]
            yield "conv3d", gate.of_skip[0]
            yield "batch_normalization", gate.of_up[1]
            yield "batch_normalization", gate.of_skip[1]
            yield from flat(gate.psi)
        yield from flat(block.block)
    for head in reversed(model.heads):
        yield "conv3d", head


def flat(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    kinds = {nn.Conv3d: "conv3d", nn.BatchNorm3d: "batch_normalization"}
    for module in block.children():
        if type(module) in kinds:
            yield kinds[type(module)], module


def names(model: Any) -> dict[str, nn.Module]:
    """Return modules by the names that Keras gave them."""
    counts: dict[str, int] = {}
    found = {}
    for kind, module in layers(model):
        number = counts.get(kind, 0)
        counts[kind] = number + 1
        found[f"{kind}_{number}" if number else kind] = module
    return found


def tensors(module: nn.Module, *, gradient: bool = False) -> dict[str, Tensor]:
    """Return the tensors of a module, or their gradients, by Keras names."""
    own: dict[str, Any] = {}
    if isinstance(module, PositionAttention):
        own = {
            "gamma": module.gamma,
            "b/kernel": module.key.weight,
            "c/kernel": module.query.weight,
            "d/kernel": module.value.weight,
        }
    elif isinstance(module, ChannelAttention):
        own = {"gamma": module.gamma}
    elif isinstance(module, nn.BatchNorm3d):
        own = {"gamma": module.weight, "beta": module.bias}
        if not gradient:
            own |= {"moving_mean": module.running_mean, "moving_variance": module.running_var}
    else:
        own = {"kernel": module.weight, "bias": module.bias}
    return {name: tensor.grad if gradient else tensor for name, tensor in own.items()}


def from_keras(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    if name.endswith("kernel"):
        return tensor.permute(4, 3, 0, 1, 2).reshape(like.shape)
    return tensor.reshape(like.shape)


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest, shared: Path) -> tuple[Any, dict[str, Tensor]]:
    model = CASES[request.param].eval()
    recorded = load_file(shared / "golden" / "daunet" / f"{request.param}.safetensors")
    used = set()
    with torch.no_grad():
        for layer, module in names(model).items():
            for name, tensor in tensors(module).items():
                key = f"weights/{layer}/{name}"
                tensor.copy_(from_keras(name, recorded[key], tensor))
                used.add(key)
    assert used == {name for name in recorded if name.startswith("weights/")}
    return model, recorded


def test_probabilities_and_gradients_are_those_of_keras(golden: tuple[Any, dict[str, Tensor]]) -> None:
    model, recorded = golden
    x = recorded["inputs/x"].permute(0, 4, 1, 2, 3).contiguous().requires_grad_()
    kept: dict[str, Tensor] = {}
    modules = names(model)
    for layer in ("pam", "cam", *(name for name in modules if name.startswith("conv3d_transpose"))):
        if f"trace/{layer}" in recorded:
            modules[layer].register_forward_hook(lambda _m, _i, out, layer=layer: kept.__setitem__(layer, out))
    outputs = [logits.softmax(1) for logits in model.scales(x)]
    for layer, mine in kept.items():
        theirs = recorded[f"trace/{layer}"].permute(0, 4, 1, 2, 3)
        mine = mine[tuple(slice(size) for size in theirs.shape)]  # before the crop of a transposed convolution
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()), msg=layer)
    assert sum(name.startswith("outputs/softmax/") for name in recorded) == len(outputs)
    loss = torch.zeros(())
    for scale, mine in enumerate(outputs):
        torch.testing.assert_close(mine.permute(0, 2, 3, 4, 1), recorded[f"outputs/softmax/{scale}"], rtol=0, atol=1e-5)
        loss = loss + (mine.permute(0, 2, 3, 4, 1) * recorded[f"inputs/cotangent/{scale}"]).sum()
    loss.backward()
    assert x.grad is not None
    gradients = {"x": x.grad.permute(0, 2, 3, 4, 1)}
    for layer, module in modules.items():
        gradients |= {f"{layer}/{name}": tensor for name, tensor in tensors(module, gradient=True).items()}
    compared = 0
    for name, theirs in recorded.items():
        if name.startswith("outputs/grad/"):
            mine = gradients[name.removeprefix("outputs/grad/")]
            theirs = theirs if name.endswith("/x") else from_keras(name, theirs, mine)
            # Of the layer's largest entry: where a gradient cancels, as gamma's in batch_normalization_1 of "case",
            # the record in float32 is itself 1.3e-3 of its own largest entry away from this network in float64.
            layer = name.rpartition("/")[0]
            largest = max(float(x.abs().max()) for key, x in recorded.items() if key.rpartition("/")[0] == layer)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-3 * largest, msg=name)
            compared += 1
    assert compared > 40


def test_the_loss_of_a_class_is_that_of_the_release_before_it_sums_over_classes(shared: Path) -> None:
    from polyhead_medical.losses import soft_dice

    recorded = load_file(shared / "golden" / "daunet" / "case.safetensors")
    p, g = (recorded[f"inputs/dice/{name}"].permute(0, 4, 1, 2, 3).float() for name in ("prob", "target"))
    terms = recorded["outputs/dice/per_class_term"]
    torch.testing.assert_close(1 - soft_dice(p, g), terms[1:].expand(1, 1), rtol=0, atol=1e-6)
