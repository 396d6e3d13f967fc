"""Check that a model is what ``polyhead.load``, the recipe and its users may rely on."""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyhead import models
from polyhead.configs import config_from_dict, config_to_dict
from polyhead.testing.report import Report, RuleError
from polyhead.testing.values import difference, first_axis, leaves, map_tensors, rows

__all__ = ["check_model", "expect_gradients", "report_model"]

Forward = Callable[[nn.Module, Any], Any]
"""Runs a model on inputs, and returns tensors in any nesting."""

_RULES = "polyhead.models"
_CONTRACTS = "polyhead.testing.check_model"


def check_model(
    model: str | type | nn.Module,
    inputs: Callable[[nn.Module, torch.Generator], Any] | Mapping[str, Any],
    *,
    preset: str = "",
    config: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
    unused: Sequence[str] = (),
    independent: bool = True,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> list[str]:
    """Check a model: config, saving, determinism, inputs left alone, gradients, rows apart, float64, copies.

    Args:
        model: a registered name, a class with ``Config``, or a built model.
        inputs: the forward arguments by name, or a function of the model and a generator that makes them. The first
            axis of every tensor is the batch, with at least 2 rows; a list has an item for each row. So do outputs.
        preset: of a registered model.
        config: values that differ from the preset and the defaults.
        forward: how to run the model; ``model(**inputs)`` if None.
        unused: patterns of the names of parameters that may stay without gradient, such as ``"codebook.*"``.
        independent: the result of a row does not depend on the other rows (in evaluation mode).
        rtol: relative tolerance between a batch and its rows, and between float32 and float64.
        atol: absolute tolerance of the same.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: a rule is broken; names all that are.
    """
    built = _build(model, preset, config or {})
    if callable(inputs) and not isinstance(inputs, Mapping):
        inputs = inputs(built, torch.Generator().manual_seed(0))
    report = report_model(built, inputs, forward=forward, unused=unused, independent=independent, rtol=rtol, atol=atol)
    return report.finish()


def report_model(
    model: nn.Module,
    inputs: Any,
    *,
    forward: Forward | None = None,
    unused: Sequence[str] = (),
    gradients: bool = True,
    independent: bool = True,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> Report:
    """Do what ``check_model`` does for a built model, and return the report; without ``gradients`` none are taken."""
    report = Report(f'model "{models.model_name(model)}"')
    run = forward or _call
    # Not the seed that the model was built with: what it draws anew when loaded must show.
    with _seeded(1):
        expected: Any = None
        with report.check("it runs in evaluation mode", _CONTRACTS):
            expected = _evaluate(model, run, inputs)
            if not any(isinstance(leaf, Tensor) for _, leaf in leaves(expected)):
                raise RuleError(f"it returns no tensor but {type(expected).__name__}. Return tensors.")
        _check_config(report, model)
        if expected is None:
            return report
        check = functools.partial(_evaluate, run=run)
        _check_evaluation(report, model, check, inputs, expected)
        _check_inputs(report, model, run, inputs)
        _check_copies(report, model, check, inputs, expected)
        if gradients:
            _check_gradients(report, model, run, inputs, unused)
        if independent:
            _check_rows(report, model, check, inputs, expected, rtol, atol)
        _check_float64(report, model, check, inputs, expected, rtol, atol)
    return report


def _build(model: str | type | nn.Module, preset: str, config: Mapping[str, Any]) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    with _seeded(0):
        if isinstance(model, str):
            return models.load(model, preset=preset, **config)
        cls: Any = model
        built: nn.Module = cls(config_from_dict(cls.Config, config))
        return built


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Make fresh weights and dropout the same each time, and leave the caller's random state alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs)


def _evaluate(model: nn.Module, run: Forward, inputs: Any) -> Any:
    """Run a model in evaluation mode on a copy of the inputs."""
    training = model.training
    try:
        with torch.no_grad():
            return run(model.eval(), map_tensors(torch.clone, inputs))
    finally:
        model.train(training)


def _check_config(report: Report, model: nn.Module) -> None:
    cls: Any = type(model)
    with report.check("its Config is a frozen dataclass and travels as JSON", f"{_RULES}, first paragraph"):
        config = getattr(model, "config", None)
        declared = getattr(cls, "Config", None)
        if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
            raise RuleError(f"{cls.__name__}.Config is {declared!r}. Set it to a dataclass.")
        if not declared.__dataclass_params__.frozen:  # type: ignore[attr-defined]  # set by the decorator
            raise RuleError(f"{declared.__qualname__} can be changed. Declare it with @dataclass(frozen=True).")
        if not isinstance(config, declared):
            raise RuleError(f"model.config is {config!r}. Set self.config = config in __init__.")
        again = config_from_dict(declared, json.loads(json.dumps(config_to_dict(config))))
        if again != config:
            raise RuleError(f"{config} comes back as {again}. Annotate each field with the type that it holds.")


def _check_evaluation(
    report: Report, model: nn.Module, evaluate: Callable[..., Any], inputs: Any, expected: Any
) -> None:
    with report.check("evaluation is deterministic", _CONTRACTS):
        if text := difference(expected, evaluate(model, inputs=inputs)):
            raise RuleError(
                f"the same inputs give two results: {text}. Switch random parts off when not self.training."
            )
    with report.check("evaluation changes no parameter and no buffer", _CONTRACTS):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        evaluate(model, inputs=inputs)
        if text := difference(before, dict(model.state_dict())):
            raise RuleError(f"{text}. Update buffers only when self.training.")


def _check_inputs(report: Report, model: nn.Module, run: Forward, inputs: Any) -> None:
    with report.check("nothing is written into an input", "style.md, contracts every operator keeps"):
        given = map_tensors(torch.clone, inputs)
        _evaluate(model, lambda model, _: run(model, given), ())
        if text := difference(inputs, given):
            raise RuleError(f"{text}. Replace operations such as add_ or x[...] = by ones that make a new tensor.")


def _check_copies(report: Report, model: nn.Module, evaluate: Callable[..., Any], inputs: Any, expected: Any) -> None:
    with report.check("a deep copy gives the same results and shares no memory", _CONTRACTS):
        copied = copy.deepcopy(model)
        if text := difference(expected, evaluate(copied, inputs=inputs)):
            raise RuleError(f"{text}. Keep tensors in parameters and buffers, not in plain attributes or closures.")
        own = {parameter.data_ptr() for parameter in model.parameters() if parameter.numel()}
        shared = [name for name, p in copied.named_parameters() if p.numel() and p.data_ptr() in own]
        if shared:
            raise RuleError(f"{shared[0]} is one tensor in both. Register it as a parameter of the module.")
    with report.check("saved and loaded it gives the same results", f"{_RULES}.save_pretrained"):
        with tempfile.TemporaryDirectory() as folder:
            models.save_pretrained(model, Path(folder) / "model")
            again = models.load_as(type(model), Path(folder) / "model")
        if text := difference(dict(model.state_dict()), dict(again.state_dict())):
            raise RuleError(f"{text}.")
        if text := difference(expected, evaluate(again, inputs=inputs)):
            raise RuleError(f"{text}. What a result depends on belongs into the config, a parameter or a buffer.")


def _check_gradients(report: Report, model: nn.Module, run: Forward, inputs: Any, unused: Sequence[str]) -> None:
    with report.check("a gradient reaches every parameter", _CONTRACTS):
        copied = copy.deepcopy(model).train()
        copied.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):  # dropout may hide a small tensor from one pass
            total = torch.zeros(())
            for _, output in leaves(run(copied, map_tensors(torch.clone, inputs))):
                if isinstance(output, Tensor) and output.is_floating_point() and output.requires_grad:
                    # A random projection: a plain sum has no gradient behind a softmax or a normalisation.
                    total = total + (output * torch.randn(output.shape, generator=generator)).sum()
            if not total.requires_grad:
                raise RuleError("no output depends on a parameter in training mode. Look for detach and no_grad.")
            total.backward()
        expect_gradients(copied, unused)


def expect_gradients(model: nn.Module, unused: Sequence[str]) -> None:
    """Raise RuleError if a parameter, but those that match ``unused``, has no gradient after a backward pass.

    A bias may have one of exactly zero: in front of a normalisation, or on the keys of a softmax, it cancels. A model
    whose branches are multiplied by a gate of zero at first names their parameters in ``gated_at_first``.
    """
    unused = [*unused, *getattr(model, "gated_at_first", ())]
    without = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or any(fnmatch.fnmatch(name, pattern) for pattern in unused):
            continue
        if parameter.grad is None:
            without.append(f"{name} (none)")
        elif not parameter.grad.isfinite().all():
            without.append(f"{name} (not finite)")
        elif not parameter.grad.any() and name.rpartition(".")[2] != "bias":
            without.append(f"{name} (all zero)")
    if without:
        shown = ", ".join(without[:10]) + (f" and {len(without) - 10} more" if len(without) > 10 else "")
        raise RuleError(f"not these: {shown}. Use them, remove them, or name them in unused=.")


def _check_rows(
    report: Report,
    model: nn.Module,
    evaluate: Callable[..., Any],
    inputs: Any,
    expected: Any,
    rtol: float,
    atol: float,
) -> None:
    with report.check("a batch equals its rows one by one", "style.md, contracts every operator keeps"):
        sizes = {first_axis(entry) for entry in _entries(inputs) if isinstance(entry, Tensor | list)}
        if len(sizes) != 1 or (size := sizes.pop()) is None or size < 2:
            raise RuleError("the inputs have no common first axis of at least 2 rows. Give such inputs.")
        for row in range(size):
            alone = evaluate(model, inputs=rows(inputs, [row]))
            if text := difference(rows(expected, [row]), alone, rtol=rtol, atol=atol):
                raise RuleError(
                    f"row {row}: {text}. Normalise, pad and attend within a row only, or independent=False."
                )


def _entries(value: Any) -> Iterator[Any]:
    """Yield what has the batch as its first axis: tensors, and lists with an item for each row."""
    if isinstance(value, Mapping | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _entries(item)
    else:
        yield value


def _check_float64(
    report: Report,
    model: nn.Module,
    evaluate: Callable[..., Any],
    inputs: Any,
    expected: Any,
    rtol: float,
    atol: float,
) -> None:
    with report.check("it works in float64", _CONTRACTS):
        wide = copy.deepcopy(model).double()
        result = evaluate(wide, inputs=map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs))
        for name, leaf in leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dtype != torch.float64:
                raise RuleError(f"{name} has dtype {leaf.dtype}. Make new tensors with the dtype of an input.")
        narrow = map_tensors(lambda x: x.double() if x.is_floating_point() else x, expected)
        if text := difference(narrow, result, rtol=rtol, atol=atol):
            raise RuleError(f"float32 and float64 differ by more than rounding: {text}.")
