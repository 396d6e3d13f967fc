"""Decision Aaren and Decision Transformer against min-decision-transformer, stage by stage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from polyhead_agents.decision import DecisionAaren, DecisionConfig, DecisionModel, DecisionTransformer

OUTPUT_ATOL = 1e-5
GRADIENT_RTOL = 1e-4
CASES = {"decision_aaren": DecisionAaren, "decision_transformer": DecisionTransformer}
NAMES = {
    "embed_rtg": "embed_return",
    "embed_ln": "embed_norm",
    "predict_rtg": "predict_return",
    "predict_action.0": "predict_action",
    "mlp.0": "ff.up",
    "mlp.2": "ff.down",
    "ln1": "mixer_norm",
    "ln2": "ff_norm",
    "proj_net": "out_proj",
    "q_net": "q_proj",
    "k_net": "k_proj",
    "v_net": "v_proj",
}


def renamed(name: str, *, aaren: bool) -> str:
    """Return our name of an official parameter."""
    name = name.replace("attention.", "mixer." if aaren else "mixer.attention.")
    for official, own in NAMES.items():
        name = re.sub(rf"(^|\.){re.escape(official)}(?=\.|$)", rf"\1{own}", name)
    return name.replace("transformer.", "stack.blocks.")


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest, shared: Path) -> tuple[DecisionModel, dict[str, Tensor], bool]:
    tensors = load_file(shared / "golden" / "aaren" / f"case_{request.param}.safetensors")
    config = DecisionConfig.release(
        "min-decision-transformer", state_dim=7, act_dim=3, dim=24, depth=2, heads=2, context=6, max_timestep=40
    )
    model = CASES[request.param](config).eval()
    aaren = request.param == "decision_aaren"
    weights = {
        renamed(name.removeprefix("weights/"), aaren=aaren): value
        for name, value in tensors.items()
        if name.startswith("weights/")
    }
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) == {"state_mean", "state_std", "action_mid", "action_half", "return_scale"}
    return model, tensors, aaren


def test_outputs_blocks_and_gradients(case: tuple[DecisionModel, dict[str, Tensor], bool]) -> None:
    model, tensors, aaren = case
    inputs = {name.removeprefix("inputs/"): value for name, value in tensors.items() if name.startswith("inputs/")}
    blocks: list[Tensor] = []
    for block in model.stack.blocks:
        block.register_forward_hook(lambda _module, _inputs, mixed: blocks.append(mixed.x))
    states, actions = (inputs[name].requires_grad_() for name in ("states", "actions"))
    returns = inputs["returns_to_go"].requires_grad_()
    mask = inputs["traj_mask"].bool()
    output = model(returns[..., 0], states, actions, inputs["timesteps"], mask)
    for number, block_output in enumerate(blocks):
        torch.testing.assert_close(block_output, tensors[f"trace/block{number}"], atol=OUTPUT_ATOL, rtol=0)
    assert output.observation is not None
    assert output.return_to_go is not None
    for name, value in (
        ("action_preds", output.action),
        ("state_preds", output.observation),
        ("return_preds", output.return_to_go),
    ):
        torch.testing.assert_close(value, tensors[f"outputs/{name}"], atol=OUTPUT_ATOL, rtol=0)

    loss = (output.action - actions.detach())[mask].square().mean()
    torch.testing.assert_close(loss, tensors["outputs/action_loss"], atol=OUTPUT_ATOL, rtol=0)
    loss = loss + (output.observation * inputs["cotangent_state"]).sum()
    loss = loss + (output.return_to_go * inputs["cotangent_return"]).sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients |= {"states": states.grad, "actions": actions.grad, "returns_to_go": returns.grad}
    for name, value in tensors.items():
        if not name.startswith("outputs/grad/"):
            continue
        own = renamed(name.removeprefix("outputs/grad/"), aaren=aaren)
        gradient = gradients[own]
        assert gradient is not None, own
        scale = float(value.abs().max())
        error = float((gradient - value).abs().max())
        # A bias on the keys of a softmax has no effect: its gradient is rounding.
        allowed = 1e-4 if own.endswith("k_proj.bias") else GRADIENT_RTOL * scale
        assert error <= allowed, f"{own}: {error:.3g} of {scale:.3g}"
