"""GMAN: a graph multi-attention network that forecasts a network of sensors, all steps in one pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead import Pretrained
from polyhead.errors import ConfigError, ShapeError, UnknownNameError
from polyhead.nn import ReducedBatchNorm
from polyhead_traffic.attention import AttentionSettings, SpatialAttention, TemporalAttention, TransformAttention
from polyhead_traffic.group_attention import (
    GroupSpatialAttention,
    balanced_sizes,
    group_order,
    random_partition,
)
from polyhead_traffic.layers import Dense, NormSettings, Place, chain, fold_norms, joint_moments
from polyhead_traffic.usual_day import UsualDay

__all__ = ["GMAN", "GMANConfig", "batch_norm_momentum", "fold_batch_norm", "set_batch_norm_momentum"]

DAYS = 7


@dataclass(frozen=True)
class GMANConfig:
    """Settings of GMAN; ``GMAN.Config``.

    The defaults are the paper's model with what its code and ports get wrong put right; ``release`` gives the published
    ones. Width is ``heads * head_dim``.

    Raises:
        ConfigError: a value is out of range, or settings contradict each other.
    """

    nodes: int
    """Number of sensors N."""
    history: int = 12
    """Past steps P."""
    horizon: int = 12
    """Future steps Q."""
    slots_per_day: int = 288
    """Time slots of a day; 288 = 5 minutes."""
    depth: int = 3
    """Blocks in the encoder and in the decoder each."""
    heads: int = 8
    head_dim: int = 8
    embedding_dim: int = 64
    """Width of the sensors' given embedding."""
    embedding: Literal["given", "learned"] = "given"
    """given: a buffer that ``set_data`` fills, such as node2vec of the road graph; learned: a parameter, for sensors
    of which no graph is known."""
    causal: bool = True
    """Temporal attention sees no later steps, as in the paper; the PeMS release lets it."""
    dropout: float = 0.1
    """Before each of the two output layers, as in the METR release."""
    use_day_of_week: bool = True
    """Off where the training data have less than a week: days that were never seen would add noise."""
    input_mask: bool = False
    """Take ``x_mask``: missing inputs become the mean and a second channel says so. The publication feeds missing
    inputs as readings of 0."""
    input_dropout: float = 0.0
    """Training hides a share of the past readings of each window, drawn between 0 and this, as if they were missing."""
    profile: bool = False
    """Start from the usual day: each sensor's profile (``set_data``) and a learned share of the last deviation from it;
    the network adds what it knows better. Needs ``input_mask``. Not in the publication."""
    qk_activation: Literal["relu", "none"] = "relu"
    """relu: as published, so that logits are never negative; none: queries and keys after batch norm."""

    group_size: int = 0
    """0: attention over all sensors. M: in balanced groups of at most M, ``best_group_size(nodes)`` being cheapest."""
    group_sizes: tuple[int, ...] = ()
    """Sizes of the groups of a given partition, instead of ``group_size``."""
    partition_seed: int = 0
    """Draws the first partition; ``set_data`` replaces it."""

    spatial: bool = True
    """False: without spatial attention (the paper's ablation NS)."""
    temporal: bool = True
    """False: without temporal attention (NT)."""
    gate: bool = True
    """False: the sum of both instead of gated fusion (NG)."""
    transform: bool = True
    """False: the decoder starts from the encoder's result (NTr); needs horizon = history."""

    norm_eps: float = 1e-3
    norm_momentum: float = 0.5
    """At the start; ``batch_norm_momentum`` gives the schedule."""
    norm_unbiased: bool = False
    """Running variance with n - 1; the TensorFlow code keeps the population variance."""
    norm_start_var: float = 1.0
    """Running variance before the first step; the TensorFlow code starts at 0, so that evaluation before training
    divides by sqrt(eps)."""
    norm_everywhere: bool = False
    """Batch norm on linear layers, gate and output too, as the public PyTorch port has it."""
    single_layer_output: bool = False
    """One layer with ReLU after the heads instead of two, as the port has it."""

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("nodes", "history", "horizon", "slots_per_day", "depth", "heads", "head_dim", "embedding_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: give at least 1.")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}: give a probability of at least 0 and below 1.")
        if not 0 <= self.input_dropout <= 1:
            raise ConfigError(f"input_dropout is {self.input_dropout}: give a share between 0 and 1.")
        if self.profile and not self.input_mask:
            raise ConfigError("profile is on and input_mask off: missing readings are no deviations, set both.")
        if not 0 < self.norm_momentum <= 1:
            raise ConfigError(f"norm_momentum is {self.norm_momentum}: give a share above 0 and of at most 1.")
        if self.norm_eps <= 0 or self.norm_start_var < 0:
            raise ConfigError(f"norm_eps is {self.norm_eps} and norm_start_var {self.norm_start_var}: raise them.")
        if not (self.spatial or self.temporal):
            raise ConfigError("spatial and temporal are both off: a block needs one of them.")
        if not self.transform and self.history != self.horizon:
            raise ConfigError(
                f"transform is off, history {self.history} and horizon {self.horizon}: "
                "without transform attention they must be equal."
            )
        if self.group_size < 0 or (self.group_size and self.group_sizes):
            raise ConfigError(
                f"group_size is {self.group_size} and group_sizes {self.group_sizes}: give one of them, or 0 and none."
            )
        if self.group_sizes and (min(self.group_sizes) < 1 or sum(self.group_sizes) != self.nodes):
            raise ConfigError(
                f"group_sizes {self.group_sizes} are {sum(self.group_sizes)} sensors: every group needs at least 1, "
                f"all together {self.nodes} (nodes)."
            )

    @property
    def dim(self) -> int:
        """Width of the model."""
        return self.heads * self.head_dim

    @property
    def groups(self) -> tuple[int, ...]:
        """Sizes of the groups; none for attention over all sensors."""
        return self.group_sizes or (balanced_sizes(self.nodes, self.group_size) if self.group_size else ())

    @classmethod
    def release(cls, name: Literal["metr", "pems", "port"], **changes: Any) -> Self:
        """Return the settings of a published release.

        Args:
            name: ``metr`` and ``pems``: the authors' TensorFlow code for METR-LA and PEMS-BAY; ``port``: the PyTorch
                port that their README links, for heads = head_dim (elsewhere its heads are cut wrongly).
            changes: fields that differ, such as the sizes of another network.

        Raises:
            UnknownNameError: no such release.
        """
        code = {"norm_start_var": 0.0}
        port = {
            "norm_eps": 1e-5,
            "norm_momentum": 0.1,
            "norm_unbiased": True,
            "norm_everywhere": True,
            "single_layer_output": True,
        }
        releases: dict[str, dict[str, Any]] = {
            "metr": {"nodes": 207, "depth": 5, **code},
            "pems": {"nodes": 325, "depth": 1, "causal": False, "dropout": 0.0, **code},
            "port": {"nodes": 325, "depth": 1, "causal": False, "dropout": 0.0, **port},
        }
        if name not in releases:
            raise UnknownNameError("release", name, releases)
        return cls(**{**releases[name], **changes})


