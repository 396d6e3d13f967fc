"""Write a model for use elsewhere, and check each file against the model before it counts."""

from __future__ import annotations

import importlib.util
import inspect
import io
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyhead.artifacts import atomic_file
from polyhead.errors import MissingExtraError, PolyheadError
from polyhead.protocols import Data, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ExportError", "example_inputs", "export_onnx", "export_pt2"]

RTOL, ATOL = 1e-4, 1e-5
"""How far an exported float32 model may be from the eager one, relative to the size of the output."""


class ExportError(PolyheadError, RuntimeError):
    """A model cannot be exported, or the exported one does not give what the model gives."""


def example_inputs(model: nn.Module, task: Task, data: Data | None) -> dict[str, Tensor]:
    """Return tensors for ``model.forward`` by the names of its parameters, batch first.

    They are the task's own (its optional ``example_inputs(model)``), else those of the first two training samples
    whose names are parameters of ``forward`` without a default.

    Raises:
        ExportError: neither is to be had; says which names are missing.
    """
    import torch

    if hasattr(task, "example_inputs"):
        return dict(task.example_inputs(model))
    parameters = inspect.signature(model.forward).parameters
    required = [name for name, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    if data is None:
        raise ExportError(f"Export needs an example of the input ({', '.join(required)}): give --data PATH.")
    batch = data.source("train").fetch([0, 1], seed=0, epoch=0)
    inputs = {name: batch[name] for name in required if isinstance(batch.get(name), torch.Tensor)}
    if missing := [name for name in required if name not in inputs]:
        raise ExportError(
            f"Export does not know the input: forward takes {', '.join(missing)}, a batch has {', '.join(batch)}. "
            f"The task can say it by a method example_inputs(model)."
        )
    return inputs


def export_pt2(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Write a ``torch.export`` program with a free batch size; return its largest deviation from the model.

    Load it with ``torch.export.load(path).module()``; operators of Polyhead need ``import polyhead.ops`` before.

    Raises:
        ExportError: the model cannot be traced, or the written program deviates.
    """
    import torch

    model = model.eval()
    program = _program(model, inputs)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    worst = _compare(model, lambda values: loaded(**values), inputs, "The exported program")
    with atomic_file(path) as file:
        file.write_bytes(buffer.getvalue())
    return worst


def export_onnx(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> float:
    """Write an ONNX model with a free batch size; return its largest deviation from the model.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime are not installed.
        ExportError: an operator has no ONNX form, or the written model deviates.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"ONNX needs {', '.join(missing)}: pip install 'polyhead-apps[onnx]'")
    import onnxruntime
    import torch

    model = model.eval()
    program = _program(model, inputs)
    # It warns of every package whose operators it could know.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # onnxscript's own deprecations; the result is checked below
            made = torch.onnx.export(program, dynamo=True, verbose=False)
    except Exception as error:  # torch.onnx raises errors of several libraries
        raise ExportError(f"The model has no ONNX form: {_first_line(error)}  Try --to pt2.") from error
    assert made is not None  # it is None only where a file is named
    serialized = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(serialized, providers=["CPUExecutionProvider"])

    def run(values: Mapping[str, Tensor]) -> Any:
        feeds = {entry.name: values[entry.name].numpy() for entry in session.get_inputs()}
        return [torch.from_numpy(output) for output in session.run(None, feeds)]

    worst = _compare(model, run, inputs, "The ONNX model")
    with atomic_file(path) as file:
        file.write_bytes(serialized)
    return worst


def _program(model: nn.Module, inputs: Mapping[str, Tensor]) -> Any:
    import torch

    batch = torch.export.Dim("batch", min=1)
    shapes = {name: {0: batch} for name in inputs}
    try:
        return torch.export.export(model, (), dict(inputs), dynamic_shapes=shapes)
    except Exception as error:  # tracing raises errors of many kinds, the model's own included
        raise ExportError(f"The model cannot be traced by torch.export: {_first_line(error)}") from error


def _compare(model: nn.Module, run: Any, inputs: Mapping[str, Tensor], what: str) -> float:
    """Return the largest deviation over random inputs of two batch sizes; raise where it is too large."""
    import torch

    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for size in (1, 3):
        values = {name: _random_like(tensor, size, generator) for name, tensor in inputs.items()}
        with torch.no_grad():
            expected, actual = _tensors(model(**values)), _tensors(run(values))
        if len(expected) != len(actual):
            raise ExportError(f"{what} gives {len(actual)} tensors where the model gives {len(expected)}. Not written.")
        for ours, theirs in zip(expected, actual, strict=True):
            if ours.shape != theirs.shape:
                shapes = f"the shape {tuple(theirs.shape)} where the model gives {tuple(ours.shape)}"
                raise ExportError(f"{what} gives {shapes}. Not written.")
            deviation = float((ours.double() - theirs.double()).abs().max()) if ours.numel() else 0.0
            allowed = ATOL + RTOL * float(ours.double().abs().max()) if ours.numel() else 0.0
            if not deviation <= allowed:
                raise ExportError(
                    f"{what} deviates from the model by {deviation:.3g} (allowed {allowed:.3g}) for a batch of {size}. "
                    f"Not written."
                )
            worst = max(worst, deviation)
    return worst


def _random_like(tensor: Tensor, size: int, generator: Any) -> Tensor:
    """Return random values of the same kind as ``tensor`` with another batch size.

    Floats get the mean and spread of the example; other types take its rows, since their values may be indices.
    """
    import torch

    rows = tensor[torch.randint(len(tensor), (size,), generator=generator)]
    if not tensor.is_floating_point():
        return rows.contiguous()
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    spread, mean = tensor.double().std(), tensor.double().mean()
    return (mean + spread * noise).to(tensor.dtype)


def _tensors(output: Any) -> list[Tensor]:
    from torch.utils._pytree import tree_leaves

    return [leaf for leaf in tree_leaves(output) if hasattr(leaf, "numel")]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
