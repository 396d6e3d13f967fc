"""Which configuration is picked when tuning is on: the fastest, once, for every length."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from polyhead.errors import KernelError
from polyhead_kernels import tuning
from polyhead_kernels.programs import Config, Program

CONFIGS = tuple(Config({"BLOCK": block}) for block in (16, 32, 64))
TIMES = {16: 2.0, 32: 1.0, 64: float("inf")}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The blocks that were timed, in order; nothing is launched."""
    blocks: list[int] = []

    def time(run: Any, config: Config, arguments: Mapping[str, Any], device: torch.device) -> float:
        blocks.append(config.constants["BLOCK"])  # type: ignore[arg-type]
        return TIMES[config.constants["BLOCK"]]  # type: ignore[index]

    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setattr(tuning, "_time", time)
    monkeypatch.setattr(tuning, "resolve", lambda _: SimpleNamespace(cache_key="source"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a device")
    return blocks


def order(length: int = 8, **variant: Any) -> list[Any]:
    program = Program("sums", "forward", "m:f", {"x": "*{dtype}"}, {"default": CONFIGS})
    chosen = tuning.order(program, torch.ones(length), variant, CONFIGS, {}, lambda *_: True)
    return [config.constants["BLOCK"] for config in chosen]


def test_it_is_off_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tuning.wanted()
    monkeypatch.setenv("POLYHEAD_AUTOTUNE", "1")
    assert tuning.wanted()


def test_the_fastest_is_first_and_known_for_every_length(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert order(8) == [32, 16, 64]
    assert timed == [16, 32, 64]
    assert order(1000) == [32, 16, 64]
    assert timed == [16, 32, 64]
    monkeypatch.setattr(tuning, "_known", {})  # as in another process, which finds it on disk
    assert order(8) == [32, 16, 64]
    assert timed == [16, 32, 64]
    order(8, causal=True)
    assert len(timed) == 6


def test_a_damaged_result_is_made_anew(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "load", lambda *_: 7)
    assert order() == [32, 16, 64]
    assert timed == [16, 32, 64]


def test_none_fits(timed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_time", lambda *_: float("inf"))
    with pytest.raises(KernelError, match=r"No shipped configuration of sums\.forward fits cpu\."):
        order()


@pytest.mark.gpu
def test_a_launch_that_is_tuned_computes_the_same(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_known", {})
    monkeypatch.setenv("POLYHEAD_AUTOTUNE", "1")
    x = torch.arange(4097.0, device="cuda")
    assert torch.equal(scaling.scaled(x, 2.0), 2 * x)
    assert len(tuning._known) == 1