class GMAN(Pretrained, nn.Module):
    """Forecast Q steps of N sensors from P steps, in one pass.

    Encoder and decoder are blocks of spatial and temporal attention that a gate mixes; transform attention carries the
    encoder's past steps to the decoder's future ones. Queries and keys know where and when they are through the
    spatio-temporal embedding.

    Source: Zheng, Fan, Wang & Qi 2020, "GMAN: A Graph Multi-Attention Network for Traffic Prediction", AAAI 34(01),
    arXiv:1911.08415, and the authors' code (github.com/zhengchuanpan/GMAN), where they differ.

    Complexity: O(depth · B·S·N·D·(D + N + S)) time, S = P + Q, of which N becomes M + (N/M)² / N in groups of M;
    O(depth · B·S·N·D) memory, as no attention weight is kept.
    Parameters: 83,904 a block and 61,761 besides at D = 64 and 288 slots: 229,569 for depth 1, 565,185 for 3, 900,801
    for 5; groups add 33,600 a block.

    >>> import torch
    >>> model = GMAN(GMAN.Config(nodes=3, depth=1, heads=2, head_dim=4)).eval()
    >>> te = torch.zeros(1, 24, 2, dtype=torch.int64)
    >>> model(torch.full((1, 12, 3), 60.0), te).shape
    torch.Size([1, 12, 3])
    """

    Config = GMANConfig
    config: GMANConfig
    mean: Tensor
    std: Tensor
    spatial_embedding: Tensor
    order: Tensor

    def __init__(self, config: GMANConfig) -> None:
        """Make a model with fresh weights; ``set_data`` tells it the sensors."""
        super().__init__()
        self.config = config
        norm = NormSettings(config.norm_eps, config.norm_momentum, config.norm_unbiased, config.norm_start_var)
        attention = AttentionSettings(
            config.heads, config.head_dim, config.qk_activation, norm, config.single_layer_output
        )
        dim, everywhere = config.dim, config.norm_everywhere
        self.input = chain((1 + config.input_mask + config.profile, dim, dim), norm, everywhere=everywhere)
        self.place = SpaceTimeEmbedding(config, norm)
        self.encoder = nn.ModuleList(Block(config, attention) for _ in range(config.depth))
        self.transform = TransformAttention(attention) if config.transform else None
        self.decoder = nn.ModuleList(Block(config, attention) for _ in range(config.depth))
        self.output = chain((dim, dim, 1), norm, everywhere=everywhere)
        self.usual: UsualDay | None = None
        if config.profile:
            self.usual = UsualDay(config.nodes, config.slots_per_day, config.history, config.horizon)
            self.future = chain((2, dim, dim), norm, everywhere=everywhere)
            with torch.no_grad():  # training begins close to that forecast; at 0 no gradient would pass
                self.output[-1].get_parameter("weight").mul_(0.01)

        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("std", torch.ones(()))
        # Until set_data: codes that tell the sensors apart, the same in every model.
        codes = torch.randn(config.nodes, config.embedding_dim, generator=torch.Generator().manual_seed(0))
        if config.embedding == "learned":
            self.spatial_embedding = nn.Parameter(codes)
        else:
            self.register_buffer("spatial_embedding", codes)
        if config.groups:
            labels = random_partition(config.nodes, config.groups, config.partition_seed)
            self.register_buffer("order", group_order(labels, config.groups))

    @torch.no_grad()
    def set_data(
        self,
        *,
        mean: float | None = None,
        std: float | None = None,
        spatial_embedding: Tensor | None = None,
        partition: Tensor | None = None,
        profile: Tensor | None = None,
    ) -> Self:
        """Tell the model its sensors; what is None stays as it is.

        Args:
            mean, std: of the training data, in their unit.
            spatial_embedding: where the sensors are, shape (N, embedding_dim); ``polyhead_traffic.embedding`` makes it.
            partition: the group of each sensor, shape (N,), for a model with groups.
            profile: what sensors usually read on weekdays and weekends, shape (2, slots_per_day, N), for a model
                with ``profile``.

        Raises:
            ConfigError: std is not positive, the partition has groups of other sizes, or the model has no groups or no
                profile.
            ShapeError: a tensor does not fit the config.
        """
        if mean is not None:
            self.mean.fill_(mean)
        if std is not None:
            if not 0 < std < float("inf"):
                raise ConfigError(f"std is {std}: the training data need a positive, finite standard deviation.")
            self.std.fill_(std)
        if spatial_embedding is not None:
            want = (self.config.nodes, self.config.embedding_dim)
            if tuple(spatial_embedding.shape) != want:
                raise ShapeError(
                    f"spatial_embedding has shape {tuple(spatial_embedding.shape)}, the config asks for {want} "
                    "(nodes, embedding_dim)."
                )
            self.spatial_embedding.copy_(spatial_embedding)
        if partition is not None:
            if not self.config.groups:
                raise ConfigError("The model has no groups: set group_size or group_sizes to give it a partition.")
            if tuple(partition.shape) != (self.config.nodes,):
                raise ShapeError(f"partition has shape {tuple(partition.shape)}, expected ({self.config.nodes},).")
            self.order.copy_(group_order(partition, self.config.groups))
        if profile is not None:
            if self.usual is None:
                raise ConfigError("The model has no profile: set profile=True to let it start from the usual day.")
            profiles = self.usual.table.shape
            if profile.shape != profiles:
                raise ShapeError(
                    f"profile has shape {tuple(profile.shape)}, expected {tuple(profiles)}: 2, slots_per_day, nodes."
                )
            self.usual.table.copy_(profile)
        return self

    def forward(self, x: Tensor, te: Tensor, x_mask: Tensor | None = None, profile: Tensor | None = None) -> Tensor:
        """Forecast.

        Args:
            x: past readings in the data's unit, shape (B, P, N); 0 where missing.
            te: day of week (Monday = 0) and slot of day of past and future steps, shape (B, P + Q, 2), int64.
            x_mask: True = observed, shape (B, P, N); only with ``input_mask``, all True if None.
            profile: what is usual at past and future steps, shape (B, P + Q, N), instead of the model's own profile:
                training shows profiles without the windows' own readings. Only with ``profile``.

        Returns:
            Future readings in the data's unit, shape (B, Q, N).

        Raises:
            ShapeError: shapes do not fit each other or the config.
            ConfigError: x_mask is given to a model without ``input_mask``, or a profile to one without ``profile``.
        """
        config = self.config
        self._check(x, te, x_mask, profile)
        seen = torch.ones_like(x, dtype=torch.bool) if x_mask is None else x_mask
        if self.training and config.input_dropout:
            share = config.input_dropout * torch.rand(len(x), 1, 1, device=x.device)
            seen = seen & (torch.rand(x.shape, device=x.device) >= share)
            x = torch.where(seen, x, 0)
        x = (x - self.mean) / self.std
        start = None
        if self.usual is not None:
            usual = self.usual.at(te) if profile is None else profile
            start = self.usual.start(x, seen, (usual - self.mean) / self.std)
            features = start.past
        elif config.input_mask:
            features = torch.stack([torch.where(seen, x, 0), seen.to(x.dtype)], -1)
        else:
            features = x.unsqueeze(-1)
        embedding = self.spatial_embedding
        if config.groups:
            features, embedding = features[:, :, self.order], embedding[self.order]
        place = self.place(embedding, te)
        past = Place(place.nodes, place.steps[:, : config.history])
        future = Place(place.nodes, place.steps[:, config.history :])

        h = self.input(features)
        for block in self.encoder:
            h = block(h, past)
        if self.transform is not None:
            h = self.transform(h, past, future)
        if start is not None:
            h = h + self.future(start.future[:, :, self.order] if config.groups else start.future)
        for block in self.decoder:
            h = block(h, future)
        for layer in self.output:
            h = layer(F.dropout(h, config.dropout, self.training))
        y = h.squeeze(-1).to(self.mean.dtype)
        y = y[:, :, torch.argsort(self.order)] if config.groups else y
        return (y if start is None else y + start.forecast) * self.std + self.mean

    def _check(self, x: Tensor, te: Tensor, x_mask: Tensor | None, profile: Tensor | None) -> None:
        config = self.config
        if x.dim() != 3 or x.shape[1:] != (config.history, config.nodes):
            raise ShapeError(
                f"x has shape {tuple(x.shape)}, expected (B, {config.history}, {config.nodes}): batch, history, nodes."
            )
        if te.shape != (x.shape[0], config.history + config.horizon, 2):
            raise ShapeError(
                f"te has shape {tuple(te.shape)}, expected ({x.shape[0]}, {config.history + config.horizon}, 2): "
                "batch, history + horizon, (day of week, slot of day)."
            )
        if x_mask is not None and not config.input_mask:
            raise ConfigError("x_mask is given, but input_mask is off: set input_mask=True or leave x_mask out.")
        if x_mask is not None and x_mask.shape != x.shape:
            raise ShapeError(f"x_mask has shape {tuple(x_mask.shape)} and x {tuple(x.shape)}: they must be equal.")
        if profile is not None and not config.profile:
            raise ConfigError("profile is given, but profile is off: set profile=True or leave it out.")
        if profile is not None and profile.shape != (*te.shape[:2], config.nodes):
            raise ShapeError(
                f"profile has shape {tuple(profile.shape)}, expected {(*te.shape[:2], config.nodes)}: "
                "batch, history + horizon, nodes."
            )


