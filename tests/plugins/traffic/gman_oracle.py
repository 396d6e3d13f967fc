"""GMAN once more in NumPy, from its equations, to hold the model against; and weights by the name of their layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polyhead_traffic.gman import GMAN, GMANConfig
from polyhead_traffic.layers import interleave

Array = NDArray[Any]


class Layer(NamedTuple):
    """``y = x @ weight + bias``, then batch norm where it has one."""

    weight: Array
    bias: Array | None
    norm: tuple[Array, Array, Array, Array] | None
    """gamma, beta, running mean, running variance."""


def forward(
    layers: Mapping[str, Layer],
    x: Array,
    te: Array,
    se: Array,
    *,
    heads: int,
    causal: bool,
    slots: int,
    eps: float,
    training: bool = False,
    depth: int = 1,
) -> dict[str, Array]:
    """Return every stage of the forward pass by name, the last one "output"; x is normalised."""
    stages: dict[str, Array] = {}

    def f(name: str, z: Array, relu: bool) -> Array:
        layer = layers[name]
        y = z @ layer.weight + (0 if layer.bias is None else layer.bias)
        if layer.norm is not None:
            gamma, beta, mean, var = layer.norm
            if training:
                axes = tuple(range(y.ndim - 1))
                mean, var = y.mean(axes), y.var(axes)
            y = (y - mean) / np.sqrt(var + eps) * gamma + beta
        return np.maximum(y, 0) if relu else y

    def fc(name: str, z: Array) -> Array:
        if f"{name}[1]" not in layers:
            return f(f"{name}[0]", z, True)
        return f(f"{name}[1]", f(f"{name}[0]", z, True), False)

    def softmax(parts: list[Array], mask: bool) -> Array:
        """(..., S, D): heads are consecutive chunks of the channels."""
        out = []
        for qh, kh, vh in zip(*(np.split(part, heads, -1) for part in parts), strict=True):
            logits = qh @ np.swapaxes(kh, -1, -2) / np.sqrt(qh.shape[-1])
            if mask:
                logits = np.where(np.tri(*logits.shape[-2:]) > 0, logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            out.append(weights / weights.sum(-1, keepdims=True) @ vh)
        return np.concatenate(out, -1)

    def attention(name: str, q: Array, k: Array, v: Array, swap: bool, mask: bool) -> Array:
        parts = [f(f"{name}.{part}", z, True) for part, z in (("q", q), ("k", k), ("v", v))]
        if swap:
            y = np.swapaxes(softmax([np.swapaxes(part, 1, 2) for part in parts], mask), 1, 2)
        else:
            y = softmax(parts, False)
        stages[name] = fc(f"{name}.out", y)
        return stages[name]

    def block(name: str, h: Array, e: Array) -> Array:
        z = np.concatenate([h, e], -1)
        s = attention(f"{name}.spatial", z, z, z, swap=False, mask=False)
        t = attention(f"{name}.temporal", z, z, z, swap=True, mask=causal)
        gate = f(f"{name}.fusion.s", s, False) + f(f"{name}.fusion.t", t, False)
        g = 1 / (1 + np.exp(-gate))
        stages[f"{name}.fusion"] = fc(f"{name}.fusion.out", g * s + (1 - g) * t)
        stages[name] = h + stages[f"{name}.fusion"]
        return stages[name]

    days = layers["ste.temporal[0]"].weight.shape[0] - slots
    one_hot = np.concatenate([np.eye(days)[te[..., 0]] if days else te[..., :0], np.eye(slots)[te[..., 1]]], -1)
    stages["ste.spatial"] = fc("ste.spatial", se)
    stages["ste.temporal"] = fc("ste.temporal", one_hot)
    e = stages["ste.spatial"] + stages["ste.temporal"][:, :, None]
    past, future = e[:, : x.shape[1]], e[:, x.shape[1] :]
    h = stages["input"] = fc("input", x[..., None])
    for i in range(depth):
        h = block(f"enc{i}", h, past)
    h = attention("transform", future, past, h, swap=True, mask=False)
    for i in range(depth):
        h = block(f"dec{i}", h, future)
    stages["output"] = fc("output", h)[..., 0]
    return stages


def model_stages(model: GMAN, x: Tensor, te: Tensor) -> dict[str, Tensor]:
    """Run the model and return its stages under the same names."""
    stages: dict[str, Tensor] = {}
    modules: dict[str, Any] = {"input": model.input, "ste.spatial": model.place.nodes}
    modules |= {"ste.temporal": model.place.steps, "transform": model.transform}
    for part, blocks in (("enc", model.encoder), ("dec", model.decoder)):
        for i, block in enumerate(blocks):
            modules |= {f"{part}{i}.{name}": getattr(block, name) for name in ("spatial", "temporal", "fusion")}
            modules[f"{part}{i}"] = block

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, result: stages.__setitem__(name, result)

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items() if module]
    stages["output"] = model(x, te)
    for handle in handles:
        handle.remove()
    return stages


def fill(model: GMAN, layers: Mapping[str, Layer]) -> GMAN:
    """Give the model the weights of ``layers``, in the model's dtype."""
    heads = model.config.heads

    def copy(target: Tensor, values: list[Array]) -> None:
        tensors = [torch.tensor(value) for value in values]
        target.data.copy_(interleave(tensors, heads) if len(tensors) > 1 else tensors[0])

    def put_rest(module: Any, found: list[Layer]) -> None:
        biases = [layer.bias for layer in found if layer.bias is not None]
        if biases:
            copy(module.bias, biases)
        norms = [layer.norm for layer in found if layer.norm is not None]
        assert (module.norm is None) == (not norms)
        for i, field in enumerate(("weight", "bias", "running_mean", "running_var") if norms else ()):
            copy(getattr(module.norm, field), [norm[i] for norm in norms])

    def put(module: Any, *names: str) -> None:
        found = [layers[name] for name in names]
        copy(module.weight, [layer.weight.T for layer in found])
        put_rest(module, found)

    def put_chain(module: Any, name: str) -> None:
        for i, layer in enumerate(module if isinstance(module, nn.Sequential) else [module]):
            put(layer, f"{name}[{i}]")

    put_chain(model.input, "input")
    put_chain(model.place.nodes, "ste.spatial")
    copy(model.place.table, [layers["ste.temporal[0]"].weight])
    put_rest(model.place, [layers["ste.temporal[0]"]])
    put(model.place.steps, "ste.temporal[1]")
    for part, blocks in (("enc", model.encoder), ("dec", model.decoder)):
        for i, block in enumerate(blocks):
            for name in ("spatial", "temporal"):
                attention: Any = getattr(block, name)
                put(attention.project, *(f"{part}{i}.{name}.{p}" for p in "qkv"))
                put_chain(attention.out, f"{part}{i}.{name}.out")
            fusion: Any = block.fusion
            put(fusion.spatial, f"{part}{i}.fusion.s")
            put(fusion.temporal, f"{part}{i}.fusion.t")
            put_chain(fusion.out, f"{part}{i}.fusion.out")
    transform: Any = model.transform
    for name in "qkv":
        put(getattr(transform, name), f"transform.{name}")
    put_chain(transform.out, "transform.out")
    put_chain(model.output, "output")
    return model


