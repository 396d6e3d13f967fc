"""MultiHeadAttention equals torch's, and streams equal one call."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyhead.errors import ConfigError, DtypeError, ShapeError
from polyhead.nn import KVCache, KVMemory, KVRing, MultiHeadAttention, Rotary, states


def copy_of(torchs: nn.MultiheadAttention, **settings: Any) -> MultiHeadAttention:
    """Return our module with the weights of torch's."""
    ours = MultiHeadAttention(
        torchs.embed_dim,
        torchs.num_heads,
        memory_dim=torchs.kdim,
        values_dim=torchs.vdim,
        bias=torchs.in_proj_bias is not None,
        **settings,
    )
    maps = (ours.q_proj, ours.k_proj, ours.v_proj)
    weights = (
        torchs.in_proj_weight.chunk(3)
        if torchs.in_proj_weight is not None
        else (torchs.q_proj_weight, torchs.k_proj_weight, torchs.v_proj_weight)
    )
    with torch.no_grad():
        for linear, weight in zip(maps, weights, strict=True):
            linear.weight.copy_(weight)
        if torchs.in_proj_bias is not None:
            for linear, bias in zip(maps, torchs.in_proj_bias.chunk(3), strict=True):
                linear.bias.copy_(bias)
    ours.out_proj.load_state_dict(torchs.out_proj.state_dict())
    return ours


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_self_attention_equals_torchs(bias: bool, causal: bool) -> None:
    theirs = nn.MultiheadAttention(24, 4, bias=bias, batch_first=True)
    if bias:
        nn.init.normal_(theirs.in_proj_bias)
    ours, x = copy_of(theirs, causal=causal), drawn(3, 7, 24)
    key_mask = torch.ones(3, 7, dtype=torch.bool)
    key_mask[0, 4:] = key_mask[1, 6:] = False
    later = torch.ones(7, 7, dtype=torch.bool).triu(1) if causal else None
    outputs = []
    for module, call in (
        (theirs, lambda x: theirs(x, x, x, key_padding_mask=~key_mask, attn_mask=later, average_attn_weights=False)),
        (ours, lambda x: ours(x, key_mask=key_mask, return_weights=True)),
    ):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        output, weights = call(leaf)[:2]
        (output * drawn(3, 7, 24, seed=1)).sum().backward()
        outputs.append((output, weights, leaf.grad))
    for mine, other in zip(*outputs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert theirs.in_proj_weight.grad is not None
    grads = [linear.weight.grad for linear in (ours.q_proj, ours.k_proj, ours.v_proj)]
    torch.testing.assert_close(torch.cat([g for g in grads if g is not None]), theirs.in_proj_weight.grad)


def test_cross_attention_of_other_widths_equals_torchs() -> None:
    theirs = nn.MultiheadAttention(24, 4, kdim=10, vdim=6, batch_first=True)
    ours = copy_of(theirs)
    x, memory, values = drawn(2, 3, 24), drawn(2, 5, 10, seed=1), drawn(2, 5, 6, seed=2)
    allowed = torch.rand(3, 5, generator=torch.Generator().manual_seed(3)) < 0.7
    allowed[:, 0] = True
    expected = theirs(x, memory, values, attn_mask=~allowed)[0]
    torch.testing.assert_close(ours(x, memory, values, mask=allowed).output, expected)
    bias = drawn(3, 5, seed=4)
    expected = theirs(x, memory, values, attn_mask=bias)[0]
    torch.testing.assert_close(ours(x, memory, values, bias=bias).output, expected)


def test_initial_values_are_spread_as_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiHeadAttention(128, 4), nn.MultiheadAttention(128, 4)
    for linear in (ours.q_proj, ours.k_proj, ours.v_proj):
        assert linear.weight.std().item() == pytest.approx(theirs.in_proj_weight.std().item(), rel=0.03)
        assert not linear.bias.any()
    assert ours.out_proj.weight.std().item() == pytest.approx(theirs.out_proj.weight.std().item(), rel=0.03)
    assert not ours.out_proj.bias.any()


def test_grouped_heads_are_repeated_heads() -> None:
    grouped, full = MultiHeadAttention(24, 6, kv_heads=2), MultiHeadAttention(24, 6)
    full.load_state_dict(
        {
            name: x.unflatten(0, (2, 4)).repeat_interleave(3, 0).flatten(0, 1) if name[:2] in ("k_", "v_") else x
            for name, x in grouped.state_dict().items()
        }
    )
    x = drawn(2, 5, 24)
    torch.testing.assert_close(grouped(x).output, full(x).output)
    assert grouped.init_state(2).k.shape == (2, 2, 0, 4)


def test_widths_of_heads_and_output() -> None:
    attention = MultiHeadAttention(10, 3, head_dim=4, value_head_dim=5, out_dim=7, out_bias=False, scale=0.3)
    x = drawn(2, 6, 10)
    output, weights, _ = attention(x, return_weights=True)
    assert output.shape == (2, 6, 7)
    assert weights is not None
    q, k = (linear(x).unflatten(-1, (3, 4)).transpose(1, 2) for linear in (attention.q_proj, attention.k_proj))
    torch.testing.assert_close(weights, (0.3 * q @ k.mT).softmax(-1))
    v = attention.v_proj(x).unflatten(-1, (3, 5)).transpose(1, 2)
    torch.testing.assert_close(output, (weights @ v).transpose(1, 2).flatten(2) @ attention.out_proj.weight.T)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_of_q_and_k(kind: str) -> None:
    attention = MultiHeadAttention(12, 3, qk_norm=kind, eps=1e-3)
    with torch.no_grad():
        for parameter in (*attention.q_norm.parameters(), *attention.k_norm.parameters()):
            parameter.copy_(drawn(4, seed=parameter.numel()))
    x = drawn(2, 5, 12)
    each = []
    for linear, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm)):
        y = linear(x).unflatten(-1, (3, 4))
        centre = y.mean(-1, keepdim=True) if kind == "layer" else 0
        y = (y - centre) / ((y - centre).square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
        each.append((y + norm.bias if kind == "layer" else y).transpose(1, 2))
    weights = attention(x, return_weights=True).weights
    torch.testing.assert_close(weights, (each[0] @ each[1].mT / 2).softmax(-1))


def test_rotary_hook_gets_positions() -> None:
    seen = []

    def rotary(x: Tensor, positions: Tensor) -> Tensor:
        seen.append((tuple(x.shape), positions.tolist()))
        return x

    attention = MultiHeadAttention(8, 2, kv_heads=1, rotary=rotary, causal=True)
    x = drawn(2, 3, 8)
    key_mask = torch.tensor([[False, True, True], [True, True, False]])
    state = attention(x, key_mask=key_mask, state=attention.init_state(2)).state
    counted = [[0, 0, 1], [0, 1, 1]]
    assert seen == [((2, 2, 3, 4), counted), ((2, 1, 3, 4), counted)]
    seen.clear()
    attention(x[:, :1], state=state)
    assert [positions for _, positions in seen] == [[[2], [2]]] * 2
    seen.clear()
    attention(x, x[:, :2], positions=torch.tensor([4, 5, 6]), causal=False)
    assert [positions for _, positions in seen] == [[4, 5, 6], [0, 1]]


def test_weights_of_chosen_heads() -> None:
    attention, x = MultiHeadAttention(24, 4), drawn(2, 5, 24)
    every = attention(x, return_weights=True).weights
    some = attention(x, return_weights=[3, 0]).weights
    assert every is not None
    assert some is not None
    torch.testing.assert_close(some, every[:, [3, 0]], rtol=0, atol=0)
    assert attention(x).weights is None
    with pytest.raises(ShapeError, match="return_weights asks for head 4, but q has heads 0 to 3"):
        attention(x, return_weights=[4])


def modules(window: int | None = None) -> MultiHeadAttention:
    torch.manual_seed(1)
    return MultiHeadAttention(12, 4, kv_heads=2, rotary=Rotary(3, rotary_dim=2), causal=True, window=window).double()


@settings(deadline=None, max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 9), max_size=4),
    window=st.sampled_from([None, 1, 3, 20]),
    capacity=st.booleans(),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_stream_equals_one_call(cuts: list[int], window: int | None, capacity: bool, masked: bool, seed: int) -> None:
    attention = modules(window)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 9, 12, dtype=torch.float64, generator=generator)
    key_mask = torch.rand(3, 9, generator=generator) < 0.6 if masked else None
    whole = attention(x, key_mask=key_mask).output
    size = (window or 9) if capacity else None
    state: Any = attention.init_state(3, capacity=size)
    assert isinstance(state, KVRing if window or capacity else KVCache)
    parts, edges = [], [0, *sorted(cuts), 9]
    for start, stop in itertools.pairwise(edges):
        part = attention(x[:, start:stop], key_mask=None if key_mask is None else key_mask[:, start:stop], state=state)
        state = part.state
        parts.append(part.output)
    streamed = torch.cat(parts, 1)
    real = torch.ones(3, 9, dtype=torch.bool) if key_mask is None else key_mask
    torch.testing.assert_close(streamed[real], whole[real])
    assert state.length.tolist() == real.sum(1).tolist()


