"""GMAN: against NumPy, sizes, what it may and may not see, its switches, folding, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.plugins.traffic import gman_oracle as oracle
from torch import Tensor, nn

import polyhead
from polyhead.errors import ConfigError, ShapeError, UnknownNameError
from polyhead.nn import ReducedBatchNorm
from polyhead.ops import softmax_attention
from polyhead.testing import check_model
from polyhead_traffic.gman import GMAN, batch_norm_momentum, fold_batch_norm, set_batch_norm_momentum
from polyhead_traffic.layers import Place, joint_moments

SMALL: dict[str, Any] = {
    "nodes": 6, "history": 4, "horizon": 3, "slots_per_day": 24, "depth": 1, "heads": 2, "head_dim": 3,
    "embedding_dim": 5, "dropout": 0.0,
}  # fmt: skip


def small(seed: int = 0, **changes: Any) -> GMAN:
    """Return a float64 model with random running statistics, in evaluation mode."""
    torch.manual_seed(seed)
    model = GMAN(GMAN.Config(**(SMALL | changes))).double()
    for module in model.modules():
        if isinstance(module, ReducedBatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def inputs(model: GMAN, batch: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    config, generator = model.config, torch.Generator().manual_seed(seed)
    x = torch.randn(batch, config.history, config.nodes, generator=generator, dtype=torch.float64)
    steps = (batch, config.history + config.horizon)
    day, slot = (torch.randint(0, most, steps, generator=generator) for most in (7, config.slots_per_day))
    return x, torch.stack([day, slot], -1)


@pytest.mark.parametrize(("depth", "count"), [(1, 229_569), (3, 565_185), (5, 900_801)])
def test_parameter_counts_of_the_publication(depth: int, count: int) -> None:
    model = GMAN(GMAN.Config(nodes=207, depth=depth))
    assert sum(parameter.numel() for parameter in model.parameters()) == count


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("changes", [{}, {"use_day_of_week": False, "causal": False, "depth": 2}])
def test_equals_numpy(changes: dict[str, Any], training: bool) -> None:
    model = small(**changes).train(training)
    layers = oracle.draw(model.config, seed=1)
    oracle.fill(model, layers)
    x, te = inputs(model)
    expected = oracle.forward(
        layers, x.numpy(), te.numpy(), model.spatial_embedding.numpy(), heads=2, slots=24, depth=model.config.depth,
        causal=model.config.causal, eps=model.config.norm_eps, training=training,
    )  # fmt: skip
    got = oracle.model_stages(model, x, te)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name].detach().numpy(), value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_is_a_model_as_polyhead_defines_it() -> None:
    def make(model: Any, generator: torch.Generator) -> dict[str, Tensor]:
        x, te = inputs(model)
        return {"x": x.float(), "te": te}

    check_model("gman", make, config=SMALL)
    check_model("gman", make, config=SMALL | {"group_size": 2, "embedding": "learned"})


# What it may see.


@pytest.mark.parametrize("group_size", [0, 2])
def test_permuting_sensors_permutes_forecasts(group_size: int) -> None:
    model = small(nodes=7, group_size=group_size)
    x, te = inputs(model)
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    if group_size:
        model.set_data(partition=labels)
    expected = model(x, te)
    order = torch.tensor([3, 1, 4, 0, 6, 5, 2])
    model.set_data(spatial_embedding=model.spatial_embedding[order], partition=labels[order] if group_size else None)
    torch.testing.assert_close(model(x[:, :, order], te), expected[:, :, order])


def test_encoder_sees_no_later_step() -> None:
    model = small(depth=2)
    x, te = inputs(model)
    changed = x.clone()
    changed[:, 2] += 1
    (before, after) = (oracle.model_stages(model, value, te) for value in (x, changed))
    for block in ("enc0", "enc1"):
        torch.testing.assert_close(before[block][:, :2], after[block][:, :2], rtol=0, atol=0)
        assert not torch.allclose(before[block][:, 2:], after[block][:, 2:])
    # All forecasts may see it, through the transform attention.
    assert ((before["output"] - after["output"]).abs() > 0).any((0, 2)).all()


def test_encoder_sees_later_steps_where_it_is_not_causal() -> None:
    model = small(causal=False)
    x, te = inputs(model)
    changed = x.clone()
    changed[:, 2] += 1
    before, after = (oracle.model_stages(model, value, te)["enc0"] for value in (x, changed))
    assert not torch.allclose(before[:, :2], after[:, :2])


@pytest.mark.parametrize("step", [1, 2])
def test_forecast_does_not_depend_on_the_calendar_of_later_steps(step: int) -> None:
    model = small()
    x, te = inputs(model)
    changed = te.clone()
    changed[:, 4 + step, 1] = (changed[:, 4 + step, 1] + 5) % 24
    before, after = model(x, te), model(x, changed)
    torch.testing.assert_close(before[:, :step], after[:, :step], rtol=0, atol=0)
    assert not torch.allclose(before[:, step:], after[:, step:])


def test_batch_equals_one_by_one() -> None:
    model = small(group_size=4)
    x, te = inputs(model)
    one_by_one = torch.cat([model(x[i : i + 1], te[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(model(x, te), one_by_one)


@pytest.mark.parametrize(("bias", "pure"), [(1e6, 0), (-1e6, 1)])
def test_gate_at_its_limits_passes_one_side(bias: float, pure: int) -> None:
    fusion: Any = small().encoder[0].fusion
    fusion.temporal.bias.data.fill_(bias)
    sides = [torch.randn(2, 4, 6, 6, dtype=torch.float64) for _ in range(2)]
    torch.testing.assert_close(fusion.mix(*sides), sides[pure])


def test_equal_keys_get_equal_weights() -> None:
    """A constant series with the calendar held still: every past step is the same key."""
    model = small()
    x = torch.full((1, 4, 6), 0.7, dtype=torch.float64)
    place = model.place(model.spatial_embedding, torch.tensor([[[3, 5]]]).expand(1, 7, 2))
    past = Place(place.nodes, place.steps[:, :4])
    temporal: Any = model.encoder[0].temporal
    q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in temporal.project(model.input(x.unsqueeze(-1)), past))
    weights = softmax_attention(q, k, v, return_weights=True).weights
    torch.testing.assert_close(weights, torch.full_like(weights, 0.25))  # type: ignore[arg-type]


def test_units_are_the_data_s() -> None:
    model = small()
    x, te = inputs(model)
    expected = model(x, te) * 9 + 50
    model.set_data(mean=50, std=9)
    torch.testing.assert_close(model(x * 9 + 50, te), expected)


def test_no_attention_weight_over_sensors_is_kept() -> None:
    model = GMAN(GMAN.Config(**(SMALL | {"nodes": 70})))
    x, te = inputs(model, batch=2)
    largest = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x.float(), te)
    # q, k and v together, or one of them padded to 16 channels a head.
    assert largest <= 2 * 4 * 70 * 2 * 16
    assert largest < 2 * 4 * 2 * 70 * 70


# Switches.


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("switch", ["spatial", "temporal", "gate", "transform"])
def test_ablations(switch: str) -> None:
    full, without = small(horizon=4), small(horizon=4, **{switch: False})
    x, te = inputs(full)
    assert count(without) < count(full)
    y = without.train()(x, te)
    y.sum().backward()
    assert y.shape == (3, 4, 6)
    assert all(parameter.grad is not None for parameter in without.parameters())


def test_what_is_switched_off_is_not_seen() -> None:
    def influence(model: GMAN) -> Tensor:
        """How x (step 1, sensor 2) moves the encoder's states, by step and sensor."""
        x, te = inputs(model, batch=1)
        moved = x.clone()
        moved[:, 1, 2] += 1
        before, after = (oracle.model_stages(model, value, te)["enc0"] for value in (x, moved))
        return (before - after).abs().sum(-1)[0] > 0

    no_spatial, no_temporal = (influence(small(horizon=4, **{name: False})) for name in ("spatial", "temporal"))
    assert no_spatial.any(0).tolist() == [False, False, True, False, False, False]
    assert no_temporal.any(1).tolist() == [False, True, False, False]


