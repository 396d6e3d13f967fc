"""decay_attention: the definition against independent statements, published values, and the contract as properties."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyhead.errors import ConfigError, DtypeError, KernelError, ShapeError
from polyhead.ops import decay_attention, explain, registry, use_kernel
from polyhead.ops.decay_attention import lightning_slopes, torch_kernel
from polyhead.ops.decay_attention.spec import cost, describe

KERNELS = ("reference", "torch")
quick = settings(deadline=None, max_examples=20)


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(decay_attention=request.param):
        yield request.param


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def qkv(
    b: int = 2, h: int = 3, s: int = 7, d: int = 4, dv: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (draw(b, h, s, dim, seed=seed + i, dtype=dtype) for i, dim in enumerate((d, d, dv)))
    return q, k, v


def random_qkv(size: tuple[int, int, int, int, int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    b, h, s, d, dv = size
    return qkv(b, h, s, d, dv, seed=seed)


def decays(*shape: int, seed: int = 9) -> Tensor:
    return -draw(*shape, seed=seed).abs()


def test_reference_equals_loops() -> None:
    """State the sum over the past with one number at a time."""
    q, k, v = qkv()
    log_decay, state = decays(2, 3, 7), draw(2, 3, 4, 5, seed=5)
    output, final = np.zeros((2, 3, 7, 5)), np.zeros((2, 3, 4, 5))
    for b, h, t in np.ndindex(2, 3, 7):
        for j in range(t + 1):
            weight = math.exp(sum(log_decay[b, h, s] for s in range(j + 1, t + 1)))
            output[b, h, t] += 0.7 * weight * float(q[b, h, t] @ k[b, h, j]) * v[b, h, j].numpy()
            if t == 6:
                final[b, h] += weight * np.outer(k[b, h, j], v[b, h, j])
        weight = math.exp(sum(log_decay[b, h, s] for s in range(t + 1)))
        output[b, h, t] += 0.7 * weight * (q[b, h, t] @ state[b, h]).numpy()
        if t == 6:
            final[b, h] += weight * state[b, h].numpy()
    with use_kernel(decay_attention="reference"):
        got = decay_attention(q, k, v, log_decay, initial_state=state, scale=0.7)
    np.testing.assert_allclose(got.output, output, atol=1e-13)
    np.testing.assert_allclose(got.final_state, final, atol=1e-13)


def test_gradients_of_the_reference() -> None:
    inputs = [x.requires_grad_() for x in (*qkv(1, 2, 3, 2, 2), decays(1, 2, 3), draw(1, 2, 2, 2, seed=7))]

    def function(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        with use_kernel(decay_attention="reference"):
            return tuple(decay_attention(q, k, v, log_decay, initial_state=state, scale=0.5))

    torch.autograd.gradcheck(function, inputs)
    torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("ends", [None, (0, 2, 2, 6, 10, 11)])
@pytest.mark.parametrize("by_token", [False, True])
def test_gradients_of_the_torch_kernel(by_token: bool, ends: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_kernel, "CHUNK", 3)
    monkeypatch.setattr(torch_kernel, "GROUP", {"cpu": 2})
    batch, packed = (2, None) if ends is None else (1, torch.tensor(ends, dtype=torch.int32))
    log_decay = decays(batch, 2, 11) if by_token else decays(2)
    state = draw(len(ends or "123") - 1, 2, 2, 3, seed=7)
    inputs = [x.requires_grad_() for x in (*qkv(batch, 2, 11, 2, 3), log_decay, state)]

    def function(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, ...]:
        return tuple(decay_attention(q, k, v, log_decay, initial_state=state, cu_seqlens=packed, scale=0.5))

    with use_kernel(decay_attention="torch"):
        torch.autograd.gradcheck(function, inputs)


def test_slopes_of_the_paper() -> None:
    torch.testing.assert_close(lightning_slopes(2, layer=0, layers=4, version="paper"), torch.tensor([0.0, 4.0]))
    torch.testing.assert_close(lightning_slopes(2, layer=3, layers=4, version="paper"), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(lightning_slopes(2, version="paper"), torch.tensor([0.0, 4.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"heads": 0}, r"heads is 0, expected 1 or more"),
        ({"heads": 4, "version": "alibi"}, r'version is "alibi", expected one of: released, paper'),
        ({"heads": 4, "layer": 1}, r"layer is 1 and layers is None: give both, or neither"),
        ({"heads": 4, "layer": 4, "layers": 4}, r"layer is 4 of 4, expected 0 to layers - 1, and layers 2 or more"),
        ({"heads": 4, "layer": 0, "layers": 1}, r"layer is 0 of 1, expected 0 to layers - 1, and layers 2 or more"),
    ],
)
def test_slopes_that_do_not_exist(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lightning_slopes(**arguments)


def test_limits_of_the_decay(kernel: str) -> None:
    """Nothing forgotten is a running sum of outer products; all forgotten is each token by itself."""
    q, k, v = qkv(s=150)
    kept = decay_attention(q, k, v, torch.zeros(3))
    states = (k[..., None] * v[..., None, :]).cumsum(2)
    torch.testing.assert_close(kept.output, (q[..., None, :] @ states).squeeze(-2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(kept.final_state, states[:, :, -1], rtol=1e-10, atol=1e-10)
    forgotten = decay_attention(q, k, v, torch.full((3,), -math.inf), initial_state=draw(2, 3, 4, 5))
    torch.testing.assert_close(forgotten.output, (q * k).sum(-1, keepdim=True) * v)
    torch.testing.assert_close(forgotten.final_state, k[:, :, -1, :, None] * v[:, :, -1, None, :])


def test_gradient_of_a_decay_that_forgets_everything_is_zero(kernel: str) -> None:
    log_decay = decays(2, 3, 7)
    log_decay[:, :, 4] = -math.inf
    log_decay.requires_grad_()
    (gradient,) = torch.autograd.grad(decay_attention(*qkv(), log_decay).output.sum(), log_decay)
    assert gradient.isfinite().all()
    assert not gradient[:, :, 4].any()
    constant = torch.tensor([-math.inf, -1.0, 0.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(decay_attention(*qkv(), constant).output.sum(), constant)
    assert gradient[0] == 0
    assert gradient[1:].all()


sizes = st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 200), st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), where=st.integers(0, 200))
@quick
def test_the_future_cannot_be_seen(name: str, size: Any, seed: int, where: int) -> None:
    q, k, v = random_qkv(size, seed)
    changed = (x.clone() for x in (q, k, v))
    log_decay = decays(*size[:3])
    with use_kernel(decay_attention=name):
        a = decay_attention(q, k, v, log_decay).output
        q, k, v = changed
        k[:, :, where:] += 1
        v[:, :, where:] -= 3
        log_decay[:, :, where:] -= 1
        b = decay_attention(q, k, v, log_decay).output
    torch.testing.assert_close(a[:, :, :where], b[:, :, :where], rtol=0, atol=0)


@pytest.mark.parametrize("name", KERNELS)
@given(size=sizes, seed=st.integers(0, 1000), cut=st.integers(0, 200))
@quick
def test_segments_with_carried_state_equal_the_whole(name: str, size: Any, seed: int, cut: int) -> None:
    """Gradients too: that of the second segment's initial state goes on as the first one's final state."""
    batch, heads, length, head_dim, value_dim = size
    cut = min(cut, length)
    inputs = [x.requires_grad_() for x in (*random_qkv(size, seed), decays(batch, heads, length))]
    state = draw(batch, heads, head_dim, value_dim, seed=seed + 5).requires_grad_()
    with use_kernel(decay_attention=name):
        whole = decay_attention(*inputs, initial_state=state)
        first = decay_attention(*(x[:, :, :cut] for x in inputs), initial_state=state)
        last = decay_attention(*(x[:, :, cut:] for x in inputs), initial_state=first.final_state)
    pieces = (torch.cat([first.output, last.output], 2), last.final_state)
    results = [
        (*each, *torch.autograd.grad([x.square().sum() for x in each], [*inputs, state], materialize_grads=True))
        for each in (tuple(whole), pieces)
    ]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@given(
    lengths=st.lists(st.integers(0, 150), max_size=6),
    left=st.integers(0, 9),
    by_token=st.booleans(),
    seed=st.integers(),
)
@quick
def test_packed_sequences_equal_one_by_one(lengths: list[int], left: int, by_token: bool, seed: int) -> None:
    ends = [0, *np.cumsum(lengths, dtype=int).tolist()]
    q, k, v = (x.requires_grad_() for x in qkv(1, 2, ends[-1] + left, 3, 2, seed=seed % 1000))
    log_decay = (decays(1, 2, ends[-1] + left) if by_token else decays(2)).requires_grad_()
    state = draw(len(lengths), 2, 3, 2).requires_grad_()
    inputs = (q, k, v, log_decay, state)
    packed = torch.tensor(ends, dtype=torch.int32)
    with use_kernel(decay_attention="torch"):
        got = decay_attention(q, k, v, log_decay, initial_state=state, cu_seqlens=packed)
        loss, outputs, finals = torch.zeros((), dtype=torch.float64), [], []
        for i, (a, b) in enumerate(pairwise(ends)):
            part = log_decay[:, :, a:b] if by_token else log_decay
            own = slice(a, b)
            alone = decay_attention(q[:, :, own], k[:, :, own], v[:, :, own], part, initial_state=state[i : i + 1])
            loss = loss + alone.output.square().sum() + alone.final_state.square().sum()
            outputs.append(alone.output)
            finals.append(alone.final_state)
    torch.testing.assert_close(got.output, torch.cat([*outputs, torch.zeros(1, 2, left, 2).double()], 2))
    torch.testing.assert_close(got.final_state, torch.cat([*finals, state[:0]]))
    total = got.output.square().sum() + got.final_state.square().sum()
    grads = torch.autograd.grad(total, inputs, materialize_grads=True)
    if loss.requires_grad:
        for a, b in zip(grads, torch.autograd.grad(loss, inputs, materialize_grads=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    for x in grads[:3]:
        assert not x[:, :, ends[-1] :].any()


def test_packed_sequences_do_not_see_each_other(kernel: str) -> None:
    q, k, v = qkv(1, s=90)
    ends = torch.tensor([0, 5, 9, 90], dtype=torch.int32)
    clean = decay_attention(q, k, v, decays(3), cu_seqlens=ends)
    k[:, :, 5:9] = math.nan
    dirty = decay_attention(q, k, v, decays(3), cu_seqlens=ends)
    for mine, other in zip(dirty, clean, strict=True):
        keep = ~mine.isnan()
        torch.testing.assert_close(mine[keep], other[keep], rtol=0, atol=0)
    assert not dirty.output[:, :, :5].isnan().any()
    assert not dirty.output[:, :, 9:].isnan().any()
    assert not dirty.final_state[[0, 2]].isnan().any()


@pytest.mark.parametrize(("chunk", "group"), [(1, 1), (16, 2), (64, 16), (128, 300)])
def test_chunk_size_does_not_matter(chunk: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [x.requires_grad_() for x in (*qkv(2, 2, 201, 3, 4), decays(2))]

    def run() -> tuple[Tensor, ...]:
        output, final = decay_attention(*inputs)
        return (output, final, *torch.autograd.grad(output.square().sum() + final.sum(), inputs))

    expected = run()
    monkeypatch.setattr(torch_kernel, "CHUNK", chunk)
    monkeypatch.setattr(torch_kernel, "GROUP", {"cpu": group})
    for a, b in zip(run(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_linear_in_values_and_in_queries(kernel: str) -> None:
    q, k, v = qkv(s=80)
    log_decay = decays(3)
    double = decay_attention(-2 * q, k, v + k[..., :1], log_decay).output
    parts = (decay_attention(q, k, each, log_decay).output for each in (v, k[..., :1].expand_as(v)))
    torch.testing.assert_close(double, -2 * sum(parts))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_accumulates_in_float32(kernel: str, dtype: torch.dtype) -> None:
    """A count up to 4096 is exact only if no sum is kept in 16 bits."""
    one = torch.ones(1, 1, 4096, 1, dtype=dtype)
    got = decay_attention(one, one, one, torch.zeros(1), scale=1 / 4096)
    assert got.output.dtype == dtype
    assert got.final_state.dtype == torch.float32
    assert got.output[0, 0, -1].item() == 1
    assert got.final_state.item() == 4096


def test_autocast_casts_as_for_a_product(kernel: str) -> None:
    q, k, v = qkv(dtype=torch.float32)
    log_decay = decays(3).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = decay_attention(q.bfloat16(), k, v, log_decay)
    plain = decay_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), log_decay)
    assert mixed.output.dtype == torch.bfloat16
    assert torch.equal(mixed.output, plain.output)


class Layer(torch.nn.Module):
    """Queries from a layer whose weight requires a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.query = torch.nn.Linear(4, 4, dtype=torch.float64)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return decay_attention(self.query(q), k, v, log_decay).output


