"""What OAT promises of itself, on its defaults."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead import load
from polyhead.errors import ConfigError, DtypeError, MissingExtraError, ShapeError
from polyhead.testing import check_model
from polyhead_gaze.decoding import scanpaths, uniforms
from polyhead_gaze.oat import NEVER, OAT, OATConfig

SMALL = {"dim": 24, "heads": 2, "depth": 2, "decoder_depth": 2, "ff_dim": 32, "dropout": 0.0}
FEATURES = 5


def _model(seed: int = 0, **changes: Any) -> OAT:
    torch.manual_seed(seed)
    config = {**SMALL, "appearance": "features", "features": FEATURES, **changes}
    return OAT(OATConfig(**config)).eval()


def _inputs(batch: int = 3, count: int = 7, steps: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    objects = torch.ones(batch, count, dtype=torch.bool)
    fixations = torch.randint(count, (batch, steps), generator=generator)
    lengths = torch.randint(1, steps + 1, (batch,), generator=generator)
    return {
        "place": 5 * torch.rand(batch, count, 2, generator=generator),
        "objects": objects,
        "target": torch.randint(count, (batch,), generator=generator),
        "start": torch.full((batch, 2), 2.5),
        "fixations": fixations.masked_fill(torch.arange(steps) >= lengths[:, None], -1),
        "appearance": torch.randn(batch, count, FEATURES, generator=generator),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"appearance": "none", "features": 0},
        {"place": "sinusoid", "readout_heads": 1},
        {"target_location": "hidden", "place": "random"},
    ],
    ids=str,
)
def test_conformance(changes: dict[str, Any]) -> None:
    inputs = _inputs()
    if changes.get("appearance") == "none":
        del inputs["appearance"]
    check_model(_model(**changes), inputs)


def test_conformance_of_crops() -> None:
    crops = torch.randint(256, (2, 3, 32, 30, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = {**_inputs(2, 3), "appearance": crops}
    check_model(_model(appearance="crops", features=0, crop_height=32, crop_width=30, pyramid=2), inputs)


def test_it_is_registered() -> None:
    assert isinstance(load("oat", preset="tiny"), OAT)


@torch.no_grad()
def test_permuted_objects_permute_the_logits() -> None:
    model, inputs = _model(), _inputs()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    back = order.argsort()
    moved = {
        **inputs,
        "place": inputs["place"][:, order],
        "appearance": inputs["appearance"][:, order],
        "target": back[inputs["target"]],
        "fixations": torch.where(inputs["fixations"] >= 0, back[inputs["fixations"].clamp(min=0)], -1),
    }
    real = torch.arange(6) <= (inputs["fixations"] >= 0).sum(1, keepdim=True)
    expected, found = model(**inputs), model(**moved)
    torch.testing.assert_close(found[..., :-1][real], expected[..., order][real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[..., -1][real], expected[..., -1][real], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_without_places_the_encoder_is_equivariant() -> None:
    model, inputs = _model(place="none"), _inputs()
    del inputs["fixations"]
    inputs["target"] = torch.zeros(3, dtype=torch.int64)
    order = torch.tensor([0, 6, 5, 4, 3, 2, 1])
    whole = model.encode(**inputs).memory
    moved = model.encode(**{**inputs, "appearance": inputs["appearance"][:, order]}).memory
    torch.testing.assert_close(moved[:, :-1], whole[:, :-1][:, order], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_masked_objects_change_nothing_and_are_never_chosen() -> None:
    model, inputs = _model(), _inputs()
    wide = {
        **inputs,
        "place": torch.cat([inputs["place"], torch.full((3, 2, 2), torch.nan)], 1),
        "objects": torch.cat([inputs["objects"], torch.zeros(3, 2, dtype=torch.bool)], 1),
        "appearance": torch.cat([inputs["appearance"], torch.full((3, 2, FEATURES), torch.nan)], 1),
    }
    expected, found = model(**inputs), model(**wide)
    real = torch.arange(6) <= (inputs["fixations"] >= 0).sum(1, keepdim=True)
    torch.testing.assert_close(found[..., :7][real], expected[..., :7][real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[..., -1][real], expected[..., -1][real], atol=1e-5, rtol=1e-5)
    assert (found[..., 7:9] == NEVER).all()
    assert (found.softmax(-1)[..., 7:9] == 0).all()


@torch.no_grad()
def test_displays_of_any_size_in_a_batch_give_what_each_gives_alone() -> None:
    model = _model()
    sizes = (3, 7, 5)
    each = [_inputs(1, count, 4, seed=count) for count in sizes]
    batch = {
        name: torch.cat(
            [torch.nn.functional.pad(one[name], (0, 0, 0, 7 - count)) for one, count in zip(each, sizes, strict=True)]
        )
        for name in ("place", "appearance")
    }
    batch["objects"] = torch.arange(7) < torch.tensor(sizes)[:, None]
    for name in ("target", "start", "fixations"):
        batch[name] = torch.cat([one[name] for one in each])
    together = model(**batch)
    for row, (one, count) in enumerate(zip(each, sizes, strict=True)):
        steps = int((one["fixations"] >= 0).sum()) + 1
        alone = model(**one)[0, :steps]
        torch.testing.assert_close(together[row, :steps, :count], alone[:, :count], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[row, :steps, -1], alone[:, -1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_fixation_sees_a_later_one() -> None:
    model, inputs = _model(), _inputs(steps=6)
    inputs["fixations"] = inputs["fixations"].clamp(min=0)
    changed = {**inputs, "fixations": inputs["fixations"].clone()}
    changed["fixations"][:, 3:] = (changed["fixations"][:, 3:] + 1) % 7
    torch.testing.assert_close(model(**changed)[:, :4], model(**inputs)[:, :4], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(model(**changed)[:, 4:], model(**inputs)[:, 4:], atol=1e-3)


@torch.no_grad()
def test_the_first_step_never_stops() -> None:
    model, inputs = _model(), _inputs()
    assert (model(**inputs).softmax(-1)[:, 0, -1] == 0).all()
    inputs.pop("fixations")
    logits, _ = model.begin_scanpath(model.encode(**inputs))
    assert (logits.softmax(-1)[:, -1] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"readout": "linear", "objects": 7}, {"pad_slot": True, "begin": "blank", "place": "table"}],
    ids=str,
)
def test_cached_decoding_equals_recomputing(changes: dict[str, Any]) -> None:
    model, inputs = _model(**changes), _inputs()
    fixations = inputs.pop("fixations").clamp(min=0)
    whole = model(**inputs, fixations=fixations)[..., :8]
    scene = model.encode(**inputs)
    logits, decoding = model.begin_scanpath(scene)
    torch.testing.assert_close(logits, whole[:, 0], atol=1e-5, rtol=1e-5)
    for step in range(5):
        logits, decoding = model.continue_scanpath(decoding, fixations[:, step], step + 1)
        torch.testing.assert_close(logits, whole[:, step + 1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_drawn_scanpaths_are_as_probable_as_they_say_and_do_not_depend_on_the_batch() -> None:
    model, inputs = _model(), _inputs()
    inputs.pop("fixations")
    scene, streams = model.encode(**inputs), torch.tensor([11, 22, 33])
    drawn = scanpaths(model, scene, most=9, samples=4, streams=streams)
    for row in range(3):
        alone = {name: value[row : row + 1] for name, value in inputs.items()}
        again = scanpaths(model, model.encode(**alone), most=9, samples=4, streams=streams[row : row + 1]).paths
        for sample in range(4):
            path = drawn.paths[row, sample]
            path = path[path >= 0]
            assert path.tolist() == again[0, sample][again[0, sample] >= 0].tolist()
            chances = model(**alone, fixations=path[None]).log_softmax(-1)[0]
            slots = path.tolist() + ([7] if len(path) < 9 else [])
            expected = sum(float(chances[step, slot]) for step, slot in enumerate(slots))
            assert float(drawn.log_probability[row, sample]) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_drawn_fixations_follow_the_probabilities() -> None:
    model, inputs = _model(), _inputs(1)
    inputs.pop("fixations")
    scene = model.encode(**inputs)
    first = scanpaths(model, scene, most=1, samples=4000, streams=torch.tensor([5])).paths[0, :, 0]
    share = torch.bincount(first, minlength=8) / 4000
    expected = model.begin_scanpath(scene)[0][0].softmax(-1)
    assert float((share - expected).abs().max()) < 0.04
    cold = scanpaths(model, scene, most=1, samples=50, streams=torch.tensor([5]), temperature=1e-3).paths[0, :, 0]
    assert (cold == expected.argmax()).all()


def test_numbers_of_a_stream() -> None:
    drawn = torch.stack([uniforms(torch.arange(2000) - 1000, step) for step in range(20)])
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(float(drawn.mean()) - 0.5) < 0.01
    assert abs(float(drawn.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(drawn)[0, 1:].abs().mean())) < 0.05
    assert len(drawn.unique()) > 39_000
    assert uniforms(torch.tensor([7]), 3).item() == uniforms(torch.tensor([7]), 3).item()


@torch.no_grad()
def test_a_hidden_target_is_known_by_its_looks_only() -> None:
    model, inputs = _model(target_location="hidden"), _inputs(1)
    inputs["appearance"][:, 4] = inputs["appearance"][:, 2]  # the same look in two places
    there, elsewhere = ({**inputs, "target": torch.tensor([index])} for index in (2, 4))
    torch.testing.assert_close(model(**there), model(**elsewhere), atol=1e-6, rtol=1e-6)
    other = model(**{**inputs, "target": torch.tensor([1])})
    assert not torch.allclose(model(**there), other, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 25}, r"dim is 25: an even number is needed"),
        ({"features": 0}, r"features is 0: their length is needed"),
        ({"readout": "linear"}, r"objects is 0: a linear read-out needs their number"),
        ({"readout_heads": 0}, r"readout_heads is 0: 1 or more"),
        ({"target_location": "hidden", "appearance": "none"}, r"nothing would tell what is searched for"),
        ({"appearance": "crops", "crop_height": 9}, r"Crops of 9 × 93 pixels are too small"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _model(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"target": torch.zeros(2, dtype=torch.int64)}, ShapeError, r"target \(2,\) and start \(3, 2\) are not"),
        ({"appearance": None}, ShapeError, r'appearance is missing, and the model\'s is "features"'),
        ({"appearance": torch.zeros(3, 6, FEATURES)}, ShapeError, r"does not begin with \(B, N\) \(3, 7\)"),
        ({"appearance": torch.zeros(3, 7, 4)}, ShapeError, r"\(3, 7, 4\) is not \(B, N, 5\)"),
        ({"fixations": torch.zeros(2, 5, dtype=torch.int64)}, ShapeError, r"are not \(batch, steps\) of 3 displays"),
    ],
)
def test_inputs_that_do_not_fit(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _model()(**{**_inputs(), **changes})


def test_crops_and_slots_that_do_not_fit() -> None:
    inputs = {**_inputs(3, 7), "appearance": torch.zeros(3, 7, 32, 31, 3)}
    model = _model(appearance="crops", features=0, crop_height=32, crop_width=30, pyramid=1)
    with pytest.raises(ShapeError, match=r"crops \(3, 7, 32, 31, 3\) are not \(…, 32, 30, 3\)"):
        model(**inputs)
    with pytest.raises(DtypeError, match=r"crops are torch.int32, expected torch.uint8"):
        model(**{**inputs, "appearance": torch.zeros(3, 7, 32, 30, 3, dtype=torch.int32)})
    with pytest.raises(ShapeError, match=r"There are 7 objects; a linear read-out has slots for 6"):
        _model(readout="linear", objects=6)(**_inputs())


def test_conformance_with_a_backbone_of_timm() -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    crops = torch.randint(256, (2, 3, 48, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = _model(appearance="crops", features=0, crop_height=48, crop_width=32, backbone="test_efficientnet")
    check_model(model, {**_inputs(2, 3), "appearance": crops})


def test_backbones_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is not installed")
    crops: dict[str, Any] = {"appearance": "crops", "features": 0}
    with pytest.raises(ConfigError, match=r'timm has no backbone "resnet-7"'):
        _model(**crops, backbone="resnet-7")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"not installed: pip install 'polyhead-gaze\[timm\]'"):
        _model(**crops, backbone="resnet18")
