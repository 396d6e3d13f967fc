"""Kernels broken on purpose: every fault is one that the cases can see, and the command says who saw it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from polyhead.__main__ import main
from polyhead.ops import KernelSpec, registry
from polyhead.ops.commands import break_kernels
from polyhead.ops.decay_attention import DecayAttention
from polyhead.ops.faults import negated, shifted, stale, tail_dropped, unscaled
from polyhead.testing.selftest import FIVE, absent, faults_of


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path / "cache"))


def identity(**arguments: Any) -> dict[str, Any]:
    return arguments


def test_faults() -> None:
    x = torch.arange(40)
    assert negated(identity)(x=torch.ones(2), n=1)["x"].tolist() == [-1, -1]
    late = shifted("x", 0, block=16)(identity)(x=x)["x"]
    assert late.tolist() == [*range(16), *range(15, 39)]
    assert unscaled("scale")(identity)(scale=3.0, x=x)["scale"] == 1
    assert tail_dropped("x", 0, block=16)(identity)(x=x)["x"].tolist() == [*range(32), *[0] * 8]
    for fault in (shifted("x", 0, block=64), tail_dropped("x", 0, block=64)):  # one block: nothing can go wrong
        assert torch.equal(fault(identity)(x=x)["x"], x)
        assert fault(identity)(x=None)["x"] is None


def test_a_stale_state_lags_one_token() -> None:
    def last(x: torch.Tensor, decay: torch.Tensor) -> DecayAttention:
        return DecayAttention(x, x[-1:])

    returned = stale("final_state", {"x": 0, "decay": 1})(last)(x=torch.arange(5), decay=torch.ones(2))
    assert returned.output.tolist() == [0, 1, 2, 3, 4]
    assert returned.final_state.tolist() == [3]


@pytest.mark.parametrize("name", registry.operators())
def test_every_operator_says_how_it_breaks(name: str) -> None:
    spec = registry.operator(name)
    faults = faults_of(spec)
    assert spec.faults, f"{name} names no faults"
    assert "sign" in faults
    assert set(absent(spec)) < set(FIVE)
    assert any(fault.startswith("sign of the gradient of ") for fault in faults)


def test_the_cases_of_softmax_attention_notice_every_fault() -> None:
    said = break_kernels("softmax_attention", "torch")
    assert said.passed, said.text
    assert said.data["absent"] == {"softmax_attention": ["stale state"]}
    assert {row["fault"] for row in said.data["rows"]} >= set(FIVE) - {"stale state"}
    assert said.text.splitlines()[-2:] == [
        "softmax_attention has none to break: stale state.",
        f"{said.data['broken']} broken kernels, {said.data['broken']} of them noticed.",
    ]
    assert break_kernels("softmax_attention", "torch", changed=True) == said


def test_a_fault_that_nobody_notices_fails(
    add: Callable[..., None], module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    module.FAULTS = {"sign": negated, "missing scale": lambda function: function}
    add(kernels=(KernelSpec("running_sum", "mine", module.reference),), faults="tests_running_sum:FAULTS")
    assert main(["kernels", "verify", "--self-test", "--op", "running_sum", "--kernel", "mine", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    rows = {row["fault"]: row for row in document["rows"]}
    assert rows.keys() == {"sign", "missing scale", "sign of the gradient of x"}
    assert rows["sign"]["by"].startswith('case "one": output is off by ')
    assert rows["sign of the gradient of x"]["by"].startswith('case "one": gradient of x is off by ')
    assert (rows["missing scale"]["caught"], rows["missing scale"]["tried"]) == (False, 3)
    assert document["missed"] == 1
    assert "NOBODY" in break_kernels("running_sum", "mine").text


def test_a_broken_kernel_that_raises_is_noticed(add: Callable[..., None], module: Any) -> None:
    def fault(function: Any) -> Any:
        def broken(**arguments: Any) -> Any:
            raise ValueError("first line\nsecond")

        return broken

    module.FAULTS = {"dropped tail": fault}
    add(kernels=(KernelSpec("running_sum", "mine", module.reference),), faults="tests_running_sum:FAULTS")
    by = {row["fault"]: row["by"] for row in break_kernels("running_sum", "mine").data["rows"]}
    assert by["dropped tail"] == 'case "one": raised ValueError: first line'
