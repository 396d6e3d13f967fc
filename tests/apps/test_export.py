from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polyhead.errors import MissingExtraError
from polyhead_apps.export import ExportError, example_inputs, export_onnx, export_pt2


class Scaled(nn.Module):
    """Takes floats and indices; batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)

    def forward(self, x: Tensor, kind: Tensor, y: Tensor | None = None) -> Tensor:
        assert y is None
        return x * self.table(kind)


class Source:
    def __init__(self, batch: Mapping[str, Any]) -> None:
        self.batch = batch

    def source(self, split: str) -> Source:
        return self

    def fetch(self, indices: list[int], *, seed: int, epoch: int) -> Mapping[str, Any]:
        return self.batch


class Plain:
    """A task without example inputs."""


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return {"x": torch.rand(2, 4), "kind": torch.tensor([1, 4])}


def test_programs_take_any_batch(tmp_path: Path, inputs: dict[str, Tensor]) -> None:
    model, path = Scaled(), tmp_path / "m.pt2"
    assert export_pt2(model, inputs, path) == 0
    program = torch.export.load(path).module()
    x, kind = torch.rand(7, 4), torch.arange(7) % 5
    torch.testing.assert_close(program(x=x, kind=kind), model(x, kind))


def test_onnx_takes_any_batch(tmp_path: Path, inputs: dict[str, Tensor]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx of polyhead-apps is not installed")
    pytest.importorskip("onnxscript", reason="the extra onnx of polyhead-apps is not installed")
    model, path = Scaled(), tmp_path / "m.onnx"
    assert export_onnx(model, inputs, path) < 1e-6
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x, kind = torch.rand(7, 4), torch.arange(7) % 5
    (output,) = session.run(None, {"x": x.numpy(), "kind": kind.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(x, kind).detach())


def test_onnx_without_its_extra_names_it(
    tmp_path: Path, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(MissingExtraError) as caught:
        export_onnx(Scaled(), inputs, tmp_path / "m.onnx")
    assert str(caught.value) == "ONNX needs onnx, onnxscript, onnxruntime: pip install 'polyhead-apps[onnx]'"
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """Decides by a value, which cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_what_cannot_be_traced_is_said(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^The model cannot be traced by torch\.export: \w+: ") as caught:
        export_pt2(Branching(), {"x": torch.rand(2, 4)}, tmp_path / "m.pt2")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


class Drifting(nn.Module):
    """Gives another result at each call, where an exported program always gives the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


def test_what_deviates_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        export_pt2(Drifting(), {"x": torch.rand(2, 4)}, tmp_path / "m.pt2")
    assert str(caught.value).startswith("The exported program deviates from the model by 1 (allowed 0.000")
    assert str(caught.value).endswith("for a batch of 3. Not written.")
    assert list(tmp_path.iterdir()) == []


class Growing(Drifting):
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.repeat(1, self.calls)


class Splitting(Drifting):
    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return (x,) * self.calls


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Growing(), "The exported program gives the shape (3, 4) where the model gives (3, 8). Not written."),
        (Splitting(), "The exported program gives 1 tensors where the model gives 2. Not written."),
    ],
)
def test_other_shapes_and_counts_are_not_written(tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(ExportError) as caught:
        export_pt2(model, {"x": torch.rand(2, 4)}, tmp_path / "m.pt2")
    assert str(caught.value) == message


def test_inputs_come_from_the_data_by_name(inputs: dict[str, Tensor]) -> None:
    data: Any = Source({**inputs, "y": torch.rand(2), "names": ["a", "b"]})
    task: Any = Plain()
    assert set(example_inputs(Scaled(), task, data)) == {"x", "kind"}
    with pytest.raises(ExportError) as caught:
        example_inputs(Scaled(), task, None)
    assert str(caught.value) == "Export needs an example of the input (x, kind): give --data PATH."
    other: Any = Source({"x": inputs["x"], "y": 1})
    with pytest.raises(ExportError) as caught:
        example_inputs(Scaled(), task, other)
    assert str(caught.value) == (
        "Export does not know the input: forward takes kind, a batch has x, y. "
        "The task can say it by a method example_inputs(model)."
    )


def test_the_task_may_give_the_inputs(inputs: dict[str, Tensor]) -> None:
    task: Any = type("Task", (), {"example_inputs": lambda self, model: inputs})()
    assert example_inputs(Scaled(), task, None) == inputs


@pytest.fixture
def run(line_fit: Callable[..., Any], tmp_path: Path) -> Path:
    said = line_fit("fit", "--data", "toy-lines", "--steps", 2, "--out", "run", "--device", "cpu", "--threads", 1)
    assert said.code == 0, said.err
    return tmp_path / "run"


def test_the_verb_writes_and_checks_what_is_asked_for(line_fit: Callable[..., Any], run: Path) -> None:
    said = line_fit("export", "--model", "run")
    assert said.code == 0, said.err
    assert said.out.splitlines() == ["run/export/line", "run/export/line.pt2"]
    assert "safetensors: checked, largest deviation from the model 0" in said.err
    assert (run / "export" / "line" / "model.safetensors").read_bytes() == (
        run / "model" / "model.safetensors"
    ).read_bytes()
    said = line_fit("evaluate", "--model", "run/export/line", "--data", "toy-lines", "--json", "-q")
    assert json.loads(said.out)["metrics"] == json.loads((run / "metrics.json").read_text())["metrics"]
    said = line_fit("export", "--model", "run", "--to", "pt2")
    assert said.err == "line-fit: run/export/line.pt2 exists: name another --out, or replace it with --force.\n"
    said = line_fit("export", "--model", "run", "--to", "pt2", "--force", "--json", "-q")
    assert json.loads(said.out)["files"] == [{"file": "run/export/line.pt2", "format": "pt2", "largest_deviation": 0.0}]


def test_programs_run_in_a_process_without_polyhead(line_fit: Callable[..., Any], run: Path) -> None:
    assert line_fit("export", "--model", "run", "--to", "pt2").code == 0
    code = (
        "import sys, torch\n"
        "program = torch.export.load('run/export/line.pt2').module()\n"
        "assert program(x=torch.zeros(5, 2)).shape == (5,)\n"
        "assert not any(name.startswith('polyhead') for name in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_unknown_formats_are_wrong_usage(line_fit: Callable[..., Any], run: Path) -> None:
    said = line_fit("export", "--model", "run", "--to", "pickle")
    assert said.code == 2
    assert "'pickle' is not one of 'safetensors', 'pt2', 'onnx'" in said.err
