"""decay_attention against published values: the official operator, and the layers of two models that use it.

The layers stand here in full, as their papers and codes state them; the operator is the only part under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from polyhead.ops import decay_attention, use_kernel
from polyhead.ops.decay_attention import init_state, lightning_slopes, prefill, step


@pytest.fixture(params=["reference", "torch"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with use_kernel(decay_attention=request.param):
        yield request.param


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "lightning-attention"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_published_values(kernel: str, dtype: str, golden: Path) -> None:
    """The official implementation's outputs and gradients, and a recurrence's states, on lengths around a block."""
    case = load_file(golden / "case.safetensors")
    kind, tolerance = getattr(torch, dtype), 5e-5 if dtype == "float32" else 1e-11
    outputs = "outputs" if dtype == "float32" else "outputs_f64"
    log_decay = -case["inputs/slopes"].to(kind)

    def compare(name: str, got: Tensor) -> None:
        expected = case[f"{outputs}/{name}"]
        off = (got - expected).abs().max() / expected.abs().max()
        assert off <= tolerance, f"{name} is off by {off:.2g}"

    for n in (1, 7, 64, 65, 150):
        q, k, v, gradient = (case[f"inputs/n{n}/{name}"].to(kind) for name in ("q", "k", "v", "cotangent"))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        got = decay_attention(q, k, v, log_decay)
        compare(f"n{n}/official/o", got.output)
        compare(f"n{n}/final_state_from_zero", got.final_state)
        for name, x in zip("qkv", torch.autograd.grad(got.output, inputs, gradient), strict=True):
            compare(f"n{n}/official/grad_{name}", x)
        state = case["inputs/initial_state"].to(kind).requires_grad_()
        by_token = log_decay[None, :, None].repeat(2, 1, n).requires_grad_()
        got = decay_attention(q, k, v, by_token, initial_state=state)
        compare(f"n{n}/recurrent_with_state/o", got.output)
        compare(f"n{n}/recurrent_with_state/final_state", got.final_state)
        loss = (got.output * gradient).sum() + (got.final_state * case["inputs/cotangent_state"]).sum()
        names = ("grad_q", "grad_k", "grad_v", "grad_initial_state", "grad_log_decay_per_step")
        *gradients, per_step = torch.autograd.grad(loss, [*inputs, state, by_token])
        for name, x in zip(names, (*gradients, per_step.transpose(1, 2)), strict=True):
            compare(f"n{n}/recurrent_with_state/{name}", x)
    q, k, v = (case[f"inputs/n64/{name}"].to(kind) for name in "qkv")
    compare("n64/official_nodecay/o", decay_attention(q, k, v, torch.zeros(3, dtype=kind)).output)


def test_published_slopes(golden: Path) -> None:
    case = load_file(golden / "case.safetensors")
    for heads in (1, 2, 3, 4, 6, 8, 12, 16, 40):
        torch.testing.assert_close(lightning_slopes(heads), case[f"outputs/slopes_H{heads}"])
    for layer, expected in enumerate(case["outputs/layer_slopes"]):
        torch.testing.assert_close(lightning_slopes(3, layer=layer, layers=6), expected)


TOLERANCE = 5e-5


def assert_close(name: str, got: Tensor, expected: Tensor) -> None:
    off = float((got.detach() - expected).abs().max() / expected.abs().max())
    assert off <= TOLERANCE, f"{name} is off by {off:.2g}"


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def compare_gradients(case: dict[str, Tensor], y: Tensor, x: Tensor, weights: dict[str, Tensor]) -> None:
    gradients = torch.autograd.grad(y, [x, *weights.values()], case["inputs/cotangent"])
    names = ["grad_x", *(f"grad/{name}" for name in weights)]
    for name, got in zip(names, gradients, strict=True):
        assert_close(name, got, case[f"outputs/{name}"])


def weights_of(case: dict[str, Tensor]) -> dict[str, Tensor]:
    prefix = "weights/"
    return {name.removeprefix(prefix): x.requires_grad_() for name, x in case.items() if name.startswith(prefix)}


def test_layer_of_transnormer(kernel: str, golden: Path) -> None:
    """SiLU of q, k and v; layer norm of the merged heads; a gate of two stacked linears."""
    case = load_file(golden / "case_tnl_layer.safetensors")
    slopes, x, w = case["trace/slope_rate"], case["inputs/x"].requires_grad_(), weights_of(case)

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    q, k, v = (split(F.silu(linear(x, f"{name}_proj")), len(slopes)) for name in "qkv")
    merged = merge(decay_attention(q, k, v, -slopes).output)
    normed = F.layer_norm(merged, merged.shape[-1:], w["norm.weight"], w["norm.bias"])
    gate = torch.sigmoid(linear(linear(x, "output_gate.0"), "output_gate.1"))
    y = linear(gate * normed, "o_proj")
    assert_close("y", y, case["outputs/y"])
    compare_gradients(case, y, x, w)


def test_layer_of_minimax(kernel: str, golden: Path) -> None:
    """SiLU of the joint projection; RMS norm over all heads; left padding; decoding after a prefill."""
    case = load_file(golden / "case_minimax_layer.safetensors")
    slopes, x, w = case["trace/slope_rate"], case["inputs/x"].requires_grad_(), weights_of(case)
    heads, layer, layers, at = len(slopes), 1, 4, 35
    # Its factor of the layer differs from the official one by 1e-5 in the divisor.
    torch.testing.assert_close(lightning_slopes(heads) * (1 - layer / (layers - 1 + 1e-5) + 1e-5), slopes)

    def project(x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        joint = F.silu(F.linear(x, w["qkv_proj.weight"]))
        joint = joint if mask is None else joint * mask[..., None]
        q, k, v = split(joint, heads).chunk(3, -1)
        return q, k, v

    def finish(x: Tensor, output: Tensor) -> Tensor:
        normed = F.rms_norm(merge(output), w["norm.weight"].shape, w["norm.weight"], 1e-6)
        return F.linear(torch.sigmoid(F.linear(x, w["output_gate.weight"])) * normed, w["out_proj.weight"])

    output, state = decay_attention(*project(x), -slopes)
    y = finish(x, output)
    assert_close("y", y, case["outputs/y"])
    assert_close("state", state, case["outputs/state"])
    compare_gradients(case, y, x, w)

    output, state = decay_attention(*project(x, case["inputs/attention_mask"]), -slopes)
    assert_close("y_left_padded", finish(x, output), case["outputs/y_left_padded"])
    assert_close("state_left_padded", state, case["outputs/state_left_padded"])

    q, k, v = project(x)
    state = init_state(q.shape[0], heads, q.shape[3])
    output, state = prefill(state, q[:, :, :at], k[:, :, :at], v[:, :, :at], -slopes)
    outputs = [output]
    for token in range(at, q.shape[2]):
        output, state = step(state, q[:, :, token], k[:, :, token], v[:, :, token], -slopes)
        outputs.append(output.unsqueeze(2))
    assert_close("decoded", finish(x, torch.cat(outputs, 2)), case["outputs/y_prefill_then_decode"])
    assert_close("state decoded", state, case["outputs/state_prefill_then_decode"])
