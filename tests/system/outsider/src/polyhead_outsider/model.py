"""Attention across the columns of a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyhead import Pretrained
from polyhead.ops import softmax_attention


@dataclass(frozen=True)
class TableConfig:
    """Sizes of a ``TableAttention``."""

    columns: int
    classes: int
    dim: int = 32
    heads: int = 4
    depth: int = 2
    dropout: float = 0.1

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit."""
        if self.dim % self.heads:
            raise ValueError(f"dim is {self.dim}: it must be a multiple of heads ({self.heads}).")


class Block(nn.Module):
    """Attention, then two layers on each token, both with a shortcut and the norm in front."""

    def __init__(self, config: TableConfig) -> None:
        """Build the layers."""
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.dim)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)
        self.feed = nn.Sequential(
            nn.LayerNorm(config.dim),
            nn.Linear(config.dim, 2 * config.dim),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * config.dim, config.dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, S, dim) to tokens of the same shape."""
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.out(softmax_attention(q, k, v).output.transpose(1, 2).flatten(2))
        return x + self.feed(x)


class TableAttention(Pretrained, nn.Module):
    """Classify rows from a token for each column and one for the answer.

    Complexity: O(B · depth · columns² · dim) time.
    Source: Gorishniy et al. 2021, arXiv:2106.11959, section 3.3 (FT-Transformer), numeric columns only.
    """

    Config = TableConfig

    def __init__(self, config: TableConfig) -> None:
        """Build the layers; ``mean`` and ``std`` of the columns come with the checkpoint."""
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.randn(config.columns, config.dim) * 0.2)
        self.shift = nn.Parameter(torch.randn(config.columns, config.dim) * 0.2)
        self.answer = nn.Parameter(torch.randn(config.dim) * 0.2)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.classes))
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(config.columns))
        self.register_buffer("std", torch.ones(config.columns))

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (B, columns), in their own units, to logits (B, classes)."""
        values = ((x - self.mean) / self.std).unsqueeze(-1)
        tokens = torch.cat([self.answer.expand(len(x), 1, -1), values * self.scale + self.shift], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(tokens[:, 0])
        return logits