class SpaceTimeEmbedding(nn.Module):
    """``FC[D relu, D](embedding of the sensor) + FC[D relu, D](one-hot day ++ one-hot slot)``, as two addends.

    The first layer over the one-hot vector is a sum of rows of its weight, which is looked up.

    Source: GMAN, section "Spatio-Temporal Embedding".
    """

    def __init__(self, config: GMANConfig, norm: NormSettings) -> None:
        """Make the layers."""
        super().__init__()
        self.use_day_of_week = config.use_day_of_week
        dim, everywhere = config.dim, config.norm_everywhere
        self.nodes = chain((config.embedding_dim, dim, dim), norm, everywhere=everywhere)
        # Row d is day d, row 7 + t slot t; without days, row t is slot t.
        rows = DAYS * config.use_day_of_week + config.slots_per_day
        self.table = nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, dim)))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.norm: nn.Module | None = norm.make(dim)
        self.steps = Dense(dim, dim, norm if everywhere else None)

    def forward(self, embedding: Tensor, te: Tensor) -> Place:
        """Embed N sensors, (N, embedding_dim), at (B, S, 2) steps."""
        day, slot = te.unbind(-1)
        y = F.embedding(slot + DAYS * self.use_day_of_week, self.table) + self.bias
        if self.use_day_of_week:
            y = y + F.embedding(day, self.table)
        if self.norm is not None:
            y = self.norm(y)
        return Place(self.nodes(embedding), self.steps(y.relu()))

    def fold_norm(self) -> None:
        """Write the running statistics into table and bias and drop the batch norm."""
        if isinstance(self.norm, ReducedBatchNorm):
            scale, shift = self.norm.scale_shift()
            self.table = nn.Parameter(self.table.detach() * scale)
            self.bias = nn.Parameter(self.bias.detach() * scale + shift)
            self.norm = None


