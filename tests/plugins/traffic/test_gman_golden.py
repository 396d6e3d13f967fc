"""GMAN against recorded runs of the authors' TensorFlow code and of the public PyTorch port, in both precisions.

Only inputs, outputs and gradients are recorded; the stages between come from the NumPy oracle, which is held against
the same records, so that a failure names the first layer that differs.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.plugins.traffic import gman_oracle as oracle
from tests.plugins.traffic.gman_oracle import Layer
from torch import Tensor

from polyhead_traffic.attention import AttentionSettings, TemporalAttention
from polyhead_traffic.gman import GMAN, set_batch_norm_momentum
from polyhead_traffic.layers import NormSettings, Place, interleave

DTYPES = [torch.float32, torch.float64]
TF = ["case", "case_pems"]
PORTS = ["case_port", "case_port8"]


class Golden:
    """One recorded case: its tensors and its layers by role."""

    def __init__(self, folder: Path, name: str) -> None:
        self.tensors = load_file(folder / f"{name}.safetensors")
        self.about = json.loads((folder / f"{name}.json").read_text())
        self.sizes = self.about["config"]

    def input(self, name: str, dtype: torch.dtype = torch.float64) -> Tensor:
        value = self.tensors[f"inputs/{name}"]
        return value.to(torch.int64) if name == "TE" else value.to(dtype)

    def output(self, name: str, dtype: torch.dtype) -> Tensor:
        # Running moments were recorded in float32 only.
        folder = "outputs_f64" if dtype == torch.float64 and f"outputs_f64/{name}" in self.tensors else "outputs"
        return self.tensors[f"{folder}/{name}"]

    def weight(self, name: str) -> np.ndarray[Any, Any]:
        return self.tensors[f"weights/{name}"].double().numpy()

    def indexed(self, name: str, index: int) -> np.ndarray[Any, Any]:
        return self.weight(f"{name}_{index}" if index else name)

    def tf_norm(self, index: int) -> Any:
        return tuple(self.indexed(name, index) for name in ("gamma", "beta", "ema_mean", "ema_var"))

    def tf_layers(self) -> dict[str, Layer]:
        """Layers in creation order, with three counters as the README explains."""
        layers, biases, norms = {}, 0, 0
        for index, role in enumerate(self.about["roles"]):
            name = role.removesuffix(" (no bias)")
            bias = None if name != role else self.indexed("bias", biases)
            norm = self.tf_norm(norms) if re.search(r"\.[qkv]$|\[0\]$", name) else None
            layers[name] = Layer(self.indexed("kernel", index)[0, 0], bias, norm)
            biases += bias is not None
            norms += norm is not None
        return layers

    def port_layers(self) -> dict[str, Layer]:
        names = {
            "FC_1": "input",
            "FC_2": "output",
            "STEmbedding.FC_se": "ste.spatial",
            "STEmbedding.FC_te": "ste.temporal",
        }
        names |= {f"transformAttention.FC_{p}": f"transform.{p}" for p in "qkv"} | {
            "transformAttention.FC": "transform.out"
        }
        for old, part in (("STAttBlock_1", "enc"), ("STAttBlock_2", "dec")):
            for i in range(self.sizes["L"]):
                for kind in ("spatial", "temporal"):
                    for p in "qkv":
                        names[f"{old}.{i}.{kind}Attention.FC_{p}"] = f"{part}{i}.{kind}.{p}"
                    names[f"{old}.{i}.{kind}Attention.FC"] = f"{part}{i}.{kind}.out"
                fusion = f"{old}.{i}.gatedFusion.FC"
                names |= {f"{fusion}_xs": f"{part}{i}.fusion.s", f"{fusion}_xt": f"{part}{i}.fusion.t"}
                names[f"{fusion}_h"] = f"{part}{i}.fusion.out"
        layers = {}
        for old, new in names.items():
            for j in range(2):
                prefix = f"{old}.convs.{j}"
                if f"weights/{prefix}.conv.weight" not in self.tensors:
                    continue
                bias = self.weight(f"{prefix}.conv.bias") if f"weights/{prefix}.conv.bias" in self.tensors else None
                fields = ("weight", "bias", "running_mean", "running_var")
                norm: Any = tuple(self.weight(f"{prefix}.batch_norm.{field}") for field in fields)
                single = re.search(r"\.([qkvst])$", new)
                layers[new if single else f"{new}[{j}]"] = Layer(
                    self.weight(f"{prefix}.conv.weight")[:, :, 0, 0].T, bias, norm
                )
        return layers

    def model(self, release: Any, dtype: torch.dtype, **changes: Any) -> GMAN:
        c = self.sizes
        sizes = {"nodes": c.get("N"), "history": c["P"], "horizon": c["Q"], "slots_per_day": c["T"], "depth": c["L"]}
        sizes |= {"heads": c["K"], "head_dim": c["d"], "embedding_dim": self.input("SE").shape[1]}
        model = GMAN(GMAN.Config.release(release, **(sizes | changes))).to(dtype).eval()
        model.set_data(spatial_embedding=self.input("SE", dtype))
        return oracle.fill(model, self.port_layers() if release == "port" else self.tf_layers())


@pytest.fixture
def golden(shared: Path, request: pytest.FixtureRequest) -> Golden:
    return Golden(shared / "golden" / "gman", request.param)


def release_of(golden: Golden) -> str:
    return {"METR": "metr", "PeMS": "pems"}.get(golden.about.get("variant", ""), "port")


def close(name: str, got: Any, want: Any, tolerance: float) -> None:
    """Compare relative to the largest wanted value, as the records' README says."""
    got, want = torch.as_tensor(got).detach().double(), torch.as_tensor(want).double()
    assert got.shape == want.shape, f"{name}: shape {tuple(got.shape)}, recorded {tuple(want.shape)}"
    error = ((got - want).abs().max() / want.abs().max()).item()
    assert error <= tolerance, f"{name}: relative error {error:.1e} above {tolerance:.0e}"


