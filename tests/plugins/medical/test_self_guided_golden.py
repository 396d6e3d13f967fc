"""The self-guided network and its modules against the official PyTorch code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyhead_medical.attention import ChannelAttention, PositionAttention
from polyhead_medical.organ_loss import organ_loss
from polyhead_medical.self_guided import SelfGuidedNet, _AutoEncoder, _branch


@pytest.fixture
def modules(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "multiscale-self-guided" / "case_modules.safetensors")


@pytest.fixture
def whole(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "multiscale-self-guided" / "case.safetensors")


def fill(module: nn.Module, weights: dict[str, Tensor], prefix: str, names: dict[str, str]) -> set[str]:
    """Copy recorded weights into a module; ``names`` maps our prefixes to theirs. Return the keys used."""
    used = set()
    state = module.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        mine = max((each for each in names if name.startswith(each)), key=len)
        key = f"weights/{prefix}{names[mine]}{name.removeprefix(mine)}"
        tensor.copy_(weights[key].reshape(tensor.shape))
        used.add(key)
    return used


PAM = {"query": "query_conv", "key": "key_conv", "value": "value_conv", "gamma": "gamma"}


def branch_names(ours: str = "", theirs: str = "") -> dict[str, str]:
    plain = {f"{ours}{i}": f"{theirs}attn.{i}" for i in range(7)}
    return plain | {f"{ours}3.{mine}": f"{theirs}attn.3.{name}" for mine, name in PAM.items()}


def autoencoder_names(ours: str = "", theirs: str = "") -> dict[str, str]:
    pairs = {"down": "enc1.encode", "deeper": "enc2.encode", "up": "dec2.decode", "out": "dec1.decode"}
    return {f"{ours}{mine}.": f"{theirs}{name}." for mine, name in pairs.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["pam", "cam"])
def test_attention_is_the_official_one(modules: dict[str, Tensor], kind: str, dtype: torch.dtype) -> None:
    module: nn.Module = PositionAttention(24, bias=True) if kind == "pam" else ChannelAttention()
    fill(module, modules, f"{kind}.", PAM)
    module.to(dtype)
    x = modules["inputs/x"].to(dtype).requires_grad_()
    out = module(x)
    (out * modules["inputs/cotangent"]).sum().backward()
    exact = dtype == torch.float64
    end, atol = ("_f64", 1e-12) if exact else ("", 1e-5)
    torch.testing.assert_close(out, modules[f"outputs/{kind}/out{end}"], rtol=0, atol=atol)
    scale = float(modules[f"outputs/{kind}/grad_x"].abs().max())
    torch.testing.assert_close(x.grad, modules[f"outputs/{kind}/grad_x{end}"], rtol=0, atol=atol * max(1, scale))
    if not exact:
        large = module(modules["inputs/x_large"])
        torch.testing.assert_close(large, modules[f"outputs/{kind}/out_large"], rtol=1e-5, atol=1e-5)
        for name, parameter in module.named_parameters():
            theirs = next(name.replace(mine, official, 1) for mine, official in PAM.items() if name.startswith(mine))
            recorded = modules[f"outputs/{kind}/grad/{theirs}"].reshape(parameter.shape)
            close = 1e-3 * float(recorded.abs().max()) + 1e-4
            torch.testing.assert_close(parameter.grad, recorded, rtol=0, atol=close, msg=name)


def test_a_branch_and_the_auto_encoder_are_the_official_ones(modules: dict[str, Tensor]) -> None:
    branch = _branch(24, 3, PositionAttention(24, bias=True))
    fill(branch, modules, "pam_layer.", branch_names())
    norms: list[Any] = [module for module in branch if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    out = branch.train()(modules["inputs/x_double"])
    torch.testing.assert_close(out, modules["outputs/pam_layer/train_batch_stats"], rtol=0, atol=1e-5)
    # The recorded statistics are those after the pass in training mode, the recorded evaluation came before it.
    for norm, (mean, var) in zip(norms, kept, strict=True):
        norm.running_mean.copy_((mean - 0.1 * norm.running_mean) / 0.9)
        norm.running_var.copy_((var - 0.1 * norm.running_var) / 0.9)
    out = branch.eval()(modules["inputs/x_double"])
    torch.testing.assert_close(out, modules["outputs/pam_layer/eval"], rtol=0, atol=1e-5)

    coder = _AutoEncoder(8).eval()
    fill(coder, modules, "ae.", autoencoder_names())
    latent, again = coder(modules["inputs/x_ae"])
    torch.testing.assert_close(latent.flatten(), modules["outputs/ae/latent"], rtol=0, atol=1e-5)
    torch.testing.assert_close(again, modules["outputs/ae/reconstruction"], rtol=0, atol=1e-5)


def names(scales: int) -> Iterator[tuple[str, str]]:
    """Yield (ours, theirs): the official code counts some modules from the finest scale, some from the coarsest."""
    for i in range(9):
        yield f"fuse.{i}.", f"fuse1.fuse_attn.{i}."
    for scale in range(scales):
        fine, coarse = scale + 1, scales - scale
        yield f"lateral.{scale}.", f"down{fine}."
        yield f"first.{scale}.", f"predict{fine}."
        yield f"second.{scale}.", f"predict{fine}_2."
        for step in (0, 1):
            for kind, theirs in (("position", "pam"), ("channel", "cam")):
                yield from branch_names(
                    f"steps.{step}.{kind}.{scale}.", f"{theirs}_attention_{step + 1}_{fine}."
                ).items()
            yield f"steps.{step}.out.{scale}.", f"conv8_{'1' * step}{coarse}."
            yield f"steps.{step}.guide.{scale}.", f"conv_sem_{step + 1}_{coarse}."
            yield from autoencoder_names(f"steps.{step}.autoencoder.", f"semanticModule_{step + 1}_1.").items()


def network(whole: dict[str, Tensor]) -> SelfGuidedNet:
    config = SelfGuidedNet.Config(classes=5, stages=(10, 12, 14, 16), channels=8, inner=2)
    model = SelfGuidedNet(config)
    del model.backbone  # the record begins after it
    used = fill(model, whole, "", dict(names(4)))
    assert used == {name for name in whole if name.startswith("weights/")}
    return model


def test_the_release_changes_only_the_stages() -> None:
    release = SelfGuidedNet.Config.release("Multi-Scale-Attention")
    assert release == SelfGuidedNet.Config(stages=(256, 512, 1024, 2048))


@pytest.mark.parametrize("mode", ["train_bn_eval", "train_bn_batch"])
def test_the_network_and_its_losses_are_the_official_ones(whole: dict[str, Tensor], mode: str) -> None:
    model = network(whole).train(mode == "train_bn_batch")
    stages = [whole[f"inputs/stages/C{i}"].requires_grad_() for i in (2, 3, 4, 5)]
    size = whole["inputs/image_size_hw"].tolist()
    passes = model.from_stages(stages, size)
    mine: Any
    for number, maps in (("P1", passes.first), ("P2", passes.second)):
        for scale, mine in enumerate(maps):
            if f"outputs/{mode}/{number}_scale{scale}" in whole:
                theirs = whole[f"outputs/{mode}/{number}_scale{scale}"]
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-4, msg=f"{number} {scale}")
    if mode == "train_bn_eval":
        mean = torch.stack(passes.second).mean(0)
        torch.testing.assert_close(mean, whole["outputs/eval_logits"], rtol=0, atol=1e-4)
    loss = organ_loss(passes, whole["inputs/target"])
    for name, key in (
        ("segmentation", "loss_seg"),
        ("guidance", "loss_guidance"),
        ("reconstruction", "loss_reconstruction"),
    ):
        torch.testing.assert_close(loss[name], whole[f"outputs/{mode}/{key}"], rtol=1e-5, atol=1e-7, msg=name)
    total = loss["segmentation"] + 0.25 * loss["guidance"] + 0.1 * loss["reconstruction"]
    torch.testing.assert_close(total, whole[f"outputs/{mode}/loss_total"], rtol=1e-5, atol=1e-7)
    total.backward()
    theirs_to_ours = {theirs: ours for ours, theirs in names(4)}
    parameters = dict(model.named_parameters())
    compared = 0
    for key, theirs in whole.items():
        if key.startswith(f"outputs/{mode}/grad/stages/"):
            mine = stages[int(key[-1]) - 2].grad
        elif key.startswith((f"outputs/{mode}/grad/", f"outputs/{mode}/grad_norm/")):
            name = key.split("/", 3)[3]
            if name.endswith("key_conv.bias"):  # shifts every score of a row alike: its gradient is rounding
                continue
            prefix = max((each for each in theirs_to_ours if name.startswith(each)), key=len)
            mine = parameters[theirs_to_ours[prefix] + name.removeprefix(prefix)].grad
            if "/grad_norm/" in key:
                mine = mine.norm()
        else:
            continue
        largest = float(theirs.abs().max())
        torch.testing.assert_close(mine.reshape(theirs.shape), theirs, rtol=0, atol=1e-3 * largest + 1e-9, msg=key)
        compared += 1
    assert compared > 40
