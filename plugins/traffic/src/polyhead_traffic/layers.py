"""Layers of GMAN: linear maps with batch norm, and projections of a field that know where and when they are.

Layout is (B, S, N, C): batch, steps, nodes, channels last.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from polyhead.nn import ReducedBatchNorm

__all__ = ["Dense", "Moments", "NormSettings", "Place", "Projection", "chain", "fold_norms", "joint_moments"]


class NormSettings(NamedTuple):
    """How batch norm is set up; see the fields ``norm_*`` of ``GMAN.Config``."""

    eps: float
    momentum: float
    unbiased: bool
    start_var: float

    def make(self, dim: int) -> FoldableBatchNorm:
        """Return a batch norm over ``dim`` features."""
        norm = FoldableBatchNorm(dim, self.eps, self.momentum, unbiased=self.unbiased)
        norm.running_var.fill_(self.start_var)
        return norm


class Place(NamedTuple):
    """A spatio-temporal embedding ``e(b, s, n) = nodes[n] + steps[b, s]``, kept as its two addends.

    A linear map of ``e`` is the sum of the maps of the addends, so that N + B·S rows are multiplied instead of B·S·N.
    """

    nodes: Tensor
    """Shape (N, D): where."""
    steps: Tensor
    """Shape (B, S, D): when."""


class Moments(NamedTuple):
    """Mean and covariance of the channels over all other axes."""

    mean: Tensor
    """Shape (C,)."""
    cov: Tensor
    """Shape (C, C): population covariance."""
    elements: int
    """Number of elements behind each mean."""


class FoldableBatchNorm(ReducedBatchNorm):
    """Batch norm that can also be told the moments of its input, when these are known without looking at it."""

    def scale_shift_of(self, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return ``(scale, shift)`` so that training is ``x * scale + shift``, and update the running statistics.

        Args:
            mean: of this process's elements, shape (dim,), differentiable.
            var: their population variance, shape (dim,), differentiable.
            count: their number.

        Returns:
            Two tensors of shape (dim,), from the moments over all processes.
        """
        correction: Tensor | float
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            mean, var, total = _merge(mean, var, count)
            # Where no process has an element, the running statistics stand in, as they do in `forward`.
            mean, var = torch.where(total > 0, mean, self.running_mean), torch.where(total > 0, var, self.running_var)
            correction = torch.where(total > 1, total / (total - 1), 1.0)
        elif count == 0:
            return self.scale_shift()
        else:
            correction = count / max(count - 1, 1)
        with torch.no_grad():
            kept = var * correction if self.unbiased else var
            self.running_mean += (mean - self.running_mean) * self.momentum
            self.running_var += (kept - self.running_var) * self.momentum
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        return scale, shift if self.bias is None else shift + self.bias


class _MergeProcesses(torch.autograd.Function):
    """Merge mean and variance over processes (Chan, Golub & LeVeque 1983, eq. 2.1)."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, var: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and var (C,) of ``count`` own elements; 0 and 0 where it has none."""
        packed = torch.cat([mean.new_full((1,), count), mean, var])
        gathered = packed.new_empty(dist.get_world_size(), packed.numel())
        dist.all_gather(list(gathered.unbind(0)), packed)
        counts, means, variances = gathered.split([1, len(mean), len(var)], dim=1)
        total = counts.sum()
        share = counts / total.clamp(min=1)
        total_mean = (share * means).sum(0)
        total_var = (share * (variances + (means - total_mean).square())).sum(0)
        ctx.save_for_backward(share[dist.get_rank()], mean - total_mean)
        ctx.mark_non_differentiable(total)
        return total_mean, total_var, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """The own moments reach the loss of every process."""
        both = torch.stack(grads[:2])
        dist.all_reduce(both)
        share, away = ctx.saved_tensors
        return share * (both[0] + 2 * away * both[1]), share * both[1], None


# Collectives inside an autograd.Function are beyond torch.compile; everything around it is still compiled.
_merge = torch.compiler.disable(_MergeProcesses.apply)