def test_a_window_is_counted_over_real_tokens() -> None:
    attention, x = modules(2), drawn(1, 5, 12).double()
    key_mask = torch.tensor([[True, False, True, False, True]])
    padded = attention(x, key_mask=key_mask).output[key_mask]
    torch.testing.assert_close(padded, attention(x[:, [0, 2, 4]]).output[0])
    torch.testing.assert_close(padded[-1], attention(x[:, [2, 4]]).output[0, -1])  # rotation is relative


def test_rows_of_a_ring_begin_anew() -> None:
    attention, x = modules(), drawn(2, 6, 12).double()
    state: Any = attention.init_state(2, capacity=6)
    state = attention(x[:, :4], state=state).state
    state = states.where(torch.tensor([False, True]), attention.init_state(2, capacity=6), state)
    output, _, state = attention(x[:, 4:], state=state)
    torch.testing.assert_close(output[0], attention(x[:1]).output[0, 4:])
    torch.testing.assert_close(output[1], attention(x[1:, 4:]).output[0])
    assert state.length.tolist() == [6, 2]


def test_caches_of_different_lengths_stack() -> None:
    attention, x = modules(), drawn(3, 7, 12).double()
    parts = [
        attention(x[row : row + 1, :length], state=attention.init_state(1)).state for row, length in ((0, 5), (1, 2))
    ]
    state: Any = states.stack([*parts, attention.init_state(1)])
    assert isinstance(state, KVCache)
    output = attention(torch.stack([x[0, 5:], x[1, 2:4], x[2, :2]]), state=state).output
    for row, length in ((0, 5), (1, 2), (2, 0)):
        torch.testing.assert_close(output[row], attention(x[row : row + 1, : length + 2]).output[0, length:])
    equal: Any = states.stack([parts[0], parts[0]])
    assert equal.key_mask is None