def tolerance(dtype: torch.dtype, training: bool) -> float:
    return 1e-9 if dtype == torch.float64 else (5e-4 if training else 1e-4)


@pytest.mark.parametrize("golden", [*TF, *PORTS], indirect=True)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_stage(golden: Golden, training: bool, dtype: torch.dtype) -> None:
    release = release_of(golden)
    model = golden.model(release, dtype, dropout=0.0).train(training)
    layers = golden.port_layers() if release == "port" else golden.tf_layers()
    want = oracle.forward(
        layers, golden.input("X").numpy(), golden.input("TE").numpy(), golden.input("SE").numpy(),
        heads=model.config.heads, causal=model.config.causal, slots=model.config.slots_per_day,
        eps=model.config.norm_eps, depth=model.config.depth, training=training,
    )  # fmt: skip
    mode = "train" if training else "eval"
    close("the oracle", want["output"], golden.output(f"pred_{mode}", torch.float64), 1e-9)
    got = oracle.model_stages(model, golden.input("X", dtype), golden.input("TE"))
    assert got.keys() == want.keys()
    for name in want:
        close(name, got[name], want[name], tolerance(dtype, training))
    close("output", got["output"], golden.output(f"pred_{mode}", dtype), tolerance(dtype, training))


@pytest.mark.parametrize("golden", [*TF, *PORTS], indirect=True)
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients(golden: Golden, training: bool, dtype: torch.dtype) -> None:
    model = golden.model(release_of(golden), dtype, dropout=0.0).train(training)
    x = golden.input("X", dtype).requires_grad_()
    model.spatial_embedding.requires_grad_()
    (model(x, golden.input("TE")) * golden.input("cotangent", dtype)).sum().backward()
    recorded = golden.output(f"grad_X_{'train' if training else 'eval'}", dtype)
    close("grad of x", x.grad, recorded, tolerance(dtype, training))
    if training and "outputs/grad_SE_train" in golden.tensors:
        close("grad of SE", model.spatial_embedding.grad, golden.output("grad_SE_train", dtype), tolerance(dtype, True))


