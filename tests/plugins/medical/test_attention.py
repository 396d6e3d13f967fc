"""Position attention, channel attention and gates: what holds exactly."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from polyhead.errors import ConfigError
from polyhead_medical.attention import AttentionGate, ChannelAttention, PositionAttention


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def position(gamma: float = 0.7) -> PositionAttention:
    torch.manual_seed(0)
    module = PositionAttention(16).double()
    module.gamma.data.fill_(gamma)
    return module


@pytest.mark.parametrize("module", [PositionAttention(16), ChannelAttention(), ChannelAttention("keras")])
def test_a_fresh_module_changes_not_a_bit(module: nn.Module) -> None:
    x = noise(2, 16, 3, 4, 5).float()
    assert torch.equal(module(x), x)


def test_position_attention_is_the_formula() -> None:
    module, x = position(), noise(2, 16, 3, 4)
    flat = x.flatten(2)
    q, k, v = (
        torch.einsum("oi,bin->bon", layer.weight[:, :, 0], flat) for layer in (module.query, module.key, module.value)
    )
    weights = torch.einsum("bci,bcj->bij", q, k).softmax(-1)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 12, dtype=torch.float64))
    expected = 0.7 * torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape) + x
    torch.testing.assert_close(module(x), expected)


def test_position_attention_knows_no_places_and_no_number_of_axes() -> None:
    module, x = position(), noise(2, 16, 30)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(module(x[..., order]), module(x)[..., order])
    image = x.reshape(2, 16, 5, 6)
    torch.testing.assert_close(module(image).unsqueeze(2), module(image.unsqueeze(2)))


@pytest.mark.parametrize("mode", ["danet", "plain", "keras"])
def test_channel_attention_follows_channels_and_ignores_places(mode: Any) -> None:
    module = ChannelAttention(mode, scaled=True).double()
    module.gamma.data.fill_(0.7)
    x = noise(2, 6, 20)
    channels, places = torch.randperm(6), torch.randperm(20)
    torch.testing.assert_close(module(x[:, channels]), module(x)[:, channels])
    torch.testing.assert_close(module(x[..., places]), module(x)[..., places])


def test_the_keras_form_is_the_transpose() -> None:
    x = noise(1, 4, 10)
    plain, keras = ChannelAttention("plain"), ChannelAttention("keras")
    for module in (plain, keras):
        module.gamma.data.fill_(1.0)
    weights = (x @ x.transpose(1, 2)).softmax(-1)
    torch.testing.assert_close(plain(x) - x, weights @ x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(keras(x) - x, weights.transpose(1, 2) @ x, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(plain(x), keras(x))


def test_channel_attention_stays_finite_in_half_precision() -> None:
    module = ChannelAttention()
    module.gamma.data.fill_(1.0)
    x = (100 * noise(1, 8, 4096)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).isfinite().all()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'no mode "danets"\. All: danet, plain, keras'):
        ChannelAttention("danets")  # type: ignore[arg-type]


def test_the_added_gate_is_that_of_monai() -> None:
    from monai.networks.nets.attentionunet import AttentionBlock

    theirs: Any = AttentionBlock(spatial_dims=3, f_int=3, f_g=6, f_l=5).eval()
    mine: Any = AttentionGate(6, 5, 3, form="add").eval()
    for ours, official in ((mine.of_up, theirs.W_g), (mine.of_skip, theirs.W_x), (mine.psi, theirs.psi)):
        ours[0].load_state_dict(official[0].conv.state_dict())
        ours[1].load_state_dict(copy.deepcopy(official[1].state_dict()))
    up, skip = noise(2, 6, 4, 4, 4).float(), noise(2, 5, 4, 4, 4, seed=1).float()
    torch.testing.assert_close(mine(up, skip), theirs(up, skip), rtol=0, atol=1e-6)