def test_a_memory_is_projected_once() -> None:
    attention = MultiHeadAttention(12, 4, memory_dim=7, values_dim=5)
    x, memory, values = drawn(2, 3, 12), drawn(2, 6, 7, seed=1), drawn(2, 6, 5, seed=2)
    key_mask = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    state = attention.project(memory, values, key_mask=key_mask)
    output, _, after = attention(x, state=state)
    torch.testing.assert_close(output, attention(x, memory, values, key_mask=key_mask).output)
    assert after is not None
    assert all(a is b for a, b in zip(after, state, strict=True))
    short = attention.project(memory[1:, :2], values[1:, :2])
    both = states.stack([states.slice_state(state, 0, 1), short])
    assert isinstance(both, KVMemory)
    torch.testing.assert_close(attention(x, state=both).output, output)


def test_nothing_is_written_into_a_state() -> None:
    for capacity in (None, 4):
        attention, x = modules(), drawn(2, 3, 12).double()
        state = attention(x, state=attention.init_state(2, capacity=capacity)).state
        before = [each.clone() for each in state if each is not None]
        attention(x, state=state)
        assert all(torch.equal(a, b) for a, b in zip(before, [e for e in state if e is not None], strict=True))


def test_a_query_without_keys_gets_the_bias() -> None:
    attention = MultiHeadAttention(8, 2)
    nn.init.normal_(attention.out_proj.bias)
    output = attention(drawn(2, 3, 8), key_mask=torch.zeros(2, 3, dtype=torch.bool)).output
    torch.testing.assert_close(output, attention.out_proj.bias.expand_as(output), rtol=0, atol=0)


def test_nan_in_padding_of_a_memory_reaches_no_output() -> None:
    attention, memory = MultiHeadAttention(8, 2), drawn(2, 4, 8)
    key_mask = torch.tensor([[True, True, False, False], [True] * 4])
    clean = attention(drawn(2, 3, 8), memory, key_mask=key_mask).output
    memory[0, 2:] = torch.nan
    torch.testing.assert_close(attention(drawn(2, 3, 8), memory, key_mask=key_mask).output, clean)


