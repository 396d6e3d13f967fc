"""FeedForward is two products with an activation between; gated, three."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polyhead.errors import ConfigError
from polyhead.nn import FeedForward


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("relu", torch.relu),
        ("gelu", lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
        ("silu", lambda x: x * torch.sigmoid(x)),
    ],
)
def test_plain_activations(activation: str, function: torch.nn.Module) -> None:
    ff, x = FeedForward(6, activation=activation), torch.randn(2, 3, 6)
    assert ff.up.out_features == 24
    hidden = function(x @ ff.up.weight.T + ff.up.bias)
    torch.testing.assert_close(ff(x), hidden @ ff.down.weight.T + ff.down.bias)


@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("glu", torch.sigmoid),
        ("reglu", torch.relu),
        ("geglu", F.gelu),
        ("swiglu", lambda x: x * torch.sigmoid(x)),
        ("bilinear", lambda x: x),
    ],
)
def test_gated_activations(activation: str, function: torch.nn.Module) -> None:
    ff, x = FeedForward(6, 10, activation=activation, bias=False, out_dim=5), torch.randn(2, 6)
    assert ff.gate is not None
    hidden = function(x @ ff.gate.weight.T) * (x @ ff.up.weight.T)
    torch.testing.assert_close(ff(x), hidden @ ff.down.weight.T)
    assert ff(x).shape == (2, 5)


def test_gated_costs_what_plain_does() -> None:
    def size(ff: FeedForward) -> int:
        return sum(p.numel() for p in ff.parameters())

    plain, gated = FeedForward(96, bias=False), FeedForward(96, activation="swiglu", bias=False)
    assert size(gated) == size(plain) == 8 * 96**2
    assert FeedForward(100, activation="swiglu").up.out_features == 272  # 266.67, up to a multiple of 8


def test_dropout_is_before_the_last_map() -> None:
    ff = FeedForward(4, dropout=1.0)
    torch.testing.assert_close(ff(torch.randn(3, 4)), ff.down.bias.expand(3, 4))
    assert (ff.eval()(torch.randn(3, 4)) != ff.down.bias).any()


def test_unknown_activation_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r'activation is "swigelu"\. Did you mean "swiglu"\?  All: relu, gelu, gelu_ta'
    ):
        FeedForward(4, activation="swigelu")


def test_print_shows_the_activation() -> None:
    assert "activation='relu'" in repr(FeedForward(4, activation="relu"))
