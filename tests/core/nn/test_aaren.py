"""Aaren equals the recorded layer and a Transformer whose queries are one token."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.nn import Aaren, Context, MultiHeadAttention, Stack, TransformerBlock, states
from polyhead.testing import check_mixer


def named(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return tensors under our names."""
    found = {name.removeprefix(prefix): x for name, x in golden.items() if name.startswith(prefix)}
    return {name.replace("proj_net", "out_proj").replace("_net", "_proj"): x for name, x in found.items()}


@pytest.mark.parametrize("case", ["causal", "causal_masked"])
def test_layer_equals_the_recorded(case: str, shared: Path) -> None:
    golden = load_file(shared / "golden" / "aaren" / "case_layer.safetensors")
    aaren = Aaren(24, 4)
    aaren.load_state_dict(named(golden, "weights/"))
    x = golden["inputs/x"].requires_grad_()
    key_mask = golden["inputs/mask"] if case == "causal_masked" else None
    y = aaren(x, ctx=Context(key_mask=key_mask, causal=True)).x
    torch.testing.assert_close(y, golden[f"outputs/{case}/y"], rtol=0, atol=1e-5)
    (y * golden["inputs/cotangent"]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in aaren.named_parameters()} | {"x": x.grad}
    expected = named(golden, f"outputs/{case}/grad/") | {"x": golden[f"outputs/{case}/grad_x"]}
    for name, gradient in gradients.items():
        assert gradient is not None
        scale = max(expected[name].abs().max().item(), 0.1)  # the bias of k has no effect: rounding around zero
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("mixer", ["aaren", "softmax"])
def test_block_equals_that_of_the_decision_models(mixer: str, shared: Path) -> None:
    case = "case_decision_aaren" if mixer == "aaren" else "case_decision_transformer"
    golden = load_file(shared / "golden" / "aaren" / f"{case}.safetensors")
    block = TransformerBlock(24, 2, mixer=mixer, pre_norm=False)
    names = {
        "attention.": "mixer." if mixer == "aaren" else "mixer.attention.",
        "ln1": "mixer_norm",
        "ln2": "ff_norm",
        "mlp.0": "ff.up",
        "mlp.2": "ff.down",
    }
    weights = {}
    for name, x in named(golden, "weights/transformer.1.").items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        weights[name] = x
    block.load_state_dict({name: x for name, x in weights.items() if not name.endswith("mask")})
    output = block(golden["trace/block0"], ctx=Context(causal=True)).x
    torch.testing.assert_close(output, golden["trace/block1"], rtol=0, atol=1e-5)


def test_it_is_attention_of_one_token() -> None:
    aaren, attention = Aaren(12, 3), MultiHeadAttention(12, 3, causal=True)
    nn.init.normal_(aaren.token)
    attention.load_state_dict({name: x for name, x in aaren.state_dict().items() if name != "token"})
    x = torch.randn(2, 7, 12)
    key_mask = torch.tensor([[True] * 5 + [False] * 2, [False] * 2 + [True] * 5])
    expected = attention(aaren.token.expand_as(x), x, key_mask=key_mask).output
    torch.testing.assert_close(aaren(x, ctx=Context(key_mask=key_mask, causal=True)).x, expected)


def test_parameters_are_those_of_the_paper() -> None:
    def size(mixer: str) -> int:
        return sum(p.numel() for p in TransformerBlock(512, 8, mixer=mixer).parameters())

    assert (size("softmax"), size("aaren")) == (3_152_384, 3_152_896)


def test_protocol() -> None:
    assert "steps equal the whole" in check_mixer("aaren")
    check_mixer("aaren", settings={"bias": False, "scale": 1.0, "head_dim": 5}, compiled=False)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 99), resets=st.lists(st.tuples(st.integers(1, 11), st.integers(0, 2)), max_size=4))
def test_a_stack_streams_with_resets_and_masks(seed: int, resets: list[tuple[int, int]]) -> None:
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    stack = Stack(12, 2, 3, mixer="aaren", causal=True, norm="rms").eval()
    x = torch.randn(3, 12, 12, generator=generator)
    key_mask = torch.rand(3, 12, generator=generator) < 0.8
    begins = {(row, t) for t, row in resets}
    state: Any = stack.init_state(3)
    outputs = []
    with torch.no_grad():
        for t in range(12):
            new = torch.tensor([(row, t) in begins for row in range(3)])
            state = states.where(new, stack.init_state(3), state)
            mixed = stack.step(x[:, t], state=state, key_mask=key_mask[:, t])
            state = mixed.state
            outputs.append(mixed.x)
        streamed = torch.stack(outputs, 1)
        for row in range(3):
            starts = [0, *sorted(t for r, t in begins if r == row), 12]
            for start, stop in itertools.pairwise(starts):
                whole = stack(x[row : row + 1, start:stop], key_mask=key_mask[row : row + 1, start:stop]).x[0]
                real = key_mask[row, start:stop]
                torch.testing.assert_close(streamed[row, start:stop][real], whole[real], rtol=1e-5, atol=1e-5)


def test_the_state_does_not_grow() -> None:
    aaren, x = Aaren(12, 3), torch.randn(2, 100, 12)
    sizes = {states.nbytes(aaren(x[:, :length], state=aaren.init_state(2)).state) for length in (1, 10, 100)}
    assert sizes == {4 * 2 * 3 * (4 + 2)}


def test_causality_is_exact() -> None:
    """Not to a tolerance: the same numbers, bit by bit."""
    stack, x = Stack(12, 2, 3, mixer="aaren", causal=True), torch.randn(2, 20, 12)
    changed = x.clone()
    changed[:, 11:] = torch.randn(2, 9, 12) * 100
    torch.testing.assert_close(stack(changed).x[:, :11], stack(x).x[:, :11], rtol=0, atol=0)


def test_16_bits_keep_a_wide_state() -> None:
    aaren = Aaren(12, 3).bfloat16()
    for parameter in aaren.q_proj.parameters():
        nn.init.zeros_(parameter)  # every token weighs the same
    x = torch.randn(2, 300, 12).bfloat16()
    output, state, *_ = aaren(x, state=aaren.init_state(2))
    assert (output.dtype, state.u.dtype) == (torch.bfloat16, torch.float32)
    assert state.u.unique().tolist() == [300.0]  # bfloat16 counts to 256
    assert Aaren(12, 3).double().init_state(1).w.dtype == torch.float64


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"Aaren is causal\. Make the stack with causal=True, or take another mixer\."
    ):
        Stack(8, 1, 2, mixer="aaren")(torch.zeros(1, 2, 8))
    with pytest.raises(
        ConfigError, match=r"dim is 8 and heads is 3: dim must be a multiple of heads\. Or set head_dim"
    ):
        Aaren(8, 3)
    assert "8, heads=2, head_dim=4" in repr(Aaren(8, 2))
