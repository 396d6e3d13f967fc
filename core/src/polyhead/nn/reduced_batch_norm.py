"""Batch normalisation whose statistics are those of the whole batch, over all processes and on any device."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from polyhead.errors import ShapeError

__all__ = ["ReducedBatchNorm"]


class ReducedBatchNorm(nn.Module):
    r"""Normalise every feature over all other axes and all processes.

    .. math:: y = \gamma \, \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta

    In training, :math:`\mu` and :math:`\sigma^2` (population variance) are those of the elements that ``mask`` lets
    count, over all processes of the default group; they may hold different numbers of elements, even none. In
    evaluation they are the running statistics, and nothing is communicated. ``momentum`` may be changed at any time:
    ``running = (1 - momentum) * running + momentum * batch``.

    A batch in which no element counts is normalised by the running statistics and changes nothing.

    Every process has to call the module equally often in training. Gradients of ``weight`` and ``bias`` are those of
    the process's own elements, as `DistributedDataParallel` expects.

    Complexity: O(elements) time; one all-gather of 2·dim + 1 numbers forward, one all-reduce of 2·dim backward.
    Parameters: 2·dim.

    Source: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 1. Partial statistics are merged by Chan, Golub & LeVeque
    1983, "Algorithms for computing the sample variance", eq. 2.1, which does not cancel where the mean is large.
    Differs: features are in the last axis; torch's SyncBatchNorm has them in the second and refuses the CPU.

    >>> import torch
    >>> norm = ReducedBatchNorm(3)
    >>> y = norm(torch.arange(24.0).reshape(2, 4, 3))
    >>> y.mean((0, 1)).abs().max().item() < 1e-6
    True
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, dim: int, eps: float = 1e-5, momentum: float = 0.1, *, affine: bool = True, unbiased: bool = True
    ) -> None:
        """Make a module with running mean 0 and running variance 1.

        Args:
            dim: number of features.
            eps: added to the variance.
            momentum: share of the new batch in the running statistics.
            affine: learn a scale and a shift.
            unbiased: keep n / (n - 1) times the variance in ``running_var``, as torch does; False keeps the
                population variance, as TensorFlow's ``tf.nn.moments`` gives.
        """
        super().__init__()
        self.dim, self.eps, self.momentum, self.unbiased = dim, eps, momentum, unbiased
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise ``x``.

        Args:
            x: features, shape (..., dim).
            mask: True (or a weight ≥ 0) where an element counts in the statistics, broadcastable to x.shape[:-1].
                Elements that do not count are normalised all the same. Not used in evaluation.

        Returns:
            A tensor of the shape and dtype of x.

        Raises:
            ShapeError: the last axis is not dim, or mask cannot be broadcast.
        """
        if x.shape[-1] != self.dim:
            raise ShapeError(f"x has {x.shape[-1]} features and the module {self.dim}. x {tuple(x.shape)}.")
        rows = x.reshape(-1, self.dim)
        if not self.training:
            return self._native(rows, self.running_mean, self.running_var, training=False).view(x.shape)
        weights = None if mask is None else _flat_weights(mask, x)
        if weights is None and rows.shape[0] > 1 and _processes() == 1:
            return self._train_alone(rows).view(x.shape)
        run = self._train_reduced_eagerly if _processes() > 1 else self._train_reduced
        return run(rows, weights).view(x.shape)

    def scale_shift(self) -> tuple[Tensor, Tensor]:
        """Return ``(scale, shift)``, shape (dim,) each, so that evaluation is ``x * scale + shift``: for folding."""
        scale = torch.rsqrt(self.running_var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        return scale, shift if self.bias is None else shift + self.bias

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the brackets."""
        return (
            f"{self.dim}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.weight is not None}, unbiased={self.unbiased}"
        )

    def _native(self, rows: Tensor, mean: Tensor, var: Tensor, *, training: bool, momentum: float = 0.0) -> Tensor:
        return torch.nn.functional.batch_norm(
            rows, mean, var, self.weight, self.bias, training=training, momentum=momentum, eps=self.eps
        )

    def _train_alone(self, rows: Tensor) -> Tensor:
        """One process and no mask: torch's fused kernel, about twice as fast as `_Normalise` on a CPU."""
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        y = self._native(rows, mean, var, training=True, momentum=1.0)
        self._update(mean, var if self.unbiased else var * ((rows.shape[0] - 1) / rows.shape[0]))
        return y

    def _train_reduced(self, rows: Tensor, weights: Tensor | None) -> Tensor:
        batch = _reduce(_moments(rows.detach().to(self.running_mean.dtype), weights))
        counted = batch.weight > 0
        mean = torch.where(counted, batch.mean, self.running_mean)
        var = torch.where(counted, batch.squares / batch.weight, self.running_var)
        inverse = torch.where(counted, 1 / batch.weight, 0.0)
        y = _Normalise.apply(rows, weights, mean, torch.rsqrt(var + self.eps), inverse, self.weight, self.bias)
        kept = var * (batch.weight / (batch.weight - 1).clamp(min=1)) if self.unbiased else var
        self._update(mean, torch.where(counted, kept, self.running_var))
        return y

    # Collectives inside an autograd.Function are beyond torch.compile; everything around it is still compiled.
    _train_reduced_eagerly = torch.compiler.disable(_train_reduced)

    @torch.no_grad()
    def _update(self, mean: Tensor, var: Tensor) -> None:
        # Plain products, because lerp_ would make torch.compile start again for every new momentum.
        self.running_mean += (mean - self.running_mean) * self.momentum
        self.running_var += (var - self.running_var) * self.momentum


