"""Sparse patterns of softmax attention: what they mean, what is refused, and that kernels skip what they leave out."""

from __future__ import annotations

import re
import warnings
from itertools import product
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from polyhead.errors import ConfigError, KernelError, ShapeError
from polyhead.ops import BlockMask, Neighbourhood, explain, registry, softmax_attention, use_kernel
from polyhead.ops.commands import explain_call
from polyhead.ops.softmax_attention import flex_kernel
from polyhead.ops.softmax_attention.patterns import pairs, tiles
from polyhead.testing import check_kernel
from polyhead.testing.operators import Budget, draw

PATTERNS: dict[str, tuple[Any, int, int]] = {
    "window": (Neighbourhood((300,), (21,)), 300, 300),
    "cut window": (Neighbourhood((150,), (33,), cut=True), 150, 150),
    "window wider than the axis": (Neighbourhood((5, 7), (9, 3), cut=True), 35, 35),
    "patches": (Neighbourhood((13, 17), (5, 3)), 221, 221),
    "cubes": (Neighbourhood((5, 6, 7), (3, 3, 5)), 210, 210),
    "blocks": (BlockMask(((0, 2), (1, 2, 5), (), (0, 1, 2, 3, 4), (5,)), (16, 17)), 70, 90),
    "blocks of one": (BlockMask(((0,), (1,), (0, 2)), (1, 1)), 3, 3),
}


def inputs(queries: int, keys: int, dim: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, length, dim, generator=generator) for length in (queries, keys, keys)]


def sees(pattern: Neighbourhood, query: int, key: int) -> bool:
    """State a neighbourhood in plain numbers: the definition."""
    for positions, window in zip(reversed(pattern.grid), reversed(pattern.window), strict=True):
        place, other = query % positions, key % positions
        start = place - window // 2
        if not pattern.cut:
            start = min(max(start, 0), positions - window)
        if not start <= other < start + window:
            return False
        query, key = query // positions, key // positions
    return True


@pytest.mark.parametrize("name", ["cut window", "window wider than the axis", "patches", "cubes"])
def test_neighbourhoods_mean_what_they_say(name: str) -> None:
    pattern, queries, keys = PATTERNS[name]
    assert isinstance(pattern, Neighbourhood)
    expected = [[sees(pattern, i, j) for j in range(keys)] for i in range(queries)]
    assert torch.equal(pattern.materialise(queries, keys), torch.tensor(expected))


def test_every_query_of_a_shifted_window_sees_as_many_keys() -> None:
    assert set(PATTERNS["patches"][0].materialise(221, 221).sum(1).tolist()) == {15}


def test_blocks_mean_what_they_say() -> None:
    pattern = BlockMask(((1,), ()), (2, 3))
    expected = torch.zeros(3, 5, dtype=torch.bool)
    expected[:2, 3:] = True
    assert torch.equal(pattern.materialise(3, 5), expected)
    seen = torch.tensor([[False, True], [False, False]])
    assert BlockMask.of(seen, (2, 3)) == pattern
    assert hash(BlockMask.of(seen, (2, 3))) == hash(pattern)


@pytest.mark.parametrize(("name", "causal"), list(product(PATTERNS, (False, True))))
def test_tiles_hold_every_pair_once(name: str, causal: bool) -> None:
    pattern, queries, keys = PATTERNS[name]
    expected = pattern.materialise(queries, keys)
    if causal:
        expected = expected & torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    found = torch.zeros(queries, keys, dtype=torch.long)
    for group in tiles(pattern, queries, keys, causal):
        for at, (rows, columns) in enumerate(zip(group.queries, group.keys, strict=True)):
            allowed = 1 if group.allowed is None else group.allowed[at].long()
            found[rows.unsqueeze(1), columns] += allowed
    assert torch.equal(found, expected.long())
    assert pairs(pattern, queries, keys, causal) == int(expected.sum())


def test_the_tiled_kernel_keeps_the_contract() -> None:
    check_kernel("softmax_attention", "tiled", dtypes=["float64", "bfloat16"], traced=False)


