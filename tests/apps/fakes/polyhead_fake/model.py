from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from polyhead import Pretrained


class Line(Pretrained, nn.Module):
    @dataclass(frozen=True)
    class Config:
        width: int
        hidden: int = 4

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inner = nn.Linear(config.width, config.hidden)
        self.outer = nn.Linear(config.hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x)).squeeze(-1)


class Bent(Line):
    @dataclass(frozen=True)
    class Config(Line.Config):
        width: int = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu()).squeeze(-1)
