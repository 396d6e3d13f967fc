"""OAT against recorded runs of the published code, in both precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.plugins.gaze.golden import Golden

from polyhead_gaze.decoding import scanpaths

CASES = ["case", "case_linear_spp"]
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}


@pytest.fixture(params=CASES)
def golden(shared: Path, request: pytest.FixtureRequest) -> Golden:
    return Golden(shared / "golden" / "oat-gaze", request.param)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_crop_features(golden: Golden, dtype: torch.dtype) -> None:
    inputs, model = golden.inputs(), golden.model(dtype)
    inputs.pop("fixations")
    seen = model.encode(**inputs).seen
    torch.testing.assert_close(seen, golden.tensors["trace/cnn_src"][:, :-1].to(dtype), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_loss_and_gradients(golden: Golden, dtype: torch.dtype) -> None:
    inputs, model = golden.inputs(), golden.model(dtype)
    # In float64 the crops are divided in float64, as they were recorded.
    inputs["appearance"] = inputs["appearance"].to(dtype) / 255
    logits = model(**inputs)
    recorded = golden.output("logits", dtype).transpose(0, 1)
    truth = golden.tensors["inputs/tgt_pos"][1:].T
    count = golden.sizes["N"]
    real = truth <= count  # what is predicted behind the end of a scanpath counts nowhere
    steps = logits.shape[1]
    assert not real[:, steps:].any()
    real, truth, recorded = real[:, :steps], truth[:, :steps], recorded[:, :steps]
    torch.testing.assert_close(logits[real], recorded[real], atol=TOLERANCE[dtype], rtol=0)

    loss = F.cross_entropy(logits[real], truth[real])
    torch.testing.assert_close(loss, golden.output("loss", dtype)[0], atol=TOLERANCE[dtype], rtol=0)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    names = {
        "cnn_embedding.cnn1.0.weight": ("seen.first.weight", slice(None)),
        "cnn_embedding.fc.weight": ("seen.out.weight", slice(None)),
        "cross_attentions.0.encode_fc.weight": ("readout_keys.weight", slice(0, golden.sizes["emb"])),
        "cross_attentions.1.decode_fc.bias": ("readout_queries.bias", slice(golden.sizes["emb"], None)),
        "readout.weight": ("merge.weight", slice(None)),
        "generator.weight": ("slots.weight", slice(None)),
    }
    attention = {
        "transformer_encoder.layers.0.self_attn": "encoder.blocks.0.mixer.attention",
        "transformer_decoder.layers.0.multihead_attn": "decoder.blocks.0.cross",
    }
    for name in golden.sizes["grads"]:
        expected = golden.output(f"grad/{name}", dtype)
        if name.endswith("in_proj_weight"):
            module = attention[name.rpartition(".")[0]]
            found = torch.cat([gradients[f"{module}.{part}_proj.weight"] for part in "qkv"])  # type: ignore[misc]
        else:
            own, rows = names[name]
            found = gradients[own][rows]  # type: ignore[index]
        scale = float(expected.abs().max())
        torch.testing.assert_close(found, expected, atol=TOLERANCE[dtype] * max(scale, 1), rtol=0, msg=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_most_probable_scanpaths(golden: Golden, dtype: torch.dtype) -> None:
    inputs, model = golden.inputs(), golden.model(dtype)
    inputs.pop("fixations")
    found = scanpaths(model, model.encode(**inputs), most=golden.sizes["max_len"])
    for row, path in enumerate(found.paths[:, 0]):
        expected = golden.tensors[f"outputs/greedy_{row}"]
        # Once more than the most steps were taken, the recorded loop only goes on to the true length.
        assert path[path >= 0].tolist() == expected.tolist()[: golden.sizes["max_len"]], row