def test_without_gate_the_sides_are_added() -> None:
    fusion: Any = small(gate=False).encoder[0].fusion
    assert fusion.mix(torch.tensor([1.0]), torch.tensor([2.0])).tolist() == [3.0]


def test_without_day_of_week_the_day_is_not_read() -> None:
    model = small(use_day_of_week=False)
    x, te = inputs(model)
    expected = model(x, te)
    te[..., 0] = 99
    torch.testing.assert_close(model(x, te), expected, rtol=0, atol=0)
    assert len(small().place.table) - len(model.place.table) == 7


def test_masked_inputs_are_not_read() -> None:
    model = small(input_mask=True).set_data(mean=5, std=2)
    x, te = inputs(model)
    mask = torch.rand(x.shape) > 0.5
    expected = model(x, te, mask)
    other = torch.where(mask, x, 123.0)
    torch.testing.assert_close(model(other, te, mask), expected, rtol=0, atol=0)
    torch.testing.assert_close(model(x, te), model(x, te, torch.ones_like(mask)), rtol=0, atol=0)
    assert not torch.allclose(model(x, te), expected)


def test_embedding_can_be_learned() -> None:
    model = small(embedding="learned").train()
    assert count(model) == count(small()) + 6 * 5
    model(*inputs(model)).pow(2).sum().backward()
    assert model.spatial_embedding.grad is not None
    assert model.spatial_embedding.grad.abs().sum() > 0
    model.set_data(spatial_embedding=torch.ones(6, 5))
    assert model.spatial_embedding.detach().eq(1).all()