def test_an_exported_program_runs_with_gradients_enabled_and_refuses_them() -> None:
    inputs = (*qkv(), decays(3))
    model = Layer()
    exported = torch.export.export(model, inputs).module()
    output = exported(*inputs)
    torch.testing.assert_close(output, model(*inputs))
    with pytest.raises(KernelError, match="decay_attention_forward has no gradients: an exported program"):
        output.sum().backward()


def test_gradients_of_gradients_are_refused() -> None:
    inputs = [x.requires_grad_() for x in (*qkv(), decays(3))]
    (first, *_) = torch.autograd.grad(decay_attention(*inputs).output.square().sum(), inputs, create_graph=True)
    with pytest.raises(KernelError, match=r'"torch" of decay_attention has no gradients of gradients.*"reference"'):
        first.sum().backward()


def test_states_are_kept_only_for_gradients() -> None:
    """Without gradients there is no memory that grows with the length but the output."""
    q, k, v = (x.requires_grad_() for x in qkv(1, 1, 640, 8, 8, dtype=torch.float32))
    with torch.no_grad():
        output = decay_attention(q, k, v, torch.zeros(1)).output
    assert output.grad_fn is None
    forward = torch.ops.polyhead.decay_attention_forward.default
    *_, states = forward(q.detach(), k.detach(), v.detach(), torch.zeros(1), None, None, 1.0, False)
    assert states.numel() == 0