class _Moments(NamedTuple):
    weight: Tensor
    """Scalar: sum of weights."""
    mean: Tensor
    """Shape (D,)."""
    squares: Tensor
    """Shape (D,): sum of squared distances from the mean."""


def _moments(rows: Tensor, weights: Tensor | None) -> _Moments:
    """Return the moments of rows (M, D) with weights (M, 1)."""
    weights = torch.ones_like(rows[:, :1]) if weights is None else weights.to(rows.dtype)
    total = weights.sum()
    mean = torch.where(total > 0, (rows * weights).sum(0) / total, 0.0)
    # A float32 sum of large values is off by more than one rounding: the mean of what is left corrects it.
    left = rows - mean
    rest = torch.where(total > 0, (left * weights).sum(0) / total, 0.0)
    return _Moments(total, mean + rest, ((left.square_() * weights).sum(0) - total * rest.square()).clamp(min=0))


def _reduce(own: _Moments) -> _Moments:
    """Merge the moments of all processes."""
    if _processes() == 1:
        return own
    packed = torch.cat([own.weight.reshape(1), own.mean, own.squares])
    gathered = packed.new_empty(_processes(), packed.numel())
    dist.all_gather(list(gathered.unbind(0)), packed)
    weights, means, squares = gathered.split([1, own.mean.numel(), own.squares.numel()], dim=1)
    total = weights.sum()
    mean = torch.where(total > 0, (weights * means).sum(0) / total, 0.0)
    return _Moments(total, mean, squares.sum(0) + (weights * (means - mean).square()).sum(0))


class _Normalise(torch.autograd.Function):
    """Apply statistics that were computed from the input itself, and differentiate through them."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weights: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        inverse: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        """Rows (M, D), weights (M, 1), mean and rstd (D,), inverse () = 1 / count or 0, weight and bias (D,)."""
        ctx.save_for_backward(rows, weights, mean, rstd, inverse, weight)
        scale = rstd if weight is None else rstd * weight
        y = (rows - mean) * scale
        return (y if bias is None else y + bias).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The batch statistics depend on every counted row, so every row's gradient reaches all of them."""
        rows, weights, mean, rstd, inverse, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        dy = grads[0].to(mean.dtype)
        normal = (rows - mean) * rstd
        sums = torch.stack([dy.sum(0), (dy * normal).sum(0)])
        own = sums
        dx = None
        if ctx.needs_input_grad[0]:  # type: ignore[attr-defined]
            if _processes() > 1:
                sums = sums.clone()
                dist.all_reduce(sums)
            shared = (sums[0] + normal * sums[1]) * inverse
            dx = dy - (shared if weights is None else shared * weights)
            dx = (dx * (rstd if weight is None else rstd * weight)).to(rows.dtype)
        needs_weight, needs_bias = ctx.needs_input_grad[5:]  # type: ignore[attr-defined]
        return dx, None, None, None, None, own[1] if needs_weight else None, own[0] if needs_bias else None


def _flat_weights(mask: Tensor, x: Tensor) -> Tensor:
    try:
        return mask.expand(x.shape[:-1]).reshape(-1, 1)
    except RuntimeError as error:
        raise ShapeError(
            f"mask {tuple(mask.shape)} cannot be broadcast to x without its last axis, {tuple(x.shape[:-1])}."
        ) from error


def _processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