def test_queries_and_keys_without_activation_may_be_negative() -> None:
    x, te = inputs(small())
    for kind, negative in (("relu", False), ("none", True)):
        model = small(qk_activation=kind)
        place = model.place(model.spatial_embedding, te)
        past = Place(place.nodes, place.steps[:, :4])
        spatial: Any = model.encoder[0].spatial
        q, k, v = spatial.project(model.input(x.unsqueeze(-1)), past)
        assert [bool((part < 0).any()) for part in (q, k, v)] == [negative, negative, False]
        model.train()(x, te).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_in_training_only() -> None:
    model = small(dropout=0.5)
    x, te = inputs(model)
    torch.testing.assert_close(model(x, te), model(x, te), rtol=0, atol=0)
    model.train()
    assert not torch.allclose(model(x, te), model(x, te))


def test_releases() -> None:
    metr, pems, port = (GMAN.Config.release(name) for name in ("metr", "pems", "port"))
    assert (metr.depth, metr.causal, metr.dropout, metr.nodes) == (5, True, 0.1, 207)
    assert (pems.depth, pems.causal, pems.dropout, pems.nodes) == (1, False, 0.0, 325)
    for release in (metr, pems):
        assert (release.norm_eps, release.norm_unbiased, release.norm_momentum) == (1e-3, False, 0.5)
    assert (port.norm_eps, port.norm_unbiased, port.norm_momentum) == (1e-5, True, 0.1)
    assert port.norm_everywhere
    assert port.single_layer_output
    assert GMAN.Config.release("metr", nodes=5, depth=1).nodes == 5
    norms = [module for module in GMAN(pems).modules() if isinstance(module, ReducedBatchNorm)]
    assert all(not norm.running_var.any() and norm.eps == 1e-3 for norm in norms)
    with pytest.raises(UnknownNameError, match=r'No release "pens"\. Did you mean "pems"'):
        GMAN.Config.release("pens")  # type: ignore[arg-type]


# Batch norm.


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_size": 2},
        {"qk_activation": "none", "gate": False},
        {"norm_everywhere": True, "single_layer_output": True},
    ],
)
def test_folding_changes_no_forecast(changes: dict[str, Any]) -> None:
    model = small(**changes)
    x, te = inputs(model)
    model.train()
    folded = fold_batch_norm(model)
    assert model.training
    assert not folded.training
    assert not any(isinstance(module, ReducedBatchNorm) for module in folded.modules())
    torch.testing.assert_close(folded(x, te), model.eval()(x, te), rtol=1e-9, atol=1e-9)


