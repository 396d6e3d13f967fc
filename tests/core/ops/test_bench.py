"""What ``kernels bench`` measures, and that what is wrong is not timed. No test here looks at a time."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.__main__ import main
from polyhead.errors import ConfigError, KernelError, UnknownNameError
from polyhead.ops import Inputs, KernelSpec, Measure, registry
from polyhead.ops.commands import bench_kernels
from polyhead.ops.commands.benching import _reached
from polyhead.ops.commands.compiling import measures_of
from polyhead.ops.roofline import DEVICES, Device
from polyhead.ops.spec import Cost


def draw(generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    return Inputs({"x": torch.randn(2, 9, generator=generator).to(dtype)}, {"gain": 2.0}, ("x",))


def peer(x: Tensor, *, gain: float) -> Tensor:
    return (gain * x).cumsum(-1)


def wrong_peer(x: Tensor, *, gain: float) -> Tensor:
    return (x + gain).cumsum(-1)


@pytest.fixture
def measured(add: Callable[..., None], module: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that gives the small operator these kernels and this peer; the machine's roofline is made up."""
    monkeypatch.setattr(
        "polyhead.ops.commands.benching._reached", lambda dtype, device: Device("here", "", {dtype: 1e9}, 1e9)
    )
    module.peer, module.wrong_peer = peer, wrong_peer

    def change(kernel: Any, peer: str = "peer", **changes: Any) -> None:
        here = f"tests_running_sum:{peer}" if peer else ""
        module.MEASURES = (Measure("two rows", (2, 9), draw, peer=here, peer_name="cumsum", **changes),)
        kernels = (
            KernelSpec("running_sum", "reference", module.reference, priority=0),
            KernelSpec("running_sum", "mine", kernel),
        )
        add(kernels=kernels, measures="tests_running_sum:MEASURES")

    return change


def test_rows(measured: Callable[..., None], module: Any) -> None:
    measured(module.reference)
    said = bench_kernels("running_sum", repeats=2)
    assert said.passed
    assert said.data["wrong"] == []
    assert said.data["claims"] == {}  # the operator has no benchmark of its own
    assert said.data["reached"] == {"float32": {"flops_per_s": 1e9, "bytes_per_s": 1e9}}
    assert [(row["kernel"], row["direction"]) for row in said.data["rows"]] == [
        ("mine", "forward"),
        ("mine", "forward+backward"),
    ]
    for row in said.data["rows"]:
        assert (row["case"], row["dtype"], row["peer"]) == ("two rows", "float32", "cumsum")
        assert row["ratio"] == pytest.approx(row["peer_seconds"] / row["seconds"], abs=1e-3)
        assert row["roofline"] == pytest.approx(row["bytes"] / 1e9 / row["seconds"], rel=0.01, abs=1e-4)
    assert re.search(r"running_sum +two rows +forward +float32 +mine +\S+ ms +\d+%  cumsum", said.text)
    assert json.loads(json.dumps(said.data)) == said.data


def test_a_kernel_without_a_peer(measured: Callable[..., None], module: Any) -> None:
    measured(module.reference, peer="")
    rows = bench_kernels("running_sum", ["float64"], repeats=1).data["rows"]
    assert len(rows) == 2
    assert not any("ratio" in row for row in rows)


def test_a_wrong_kernel_is_not_timed(measured: Callable[..., None], module: Any) -> None:
    measured(lambda x, gain: module.reference(-x, gain=gain))
    said = bench_kernels("running_sum", repeats=1)
    assert not said.passed
    assert said.data["rows"] == []
    assert said.data["wrong"][0].startswith('running_sum by mine: case "one", float32: output is off by ')
    assert "wrong, so not timed: running_sum by mine" in said.text


def test_a_peer_that_computes_something_else(measured: Callable[..., None], module: Any) -> None:
    measured(module.reference, peer="wrong_peer")
    said = bench_kernels("running_sum", repeats=1)
    assert said.data["rows"] == []
    assert re.match(
        r"running_sum, two rows, forward, float32: mine and its peer differ by .*, allowed 0.0001",
        said.data["wrong"][0],
    )
    measured(module.reference, peer="wrong_peer", same=False)  # one that solves the task otherwise
    assert len(bench_kernels("running_sum", repeats=1).data["rows"]) == 2


