"""GMAN as its public implementations write it: what `gman.py` of this folder is measured against.

Every layer is one PyTorch call after the other: features and embedding are concatenated, queries, keys and values have
a layer each, and the weights of each attention, (B, S, heads, N, N) for the spatial one, are made and kept.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyhead_traffic.gman import GMAN


class Layer(nn.Module):
    """Linear, then batch norm and ReLU."""

    def __init__(self, weight: Tensor, bias: Tensor | None, norm: Any, part: Any, relu: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = None if bias is None else nn.Parameter(bias.clone())
        self.relu = relu
        self.norm = None
        if norm is not None:
            self.norm = nn.BatchNorm1d(len(weight), eps=norm.eps, momentum=norm.momentum)
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(self.norm, name).data.copy_(part(getattr(norm, name).detach()))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight, self.bias)
        if self.norm is not None:
            y = self.norm(y.flatten(0, -2)).view(y.shape)
        return F.relu(y) if self.relu else y


def dense(layer: Any) -> Layer:
    bias = None if layer.bias is None else layer.bias.detach()
    return Layer(layer.weight.detach(), bias, layer.norm, lambda x: x, layer.relu)


def split(project: Any, heads: int, parts: int) -> nn.ModuleList:
    """Undo the interleaving of a projection: one layer for q, k, v each."""

    def cut(index: int) -> Any:
        return lambda x: x.unflatten(0, (heads, parts, -1))[:, index].flatten(0, 1)

    weight, bias = project.weight.detach(), project.bias.detach()
    return nn.ModuleList(Layer(cut(i)(weight), cut(i)(bias), project.norm, cut(i), True) for i in range(parts))


class Attention(nn.Module):
    """Attention whose weights are written out, over sensors or steps."""

    def __init__(self, layers: nn.ModuleList, out: Any, heads: int, over: str, causal: bool = False) -> None:
        super().__init__()
        self.layers, self.heads, self.over, self.causal = layers, heads, over, causal
        self.out = nn.Sequential(*(dense(layer) for layer in out))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (layer(x) for layer, x in zip(self.layers, (q, k, v), strict=True))
        axes = (0, 1, 3, 2, 4) if self.over == "sensors" else (0, 2, 3, 1, 4)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).permute(*axes) for x in (q, k, v))
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if self.causal:
            logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -32767)
        y = logits.softmax(-1) @ v
        back = (0, 1, 3, 2, 4) if self.over == "sensors" else (0, 3, 1, 2, 4)
        result: Tensor = self.out(y.permute(*back).flatten(-2))
        return result


class Block(nn.Module):
    def __init__(self, block: Any, heads: int) -> None:
        super().__init__()
        spatial, temporal, fusion = block.spatial, block.temporal, block.fusion
        self.spatial = Attention(split(spatial.project, heads, 3), spatial.out, heads, "sensors")
        self.temporal = Attention(split(temporal.project, heads, 3), temporal.out, heads, "steps", temporal.causal)
        self.gate_s, self.gate_t = dense(fusion.spatial), dense(fusion.temporal)
        self.out = nn.Sequential(*(dense(layer) for layer in fusion.out))

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        z = torch.cat([x, e], -1)
        s, t = self.spatial(z, z, z), self.temporal(z, z, z)
        g = torch.sigmoid(self.gate_s(s) + self.gate_t(t))
        y: Tensor = x + self.out(g * s + (1 - g) * t)
        return y


class WrittenOut(nn.Module):
    """The same network with the same weights."""

    def __init__(self, model: GMAN) -> None:
        super().__init__()
        config, heads = model.config, model.config.heads
        self.history, self.slots = config.history, config.slots_per_day
        self.mean, self.std, self.embedding = float(model.mean), float(model.std), model.spatial_embedding
        self.input = nn.Sequential(*(dense(layer) for layer in model.input))
        self.nodes = nn.Sequential(*(dense(layer) for layer in model.place.nodes))
        place = model.place
        first = Layer(place.table.detach().t(), place.bias.detach(), place.norm, lambda x: x, True)
        self.steps = nn.Sequential(first, dense(place.steps))
        self.encoder = nn.ModuleList(Block(block, heads) for block in model.encoder)
        self.decoder = nn.ModuleList(Block(block, heads) for block in model.decoder)
        transform: Any = model.transform
        layers = nn.ModuleList([split(transform.q, heads, 1)[0], split(transform.k, heads, 1)[0], dense(transform.v)])
        self.transform = Attention(layers, transform.out, heads, "steps")
        self.output = nn.Sequential(*(dense(layer) for layer in model.output))

    def forward(self, x: Tensor, te: Tensor) -> Tensor:
        one_hot = torch.cat([F.one_hot(te[..., 0], 7), F.one_hot(te[..., 1], self.slots)], -1).to(x.dtype)
        e = self.nodes(self.embedding) + self.steps(one_hot).unsqueeze(2)
        past, future = e[:, : self.history], e[:, self.history :]
        h = self.input(((x - self.mean) / self.std).unsqueeze(-1))
        for block in self.encoder:
            h = block(h, past)
        h = self.transform(future, past, h)
        for block in self.decoder:
            h = block(h, future)
        y: Tensor = self.output(h).squeeze(-1) * self.std + self.mean
        return y
