"""A block equals torch's layers and Llama's, part by part."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyhead.errors import ConfigError
from polyhead.nn import Context, FeedForward, Rotary, Stack, TransformerBlock


def load(block: Any, theirs: nn.TransformerEncoderLayer | nn.TransformerDecoderLayer) -> None:
    """Copy the weights of torch's layer."""
    attentions = [(block.mixer.attention, theirs.self_attn)]
    norms = [(block.mixer_norm, theirs.norm1)]
    if isinstance(theirs, nn.TransformerDecoderLayer):
        attentions.append((block.cross, theirs.multihead_attn))
        norms += [(block.cross_norm, theirs.norm2), (block.ff_norm, theirs.norm3)]
    else:
        norms.append((block.ff_norm, theirs.norm2))
    with torch.no_grad():
        for mine, other in attentions:
            nn.init.normal_(other.in_proj_bias)
            for at, linear in enumerate((mine.q_proj, mine.k_proj, mine.v_proj)):
                linear.weight.copy_(other.in_proj_weight.chunk(3)[at])
                linear.bias.copy_(other.in_proj_bias.chunk(3)[at])
            mine.out_proj.load_state_dict(other.out_proj.state_dict())
    for norm, other_norm in norms:
        nn.init.normal_(other_norm.weight)
        norm.load_state_dict(other_norm.state_dict())
    assert isinstance(block.ff, FeedForward)
    block.ff.up.load_state_dict(theirs.linear1.state_dict())
    block.ff.down.load_state_dict(theirs.linear2.state_dict())