good = {
    "q": torch.zeros(2, 3, 9, 4),
    "k": torch.zeros(2, 3, 9, 4),
    "v": torch.zeros(2, 3, 9, 5),
    "log_decay": torch.zeros(3),
}
one = {name: x[:1] for name, x in good.items() if name != "log_decay"} | {"log_decay": torch.zeros(3)}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            good | {"q": torch.zeros(3, 9, 4)},
            ShapeError,
            r"q has 3 dimensions, expected 4: \(batch, heads, seq, head_d",
        ),
        (good | {"k": torch.zeros(2, 1, 9, 4)}, ShapeError, r"q and k must have one shape.*k \(2, 1, 9, 4\)"),
        (good | {"v": torch.zeros(2, 3, 8, 5)}, ShapeError, r"v the same batch, heads and seq.*v \(2, 3, 8, 5\)"),
        (good | {"v": torch.zeros(2, 3, 9, 0)}, ShapeError, r"each a head_dim of 1 or more"),
        (good | {"v": good["v"].double()}, DtypeError, r"v is float64 and q is float32: both must have the same dtype"),
        (
            good | {"log_decay": torch.zeros(2)},
            ShapeError,
            r"log_decay \(2,\) is neither \(heads,\) = \(3,\) nor \(bat",
        ),
        (
            good | {"log_decay": torch.zeros(2, 3, 9, 4)},
            ShapeError,
            r"log_decay \(2, 3, 9, 4\) has a decay for each channel, which no kernel computes yet: give \(heads,\) = ",
        ),
        (
            good | {"log_decay": torch.zeros(2, 3, 8)},
            ShapeError,
            r"log_decay \(2, 3, 8\) does not broadcast to \(batch, heads, seq\) = \(2, 3, 9\)",
        ),
        (good | {"log_decay": torch.zeros(3, dtype=torch.int64)}, DtypeError, r"log_decay is int64, expected a float"),
        (
            good | {"log_decay": torch.zeros(3, device="meta")},
            DtypeError,
            r"log_decay is on meta and q on cpu: move one of them",
        ),
        (
            good | {"initial_state": torch.zeros(2, 3, 5, 4)},
            ShapeError,
            r"initial_state \(2, 3, 5, 4\) is not \(batch, heads, head_dim, value_dim\) = \(2, 3, 4, 5\)",
        ),
        (
            one | {"cu_seqlens": torch.tensor([0, 9])},
            DtypeError,
            r"cu_seqlens is int64, expected int32. Convert it with .int\(\)",
        ),
        (one | {"cu_seqlens": torch.zeros(0).int()}, ShapeError, r"cu_seqlens \(0,\) is not \(sequences \+ 1,\)"),
        (
            good | {"cu_seqlens": torch.tensor([0, 9]).int()},
            ShapeError,
            r"cu_seqlens packs sequences in a batch of 1, but q has a batch of 2",
        ),
        (
            one | {"cu_seqlens": torch.tensor([0, 5, 9]).int(), "initial_state": torch.zeros(1, 3, 4, 5)},
            ShapeError,
            r"initial_state \(1, 3, 4, 5\) is not \(sequences, heads, head_dim, value_dim\) = \(2, 3, 4, 5\)",
        ),
        (
            one | {"cu_seqlens": torch.tensor([0, 5, 3]).int()},
            ShapeError,
            r"cu_seqlens must rise from 0 to at most seq = 9: \[0, 5, 3\]",
        ),
        (one | {"cu_seqlens": torch.tensor([0, 10]).int()}, ShapeError, r"at most seq = 9: \[0, 10\]"),
        (one | {"cu_seqlens": torch.arange(1, 13).int()}, ShapeError, r"\[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, …\]"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    for name in KERNELS:
        with use_kernel(decay_attention=name), pytest.raises(error, match=message):
            decay_attention(**arguments)


def test_description_and_cost() -> None:
    assert explain("decay_attention", (1, 8, 4096, 64), by_token=True, state=True).chosen == "torch"
    assert explain("decay_attention", (1, 8, 4096, 64), sequences=3, grad=True, learned_decay=True).chosen == "torch"
    with pytest.raises(ShapeError, match=r"The shape of q has 3 numbers, expected 4: batch,heads,seq,head_dim"):
        explain("decay_attention", (8, 4096, 64))
    call = describe((1, 2, 128, 16), torch.float32, torch.device("cpu"), value_dim=32)
    forward, backward = cost(call), cost(call, backward=True)
    # By hand, for each of 256 tokens: two products with a state of 16x32, and half of a chunk's 64 pairs in 16 + 32.
    assert forward.flops == 256 * 2 * (2 * 16 * 32 + 32 * (16 + 32))
    assert forward.bytes == 4 * (256 * (2 * 16 + 2 * 32) + 2 + 2 * 16 * 32)
    assert backward.flops == 256 * 2 * (4 * 16 * 32 + 32 * (3 * 16 + 2 * 32))
    longer = cost(describe((1, 2, 256, 16), torch.float32, torch.device("cpu"), value_dim=32))
    assert longer.flops == 2 * forward.flops
    assert registry.operator("decay_attention").reference == registry.kernel("decay_attention", "reference").function
