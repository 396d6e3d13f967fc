"""The samples of a step: a function of seed and step, cut alike for any number of processes and workers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.parts.training import Numbers

from polyhead.errors import ConfigError, DataError
from polyhead_apps.config import TrainSettings
from polyhead_apps.sampling import Plan, cut, draw_order, load_steps, load_through, to_device


def make_plan(source: Numbers, **settings: Any) -> Plan:
    return Plan.make(source, TrainSettings.model_validate(settings), seed=0)


def test_order_is_a_permutation_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): draw_order(50, seed=seed, epoch=epoch).tolist() for seed in range(3) for epoch in range(3)}
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 9
    assert orders[1, 2] == draw_order(50, seed=1, epoch=2).tolist()


def test_order_never_changes() -> None:
    # A run may be resumed with a newer NumPy: this order is part of what a checkpoint means.
    assert draw_order(8, seed=7, epoch=3).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]


@given(
    length=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    accumulate=st.integers(1, 4),
    world=st.integers(1, 4),
)
def test_an_epoch_holds_every_sample_once(length: int, batch_size: int, accumulate: int, world: int) -> None:
    if accumulate > batch_size:
        return
    source = Numbers(length)
    plan = make_plan(source, epochs=1, batch_size=batch_size, accumulate=accumulate)
    ranks = [
        list(load_steps(source, plan, first=0, rank=rank, world=world, workers=0, pin=False)) for rank in range(world)
    ]
    seen = []
    for step, shares in enumerate(zip(*ranks, strict=True)):
        assert len({len(share) for share in shares}) == 1, "ranks disagree about the number of micro-batches"
        # Micro-batches put together over ranks are the global batch in order.
        taken = [int(i) for micro in zip(*shares, strict=True) for batch in micro for i in batch["index"]]
        assert taken == plan.batch(step).tolist()
        seen += taken
        assert all(len(micro["names"]) == len(micro["index"]) for share in shares for micro in share)
        assert len(shares[0][-1]["index"]) > 0, "the main process never has an empty share"
    assert sorted(seen) == list(range(length))


def test_a_later_start_continues_the_same_sequence() -> None:
    source = Numbers(10)
    plan = make_plan(source, steps=9, batch_size=4)
    whole = [batch[0]["x"] for batch in load_steps(source, plan, first=0, rank=0, world=1, workers=0, pin=False)]
    rest = [batch[0]["x"] for batch in load_steps(source, plan, first=4, rank=0, world=1, workers=0, pin=False)]
    assert len(whole) == 9
    torch.testing.assert_close(whole[4:], rest, rtol=0, atol=0)


def global_generators() -> Any:
    numpy: Any = np.random.get_state()
    return torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2:], random.getstate()


@pytest.mark.parametrize("endless", [False, True])
def test_workers_change_no_number_and_no_global_generator(endless: bool) -> None:
    source = Numbers(10, endless=endless)
    plan = make_plan(source, steps=7, batch_size=4, accumulate=2)
    before = global_generators()
    alone, helped = (
        list(load_steps(source, plan, first=1, rank=0, world=1, workers=workers, pin=False)) for workers in (0, 2)
    )
    assert before == global_generators()
    assert len(alone) == len(helped) == 6
    for expected, got in zip(alone, helped, strict=True):
        torch.testing.assert_close([b["x"] for b in got], [b["x"] for b in expected], rtol=0, atol=0)


def test_an_endless_source_counts_its_samples_through() -> None:
    plan = make_plan(Numbers(endless=True), steps=3, batch_size=4)
    assert [plan.batch(step).tolist() for step in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (plan.epoch(2), plan.steps_per_epoch, plan.progress(1).epoch) == (0, 3, 1 / 3)


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"epochs": 2}, 6),
        ({"epochs": 0.5}, 2),
        ({"epochs": 0.01}, 1),
        ({"epochs": 2, "steps": 4}, 4),
        ({"epochs": 1 / 3}, 1),
        ({"steps": 100}, 100),
    ],
)
def test_the_smaller_of_epochs_and_steps_ends_the_run(settings: dict[str, Any], total: int) -> None:
    assert make_plan(Numbers(12), batch_size=5, **settings).steps_total == total


def test_fractional_epochs_are_due_once_each_and_at_the_end() -> None:
    plan = make_plan(Numbers(40), batch_size=4, steps=24)
    assert [step for step in range(1, 25) if plan.due(step, 0.25)] == [3, 5, 8, 10, 13, 15, 18, 20, 23, 24]
    assert [step for step in range(1, 25) if plan.due(step, 1)] == [10, 20, 24]
    assert [step for step in range(1, 25) if plan.due(step, 0.01)] == list(range(1, 25))


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"The run has no end: set train\.steps or train\.epochs\."):
        make_plan(Numbers())
    with pytest.raises(ConfigError, match=r"endless and has no epochs: set train\.steps instead of train\.epochs"):
        make_plan(Numbers(endless=True), epochs=1)
    with pytest.raises(ConfigError, match=r"train\.accumulate is 4 and train\.batch_size 3: a batch cannot be cut"):
        make_plan(Numbers(), steps=1, batch_size=3, accumulate=4)
    with pytest.raises(DataError, match=r"The training split has no samples\."):
        make_plan(Numbers(0), steps=1)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_evaluation_sees_every_sample_once_in_order(world: int) -> None:
    source = Numbers(7)
    shares = []
    for rank in range(world):
        number, batches = load_through(source, batch_size=3, seed=0, rank=rank, world=world, workers=0)
        shares.append(list(batches))
        assert number == len(shares[-1]) == 3
    seen = [
        int(i) for together in zip(*shares, strict=True) for batch, counts in together if counts for i in batch["index"]
    ]
    assert seen == list(range(7))
    assert all(len(batch["index"]) for share in shares for batch, _ in share), "a stand-in has a row"


def test_endless_evaluation_is_refused() -> None:
    with pytest.raises(ConfigError, match="An endless source cannot be evaluated"):
        load_through(Numbers(endless=True), batch_size=2, seed=0, rank=0, world=1, workers=0)


def test_cut_puts_longer_pieces_first() -> None:
    assert [len(piece) for piece in cut(np.arange(7), 3)] == [3, 2, 2]
    assert [len(piece) for piece in cut(np.arange(1), 3)] == [1, 0, 0]


def test_to_device_keeps_the_form_of_what_it_moves() -> None:
    from polyhead.protocols import Ratio

    value: Any = {"a": [torch.ones(1), ("b", 2)], "r": Ratio(torch.ones(()), torch.ones(()))}
    moved = to_device(value, "meta")
    assert moved["a"][0].device.type == "meta"
    assert moved["a"][1] == ("b", 2)
    assert isinstance(moved["r"], Ratio)
    assert moved["r"].count.device.type == "meta"
