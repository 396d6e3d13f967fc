"""A stack is its blocks, one behind the other; it streams, traces, and survives padding of any content."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyhead import record
from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.nn import Context, Mixed, Rotary, ScaledSinusoidPositions, Stack
from polyhead.protocols import Ratio

STACKS: dict[str, dict[str, Any]] = {
    "softmax": {"mixer": "softmax", "mixer_settings": {"rotary": Rotary(6), "kv_heads": 2}},
    "window": {"mixer": "softmax", "mixer_settings": {"window": 3}},
    "lightning": {"mixer": "lightning", "norm": "rms", "activation": "swiglu"},
    "aaren": {"mixer": "aaren", "pre_norm": False},
    "both": {"mixer": ["lightning", "softmax"]},
}


def built(name: str, **settings: Any) -> Stack:
    torch.manual_seed(0)
    return Stack(24, 2, 4, causal=True, **STACKS[name], **settings).eval()


@pytest.mark.parametrize("pre_norm", [True, False])
def test_it_is_blocks_and_a_norm(pre_norm: bool) -> None:
    stack = Stack(24, 3, 4, pre_norm=pre_norm)
    x = torch.randn(2, 5, 24)
    expected = x
    for block in stack.blocks:
        expected = block(expected, ctx=Context()).x
    assert (stack.norm is None) == (not pre_norm)
    torch.testing.assert_close(stack(x).x, expected if stack.norm is None else stack.norm(expected))
    assert Stack(8, 1, 2, pre_norm=pre_norm, final_norm=not pre_norm).norm is None or not pre_norm


@pytest.mark.parametrize("name", STACKS)
def test_rows_of_a_batch_are_apart(name: str) -> None:
    """Padded with NaN and asked by lengths, by mask or both, each row is what it is alone."""
    stack, x = built(name), torch.randn(3, 8, 24)
    lengths = torch.tensor([8, 5, 1])
    key_mask = torch.arange(8) < lengths[:, None]
    x = x.masked_fill(~key_mask[..., None], torch.nan).requires_grad_()
    for arguments in ({"lengths": lengths}, {"key_mask": key_mask}, {"lengths": lengths, "key_mask": key_mask}):
        stack.zero_grad()
        output = stack(x, **arguments).x
        for row, length in enumerate(lengths.tolist()):
            alone = stack(x[row : row + 1, :length]).x[0]
            torch.testing.assert_close(output[row, :length], alone, rtol=1e-4, atol=1e-5)
        output[key_mask].sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in stack.parameters())


@pytest.mark.parametrize("name", STACKS)
def test_a_stream_equals_the_whole(name: str) -> None:
    stack, x = built(name), torch.randn(2, 9, 24)
    whole = stack(x).x
    prompt = stack(x[:, :4], state=stack.init_state(2))
    torch.testing.assert_close(prompt.x, whole[:, :4], rtol=1e-4, atol=1e-5)
    state = prompt.state
    for t in range(4, 9):
        mixed = stack.step(x[:, t], state=state)
        state = mixed.state
        torch.testing.assert_close(mixed.x, whole[:, t], rtol=1e-4, atol=1e-5)


def test_mixers_of_one_stack_share_settings_of_the_state() -> None:
    stack, x = Stack(24, 3, 4, mixer=["lightning", "softmax", "aaren"], causal=True).eval(), torch.randn(2, 6, 24)
    state: Any = stack.init_state(2, capacity=6)
    shapes = [tuple(leaf.shape) for leaf in (state[0].mixer, *state[1].mixer, *state[2].mixer)]
    for t in range(6):
        mixed = stack.step(x[:, t], state=state)
        state = mixed.state
    torch.testing.assert_close(mixed.x, stack(x).x[:, -1], rtol=1e-4, atol=1e-5)
    assert [tuple(leaf.shape) for leaf in (state[0].mixer, *state[1].mixer, *state[2].mixer)] == shapes


def test_a_decoder_streams_with_a_memory() -> None:
    """The encoder's output is projected once; capacity makes states of constant shape."""
    torch.manual_seed(0)
    encoder = Stack(24, 1, 4)
    decoder = Stack(24, 2, 4, causal=True, cross=True, cross_settings={"memory_dim": 24}).eval()
    memory_mask = torch.arange(6) < torch.tensor([[6], [2]])
    memory = encoder(torch.randn(2, 6, 24), key_mask=memory_mask).x
    x = ScaledSinusoidPositions(24)(torch.randn(2, 5, 24))
    whole = decoder(x, memory=memory, memory_mask=memory_mask).x
    for settings in ({}, {"capacity": 5}):
        state = decoder.init_state(2, memory=memory, memory_mask=memory_mask, **settings)
        for t in range(5):
            mixed = decoder.step(x[:, t], state=state)
            state = mixed.state
            torch.testing.assert_close(mixed.x, whole[:, t], rtol=1e-4, atol=1e-5)


