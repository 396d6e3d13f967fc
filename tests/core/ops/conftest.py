"""A small operator of the tests' own: a running sum with a gain, in two forms."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from polyhead.ops import Call, Case, Cost, Inputs, KernelSpec, OperatorSpec, Registry, TensorInfo, dispatch, registry


class RunningSum(NamedTuple):
    output: Tensor


def running_sum(x: Tensor, *, gain: float = 1.0) -> RunningSum:
    return dispatch(Call("running_sum", {"x": x}, {"gain": gain}, x.shape[-1]))


def reference(x: Tensor, *, gain: float) -> RunningSum:
    return RunningSum(gain * x.cumsum(-1))


def recurrent(x: Tensor, *, gain: float) -> RunningSum:
    total, columns = torch.zeros_like(x[..., :1]), []
    for column in x.split(1, -1):
        total = total + column
        columns.append(gain * total)
    return RunningSum(torch.cat(columns, -1))


def describe(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, *, gain: str = "one") -> Call:
    return Call("running_sum", {"x": TensorInfo(shape, dtype, device)}, {"gain": gain}, shape[-1])


def draw(sizes: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    x = torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)
    return Inputs({"x": x}, {"gain": 0.5}, ("x",), ("x",))


def cases() -> Iterator[Case]:
    yield Case("one", partial(draw, (1, 1)))
    yield Case("odd", partial(draw, (3, 5)), traced=True)
    yield Case("long", partial(draw, (2, 40)))


def make_spec(**changes: Any) -> OperatorSpec:
    here = "tests_running_sum"
    values: dict[str, Any] = {
        "name": "running_sum",
        "summary": "sum of all up to here",
        "function": f"{here}:running_sum",
        "forms": {"parallel": f"{here}:reference", "recurrent": f"{here}:recurrent"},
        "complexity": "O(S)",
        "source": "schoolbook",
        "tolerances": {"float64": 1e-14, "float32": 1e-6},
        "kernels": (KernelSpec("running_sum", "reference", f"{here}:reference", priority=0, double_backward=True),),
        "describe": describe,
        "cost": lambda call, backward=False: Cost.of(1, call.tensors.values()),
        "cases": cases,
    }
    return OperatorSpec(**(values | changes))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The operator as an importable module; ``module.SPEC`` may be replaced before it is first used."""
    module = types.ModuleType("tests_running_sum")
    for function in (running_sum, reference, recurrent):
        setattr(module, function.__name__, function)
    module.SPEC = make_spec()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def fresh(module: types.ModuleType) -> Registry:
    """A registry of this operator alone."""
    return Registry({"running_sum": "tests_running_sum:SPEC"})


@pytest.fixture
def add(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that adds this operator, with these changes, to the registry that everything uses."""

    def change(**changes: Any) -> None:
        registry.kernels("softmax_attention")  # plugins add their kernels now, not into what is patched below
        module.SPEC = make_spec(**changes)  # type: ignore[attr-defined]
        for name in ("_specs", "_kernels", "_added"):
            monkeypatch.setattr(registry, name, {})
        monkeypatch.setitem(registry._references, "running_sum", "tests_running_sum:SPEC")

    return change
