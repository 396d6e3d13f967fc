"""What ``python -m polyhead kernels`` says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.__main__ import main
from polyhead.errors import ConfigError, KernelError, UnknownNameError
from polyhead.ops import KernelSpec, use_kernel
from polyhead.ops.commands import explain_call, list_kernels, parse_shape, verify_kernels

SHAPE = (2, 8, 128, 64)


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYHEAD_CACHE", str(tmp_path / "cache"))


def test_list() -> None:
    said = list_kernels("softmax_attention")
    (operator,) = said.data["operators"]
    assert operator["name"] == "softmax_attention"
    assert [kernel["name"] for kernel in operator["kernels"]] == ["flex", "tiled", "torch", "reference"]
    assert operator["forms"] == ["parallel"]
    assert operator["tolerances"].keys() == {"float64", "float32", "bfloat16", "float16"}
    assert said.text.splitlines()[0].startswith("softmax_attention: softmax(")
    assert "  torch        priority 10; parallel; any device; any float" in said.text
    assert json.loads(json.dumps(said.data)) == said.data


def test_list_all(add: Callable[..., None], module: Any) -> None:
    reference = KernelSpec("running_sum", "reference", "tests_running_sum:reference", priority=0)
    add(kernels=(reference, KernelSpec("running_sum", "gpu", module.reference, devices=("cuda",), wins_from=2048)))
    said = list_kernels()
    assert {"running_sum", "softmax_attention"} <= {operator["name"] for operator in said.data["operators"]}
    assert "  gpu          priority 10; parallel; cuda; any float; chosen from length 2048" in said.text
    assert "  forms: parallel, recurrent" in said.text


def test_explain() -> None:
    said = explain_call("softmax_attention", SHAPE, "bfloat16", "cuda", ["causal=true", "keys=256"])
    assert said.passed
    assert said.data["chosen"] == "torch"
    assert said.data["rejected"] == {
        "flex": ["there is no pattern", "length is 256 (wins from 1024)"],
        "tiled": ["device is cuda (needs cpu)", "there is no pattern", "length is 256 (wins from 768)"],
        "reference": [],
    }
    assert said.data["cost"]["forward"]["flops"] == 2 * 2 * 8 * (128 * 128 + 128 * 129 // 2) * 128
    assert said.text.splitlines() == [
        "softmax_attention: q (2, 8, 128, 64), k (2, 8, 256, 64), v (2, 8, 256, 64), dtype bfloat16, device cuda, "
        "causal=True, scale=0.125, heads=None",
        "  chosen: torch",
        "  flex: there is no pattern; length is 256 (wins from 1024)",
        "  tiled: device is cuda (needs cpu); there is no pattern; length is 256 (wins from 768)",
        "  reference: can serve, has lower priority",
        "  forward: 0.1009 GFLOP, 1.573 MB read and written",
        "  backward: 0.2523 GFLOP, 3.146 MB read and written",
    ]


def test_explain_a_forced_kernel_that_cannot_serve(add: Callable[..., None], module: Any) -> None:
    add(kernels=(KernelSpec("running_sum", "gpu", module.reference, devices=("cuda",)),))
    with use_kernel(running_sum="gpu"):
        said = explain_call("running_sum", (2, 3), options=["gain=two"])
    assert not said.passed
    assert said.data["chosen"] is None
    assert said.data["forced"] == "gpu"
    assert said.data["call"].endswith("gain=two")
    assert "  gpu: device is cpu (needs cuda)" in said.text


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("casual=true", UnknownNameError, 'No option of softmax_attention "casual". Did you mean "causal"?'),
        ("causal", ConfigError, 'Option "causal": expected causal=true or causal=false.'),
        ("causal=yes", ConfigError, 'Option "causal=yes": expected causal=true or causal=false.'),
        ("keys=many", ConfigError, 'Option "keys=many": expected keys=NUMBER, a whole one.'),
        ("keys", ConfigError, 'Option "keys": expected keys=NUMBER, a whole one.'),
    ],
)
def test_options_are_checked(option: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        explain_call("softmax_attention", SHAPE, options=[option])


@pytest.mark.parametrize("text", ["", "2,8,", "2x8", "2,-8"])
def test_shapes_are_checked(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f'--shape is "{text}", expected whole numbers with commas')):
        parse_shape(text)


def test_verify(add: Callable[..., None], module: Any) -> None:
    reference = KernelSpec("running_sum", "reference", module.reference, priority=0)
    add(kernels=(reference, KernelSpec("running_sum", "gpu", module.reference, devices=("cuda",))))
    said = verify_kernels("running_sum", dtypes=["float32"])
    assert said.passed
    rows = {(row["kernel"], row["form"]): row for row in said.data["rows"]}
    assert rows.keys() == {("reference", "parallel"), ("form_recurrent", "recurrent")}
    assert [row["cases"] for row in rows.values()] == [3, 3]
    assert [row["interpreted"] for row in rows.values()] == [False, False]
    assert said.data["cases"] == 6
    assert said.data["failures"] == 0
    assert said.data["skipped"] == [
        {
            "operator": "running_sum",
            "kernel": "gpu",
            "form": "parallel",
            "dtype": "float32",
            "reason": "device is cpu (needs cuda)",
        }
    ]
    assert said.text.splitlines()[-2:] == [
        f"{'running_sum':<28}{'gpu':<16}{'parallel':<12}{'float32':<10} device is cpu (needs cuda)",
        "6 cases in 2 rows: no failures.",
    ]


def test_a_kernel_that_ran_no_case_fails(add: Callable[..., None], module: Any) -> None:
    lazy = KernelSpec("running_sum", "lazy", module.reference, limits=lambda call: ["it is Monday"])
    add(kernels=(lazy,))
    said = verify_kernels("running_sum", "lazy", ["float32"])
    assert not said.passed
    assert "NO CASE: it is Monday" in said.text
    assert "running_sum by lazy (parallel), float32: no case was run." in said.text


def test_verify_runs_only_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: Any = ("softmax_attention", "torch", ["float32"])
    ran = []

    def row(kernel: KernelSpec, dtype: str, device: str) -> dict[str, Any]:
        ran.append(dtype)
        row = {"operator": "softmax_attention", "kernel": kernel.name, "form": "parallel", "dtype": dtype, "cases": 3}
        row |= {"passes": 3, "refused": {}, "worst": {}, "failures": [], "interpreted": False}
        return row | ({"failures": ["off"]} if len(ran) == 3 else {})

    monkeypatch.setattr("polyhead.ops.commands.verifying._row", row)
    assert verify_kernels(*arguments).passed
    again = verify_kernels(*arguments, changed=True)
    assert again.passed
    assert "(known)" in again.text
    assert ran == ["float32"]
    assert "(known)" not in verify_kernels(*arguments).text  # not asked to look
    monkeypatch.setattr("torch.__version__", "another")
    assert not verify_kernels(*arguments, changed=True).passed
    assert verify_kernels(*arguments, changed=True).passed  # a failure is not kept
    assert len(ran) == 4


def test_interpreted_kernels_are_run_apart(
    add: Callable[..., None], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process is one that knows this operator: here, a program that says what it was asked."""
    add(kernels=(KernelSpec("running_sum", "triton", module.reference, interpreted=("float32",)),))
    asked: list[list[str]] = []

    def answer(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        asked.append(command)
        assert given["env"]["TRITON_INTERPRET"] == "1"
        row = {"operator": "running_sum", "kernel": "triton", "form": "parallel", "dtype": "float32", "cases": 3}
        row |= {"passes": 3, "refused": {}, "worst": {}, "failures": [], "interpreted": True}
        return subprocess.CompletedProcess(command, 0, json.dumps({"rows": [row]}), "")

    monkeypatch.setattr(subprocess, "run", answer)
    said = verify_kernels("running_sum", "triton")
    assert asked[0][1:] == [
        *("-m", "polyhead", "kernels", "verify", "--json", "--op", "running_sum", "--kernel", "triton"),
        *("--dtype", "float32"),
    ]
    assert [row["interpreted"] for row in said.data["rows"]] == [True]
    assert [row["reason"] for row in said.data["skipped"]] == ["needs a GPU: the interpreter is right in float32 only"]
    assert "(interpreted)" in said.text


def test_an_interpreter_that_dies_is_an_error(
    add: Callable[..., None], module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(kernels=(KernelSpec("running_sum", "triton", module.reference, interpreted=("float32",)),))
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, -11, "", "one\nSegmentation fault\n"),
    )
    message = "Triton's interpreter ended with -11: Segmentation fault  Again: TRITON_INTERPRET=1 python -m polyhead"
    with pytest.raises(KernelError, match=re.escape(message)):
        verify_kernels("running_sum", "triton", ["float32"])


