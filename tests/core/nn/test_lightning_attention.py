"""LightningAttention equals both published layers, and its equations for the settings between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from polyhead.errors import ConfigError
from polyhead.nn import Context, LightningAttention, Stack
from polyhead.ops.decay_attention import lightning_slopes


def close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-5 * expected.abs().max().item(), msg=name or None)


def test_layer_equals_the_released(shared: Path) -> None:
    golden = load_file(shared / "golden" / "lightning-attention" / "case_tnl_layer.safetensors")
    layer = LightningAttention(24, 3, bias=True)
    names = {name: name.replace("o_proj", "out_proj").replace("output_gate", "gate") for name in golden}
    layer.load_state_dict({names[n].removeprefix("weights/"): x for n, x in golden.items() if n.startswith("weights/")})
    x, ctx = golden["inputs/x"].requires_grad_(), Context(layer=1, depth=4, causal=True)
    close(-layer._log_decay(ctx), golden["trace/slope_rate"])
    y = layer(x, ctx=ctx).x
    close(y, golden["outputs/y"])
    (y * golden["inputs/cotangent"]).sum().backward()
    assert x.grad is not None
    close(x.grad, golden["outputs/grad_x"])
    parameters = dict(layer.named_parameters())
    for name, expected in golden.items():
        if name.startswith("outputs/grad/"):
            gradient = parameters[names[name].removeprefix("outputs/grad/")].grad
            assert gradient is not None
            close(gradient, expected, name)


def test_layer_equals_that_of_minimax(shared: Path) -> None:
    golden = load_file(shared / "golden" / "lightning-attention" / "case_minimax_layer.safetensors")
    layer = LightningAttention(24, 4, head_dim=8, norm="rms", gate="full", eps=1e-6)
    joint = golden["weights/qkv_proj.weight"].unflatten(0, (4, 3, 8)).transpose(0, 1).flatten(1, 2)
    weights = dict(zip(("q_proj.weight", "k_proj.weight", "v_proj.weight"), joint, strict=True))
    weights |= {
        "norm.weight": golden["weights/norm.weight"],
        "gate.weight": golden["weights/output_gate.weight"],
        "out_proj.weight": golden["weights/out_proj.weight"],
    }
    layer.load_state_dict(weights)
    x, key_mask = golden["inputs/x"], golden["inputs/attention_mask"].bool()
    ctx = Context(layer=1, depth=4, causal=True)
    y, state, *_ = layer(x, ctx=ctx, state=layer.init_state(2))
    close(y, golden["outputs/y"])
    close(state, golden["outputs/state"])
    masked = layer(x, ctx=Context(key_mask, layer=1, depth=4, causal=True), state=layer.init_state(2))
    close(masked.x[key_mask], golden["outputs/y_left_padded"][key_mask])
    close(masked.state, golden["outputs/state_left_padded"])
    prompt = layer(x[:, :35], ctx=ctx, state=layer.init_state(2))
    parts, state = [prompt.x], prompt.state
    for t in range(35, x.shape[1]):
        mixed = layer.step(x[:, t], ctx=ctx, state=state)
        state = mixed.state
        parts.append(mixed.x.unsqueeze(1))
    close(torch.cat(parts, 1), golden["outputs/y_prefill_then_decode"])


@pytest.mark.parametrize("activation", ["silu", "elu1", "none"])
@pytest.mark.parametrize("gate", ["low_rank", "full", "linear", "none"])
@pytest.mark.parametrize("decay", ["released", "paper", "none"])
def test_equations(activation: str, gate: str, decay: str) -> None:
    layer: Any = LightningAttention(
        12, 3, activation=activation, activate_values=False, gate=gate, decay=decay, norm="srms"
    )
    layer = layer.double()
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    y = layer(x, ctx=Context(layer=1, depth=3, causal=True)).x
    function = {"silu": F.silu, "elu1": lambda z: F.elu(z) + 1, "none": lambda z: z}[activation]
    q, k, v = (m(x).unflatten(-1, (3, 4)).transpose(1, 2) for m in (layer.q_proj, layer.k_proj, layer.v_proj))
    slopes = torch.zeros(3) if decay == "none" else lightning_slopes(3, layer=1, layers=3, version=decay)
    distance = torch.arange(6)[:, None] - torch.arange(6)
    weights = torch.where(distance >= 0, torch.exp(-slopes.double()[:, None, None] * distance), 0)
    o = ((function(q) @ function(k).mT) * weights @ v).transpose(1, 2).flatten(2)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    if gate != "none":
        o = o * (layer.gate(x) if gate == "linear" else layer.gate(x).sigmoid())
    torch.testing.assert_close(y, layer.out_proj(o), rtol=1e-6, atol=1e-7)


def test_deeper_layers_forget_less() -> None:
    layer = LightningAttention(12, 3)
    factors = [(-layer._log_decay(Context(layer=at, depth=4, causal=True)) / layer.slopes)[0].item() for at in range(4)]
    assert factors == pytest.approx([1.00001, 2 / 3 + 1e-5, 1 / 3 + 1e-5, 1e-5])
    torch.testing.assert_close(-layer._log_decay(Context(causal=True)), layer.slopes)


def test_slopes_keep_their_precision() -> None:
    layer = LightningAttention(12, 3)
    torch.testing.assert_close(layer.bfloat16().slopes, lightning_slopes(3), rtol=0, atol=0)
    with torch.device("meta"):
        empty = LightningAttention(12, 3)
    torch.testing.assert_close(empty.to_empty(device="cpu").slopes, lightning_slopes(3), rtol=0, atol=0)
    assert "slopes" not in layer.state_dict()


def test_stack_knows_its_layers() -> None:
    """Two layers of the same weights differ by their decay."""
    stack = Stack(12, 2, 3, mixer="lightning", causal=True)
    stack.blocks[1].load_state_dict(stack.blocks[0].state_dict())
    x = torch.randn(1, 9, 12)
    by_hand = x
    for layer, block in enumerate(stack.blocks):
        by_hand = block(by_hand, ctx=Context(layer=layer, depth=2, causal=True)).x
    assert stack.norm is not None
    torch.testing.assert_close(stack(x).x, stack.norm(by_hand))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "dim is 8 and heads is 3: dim must be a multiple of heads. Or set head_dim."),
        ({"activation": "gelu"}, 'activation is "gelu", expected one of: silu, elu1, none.'),
        ({"gate": "high"}, 'gate is "high", expected one of: low_rank, full, linear, none.'),
        ({"decay": "alibi"}, 'decay is "alibi", expected one of: released, paper, none.'),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        LightningAttention(8, **{"heads": 2, **settings})
    assert message in str(error.value)


def test_it_is_causal() -> None:
    with pytest.raises(ConfigError, match=r"Lightning attention is causal\. Make the stack with causal=True, or take"):
        Stack(8, 1, 2, mixer="lightning")(torch.zeros(1, 2, 8))
    assert "8, heads=2, head_dim=4, decay='paper'" in repr(LightningAttention(8, 2, decay="paper"))
