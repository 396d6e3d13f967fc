"""Find where NaN or Inf entered, once a loss or a gradient has shown that it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from polyhead.errors import NonFiniteError
from polyhead.protocols import Batch
from polyhead_apps import distributed

__all__ = ["non_finite"]


def non_finite(
    step: int, figures: Mapping[str, float], model: nn.Module, micro: Sequence[Batch], rerun: Callable[[Batch], Any]
) -> NonFiniteError:
    """Return the error for a step: what is not finite, and the first tensor that is not, in the order of the flow.

    Looked at in turn: the batch, parameters and buffers, outputs of modules (the forward pass is repeated) and, where
    the loss is finite, gradients. All processes have to call this; they return the same error.

    Args:
        step: the step, counted from 1.
        figures: loss terms and gradient norm, over all processes.
        model: the model, whose gradients are still there.
        micro: this process's batches of the step.
        rerun: repeats the forward pass of one of them.
    """
    terms_first = sorted(figures, key=lambda name: not name.startswith("loss/"))
    name = next(name for name in terms_first if not math.isfinite(figures[name]))
    # Every process looks at everything, so that all repeat the forward pass, which may communicate.
    outputs = _first_output(model, micro, rerun)
    here = (
        _first(("batch", name, tensor) for batch in micro for name, tensor in _named(batch, ""))
        or _first(("parameter", name, parameter.detach()) for name, parameter in model.named_parameters())
        or _first(("buffer", name, buffer) for name, buffer in model.named_buffers())
        or outputs
        or (name == "grad_norm" and _first(_gradients(model)))
    )
    found = next((text for text in distributed.gather_objects(here) if text), None)
    where = f"First non-finite tensor: {found}" if found else "All of the batch, the parameters and outputs are finite"
    return NonFiniteError(f'Step {step}: "{name}" is {figures[name]}. {where}. {_mend(found)}')


def _gradients(model: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    return (("gradient of", name, p.grad) for name, p in model.named_parameters() if p.grad is not None)


def _mend(found: str | None) -> str:
    if found and found.startswith("batch"):
        return "Mend the data, or the adapter that read them (`data check`)."
    return "Try a lower train.lr, train.clip_norm, or float32."


def _first(tensors: Iterator[tuple[str, str, Tensor]]) -> str:
    return next((text for kind, name, tensor in tensors if (text := _describe(kind, name, tensor))), "")


def _describe(kind: str, name: str, tensor: Tensor) -> str:
    """Return how many values of a tensor are not finite, and where the first is; empty if all are finite."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not (local.is_floating_point() or local.is_complex()):
        return ""
    bad = ~torch.isfinite(local)
    count = int(bad.sum())
    if not count:
        return ""
    position = tuple(bad.nonzero()[0].tolist())
    return f'{kind} "{name}" ({count:,} of {local.numel():,} values, the first at {position})'


def _named(value: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested mappings, lists and tuples with dotted names."""
    if isinstance(value, Tensor):
        yield prefix, value
        return
    if isinstance(value, Mapping):
        items = list(value.items())
    else:
        items = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for key, item in items:
        yield from _named(item, f"{prefix}.{key}" if prefix else str(key))


@torch.no_grad()
def _first_output(model: nn.Module, micro: Sequence[Batch], rerun: Callable[[Batch], Any]) -> str:
    """Repeat the forward pass and return the first module whose output is not finite, innermost first."""
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if not found and (text := _first(("output of", key, tensor) for key, tensor in _named(output, name))):
                found.append(text)

        return hook

    with ExitStack() as hooks, torch.compiler.set_stance("force_eager"):
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(watch(name or type(module).__name__)).remove)
        for batch in micro:
            rerun(batch)
    return found[0] if found else ""