@pytest.mark.parametrize("golden", TF, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_running_moments_after_one_step(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model(release_of(golden), dtype, dropout=0.0).train()
    set_batch_norm_momentum(model, 1 - golden.sizes["bn_decay"])
    model(golden.input("X", dtype), golden.input("TE"))
    # Norms are counted in creation order: input, place of nodes, place of steps, then q of the first block.
    first, project = (cast(Any, layer) for layer in (model.input[0], cast(Any, model.encoder[0]).spatial.project))
    limit = 5e-4 if dtype == torch.float32 else 1e-6
    for field in ("mean", "var"):
        running = f"running_{field}"
        q = getattr(project.norm, running).unflatten(0, (model.config.heads, 3, -1))[:, 0].flatten()
        close(
            f"{field} of the input", getattr(first.norm, running), golden.output(f"updated_ema_{field}", dtype), limit
        )
        close(f"{field} of q", q, golden.output(f"updated_ema_{field}_3", dtype), limit)


@pytest.mark.parametrize("golden", TF, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_mae(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model(release_of(golden), dtype).set_data(mean=50.0, std=9.0)
    label = golden.input("label", dtype)
    observed = label != 0
    y = model(golden.input("X", dtype) * 9 + 50, golden.input("TE"))
    loss = ((y - label).abs() * observed).sum() / observed.sum()
    close("loss", loss.reshape(1), golden.output("mae_loss", dtype), tolerance(dtype, False))


@pytest.mark.parametrize("golden", PORTS, indirect=True)
@pytest.mark.parametrize("dtype", DTYPES)
def test_port_with_a_mask(golden: Golden, dtype: torch.dtype) -> None:
    model = golden.model("port", dtype, causal=True)
    x = golden.input("X", dtype).requires_grad_()
    y = model(x, golden.input("TE"))
    (y * golden.input("cotangent", dtype)).sum().backward()
    close("output", y, golden.output("pred_eval_masked", dtype), tolerance(dtype, False))
    close("grad of x", x.grad, golden.output("grad_X_eval_masked", dtype), tolerance(dtype, False))


@pytest.mark.parametrize("golden", ["case_temporal_mask"], indirect=True)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_temporal_attention(golden: Golden, causal: bool, dtype: torch.dtype) -> None:
    # The record has an embedding that is no sum of two addends; where nodes and batch are one, it is: one of steps.
    heads, head_dim = golden.sizes["K"], golden.sizes["d"]
    norm = NormSettings(1e-3, 0.5, unbiased=False, start_var=0.0)
    layer: Any = TemporalAttention(AttentionSettings(heads, head_dim, "relu", norm, False), causal=causal)
    project = layer.to(dtype).eval().project
    fields = {"gamma": "weight", "beta": "bias", "ema_mean": "running_mean", "ema_var": "running_var"}
    targets = {name: getattr(project.norm, field) for name, field in fields.items()} | {"bias": project.bias}
    for name, target in targets.items():
        target.data.copy_(interleave([torch.tensor(golden.indexed(name, i)) for i in range(3)], heads))
    kernels = [torch.tensor(golden.indexed("kernel", i)[0, 0].T.copy()) for i in range(3)]
    project.weight.data.copy_(interleave(kernels, heads))
    for i, dense in ((3, layer.out[0]), (4, layer.out[1])):
        dense.weight.data.copy_(torch.tensor(golden.indexed("kernel", i)[0, 0].T.copy()))
        dense.bias.data.copy_(torch.tensor(golden.indexed("bias", i)))
    for field, value in zip(fields.values(), golden.tf_norm(3), strict=True):
        getattr(layer.out[0].norm, field).data.copy_(torch.tensor(value))

    x, embedding = golden.input("X", dtype).requires_grad_(), golden.input("STE", dtype)
    batch, steps, nodes, dim = x.shape
    one_by_one = x.transpose(1, 2).reshape(batch * nodes, steps, 1, dim)
    place = Place(torch.zeros(1, dim, dtype=dtype), embedding.transpose(1, 2).reshape(batch * nodes, steps, dim))
    y = layer(one_by_one, place).reshape(batch, nodes, steps, dim).transpose(1, 2)
    (y * golden.input("cotangent", dtype)).sum().backward()
    mask = "mask_on" if causal else "mask_off"
    close("output", y, golden.output(f"temporal_{mask}", dtype), tolerance(dtype, False))
    close("grad of x", x.grad, golden.output(f"grad_X_{mask}", dtype), tolerance(dtype, False))