def test_dropout_is_on_the_output() -> None:
    attention, x = MultiHeadAttention(8, 2, dropout=0.5), drawn(2, 50, 8)
    share = (attention(x).output == 0).float().mean().item()
    assert 0.4 < share < 0.6
    assert not (attention.eval()(x).output == 0).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "dim is 8 and heads is 3: dim must be a multiple of heads. Or set head_dim."),
        ({"heads": 0}, "dim is 8 and heads is 0: dim must be a multiple of heads."),
        ({"kv_heads": 3}, "heads is 4 and kv_heads is 3: heads must be a multiple of kv_heads."),
        ({"window": 2}, "window is 2 and causal is False: a window is 1 or more, and causal."),
        ({"window": 0, "causal": True}, "window is 0 and causal is True: a window is 1 or more, and causal."),
        ({"qk_norm": "l2"}, 'norm is "l2", expected one of: layer, rms, srms, none'),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        MultiHeadAttention(8, **{"heads": 4, **settings})
    assert message in str(error.value)


def test_what_does_not_fit_is_refused() -> None:
    attention = MultiHeadAttention(8, 2, memory_dim=6)
    x, memory = drawn(2, 3, 8), drawn(2, 4, 6)
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (ShapeError, "x (2, 3, 6) is not (batch, seq, dim) with dim 8.", {"x": x[..., :6]}),
        (ShapeError, "memory (2, 3, 8) and values (2, 3, 8) do not have the widths 6 and 6. Set memory_dim", {}),
        (
            ShapeError,
            "memory (1, 4, 6) is not (batch, seq, width) with the batch of x (2, 3, 8).",
            {"memory": memory[:1]},
        ),
        (
            ShapeError,
            "key_mask (2, 3) is not (batch, keys) = (2, 4).",
            {"memory": memory, "key_mask": torch.ones(2, 3, dtype=torch.bool)},
        ),
        (
            DtypeError,
            "key_mask is torch.float32, expected torch.bool, True = real token.",
            {"memory": memory, "key_mask": torch.ones(2, 4)},
        ),
        (
            ConfigError,
            "memory and state exclude each other: a memory that stays is a state, made by project().",
            {"memory": memory, "state": attention.init_state(2)},
        ),
        (
            ConfigError,
            "values and key_mask belong to the memory: give them to project().",
            {"state": attention.project(memory), "values": memory},
        ),
    ]
    for kind, message, arguments in cases:
        with pytest.raises(kind) as error:
            attention(**{"x": x, **arguments})
        assert message in str(error.value)


def test_what_a_state_excludes() -> None:
    attention, x = MultiHeadAttention(8, 2, causal=True), drawn(2, 3, 8)
    for capacity in (None, 3):
        state = attention.init_state(2, capacity=capacity)
        with pytest.raises(ConfigError, match="A state needs causal attention: tokens of a stream cannot see later"):
            attention(x, causal=False, state=state)
    with pytest.raises(ConfigError, match=r"mask and bias have no order of keys in a ring\. Use a state without a cap"):
        attention(x, mask=torch.ones(3, 3, dtype=torch.bool), state=attention.init_state(2, capacity=3))
    windowed = MultiHeadAttention(8, 2, causal=True, window=2)
    for arguments in ({"causal": False}, {"memory": x}, {"state": windowed.project(x)}):
        with pytest.raises(ConfigError, match="A module with a window attends causally and to itself only"):
            windowed(x, **arguments)
    for capacity in (0, 3):
        with pytest.raises(ConfigError, match=rf"capacity is {capacity} and the window 2: expected 1 or more, and the"):
            windowed.init_state(2, capacity=capacity)


def test_print_shows_the_settings() -> None:
    text = repr(MultiHeadAttention(8, 4, kv_heads=2, causal=True, window=3))
    assert "8, heads=4, kv_heads=2, head_dim=2, causal=True, window=3" in text


@pytest.mark.parametrize("capacity", [None, 4])
def test_streams_under_autocast(capacity: int | None) -> None:
    attention, x = MultiHeadAttention(12, 4, causal=True, rotary=Rotary(3, rotary_dim=2)), drawn(2, 4, 12)
    with torch.autocast("cpu", torch.bfloat16):
        whole = attention(x).output
        first = attention(x[:, :3], state=attention.init_state(2, capacity=capacity))
        last = attention(x[:, 3:], state=first.state).output
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(torch.cat([first.output, last], 1), whole, rtol=0.02, atol=0.02)