def test_the_number_of_threads_is_put_back(measured: Callable[..., None], module: Any) -> None:
    before, seen = torch.get_num_threads(), []

    def kernel(x: Tensor, *, gain: float) -> Any:
        seen.append(torch.get_num_threads())
        return module.reference(x, gain=gain)

    measured(kernel)
    bench_kernels("running_sum", repeats=1, threads=1)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_claims_are_the_repositorys_benchmarks(
    measured: Callable[..., None], module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured(module.reference)
    for name in ("benchmarks/running_sum.py", "build/bench/running_sum.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    row = {"case": "big", "peer": "cumsum", "ours_s": 1.0, "peer_s": 2.0, "at_least": 3.0}
    document = {"title": "sums", "threads": 2, "correct": "yes", "rows": [row], "roofline": {}, "machine": {}}
    (tmp_path / "build/bench/running_sum.json").write_text(json.dumps(document), encoding="utf-8")
    asked, code = [], 0

    def run(command: list[str], **given: Any) -> subprocess.CompletedProcess[str]:
        asked.append((command[1:], given["cwd"]))
        return subprocess.CompletedProcess(command, code)

    monkeypatch.setattr("polyhead.ops.commands.benching._repository", lambda: tmp_path)
    monkeypatch.setattr(subprocess, "run", run)
    said = bench_kernels("running_sum", repeats=1)
    assert asked == [(["-m", "benchmarks.run", "running_sum"], tmp_path)]
    assert said.data["claims"]["running_sum"]["rows"] == [row]
    assert said.text.splitlines()[-1] == "  big against cumsum: 2.00, claimed 3.00: MISSED"
    assert bench_kernels("running_sum", repeats=1, claims=False).data["claims"] == {}
    code = 1
    with pytest.raises(KernelError, match=r"The benchmark of running_sum failed, so no figure of it counts. Again: -m"):
        bench_kernels("running_sum", repeats=1)


def test_arguments_are_checked(measured: Callable[..., None], module: Any) -> None:
    measured(module.reference)
    with pytest.raises(ConfigError, match="--threads is 0, expected 1 or more"):
        bench_kernels("running_sum", threads=0)
    with pytest.raises(UnknownNameError, match='No dtype of running_sum "half"'):
        bench_kernels("running_sum", ["half"])
    with pytest.raises(KernelError, match='Device "meta" cannot be used here'):
        bench_kernels("running_sum", device="meta")


def test_the_command(measured: Callable[..., None], module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    measured(module.reference)
    arguments = ["kernels", "bench", "--op", "running_sum", "--dtype", "float64", "--threads", "1", "--repeats", "1"]
    assert main([*arguments, "--no-claims", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["threads"] == 1
    assert {row["dtype"] for row in document["rows"]} == {"float64"}


def test_the_roofline_of_this_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "rand", partial(lambda *size, **_: torch.ones([min(each, 64) for each in size])))
    reached = _reached("float32", "cpu")
    assert reached.flops_per_s["float32"] > 0
    assert reached.bytes_per_s > 0


@pytest.mark.parametrize("name", registry.operators())
def test_every_operator_names_sizes_to_measure(name: str) -> None:
    """Descriptions and arguments of a measure are of the same shape, and each has a bound on each device."""
    spec = registry.operator(name)
    measures = measures_of(spec)
    assert measures, f"{name} names no measures"
    for measure in measures:
        call = spec.describe(measure.shape, torch.float32, torch.device("cuda"), **measure.options)
        assert tuple(next(iter(call.tensors.values())).shape) == measure.shape
        for device in DEVICES:
            for backward in (False, True):
                assert device.bound(spec.cost(call, backward=backward), "bfloat16")["seconds"] > 0


def test_a_bound_says_what_sets_it() -> None:
    device = Device("small", "sm_80", {"float32": 10.0}, 5.0)
    assert device.bound(Cost(20, 5), "float32") == {"seconds": 2.0, "by": "arithmetic"}
    assert device.bound(Cost(20, 20), "float32") == {"seconds": 4.0, "by": "memory"}