class Dense(nn.Module):
    """A linear map over channels, then batch norm and ReLU where asked for.

    GMAN's ``f(x) = ReLU(BN(x W + b))``. Weights are Glorot-uniform, the bias is zero.
    """

    def __init__(self, dim: int, out: int, norm: NormSettings | None, *, relu: bool = False, bias: bool = True) -> None:
        """Make a layer from ``dim`` to ``out`` channels; ``norm`` is None for a plain linear map."""
        super().__init__()
        self.weight = nn.Parameter(_glorot(torch.empty(out, dim)))
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None
        self.norm: nn.Module | None = None if norm is None else norm.make(out)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map x, shape (..., dim), to (..., out)."""
        y = F.linear(x, self.weight, self.bias)
        if self.norm is not None:
            y = self.norm(y)
        # In training the result may be a view, on which autograd makes an in-place step dearer than a copy.
        return F.relu(y, inplace=not torch.is_grad_enabled()) if self.relu else y

    def fold_norm(self) -> None:
        """Write the running statistics into weight and bias and drop the batch norm."""
        if isinstance(self.norm, FoldableBatchNorm):
            scale, shift = self.norm.scale_shift()
            self.bias = nn.Parameter(shift if self.bias is None else self.bias.detach() * scale + shift)
            self.weight = nn.Parameter(self.weight.detach() * scale.unsqueeze(1))
            self.norm = None


class Projection(nn.Module):
    r"""Project a field and its place to the heads of an attention: ``f([x, e])`` in parts such as q, k and v.

    .. math:: f([x, e]) = \mathrm{ReLU}(\mathrm{BN}(W_x x + W_e e + b)), \qquad e_{bsn} = e_n + e_{bs}

    All parts are one matrix product whose rows are ordered (head, part, channel): a part is then a view in which nodes
    and heads are one axis, so that attention over steps needs no copy. ``[x, e]`` is never made, ``W_e`` multiplies the
    two addends of ``e``, and batch norm is folded into the weights in training as well: the moments of the result
    follow from mean and covariance of ``[x, e]``, so that no pass over the result is needed.

    Args (of forward):
        x: shape (B, S, N, C), or None where only the place is projected.
        place: its embedding.
        moments: ``joint_moments(x, place)``; needed in training.

    Returns (of forward): one tensor a part, shape (B, S, N, heads, head_dim).

    Complexity: O(B·S·N·C·out) time, O(B·S·N·out) memory kept for backward.
    """

    def __init__(
        self, dim: int, place_dim: int, heads: int, head_dim: int, relu: tuple[bool, ...], norm: NormSettings
    ) -> None:
        """Make a projection of ``dim`` (0: none) and ``place_dim`` channels; ``relu`` says which parts have one."""
        super().__init__()
        self.dim, self.heads, self.head_dim, self.relu = dim, heads, head_dim, relu
        # Each part is a layer of its own to Glorot's rule.
        parts = [_glorot(torch.empty(heads * head_dim, dim + place_dim)) for _ in relu]
        self.weight = nn.Parameter(interleave(parts, heads))
        self.bias = nn.Parameter(torch.zeros(len(self.weight)))
        self.norm: nn.Module | None = norm.make(len(self.weight))

    def forward(self, x: Tensor | None, place: Place, moments: Moments | None = None) -> tuple[Tensor, ...]:
        """Return the parts, see the class."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if isinstance(self.norm, FoldableBatchNorm):
            if moments is not None and self.training:
                weight_f = weight.to(moments.mean.dtype)
                mean = weight_f @ moments.mean + bias
                # Rounding may leave a variance of nothing slightly below zero.
                var = ((weight_f @ moments.cov) * weight_f).sum(1).clamp(min=0)
                scale, shift = self.norm.scale_shift_of(mean, var, moments.elements)
            else:
                scale, shift = self.norm.scale_shift()
            weight, bias = weight * scale.unsqueeze(1), bias * scale + shift
        nodes = F.linear(place.nodes, weight[:, self.dim :], bias)
        steps = F.linear(place.steps, weight[:, self.dim :])
        own = weight[:, : self.dim] if self.dim else None
        if self.training:
            inputs = [value if value is None else _autocasted(value) for value in (x, own, nodes, steps)]
            return _Affine.apply(*inputs, self.heads, self.relu)
        if x is None or own is None:
            y = nodes + steps.unsqueeze(-2)
        else:
            y = F.linear(x, own).add_(nodes).add_(steps.unsqueeze(-2))
        if all(self.relu):
            y = F.relu(y, inplace=not torch.is_grad_enabled())
        parts = _parts(y, self.heads, len(self.relu))
        return parts if all(self.relu) else tuple(p.relu() if r else p for p, r in zip(parts, self.relu, strict=True))

    def fold_norm(self) -> None:
        """Write the running statistics into weight and bias and drop the batch norm."""
        if isinstance(self.norm, FoldableBatchNorm):
            scale, shift = self.norm.scale_shift()
            self.bias = nn.Parameter(self.bias.detach() * scale + shift)
            self.weight = nn.Parameter(self.weight.detach() * scale.unsqueeze(1))
            self.norm = None


