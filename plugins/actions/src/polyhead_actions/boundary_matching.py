"""Boundary matching with the convolution that consumes it, without the sampled features in between."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from polyhead.errors import ConfigError, ShapeError
from polyhead_actions.sampling import Span, cells, taps

__all__ = ["BoundaryMatching"]


class BoundaryMatching(nn.Module):
    """Sample every proposal of a sequence at N points and weigh the samples by a convolution over all N.

    The published layer writes the samples down: (B, C, N, D, T), which a convolution with kernel (N, 1, 1) turns into
    (B, O, D, T). Both steps are linear, so this one convolves first, (B, T, N, O), and then gathers a few rows of that
    for each proposal. The result is the same sum in another order.

    Shapes: x (B, C, T) -> (B, V + 1, O), the V cells of `sampling.cells` and one without any sample, which stands for
    all cells that end outside of the sequence.

    Complexity: O(B·T·C·N·O + B·V·N·O) time, O(B·V·O + T·N·O) memory; dense O(B·D·T·C·N·(T + O)) and O(B·C·N·D·T).
    Source: Lin et al. 2019, arXiv:1907.09702, section 3.2 and table 1.

    Raises:
        ConfigError: a size is not positive.
        ShapeError: the sequence has other channels or another length.
    """

    columns: Tensor
    offsets: Tensor
    weights: Tensor
    back_columns: Tensor
    back_offsets: Tensor
    back_weights: Tensor

    def __init__(
        self,
        channels: int,
        out_channels: int,
        length: int,
        durations: int,
        *,
        samples: int = 32,
        per_sample: int = 3,
        extend: float = 0.5,
        span: Span = "snippets",
        legacy_edge: bool = False,
    ) -> None:
        """Make the layer for sequences of ``length`` steps and proposals of at most ``durations`` steps."""
        super().__init__()
        sizes = {"channels": channels, "out_channels": out_channels, "length": length, "durations": durations}
        for name, size in {**sizes, "samples": samples, "per_sample": per_sample}.items():
            if size < 1:
                raise ConfigError(f"BoundaryMatching: {name} is {size}, at least 1 is needed.")
        if samples * per_sample < 2:
            raise ConfigError("BoundaryMatching: samples * per_sample is 1, at least 2 points are needed.")
        self.channels, self.out_channels, self.length, self.durations = channels, out_channels, length, durations
        self.samples = samples
        self.weight = nn.Parameter(torch.empty(out_channels, channels, samples))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        nn.init.xavier_uniform_(self.weight)
        made = taps(
            length,
            durations,
            samples=samples,
            per_sample=per_sample,
            extend=extend,
            span=span,
            legacy_edge=legacy_edge,
        )
        turned = made.transposed(length * samples)
        for name, matrix in (("", made), ("back_", turned)):
            self.register_buffer(f"{name}columns", torch.from_numpy(matrix.columns), persistent=False)
            # The last row of the first matrix is empty: the cell without samples.
            offsets = matrix.offsets if name == "" else matrix.offsets[:-1]
            self.register_buffer(f"{name}offsets", torch.from_numpy(offsets), persistent=False)
            weights = torch.from_numpy(matrix.weights).to(self.weight.dtype)
            self.register_buffer(f"{name}weights", weights, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, V + 1, O), bias added."""
        if x.ndim != 3 or x.shape[1:] != (self.channels, self.length):
            raise ShapeError(
                f"BoundaryMatching takes (B, {self.channels}, {self.length}), channels and steps, not {tuple(x.shape)}."
            )
        forth = (self.columns, self.offsets, self.weights)
        back = (self.back_columns, self.back_offsets, self.back_weights)
        with torch.autocast(x.device.type, enabled=False):
            if torch.compiler.is_compiling():
                return self._traced(x.to(self.weight.dtype))
            matched: Tensor = _Match.apply(x.to(self.weight.dtype), self.weight, self.bias, *forth, *back)
            return matched

    def _traced(self, x: Tensor) -> Tensor:
        """Return the same for a batch of any size, which a graph cannot loop over; it takes B times the memory."""
        size = x.shape[0]
        rows = torch.einsum("bct,ocn->tnbo", x, self.weight).reshape(self.length * self.samples, -1)
        gathered = _gather(rows, self.columns, self.offsets, self.weights)
        return gathered.view(-1, size, self.out_channels).transpose(0, 1) + self.bias

    def cells(self) -> tuple[Tensor, Tensor]:
        """Return duration and start, (V,) each, of the rows of the result but the last one."""
        duration, start = cells(self.length, self.durations)
        return torch.from_numpy(duration), torch.from_numpy(start)


def _gather(rows: Tensor, columns: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """Return the product of a sparse matrix and ``rows`` (R, O)."""
    return F.embedding_bag(columns, rows, offsets, mode="sum", per_sample_weights=weights)


class _Match(torch.autograd.Function):
    """One sample at a time: what stands between the two products is small and lives only that long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *matrices: Tensor) -> Tensor:
        """Return (B, V + 1, O)."""
        ctx.save_for_backward(x, weight, *matrices)
        out_channels, channels, samples = weight.shape
        flat = weight.permute(1, 2, 0).reshape(channels, samples * out_channels)
        forth = matrices[:3]
        out = x.new_empty(len(x), len(forth[1]), out_channels)
        for number, row in enumerate(x.unbind()):
            torch.add(_gather((row.mT @ flat).view(-1, out_channels), *forth), bias, out=out[number])
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of ``x``, ``weight`` and ``bias``."""
        x, weight, *matrices = ctx.saved_tensors
        out_channels, channels, samples = weight.shape
        flat = weight.permute(1, 2, 0).reshape(channels, samples * out_channels)
        grad_x, grad_flat = torch.zeros_like(x), torch.zeros_like(flat)
        for number, row in enumerate(grad.unbind()):
            rows = _gather(row.contiguous(), *matrices[3:]).view(-1, samples * out_channels)
            if ctx.needs_input_grad[0]:
                grad_x[number] = flat @ rows.mT
            grad_flat.addmm_(x[number], rows)
        grad_weight = grad_flat.view(channels, samples, out_channels).permute(2, 0, 1)
        return grad_x, grad_weight, grad.sum((0, 1)), *(None for _ in matrices)