def draw(config: GMANConfig, seed: int) -> dict[str, Layer]:
    """Return random layers, running statistics included, for the structure of the authors' code."""
    random = np.random.default_rng(seed)
    d, layers = config.dim, {}

    def layer(name: str, dim: int, out: int, norm: bool, bias: bool = True) -> None:
        statistics = (random.uniform(0.5, 1.5, out), random.normal(size=out), random.normal(size=out))
        layers[name] = Layer(
            random.normal(size=(dim, out)) / np.sqrt(dim),
            random.normal(size=out) if bias else None,
            (*statistics, random.uniform(0.5, 2, out)) if norm else None,
        )

    def pair(name: str, dim: int, out: int) -> None:
        layer(f"{name}[0]", dim, d, True)
        layer(f"{name}[1]", d, out, False)

    pair("input", 1, d)
    pair("ste.spatial", config.embedding_dim, d)
    pair("ste.temporal", 7 * config.use_day_of_week + config.slots_per_day, d)
    for block in [f"{part}{i}" for part in ("enc", "dec") for i in range(config.depth)]:
        for name in ("spatial", "temporal"):
            for p in "qkv":
                layer(f"{block}.{name}.{p}", 2 * d, d, True)
            pair(f"{block}.{name}.out", d, d)
        layer(f"{block}.fusion.s", d, d, False, bias=False)
        layer(f"{block}.fusion.t", d, d, False)
        pair(f"{block}.fusion.out", d, d)
    for p in "qkv":
        layer(f"transform.{p}", d, d, True)
    pair("transform.out", d, d)
    pair("output", d, 1)
    return layers