def test_verify_says_what_failed(add: Callable[..., None], module: Any) -> None:
    wrong = KernelSpec("running_sum", "wrong", lambda x, gain: module.reference(-x, gain=gain))
    add(kernels=(wrong,))
    said = verify_kernels("running_sum", "wrong", ["float64"])
    assert not said.passed
    assert said.data["failures"] > 3
    assert re.search(r"wrong +parallel +float64 +3 +7 +0 .*FAILED", said.text)
    assert 'running_sum by wrong (parallel): case "odd", float64: output is off by' in said.text


def test_verify_one_kernel() -> None:
    said = verify_kernels("softmax_attention", "torch", ["float32"])
    assert [row["kernel"] for row in said.data["rows"]] == ["torch"]
    with pytest.raises(UnknownNameError, match=r'No kernel of softmax_attention "tort". Did you mean "torch"\?'):
        verify_kernels("softmax_attention", "tort")
    with pytest.raises(UnknownNameError, match='No dtype of softmax_attention "half"'):
        verify_kernels("softmax_attention", dtypes=["half"])
    with pytest.raises(KernelError, match='Device "gpu" cannot be used here: '):
        verify_kernels("softmax_attention", device="gpu")
    with pytest.raises(KernelError, match='Device "meta" cannot be used here: its tensors have no values'):
        verify_kernels("softmax_attention", device="meta")


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", "list", "--op", "softmax_attention"]) == 0
    assert capsys.readouterr().out.startswith("softmax_attention: ")
    explain = ["kernels", "explain", "--shape", "2,8,128,64", "--set", "causal=true", "--json"]
    assert main([*explain, "softmax_attention"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*explain, "--op", "softmax_attention"]) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert document["chosen"] == "torch"
    verify = ["kernels", "verify", "--op", "softmax_attention", "--kernel", "torch", "--dtype", "float32", "--json"]
    assert main(verify) == 0
    assert json.loads(capsys.readouterr().out)["failures"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["explain", "softmax_atention", "--shape", "1,1,1,1"],
            'No operator "softmax_atention". Did you mean "softmax_attention"?',
        ),
        (["explain", "softmax_attention", "--shape", "1,1"], "The shape of q has 2 numbers, expected 4"),
        (["list", "--op", "nothing_like_it"], 'No operator "nothing_like_it".'),
    ],
)
def test_errors_are_one_line_and_exit_1(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kernels", *arguments]) == 1
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not said.out


@pytest.mark.parametrize(
    "arguments", [[], ["kernels"], ["kernels", "explain", "softmax_attention"], ["kernels", "explain", "--shape", "1"]]
)
def test_wrong_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m polyhead" in capsys.readouterr().err


def test_help_imports_no_torch() -> None:
    program = "import sys; sys.modules['torch'] = None; import runpy; runpy.run_module('polyhead', run_name='__main__')"
    command = [sys.executable, "-c", program, "kernels", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert result.returncode == 0, result.stderr
    assert "list" in result.stdout