def joint_moments(x: Tensor | None, place: Place) -> Moments:
    """Return the moments of ``[x, e]`` over batch, steps and nodes, without making it; of ``e`` alone if x is None.

    Args:
        x: shape (B, S, N, C).
        place: the embedding e, D channels.

    Returns:
        Moments of C + D channels in at least float32, differentiable.
    """
    dtype = torch.promote_types(place.nodes.dtype, torch.float32)
    with torch.autocast(place.nodes.device.type, enabled=False):
        nodes, steps = place.nodes.to(dtype), place.steps.to(dtype).flatten(0, 1)
        count = len(nodes) * len(steps)
        if count == 0:
            # The share of a process that has no sample of a batch: it counts for nothing, but NaN would spread.
            channels = nodes.shape[1] + (0 if x is None else x.shape[-1])
            return Moments(nodes.new_zeros(channels), nodes.new_zeros(channels, channels), 0)
        means = [nodes.mean(0) + steps.mean(0)]
        if x is not None:
            x_nodes, x_steps, x_cov = _FieldMoments.apply(x.to(dtype))
            means.insert(0, x_nodes.mean(0))
            nodes = torch.cat([x_nodes, nodes], 1)
            steps = torch.cat([x_steps.flatten(0, 1), steps], 1)
        nodes, steps = nodes - nodes.mean(0), steps - steps.mean(0)
        # e is a sum of two fields that vary along different axes: they do not covary, and each covaries with x only
        # through the mean of x along the other axis.
        cov = nodes.t() @ nodes / len(nodes) + steps.t() @ steps / len(steps)
        if x is not None:
            inner = torch.zeros_like(cov)
            inner[: x.shape[-1], : x.shape[-1]] = 1
            cov = torch.where(inner > 0, F.pad(x_cov, (0, cov.shape[1] - x.shape[-1]) * 2), cov)
    return Moments(torch.cat(means), cov, nodes.shape[0] * steps.shape[0])


class _FieldMoments(torch.autograd.Function):
    """Means over (batch, steps) and over nodes, and the covariance of the channels."""

    ROWS = 4096  # of a centred copy that stays in the processor's cache

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X (B, S, N, C) to (N, C), (B, S, C) and (C, C)."""
        nodes, steps = x.sum((0, 1)) / max(1, x.shape[0] * x.shape[1]), x.mean(2)
        mean, rows = nodes.mean(0), x.flatten(0, 2)
        cov = x.new_zeros(x.shape[-1], x.shape[-1])
        for part in rows.split(_FieldMoments.ROWS if x.device.type == "cpu" else max(1, rows.shape[0])):
            centred = part - mean
            cov.addmm_(centred.t(), centred)
        ctx.save_for_backward(x, mean)
        return nodes, steps, cov.div_(max(1, rows.shape[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The covariance needs no term for the mean, of which the centred values have none."""
        x, mean = ctx.saved_tensors
        d_nodes, d_steps, d_cov = grads
        batch, steps, nodes, _ = x.shape
        rows = max(1, batch * steps)
        spread = (d_cov + d_cov.t()) / (rows * nodes)
        dx = (d_nodes / rows - mean @ spread) + (d_steps / nodes).unsqueeze(2)
        return dx.flatten(0, 2).addmm_(x.flatten(0, 2), spread).view(x.shape)