def test_it_skips_what_the_pattern_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = torch.nn.functional.scaled_dot_product_attention

    def count(q: torch.Tensor, k: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        computed.append(q.shape[0] * q.shape[2] * k.shape[2])
        return real(q, k, *rest, **options)

    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", count)
    blocks = torch.eye(32, dtype=torch.bool) | torch.eye(32, dtype=torch.bool).roll(1, 0)
    softmax_attention(*inputs(2048, 2048), pattern=BlockMask.of(blocks, (64, 64)))
    assert sum(computed) == 64 * 64 * 64  # 64 of 1024 blocks
    computed.clear()
    softmax_attention(*inputs(2048, 2048), pattern=Neighbourhood((2048,), (65,)))
    assert sum(computed) <= 2048 * (128 + 65)


def test_memory_is_linear_in_the_length() -> None:
    """The mask of all pairs alone would take a gigabyte."""
    length = 2**15
    x = [each.requires_grad_() for each in inputs(length, length)]
    with torch.profiler.profile(profile_memory=True) as profile:
        softmax_attention(*x, pattern=Neighbourhood((length,), (63,))).output.sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest < 64 * 2**20


def test_dispatch() -> None:
    short, long = "softmax_attention", {"window": "65"}
    assert explain(short, (1, 2, 2048, 64), **long).chosen == "tiled"
    assert explain(short, (1, 2, 512, 64), **long).chosen == "torch"
    assert explain(short, (1, 2, 2048, 64)).rejected["tiled"] == ("there is no pattern",)
    assert explain(short, (1, 2, 2048, 64), device="cuda", dtype="bfloat16", **long).chosen == "flex"
    refused = explain(short, (1, 2, 2048, 24), device="cuda", dtype="float64", mask=True, **long).rejected["flex"]
    assert refused == (
        "dtype is float64 (needs float32, bfloat16, float16)",
        "there is a mask",
        "head_dim is 24 (needs a power of two from 16 on)",
        "value_dim is 24 (needs a power of two from 16 on)",
    )
    refused = explain(short, (1, 2, 2048, 64), bias=True, return_weights=True, **long).rejected["tiled"]
    assert refused == ("there is a bias", "weights are asked for")
    nothing = explain(short, (0, 2, 2048, 64), device="cuda", **long).rejected["flex"]
    assert nothing == ("there is nothing to attend",)


def test_explain_counts_the_pairs_that_are_kept() -> None:
    said = explain_call("softmax_attention", (1, 2, 3136, 64), options=["grid=56x56", "window=7x7"])
    assert said.data["chosen"] == "tiled"
    assert said.data["cost"]["forward"]["flops"] == 2 * 2 * 3136 * 49 * 128
    with pytest.raises(ConfigError, match=re.escape('window is "7 x 7", expected whole numbers with x between them')):
        explain("softmax_attention", (1, 2, 3136, 64), window="7 x 7")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Neighbourhood((4,), (4,)), "Neighbourhood has a window of 4, expected an odd number"),
        (lambda: Neighbourhood((4,), (5,)), "a window of 5 on an axis of 4 positions. Make it smaller, or cut it off"),
        (lambda: Neighbourhood((4, 4), (3,)), "grid (4, 4) and window (3,): one number for each axis"),
        (lambda: BlockMask(((0,),), (0, 4)), "BlockMask has blocks of (0, 4), expected 1 or more queries and keys"),
        (
            lambda: BlockMask(((0,), (2, 1))),
            "BlockMask: row 1 is (2, 1), expected indices of 0 or more in rising order",
        ),
    ],
)
def test_malformed_patterns_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (Neighbourhood((4, 4), (3, 3)), "pattern has 16 positions on the grid (4, 4), but q has 12 and k 12."),
        (BlockMask(((0,), (0,)), (4, 4)), "pattern has 2 blocks of 4 queries, but q has 12: expected 3."),
        (BlockMask(((0,), (3,), ()), (4, 4)), "pattern names the block 3 of 4 keys, but k has 12: up to 2."),
    ],
)
def test_patterns_must_fit_the_lengths(pattern: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(message)):
        softmax_attention(*inputs(12, 12), pattern=pattern)


def test_tiles_have_no_gradients_of_gradients() -> None:
    x = [each.double().requires_grad_() for each in inputs(12, 12)]
    with use_kernel(softmax_attention="tiled"):
        output = softmax_attention(*x, pattern=Neighbourhood((12,), (3,))).output
    (first,) = torch.autograd.grad(output.sum(), x[:1], create_graph=True)
    with pytest.raises(KernelError, match='Kernel "tiled" of softmax_attention has no gradients of gradients'):
        first.sum().backward()


def test_flex_means_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention without its compiler, which runs on a CPU, forward only: masks, empty rows, unseen NaN."""
    monkeypatch.setattr(flex_kernel, "_compiled", lambda: flex_attention)
    monkeypatch.setattr(flex_kernel, "_creating", lambda: create_block_mask)
    spec, served = registry.operator("softmax_attention"), 0
    for case in spec.cases():
        given = draw(case, "float32", "cpu")
        options = given.options
        if options["pattern"] is None or {"mask", "bias"} & set(given.tensors) or options["return_weights"]:
            continue
        if 0 in given.tensors["q"].shape:
            continue
        served += 1
        spoiled = given.map(
            lambda name, x, given=given: (  # type: ignore[misc]  # a default binds the loop's value
                x.masked_fill(given.unreachable[name], torch.nan) if name in given.unreachable else x
            )
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*flex_attention called without torch.compile.*")
            with torch.no_grad():
                returned = flex_kernel.softmax_attention(
                    *(spoiled.tensors[name] for name in "qkv"),
                    mask=None,
                    bias=None,
                    causal=options["causal"],
                    scale=8**-0.5 if options["scale"] is None else options["scale"],
                    heads=None,
                    pattern=options["pattern"],
                )
        budget = Budget(spec, given)
        expected = budget.truth["output"]
        assert (returned.output - expected).abs().max() <= 1e-4 * expected.abs().max(), case.name
    assert served >= 6


@pytest.mark.gpu
def test_the_flex_kernel_keeps_the_contract() -> None:
    check_kernel("softmax_attention", "flex", dtypes=["float32", "bfloat16"], device="cuda", traced=False)
