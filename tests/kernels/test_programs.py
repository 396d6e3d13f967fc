"""How programs are described, which configuration is picked, and that a launch computes."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from polyhead.errors import KernelError
from polyhead.ops import Call, TensorInfo
from polyhead_kernels.programs import Config, Point, Program, family, limits, precision

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


def program(**changes: Any) -> Program:
    values: dict[str, Any] = {
        "operator": "scaling",
        "name": "forward",
        "function": "some_module:function",
        "signature": {"x": "*{dtype}", "state": "*{wide}", "length": "i32", "stride": "i64:16"},
        "configs": {"sm_80": (Config({"BLOCK": 16}),)},
    }
    return Program(**(values | changes))


def call(device: torch.device, dtype: torch.dtype = torch.float32) -> Call:
    return Call("scaling", {"x": TensorInfo((2, 3), dtype, device)}, {}, 3)


def points(of: Program, name: str, every: bool = False) -> list[Point]:
    return list(of.points(name, every=every))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"function": "some_module"}, 'function "some_module" is not of the form "module:function"'),
        ({"configs": {"sm_75": ()}}, 'Program forward of scaling: no device family "sm_75".  All: sm_80, sm_90, '),
        ({"dtypes": ("float8",)}, 'no dtype "float8".  All: float64, float32, bfloat16, float16'),
        ({"configs": {"sm_90": (Config({}),)}}, "has no configuration for sm_80, float32, {}."),
        (
            {"configs": {"default": (Config({}, dtypes=("float32",)),)}},
            "Program forward of scaling has no configuration for sm_80, bfloat16, {}.",
        ),
    ],
)
def test_what_is_malformed_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(KernelError, match=re.escape(message)):
        program(**changes)


def test_signatures_follow_the_dtype() -> None:
    signatures = {p.dtype: p.signature() for p in points(program(dtypes=("float64", "bfloat16")), "sm_90")}
    assert signatures == {
        "float64": {"x": "*fp64", "state": "*fp64", "length": "i32", "stride": "i64:16"},
        "bfloat16": {"x": "*bf16", "state": "*fp32", "length": "i32", "stride": "i64:16"},
    }


def test_a_constant_is_no_argument() -> None:
    (point,) = points(program(dtypes=("float32",), variants=({"state": None},)), "sm_80")
    assert point.constants() == {"state": None, "BLOCK": 16}
    assert "state" not in point.signature()
    assert str(point) == "scaling.forward sm_80 float32 (state=None, BLOCK=16; warps=4, stages=2)"


def test_the_first_configuration_that_suits_is_the_default() -> None:
    wide = Config({"BLOCK": 64}, only={"WIDTH": (64,)})
    small = Config({"BLOCK": 32}, dtypes=("float16",))
    configs = {"default": (wide, small, Config({"BLOCK": 16})), "sm_100": (Config({"BLOCK": 8}),)}
    of = program(configs=configs, variants=({"WIDTH": 16}, {"WIDTH": 64}), dtypes=("float32", "float16"))
    picked = {(p.dtype, p.variant["WIDTH"]): p.config.constants["BLOCK"] for p in points(of, "gfx942")}
    assert picked == {("float32", 16): 16, ("float32", 64): 64, ("float16", 16): 32, ("float16", 64): 64}
    every = points(of, "gfx942", every=True)
    assert [p.default for p in every] == [True, True, False, True, False, True, False, False]
    assert {p.config.constants["BLOCK"] for p in points(of, "sm_100", every=True)} == {8}


def test_float32_products_are_compiled_in_both_precisions() -> None:
    of = program(product=True, precision="PRECISION", dtypes=("float32", "float16"))
    assert [(p.dtype, p.variant["PRECISION"]) for p in points(of, "sm_80")] == [
        ("float32", "ieee"),
        ("float32", "tf32"),
        ("float16", "ieee"),
    ]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert limits(call(CUDA, torch.bfloat16)) == []
    assert limits(call(CPU)) == ["device is cpu (needs cuda, or TRITON_INTERPRET=1 set before Python starts)"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert limits(call(CPU)) == []
    assert limits(call(CPU, torch.bfloat16)) == [
        "dtype is bfloat16 (the interpreter is right in float64, float32 only)"
    ]
    monkeypatch.setattr("polyhead_kernels.programs._installed", lambda: False)
    assert limits(call(CPU)) == ["triton is not installed (pip install triton)"]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((8, 0), "sm_80"), ((8, 9), "sm_80"), ((9, 0), "sm_90"), ((10, 0), "sm_100"), ((12, 0), "sm_80")],
)
def test_family_of_a_device(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert family(CUDA) == expected
    monkeypatch.setattr(torch.version, "hip", "6.3")
    assert family(CUDA) == "gfx942"
    assert family(CPU) == "sm_80"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert family(CPU) == "interpret"


def test_precision_is_what_torch_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    settings = torch.backends.cuda.matmul
    before = settings.fp32_precision
    try:
        settings.fp32_precision = "ieee"
        assert precision(torch.float32) == "ieee"
        settings.fp32_precision = "tf32"
        assert precision(torch.float32) == "tf32"
        assert precision(torch.float16) == "ieee"
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        assert precision(torch.float32) == "ieee"
    finally:
        settings.fp32_precision = before


def _computes(scaling: Any, device: torch.device) -> None:
    x = torch.arange(37.0, device=device)
    assert torch.equal(scaling.scaled(x, 2.0), 2 * x)
    assert torch.equal(scaling.scaled(x, -1.0, torch.ones(1, device=device)), 1 - x)
    assert scaling.scaled(x[:0], 2.0).shape == (0,)
    matrix = torch.arange(1024.0, device=device).reshape(32, 32) / 1024
    torch.testing.assert_close(scaling.squared(matrix), matrix @ matrix)


@pytest.mark.interpret
def test_a_launch_computes_in_the_interpreter(scaling: Any) -> None:
    _computes(scaling, CPU)


@pytest.mark.gpu
def test_a_launch_computes_on_the_gpu(scaling: Any) -> None:
    _computes(scaling, CUDA)


@pytest.mark.gpu
def test_a_configuration_that_is_too_large_is_passed_over(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.errors import OutOfResources

    tried = []

    class Full:
        def __getitem__(self, _: object) -> Any:
            def launch(**arguments: Any) -> None:
                tried.append(arguments["BLOCK"])
                raise OutOfResources(2, 1, "shared memory")

            return launch

    monkeypatch.setattr(scaling, "scale_rows", Full())
    with pytest.raises(
        KernelError, match=r"No shipped configuration of softmax_attention.scale fits the shared memory"
    ):
        scaling.scaled(torch.ones(3, device=CUDA), 2.0)
    assert tried == [1024, 2048]
