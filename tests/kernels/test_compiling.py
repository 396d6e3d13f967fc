"""Programs compiled ahead of time: what is read from the binaries, what counts as a problem, what is kept."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from polyhead.__main__ import main
from polyhead.errors import KernelError, UnknownNameError
from polyhead.ops.builds import Build
from polyhead.ops.commands import compile_kernels
from polyhead_kernels import compiling, plugin
from polyhead_kernels.programs import INTERPRETED, Config, interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter replaces what would be compiled")


@pytest.fixture
def programs(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The two small programs as the only ones of the plugin."""
    monkeypatch.setattr(plugin, "PROGRAMS", ("polyhead_fake_scaling:PROGRAMS",))
    return scaling


def point(program: Any, target: str, dtype: str, **constants: Any) -> Any:
    return next(
        p for p in program.points(target, every=True) if p.dtype == dtype and constants.items() <= p.constants().items()
    )


@pytest.mark.parametrize(
    ("target", "instruction", "limit"),
    [("sm_80", "HMMA", 166912), ("sm_90", "HGMMA", 232448), ("sm_100", "UTCHMMA", 232448), ("gfx942", "v_mfma", 65536)],
)
def test_a_product_runs_on_the_matrix_units_of_every_target(
    scaling: Any, target: str, instruction: str, limit: int
) -> None:
    variant = replace(scaling.SQUARE, variants=({"WIDTH": 64},))
    built = compiling.build(point(variant, target, "float16"))
    assert not built.error
    assert built.matrix == (instruction,)
    assert instruction in built.matrix_expected
    assert built.registers > 0
    assert built.spills == 0
    assert 0 < built.shared_bytes <= limit == built.shared_limit
    assert built.problems() == []


def test_float32_has_no_matrix_unit_until_tf32(scaling: Any) -> None:
    exact = compiling.build(point(scaling.SQUARE, "sm_80", "float32", PRECISION="ieee"))
    assert exact.matrix == exact.matrix_expected == ()
    reduced = compiling.build(point(scaling.SQUARE, "sm_80", "float32", PRECISION="tf32"))
    assert reduced.matrix == reduced.matrix_expected == ("HMMA",)


def test_results_are_kept_by_source(scaling: Any) -> None:
    one = point(scaling.SCALE, "sm_80", "float32", BLOCK=1024)
    (first,) = compiling.compile_points([one])
    (again,) = compiling.compile_points([one])
    assert (first.cached, again.cached) == (False, True)
    assert first == again
    (other,) = compiling.compile_points([one._replace(config=Config({"BLOCK": 512}))])
    assert not other.cached


def test_processes_give_the_same(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_WORTH_A_PROCESS", 1)
    chosen = [point(scaling.SCALE, "sm_80", dtype, BLOCK=1024) for dtype in ("float32", "float16")]
    builds = compiling.compile_points(chosen, workers=2)
    assert [build.dtype for build in builds] == ["float32", "float16"]
    assert not any(build.error for build in builds)


def test_a_program_that_does_not_compile_is_reported(scaling: Any) -> None:
    wrong = point(scaling.SQUARE, "sm_80", "float16")._replace(variant={"WIDTH": 24, "PRECISION": "ieee"})
    built = compiling.build(wrong)
    assert built.error.startswith("CompilationError: ")
    assert built.problems() == [f"does not build: {built.error}"]


def test_a_program_and_its_function_must_agree(scaling: Any) -> None:
    wrong = replace(scaling.SQUARE, signature={"x": "*{dtype}"})
    with pytest.raises(
        KernelError, match="Program square of softmax_attention and its function do not agree on y: each"
    ):
        compiling.build(point(wrong, "sm_80", "float16"))


def test_nothing_is_compiled_under_the_interpreter(scaling: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(
        KernelError, match=re.escape("TRITON_INTERPRET=1 is set, so nothing can be compiled. Unset it.")
    ):
        compiling.compile_points([])
    assert INTERPRETED == ("float64", "float32")


def test_the_command(programs: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    programs.PROGRAMS = (replace(programs.SQUARE, dtypes=("float16",)),)
    arguments = ["kernels", "compile", "--op", "softmax_attention", "--target", "sm_80", "--workers", "1"]
    assert main([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    (build,) = document["builds"]
    assert (build["kernel"], build["program"], build["target"], build["default"]) == ("triton", "square", "sm_80", True)
    assert build["constants"] == {"WIDTH": 32, "PRECISION": "ieee"}
    assert document["problems"] == build["problems"] == []
    assert main([*arguments, "--all"]) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"softmax_attention +square +sm_80 +float16 +\d+ +0 +\d+  HMMA  WIDTH=32 .* warps=8 .*tuning", text
    )
    assert text.splitlines()[-1] == "2 builds, 1 of them known: no problems."


def test_problems_make_the_command_fail(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spilling = Build(
        "softmax_attention", "triton", "square", "sm_80", "float16", {"WIDTH": 32}, 4, 2, True,
        spills=3, shared_bytes=200_000, shared_limit=166_912, matrix_expected=("HMMA",),
    )  # fmt: skip
    monkeypatch.setattr("polyhead.plugins.compile_programs", lambda **_: [spilling, replace(spilling, default=False)])
    said = compile_kernels("softmax_attention")
    assert not said.passed
    name = "softmax_attention.square sm_80 float16 WIDTH=32 warps=4 stages=2"
    assert said.data["problems"] == [
        f"{name}: spills registers (3)",
        f"{name}: needs 200000 bytes of shared memory, sm_80 has 166912",
        f"{name}: has a matrix product, but none of HMMA",
        f"{name}: has a matrix product, but none of HMMA",
    ]


def test_names_are_checked(programs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match=re.escape('No target "sm_91". Did you mean "sm_90"?')):
        compile_kernels(targets=["sm_91"])
    with pytest.raises(UnknownNameError, match='No operator "softmax"'):
        compile_kernels("softmax")
    programs.PROGRAMS = ()
    with pytest.raises(KernelError, match=r"No installed kernel of softmax_attention is compiled ahead of time\.$"):
        compile_kernels("softmax_attention")
    monkeypatch.setattr("polyhead.plugins.compile_programs", lambda **_: None)
    with pytest.raises(KernelError, match=r"is compiled ahead of time\.  pip install polyhead-kernels$"):
        compile_kernels("softmax_attention")
