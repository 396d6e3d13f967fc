"""Published checkpoints: random weights under the published names become a model, with ResNet-50 and all."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from polyhead.errors import CheckpointError
from polyhead.models import from_pretrained
from polyhead_apps.shell import main
from polyhead_detection.app import app
from polyhead_detection.convert import coco_categories, read_checkpoint
from polyhead_detection.focus_detr import FocusDETR, FocusDETRConfig
from polyhead_detection.released import _names, convert_weights


def released_weights(config: FocusDETRConfig) -> dict[str, Tensor]:
    """Return random weights under the published names, shaped by our model and detectron2's rules."""
    torch.manual_seed(0)
    own = FocusDETR(config).state_dict()
    found: dict[str, Tensor] = {}
    for ours, theirs in _names(config, {}):
        if ".in_proj_" in ours:
            base, kind = ours.rpartition(".")[0], ours.rpartition("_")[2]
            found[theirs] = torch.cat([own[f"{base}.{part}_proj.{kind}"] for part in "qkv"])
        else:
            found[theirs] = own[ours]
    for ours, value in own.items():
        if not ours.startswith("backbone.network."):
            continue
        part = ours.removeprefix("backbone.network.")
        head, _, kind = part.rpartition(".")
        if head in ("conv1", "bn1"):
            theirs = "stem.conv1.norm" if head == "bn1" else "stem.conv1"
        else:
            stage, block, *layer = head.split(".")
            number = int(stage.removeprefix("layer")) + 1
            if layer[0] == "downsample":
                name = "shortcut.norm" if layer[1] == "1" else "shortcut"
            else:
                name = layer[0] if layer[0].startswith("conv") else f"conv{layer[0][-1]}.norm"
            theirs = f"res{number}.{block}.{name}"
        found[f"backbone.{theirs}.{kind}"] = value
    return {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in found.items()}


SMALL = {"dim": 16, "groups": 4, "heads": 2, "ff_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "queries": 5}


@pytest.fixture(scope="module")
def config() -> FocusDETRConfig:
    return FocusDETRConfig(**SMALL, cascade=(1.0,), classes=3)  # type: ignore[arg-type]  # all are ints


def test_every_weight_finds_its_place(config: FocusDETRConfig) -> None:
    weights = released_weights(config)
    model = FocusDETR(config)
    missing, unexpected = model.load_state_dict(convert_weights(weights, config), strict=False)
    assert not missing
    assert not unexpected
    network: Any = model.backbone.network
    assert torch.equal(network.layer1[0].conv2.weight, weights["backbone.res2.0.conv2.weight"])
    assert torch.equal(network.layer4[0].downsample[1].bias, weights["backbone.res5.0.shortcut.norm.bias"])
    assert torch.equal(model.queries, weights["transformer.tgt_embed.weight"])


def test_what_is_missing_is_named(config: FocusDETRConfig) -> None:
    weights = released_weights(config)
    del weights["transformer.enc_output.weight"]
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of this model, such as transformer\.enc_output.weight"):
        convert_weights(weights, config)


def test_coco_has_eighty_categories_between_1_and_90() -> None:
    found = coco_categories(None)
    assert len(found) == 80
    assert found[0] == (1, "person")
    assert found[-1] == (90, "toothbrush")


@pytest.mark.slow
def test_the_command_makes_a_model_that_other_verbs_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "focus.pth", tmp_path / "model"
    torch.save({"model": released_weights(FocusDETRConfig.release())}, path)
    assert main(app, ["convert", str(path), "--out", str(out)]) == 0
    state = json.loads((out / "task.json").read_text())["state"]
    assert state["categories"][0] == [1, "person"]
    model = from_pretrained(out)
    assert isinstance(model, FocusDETR)
    assert model.config.value == "static"
    categories = tmp_path / "three.json"
    document = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in range(3)]}
    categories.write_text(json.dumps(document))
    options = ["convert", str(path), "--out", str(tmp_path / "other"), "--categories", str(categories)]
    assert main(app, options) == 1
    assert "has 80 classes and" in capsys.readouterr().err


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("harm",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "harm.pth"
    path.write_bytes(pickle.dumps(_Harm()))
    with pytest.raises(CheckpointError, match=r"harm\.pth is no checkpoint of weights alone"):
        read_checkpoint(path)
    assert "harm" not in capsys.readouterr().out


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save({"model": {"a": 1}}, tmp_path / "numbers.pth")
    with pytest.raises(CheckpointError, match="holds no table of weights"):
        read_checkpoint(tmp_path / "numbers.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    assert main(app, ["convert", str(tmp_path / "other.pth"), "--out", str(tmp_path / "m")]) == 1