class Block(nn.Module):
    """Spatial and temporal attention side by side, mixed by a gate, around a residual connection."""

    def __init__(self, config: GMANConfig, attention: AttentionSettings) -> None:
        """Make the layers."""
        super().__init__()
        self.spatial: nn.Module | None = None
        self.temporal = TemporalAttention(attention, causal=config.causal) if config.temporal else None
        if config.spatial and config.groups:
            self.spatial = GroupSpatialAttention(attention, config.groups)
        elif config.spatial:
            self.spatial = SpatialAttention(attention)
        self.fusion = GatedFusion(config, attention.norm)

    def forward(self, x: Tensor, place: Place) -> Tensor:
        """Map x (B, S, N, D) at ``place`` to the same shape."""
        moments = joint_moments(x, place) if self.training else None
        results = [layer(x, place, moments) for layer in (self.spatial, self.temporal) if layer is not None]
        y: Tensor = x + self.fusion(*results)
        return y


class GatedFusion(nn.Module):
    """``g = sigmoid(HS Wz1 + HT Wz2 + b)``, then ``FC[D relu, D](g HS + (1 - g) HT)``.

    Source: GMAN, eq. 8-9. Differs, as the authors' code does: an output chain follows.
    """

    def __init__(self, config: GMANConfig, norm: NormSettings) -> None:
        """Make the layers."""
        super().__init__()
        gate = norm if config.norm_everywhere else None
        self.gate = config.gate and config.spatial and config.temporal
        if self.gate:
            self.spatial = Dense(config.dim, config.dim, gate, bias=False)
            self.temporal = Dense(config.dim, config.dim, gate)
        self.out = chain((config.dim,) * 3, norm, everywhere=config.norm_everywhere)

    def forward(self, *results: Tensor) -> Tensor:
        """Mix the results of spatial and temporal attention, (B, S, N, D) each; one alone is passed on."""
        y: Tensor = self.out(self.mix(*results) if len(results) == 2 else results[0])
        return y

    def mix(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Return ``g spatial + (1 - g) temporal``, or the sum where the gate is off."""
        if not self.gate:
            return spatial + temporal
        g = torch.sigmoid(self.spatial(spatial) + self.temporal(temporal))
        return torch.lerp(temporal, spatial, g)


def batch_norm_momentum(step: int, decay_steps: float) -> float:
    """Return the batch-norm momentum at an optimiser step: 0.5, halved every ``decay_steps``, at least 0.01.

    ``decay_steps`` is that of five epochs in the authors' code. Source: ``bn_decay`` there, which is one minus this.

    >>> [batch_norm_momentum(step, 100) for step in (0, 99, 100, 250, 9000)]
    [0.5, 0.5, 0.25, 0.125, 0.01]
    """
    return max(0.01, 0.5 ** (1 + int(step // decay_steps)))


def set_batch_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of every batch norm of ``model``."""
    for module in model.modules():
        if isinstance(module, ReducedBatchNorm):
            module.momentum = momentum


@torch.no_grad()
def fold_batch_norm(model: GMAN) -> GMAN:
    """Return a copy for inference, in evaluation mode, whose batch norms are folded into the layers before them.

    Its forecasts are those of ``model.eval()`` up to rounding. Save the model itself, not the copy: the copy's
    weights no longer have the names of the config's model.
    """
    folded = copy.deepcopy(model).eval()
    fold_norms(folded)
    return folded
