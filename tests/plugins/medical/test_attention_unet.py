"""U-Nets with switches: what holds for all of them, on the defaults."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

import polyhead
from polyhead.errors import ConfigError, ShapeError, UnknownNameError
from polyhead.testing import check_model
from polyhead_medical.attention_unet import AGUNet, DAUNet, UNet

SMALL: dict[str, Any] = {"filters": (4, 8, 8)}


def image(config: Any, generator: torch.Generator) -> dict[str, torch.Tensor]:
    shape = (8, 8, 12)[-config.spatial_dims :]
    return {"image": torch.rand(2, config.in_channels, *shape, generator=generator)}


def scales(model: Any, inputs: Any) -> Any:
    return tuple(model.scales(inputs["image"]))


@pytest.mark.parametrize("name", ["unet", "agunet", "daunet"])
def test_models_are_what_the_shell_relies_on(name: str) -> None:
    config = {"filters": [4, 8, 8], "attention_dropout": 0.0}
    check_model(
        name,
        lambda model, generator: image(model.config, generator),
        config=config,
        forward=scales,
    )


@pytest.mark.parametrize("cls", [UNet, AGUNet, DAUNet])
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_shapes_of_all_switches(cls: Any, spatial_dims: int) -> None:
    for pyramid, deep, norm, places in itertools.product(
        (False, True), (False, True), ("batch", "instance", "group"), (False, True)
    ):
        config = cls.Config(
            spatial_dims=spatial_dims,
            in_channels=2,
            classes=3,
            multi_scale_input=pyramid,
            deep_supervision=deep,
            norm=norm,
            coordinates=places,
            **SMALL,
        )
        model = cls(config)
        outputs = model.scales(torch.rand(2, 2, *(8, 8, 12)[-spatial_dims:]))
        sizes = [tuple(out.shape[2:]) for out in outputs]
        assert sizes[0] == (8, 8, 12)[-spatial_dims:]
        assert len(outputs) == (2 if deep else 1)
        assert all(finer == tuple(2 * size for size in coarser) for finer, coarser in itertools.pairwise(sizes))
        torch.testing.assert_close(outputs[0].softmax(1).sum(1), torch.ones(2, *sizes[0]))


def test_all_switches_off_is_the_plain_network() -> None:
    off: dict[str, Any] = {"attention": "none", "guided": False, "multi_scale_input": False, "deep_supervision": False}
    plain = {name: value.shape for name, value in UNet(UNet.Config(**SMALL)).state_dict().items()}
    for cls in (AGUNet, DAUNet):
        assert {name: value.shape for name, value in cls(cls.Config(**off, **SMALL)).state_dict().items()} == plain


def test_a_fresh_dual_attention_attends_to_nothing() -> None:
    torch.manual_seed(0)
    model = DAUNet(DAUNet.Config(**SMALL)).eval()
    without = DAUNet(DAUNet.Config(position=False, channel=False, **SMALL)).eval()
    without.load_state_dict(model.state_dict(), strict=False)
    x = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(model(x), without(x))


@pytest.mark.parametrize("levels", ["all", "top"])
@pytest.mark.parametrize("by", ["transposed", "linear"])
def test_guides_reach_the_levels_they_are_for(levels: Any, by: Any) -> None:
    model: Any = DAUNet(DAUNet.Config(guide_levels=levels, guide_by=by, **SMALL))
    assert [block.guide is not None for block in model.decoder] == ([True, True] if levels == "all" else [False, True])
    assert model(torch.rand(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


def test_dropout_is_off_when_evaluated() -> None:
    model = DAUNet(DAUNet.Config(dropout=0.5, **SMALL))
    x = torch.rand(1, 1, 8, 8, 8)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_model_comes_back_from_its_folder(tmp_path: Path) -> None:
    model: Any = polyhead.load("agunet", preset="tiny").eval()
    model.save_pretrained(tmp_path)
    again = polyhead.from_pretrained(tmp_path)
    x = torch.rand(1, 1, 8, 8, 8)
    assert type(again) is AGUNet
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 8, 8), r"shape \(1, 1, 8, 8\), expected \(batch, channels, D, H, W\)"),
        ((1, 2, 8, 8, 8), "image has 2 channels, the network takes 1"),
        ((1, 1, 8, 8, 10), r"sizes \(8, 8, 10\): with 3 levels each must be a multiple of 4"),
    ],
)
def test_other_images_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        UNet(UNet.Config(**SMALL))(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_dims": 4}, "spatial_dims is 4: 3 for volumes, 2 for images"),
        ({"filters": (8,)}, r"filters is \[8\]: give at least two levels"),
        ({"classes": 1}, "classes 1: at least 1 and 2"),
        ({"guided": True}, 'guided goes with attention "dual", not "none"'),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UNet(dataclasses.replace(UNet.Config(), **changes))


def test_an_unknown_release_is_refused() -> None:
    with pytest.raises(UnknownNameError, match='No release "raidionics"'):
        DAUNet.Config.release("raidionics")