def test_momentum_schedule() -> None:
    """One minus the decay of the authors' code: min(0.99, 1 - 0.5^(1 + floor(step / decay_steps)))."""
    for step in range(0, 3000, 37):
        decay = min(0.99, 1 - 0.5 ** (1 + step // 250))
        assert batch_norm_momentum(step, 250) == pytest.approx(1 - decay)
    model = small()
    set_batch_norm_momentum(model, 0.125)
    norms = [module for module in model.modules() if isinstance(module, ReducedBatchNorm)]
    assert norms
    assert {norm.momentum for norm in norms} == {0.125}


def test_evaluation_keeps_and_training_moves_the_running_statistics() -> None:
    model = small()
    x, te = inputs(model)
    names = [name for name, _ in model.named_buffers() if "running" in name]
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(x, te)
    torch.testing.assert_close(dict(model.named_buffers()), before, rtol=0, atol=0)
    model.train()(x, te)
    assert all(not torch.equal(before[name], value) for name, value in model.named_buffers() if name in names)


def test_training_sees_the_moments_of_place_and_features() -> None:
    model = small().train()
    x, te = inputs(model)
    place = model.place(model.spatial_embedding, te)
    moments = joint_moments(model.input(x.unsqueeze(-1)), Place(place.nodes, place.steps[:, :4]))
    assert moments.mean.shape == (12,)
    assert moments.elements == x.numel()


def test_fits_a_simple_network() -> None:
    """A few steps of training lower the error well below that of the mean."""
    torch.manual_seed(0)
    model = GMAN(GMAN.Config(**(SMALL | {"heads": 4, "head_dim": 4}))).set_data(mean=50, std=10).train()
    slot = torch.randint(0, 24, (16, 1)) + torch.arange(7)
    te = torch.stack([torch.zeros_like(slot), slot % 24], -1)
    series = 50 + 14 * torch.sin(slot / 24 * 2 * torch.pi).unsqueeze(-1) + torch.arange(6.0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    errors = []
    for _ in range(50):
        optimizer.zero_grad()
        error = (model(series[:, :4], te) - series[:, 4:]).abs().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 4


def test_saved_models_keep_data_and_partition(tmp_path: Path) -> None:
    model = small(group_size=3, partition_seed=4).float().set_data(mean=3, std=2, spatial_embedding=torch.rand(6, 5))
    model.set_data(partition=torch.tensor([1, 0, 1, 0, 1, 0]))
    x, te = inputs(model)
    model.save_pretrained(tmp_path / "model")
    for again in (GMAN.from_pretrained(tmp_path / "model"), polyhead.from_pretrained(tmp_path / "model")):
        torch.testing.assert_close(again(x.float(), te), model(x.float(), te), rtol=0, atol=0)


# Errors.


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"heads": 0}, "heads is 0: give at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0: give a probability of at least 0 and below 1"),
        ({"norm_momentum": 0.0}, "norm_momentum is 0.0: give a share above 0 and of at most 1"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0 and norm_start_var 1.0: raise them"),
        ({"spatial": False, "temporal": False}, "spatial and temporal are both off"),
        ({"transform": False}, "transform is off, history 4 and horizon 3: without transform attention they must"),
        ({"group_size": -1}, "group_size is -1 and group_sizes"),
        ({"group_size": 2, "group_sizes": (3, 3)}, "group_size is 2 and group_sizes"),
        ({"group_sizes": (3, 2)}, r"group_sizes \(3, 2\) are 5 sensors: every group needs at least 1, all together 6"),
        ({"group_sizes": (6, 0)}, "every group needs at least 1"),
    ],
)  # fmt: skip
def test_settings_out_of_range(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        GMAN.Config(**(SMALL | changes))


def test_wrong_inputs_are_named() -> None:
    model = small()
    x, te = inputs(model)
    with pytest.raises(ShapeError, match=r"x has shape \(3, 3, 6\), expected \(B, 4, 6\): batch, history, nodes"):
        model(x[:, 1:], te)
    with pytest.raises(ShapeError, match=r"te has shape \(3, 4, 2\), expected \(3, 7, 2\)"):
        model(x, te[:, :4])
    with pytest.raises(ConfigError, match="x_mask is given, but input_mask is off"):
        model(x, te, x > 0)
    with pytest.raises(ShapeError, match=r"x_mask has shape \(3, 4, 5\) and x \(3, 4, 6\)"):
        small(input_mask=True)(x, te, x[..., 1:] > 0)


def test_wrong_data_are_named() -> None:
    model = small()
    with pytest.raises(ConfigError, match="std is 0: the training data need a positive, finite standard deviation"):
        model.set_data(std=0)
    with pytest.raises(ShapeError, match=r"spatial_embedding has shape \(6, 4\), the config asks for \(6, 5\)"):
        model.set_data(spatial_embedding=torch.zeros(6, 4))
    with pytest.raises(ConfigError, match="The model has no groups: set group_size or group_sizes"):
        model.set_data(partition=torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"partition has shape \(5,\), expected \(6,\)"):
        small(group_size=2).set_data(partition=torch.zeros(5, dtype=torch.int64))