class _Affine(torch.autograd.Function):
    """``relu(x W + nodes + steps)`` in parts, with one buffer forward and one backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor | None,
        weight: Tensor | None,
        nodes: Tensor,
        steps: Tensor,
        heads: int,
        relu: tuple[bool, ...],
    ) -> tuple[Tensor, ...]:
        """X (B, S, N, C), weight (O, C), nodes (N, O), steps (B, S, O)."""
        y = nodes + steps.unsqueeze(2)
        if x is not None and weight is not None:
            y.flatten(0, 2).addmm_(x.flatten(0, 2), weight.t())
        parts = _parts(y, heads, len(relu))
        if all(relu):
            y.relu_()
        else:
            for part, active in zip(parts, relu, strict=True):
                if active:
                    part.relu_()
        ctx.save_for_backward(x, weight, y)
        ctx.heads, ctx.relu = heads, relu
        return parts

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all parts go into one buffer, in the order of the weight's rows."""
        x, weight, y = ctx.saved_tensors
        # Interleaved first and masked then: a mask over pieces of head_dim channels is far slower than over a whole.
        dy = torch.stack(grads, -2)
        if all(ctx.relu):
            dy = dy.view(y.shape)
            torch.ops.aten.threshold_backward.grad_input(dy, y, 0, grad_input=dy)
        else:
            for grad, result, active in zip(dy.unbind(-2), _parts(y, ctx.heads, len(ctx.relu)), ctx.relu, strict=True):
                if active:
                    grad.mul_(result > 0)
            dy = dy.view(y.shape)
        rows = dy.flatten(0, 2)
        dx = dw = None
        if x is not None:
            dx = (rows @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
            dw = rows.t() @ x.flatten(0, 2)
        return dx, dw, dy.sum((0, 1)), dy.sum(2), None, None


def interleave(parts: list[Tensor], heads: int) -> Tensor:
    """Return the rows of several (heads · head_dim, …) tensors in the order (head, part, channel)."""
    split = torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1)
    return split.flatten(0, 2)


def _parts(y: Tensor, heads: int, count: int) -> tuple[Tensor, ...]:
    """Cut (..., heads · count · head_dim) into ``count`` views (..., heads, head_dim)."""
    return y.unflatten(-1, (heads, count, -1)).unbind(-2)


def chain(dims: tuple[int, ...], norm: NormSettings, *, everywhere: bool = False) -> nn.Sequential:
    """Return ``FC[d1 relu, …, dn]``: every layer but the last has ReLU and, before it, batch norm.

    Args:
        dims: channels of the input and of each layer.
        norm: the batch norm's settings.
        everywhere: batch norm on the last, linear layer too, as the public PyTorch port has it.
    """
    last = len(dims) - 2
    layers = [
        Dense(dims[i], dims[i + 1], norm if i < last or everywhere else None, relu=i < last) for i in range(last + 1)
    ]
    return nn.Sequential(*layers)


def fold_norms(model: nn.Module) -> None:
    """Fold every batch norm of ``model`` into the layer before it, in place."""
    for module in list(model.modules()):
        fold = getattr(module, "fold_norm", None)
        if callable(fold):
            fold()


def _autocasted(x: Tensor) -> Tensor:
    """Cast as autocast casts the inputs of a matrix product."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _glorot(weight: Tensor) -> Tensor:
    return nn.init.xavier_uniform_(weight)