@pytest.mark.parametrize(("pre_norm", "activation"), list(itertools.product([True, False], ["relu", "gelu"])))
def test_encoder_layer_equals_torchs(pre_norm: bool, activation: str) -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0.0, activation=activation, batch_first=True, norm_first=pre_norm
    )
    block = TransformerBlock(24, 4, ff_dim=40, activation=activation, pre_norm=pre_norm)
    load(block, theirs)
    x = torch.randn(3, 6, 24)
    key_mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    expected = theirs(x, src_key_padding_mask=~key_mask)
    output = block(x, ctx=Context(key_mask=key_mask)).x
    torch.testing.assert_close(output[key_mask], expected[key_mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pre_norm", [True, False])
def test_decoder_layer_equals_torchs(pre_norm: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.TransformerDecoderLayer(24, 4, 40, dropout=0.0, batch_first=True, norm_first=pre_norm)
    block = TransformerBlock(24, 4, ff_dim=40, activation="relu", pre_norm=pre_norm, cross=True)
    load(block, theirs)
    x, memory = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    memory_mask = torch.arange(7) < torch.tensor([[7], [3]])
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    expected = theirs(x, memory, tgt_mask=later, memory_key_padding_mask=~memory_mask)
    ctx = Context(causal=True)
    output = block(x, ctx=ctx, memory=memory, memory_mask=memory_mask).x
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    state = block.init_state(2, memory=memory, memory_mask=memory_mask)
    steps = []
    for t in range(5):
        mixed = block.step(x[:, t], ctx=ctx, state=state)
        state = mixed.state
        steps.append(mixed.x)
    torch.testing.assert_close(torch.stack(steps, 1), expected, rtol=1e-5, atol=1e-5)


def llama_block(x: Tensor, block: Any, heads: int, kv_heads: int, base: float, eps: float) -> Tensor:
    """Compute a Llama decoder layer token by token and head by head, from its published equations."""

    def rms(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    attention, ff = block.mixer.attention, block.ff
    normed = rms(x, block.mixer_norm.weight)
    size = attention.head_dim
    frequencies = torch.tensor([base ** (-2 * i / size) for i in range(size // 2)], dtype=x.dtype)

    def turned(y: Tensor, position: int) -> Tensor:
        angle = position * frequencies
        a, b = y[: size // 2], y[size // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()])

    mixed = torch.zeros(*x.shape[:2], heads * size, dtype=x.dtype)
    for row, head in itertools.product(range(x.shape[0]), range(heads)):
        group = head // (heads // kv_heads)
        q_rows = attention.q_proj.weight[head * size : (head + 1) * size]
        k_rows, v_rows = (
            linear.weight[group * size : (group + 1) * size] for linear in (attention.k_proj, attention.v_proj)
        )
        keys = [turned(k_rows @ normed[row, s], s) for s in range(x.shape[1])]
        for t in range(x.shape[1]):
            q = turned(q_rows @ normed[row, t], t)
            weights = torch.stack([q @ keys[s] / size**0.5 for s in range(t + 1)]).softmax(0)
            values = torch.stack([v_rows @ normed[row, s] for s in range(t + 1)])
            mixed[row, t, head * size : (head + 1) * size] = weights @ values
    x = x + mixed @ attention.out_proj.weight.T
    normed = rms(x, block.ff_norm.weight)
    gate = normed @ ff.gate.weight.T
    return x + (gate * gate.sigmoid() * (normed @ ff.up.weight.T)) @ ff.down.weight.T


def llama_settings(head_dim: int, kv_heads: int, base: float) -> dict[str, Any]:
    return {
        "norm": "rms",
        "eps": 1e-6,
        "activation": "swiglu",
        "ff_dim": 36,
        "ff_bias": False,
        "mixer_settings": {"bias": False, "kv_heads": kv_heads, "rotary": Rotary(head_dim, base=base)},
    }


def test_block_equals_a_llama_layer_written_out() -> None:
    torch.manual_seed(0)
    block: Any = TransformerBlock(24, 4, **llama_settings(6, 2, 500.0)).double()
    for norm in (block.mixer_norm, block.ff_norm):
        nn.init.normal_(norm.weight)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    expected = llama_block(x, block, 4, 2, 500.0, 1e-6)
    torch.testing.assert_close(block(x, ctx=Context(causal=True)).x, expected, rtol=1e-9, atol=1e-9)


def test_stack_equals_transformers_llama() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=24,
        intermediate_size=36,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=11,
        rms_norm_eps=1e-6,
        rope_theta=10_000.0,
        max_position_embeddings=64,
        attn_implementation="eager",
    )
    theirs = transformers.LlamaModel(config).eval()
    stack = Stack(24, 2, 4, causal=True, **llama_settings(6, 2, 10_000.0)).eval()
    names = {
        "self_attn.q_proj": "mixer.attention.q_proj",
        "self_attn.k_proj": "mixer.attention.k_proj",
        "self_attn.v_proj": "mixer.attention.v_proj",
        "self_attn.o_proj": "mixer.attention.out_proj",
        "mlp.gate_proj": "ff.gate",
        "mlp.up_proj": "ff.up",
        "mlp.down_proj": "ff.down",
        "input_layernorm": "mixer_norm",
        "post_attention_layernorm": "ff_norm",
    }
    weights = {"norm.weight": theirs.norm.weight}
    for layer in range(2):
        for other, mine in names.items():
            weights[f"blocks.{layer}.{mine}.weight"] = theirs.get_parameter(f"layers.{layer}.{other}.weight")
    stack.load_state_dict(weights)
    x = torch.randn(2, 9, 24)
    key_mask = torch.arange(9) >= torch.tensor([[0], [3]])
    with torch.no_grad():
        expected = theirs(
            inputs_embeds=x, attention_mask=key_mask.long(), position_ids=(key_mask.cumsum(1) - 1).clamp(min=0)
        ).last_hidden_state
        torch.testing.assert_close(stack(x, key_mask=key_mask).x[key_mask], expected[key_mask], rtol=1e-5, atol=1e-6)


def test_dropout_is_before_each_sum() -> None:
    block = TransformerBlock(8, 2, dropout=1.0, cross=True, pre_norm=True)
    x = torch.randn(2, 3, 8)
    torch.testing.assert_close(block(x, memory=x).x, x, rtol=0, atol=0)
    inside = TransformerBlock(8, 2, dropout=0.0, ff_dropout=1.0, norm="none")
    expected = x + inside.mixer(x, ctx=Context()).x
    assert isinstance(inside.ff, FeedForward)
    torch.testing.assert_close(inside(x).x, expected + inside.ff.down.bias)


def test_parts_of_ones_own() -> None:
    block = TransformerBlock(8, 2, feed_forward=lambda dim: nn.Linear(dim, dim), norm=lambda dim: nn.GroupNorm(1, dim))
    assert isinstance(block.ff, nn.Linear)
    assert isinstance(block.mixer_norm, nn.GroupNorm)


@pytest.mark.parametrize(
    ("cross", "arguments", "message"),
    [
        (False, {"memory": torch.ones(1, 2, 8)}, "This block has no cross-attention to look at a memory. Make it with"),
        (False, {"memory_mask": torch.ones(1, 2) > 0}, "This block has no cross-attention to look at a memory."),
        (
            True,
            {},
            "Cross-attention needs a memory, either as an argument or in the state: init_state(batch, memory=…).",
        ),
    ],
)
def test_memory_and_cross_attention_belong_together(cross: bool, arguments: dict[str, Any], message: str) -> None:
    block = TransformerBlock(8, 2, cross=cross)
    with pytest.raises(ConfigError) as error:
        block(torch.ones(1, 3, 8), **arguments)
    assert message in str(error.value)
    with pytest.raises(ConfigError) as error:
        block.init_state(1, **arguments)
    assert message in str(error.value)


def test_mask_of_a_cached_memory_is_refused() -> None:
    block, memory = TransformerBlock(8, 2, cross=True), torch.ones(1, 2, 8)
    state = block.init_state(1, memory=memory)
    with pytest.raises(ConfigError, match="memory_mask belongs to a memory: give both to the same call"):
        block(torch.ones(1, 3, 8), state=state, memory_mask=torch.ones(1, 2) > 0)
    with pytest.raises(ConfigError, match="Cross-attention needs a memory, either as an argument or in the state"):
        block(torch.ones(1, 3, 8), state=state, memory=memory)


def test_print_shows_where_the_norms_are() -> None:
    assert "pre_norm=False" in repr(TransformerBlock(8, 2, pre_norm=False))