class Halving(nn.Module):
    """Drops odd tokens, tells what it is told, and adds a loss."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.seen: list[Context] = []

    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        self.seen.append(ctx)
        kept = torch.arange(0, x.shape[1], 2).expand(x.shape[0], -1)
        return Mixed(x[:, ::2] * 0, state, {"size": Ratio(x.sum() * 0 + ctx.layer, torch.tensor(2.0))}, kept)

    def init_state(self, batch: int) -> Tensor:
        return torch.zeros(batch)

    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        return Mixed(x, state, {"size": Ratio(x.sum() * 0 + 1, torch.tensor(1.0))})


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 0


def test_tokens_that_are_dropped_stay_dropped() -> None:
    stack = Stack(8, 3, 2, mixer=Halving, norm="none", feed_forward=lambda dim: Nothing())
    x = torch.randn(2, 11, 8)
    key_mask = torch.ones(2, 11, dtype=torch.bool)
    key_mask[1, :3] = False
    with record(stack, kept=True) as tape:
        mixed = stack(x, key_mask=key_mask)
    assert mixed.kept is not None
    assert mixed.kept.tolist() == [[0, 8]] * 2
    torch.testing.assert_close(mixed.x, x[:, [0, 8]] * key_mask[:, [0, 8], None])
    seen: list[Any] = [module.seen[0] for module in stack.modules() if isinstance(module, Halving)]
    assert [each.layer for each in seen] == [0, 1, 2]
    assert seen[0].positions is None
    assert seen[1].positions.tolist() == [[0, 2, 4, 6, 8, 10], [0, 0, 1, 3, 5, 7]]
    assert seen[2].positions.tolist() == [[0, 4, 8], [0, 1, 5]]
    assert seen[2].key_mask.tolist() == [[True] * 3, [False, True, True]]
    torch.testing.assert_close(seen[2].embeddings, (x * key_mask[..., None])[:, [0, 4, 8]])
    assert [tuple(x.shape) for name in tape for x in tape[name]] == [(2, 6), (2, 3), (2, 2)]
    assert (mixed.aux["size"].total.item(), mixed.aux["size"].count.item()) == (0 + 1 + 2, 6)


def test_positions_of_what_is_left() -> None:
    stack = Stack(8, 2, 2, mixer=Halving, causal=True)
    blocks: Any = stack.blocks
    x = torch.randn(2, 4, 8)
    for positions, expected in (
        (None, [[0, 2]] * 2),
        (torch.arange(5, 9), [[5, 7]] * 2),
        (torch.arange(8).view(2, 4), [[0, 2], [4, 6]]),
    ):
        stack(x, positions=positions)
        assert blocks[1].mixer.seen[-1].positions.tolist() == expected
    with pytest.raises(ConfigError, match="A mixer drops tokens of a stream, so that they cannot be counted"):
        stack(x, state=stack.init_state(2))
    assert stack.step(x[:, 0], state=stack.init_state(2)).aux["size"].total.item() == 2


def test_what_does_not_fit_is_refused() -> None:
    stack, x = Stack(8, 2, 2, causal=True), torch.zeros(2, 3, 8)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ShapeError, "x (2, 3, 4) is not (batch, seq, dim) with dim 8.", {"x": x[..., :4]}),
        (ShapeError, "key_mask (2, 2) is not (batch, seq) of x (2, 3, 8).", {"key_mask": torch.ones(2, 2) > 0}),
        (
            DtypeError,
            "key_mask is torch.float32, expected torch.bool, True = real token.",
            {"key_mask": torch.ones(2, 3)},
        ),
        (ShapeError, "lengths (3,) is not (batch,) of x (2, 3, 8).", {"lengths": torch.ones(3, dtype=torch.int64)}),
        (ConfigError, "The state is of 1 layers, the stack has 2.", {"state": stack.init_state(2)[:1]}),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind) as error:
            stack(**{"x": x, **arguments})
        assert message in str(error.value)
    with pytest.raises(ShapeError, match=r"x \(2, 3, 8\) is not \(batch, dim\) with dim 8\."):
        stack.step(x, state=stack.init_state(2))
    both_ways = Stack(8, 2, 2)
    for call in (lambda: both_ways.init_state(2), lambda: both_ways(x, state=stack.init_state(2))):
        with pytest.raises(
            ConfigError, match=r"A stack that is not causal cannot be streamed\. Make it with causal=True"
        ):
            call()
    for depth, mixer, count in ((0, "softmax", 0), (2, ["softmax"], 1)):
        with pytest.raises(
            ConfigError, match=rf"depth is {depth}, expected 1 or more; there are {count} mixers, expecte"
        ):
            Stack(8, depth, 2, mixer=mixer)
