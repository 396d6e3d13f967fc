"""The task `organs`: synthetic images, slices of volumes, figures, the network's exact properties, the command."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from polyhead.errors import CheckpointError, ConfigError, DataError, ShapeError, UnknownNameError
from polyhead.testing import check_dataset, check_model, check_task
from polyhead_apps.shell import main
from polyhead_medical.app import app
from polyhead_medical.organ_loss import organ_loss
from polyhead_medical.organ_metrics import OrganMetric
from polyhead_medical.organ_settings import OrganDataSettings, OrganPredictSettings, OrganTaskSettings
from polyhead_medical.organ_task import OrganTask
from polyhead_medical.remote import RemoteData, remote_attribute
from polyhead_medical.self_guided import SelfGuidedNet
from polyhead_medical.slices import SliceData, open_slices

FEW = OrganDataSettings(size=(64, 64), train_cases=6, validation_cases=4, test_cases=4)
TINY = {"stages": [4, 8], "stride": 2, "channels": 8}
SMALL = SelfGuidedNet.Config(classes=3, stages=(4, 8), stride=2, channels=8)


@pytest.fixture
def abdomens(tmp_path: Path, save: Any) -> Path:
    """Five volumes with two organs, stored right to left."""
    root = tmp_path / "abdomens"
    for number in range(5):
        rng = np.random.default_rng(number)
        label = np.zeros((20, 24, 6), np.uint8)
        label[3 : 9 + number, 4:12, 1:5], label[14:18, 14:20, 2:4] = 1, 2
        image = (100.0 * label + rng.normal(0, 5, label.shape)).astype(np.float32)
        affine = np.diag([-2.0, 2.0, 5.0, 1])
        save(root / "images" / f"case-{number}.nii.gz", image, affine)
        save(root / "labels" / f"case-{number}.nii.gz", label, affine)
    return root


SLICED = OrganDataSettings(size=(32, 32), organs=("liver", "spleen"))


def test_the_discs_are_told_by_the_liver_alone() -> None:
    seen = set()
    for index in range(30):
        image, label = remote_attribute(3, index)
        assert np.array_equal(image, remote_attribute(3, index)[0])
        discs = int(label.max())
        liver, disc = float(image[label == 1].mean()), float(image[label == discs].mean())
        assert discs == (3 if liver > disc else 2)
        seen.add(discs)
    assert seen == {2, 3}


def test_the_datasets_keep_the_rules(abdomens: Path) -> None:
    check_dataset(RemoteData(FEW))
    check_dataset("slices", abdomens, settings={"size": (32, 32), "organs": ("liver", "spleen")})


def test_the_task_keeps_the_rules() -> None:
    task_class: Any = OrganTask
    check_task(
        task_class,
        RemoteData(FEW),
        settings=OrganTaskSettings(),
        predict_settings=OrganPredictSettings(files=("seg", "csv")),
        model="self-guided",
        config=TINY,
        additive=False,
    )


def maps(model: Any, inputs: Any) -> Any:
    passes = model.passes(inputs["image"])
    return (*passes.first, *passes.second)


def test_the_model_is_what_the_shell_relies_on() -> None:
    check_model(
        "self-guided",
        lambda model, generator: {"image": torch.rand(2, 1, 16, 24, generator=generator)},
        config=TINY,
        forward=maps,
    )


def test_eight_maps_are_supervised_and_the_answer_is_the_mean_of_the_last_four() -> None:
    model = SelfGuidedNet(SelfGuidedNet.Config(stages=(4, 4, 4, 4), channels=8)).eval()
    x = torch.rand(2, 1, 32, 48)
    passes = model.passes(x)
    assert len(passes.first) + len(passes.second) == 8
    assert {map_.shape for map_ in (*passes.first, *passes.second)} == {(2, 5, 32, 48)}
    assert all(again.shape == joined.shape for again, joined in passes.rebuilt)
    assert len(passes.rebuilt) == 8
    torch.testing.assert_close(model(x), torch.stack(passes.second).mean(0))


def test_equal_steps_agree_where_attention_is_1() -> None:
    model: Any = SelfGuidedNet(SMALL).eval()
    model.steps[1].load_state_dict(model.steps[0].state_dict())
    for out in model.steps[0].out:
        torch.nn.init.zeros_(out.weight)
        torch.nn.init.ones_(out.bias)
    loss = organ_loss(model.passes(torch.rand(2, 1, 16, 16)), torch.zeros(2, 16, 16, dtype=torch.int64))
    assert float(loss["guidance"].detach()) == 0.0


def test_without_weights_only_the_segmentation_is_learnt() -> None:
    plain = OrganTask.prepare(RemoteData(FEW), OrganTaskSettings(guidance=0, reconstruction=0), seed=0)
    model: Any = plain.build_model("self-guided", TINY).eval()
    batch = RemoteData(FEW).source("train").fetch([0, 1], seed=0, epoch=0)
    total = sum(float((ratio.total / ratio.count).detach()) for ratio in plain.loss(model, batch).values())
    alone = organ_loss(model.passes(batch["image"]), batch["target"])["segmentation"]
    assert total == pytest.approx(float(alone.detach()))


def test_the_loss_does_not_care_what_classes_are_called() -> None:
    model = SelfGuidedNet(SMALL).eval()
    passes = model.passes(torch.rand(2, 1, 16, 16))
    target = torch.randint(0, 3, (2, 16, 16))
    order = torch.tensor([2, 0, 1])
    named = passes._replace(
        first=[x[:, order.argsort()] for x in passes.first], second=[x[:, order.argsort()] for x in passes.second]
    )
    torch.testing.assert_close(organ_loss(passes, target), organ_loss(named, order[target]))
    target[0] = -100
    assert all(term.isfinite() for term in organ_loss(passes, target).values())


@pytest.mark.parametrize(
    "changes",
    [
        {"position": False},
        {"channel": False},
        {"multi_scale": False},
        {"guided": False},
        {"steps": 1},
        {"kernel": 1},
        {"coordinates": True},
    ],
)
def test_every_part_is_a_switch(changes: dict[str, Any]) -> None:
    model = SelfGuidedNet(dataclasses.replace(SMALL, **changes))
    loss = organ_loss(
        model.passes(torch.rand(2, 1, 16, 16)), torch.zeros(2, 16, 16, dtype=torch.int64), detach_targets=True
    )
    torch.stack(list(loss.values())).sum().backward()
    assert all(term.isfinite() for term in loss.values())
    assert ("autoencoder" in " ".join(model.state_dict())) == model.config.guided


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": 1}, "classes 1, channels 8: at least 1, 2"),
        ({"stride": 3}, "stride 3: at least one stage of at least one channel, and a stride of 2 or 4"),
        ({"steps": 3}, "steps is 3 and kernel 3: steps are 1 or 2"),
    ],
)
def test_configs_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelfGuidedNet(dataclasses.replace(SMALL, **changes))


def test_other_images_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"sizes \(250, 250\): with a stride of 4 .* multiple of 16. Resize or pad"):
        SelfGuidedNet(SelfGuidedNet.Config(stages=(4, 4), channels=8))(torch.zeros(1, 1, 250, 250))
    with pytest.raises(ShapeError, match=r"shape \(1, 2, 16, 16\), expected \(batch, 1, H, W\)"):
        SelfGuidedNet(SMALL)(torch.zeros(1, 2, 16, 16))
    with pytest.raises(UnknownNameError, match='No release "DAF"'):
        SelfGuidedNet.Config.release("DAF")


def test_volumes_are_sliced_turned_and_put_together_again(abdomens: Path) -> None:
    data = SliceData(abdomens, SLICED)
    for slices, scan in data.to_predict():
        assert slices.image.shape == (6, 1, 32, 32)
        shares = torch.zeros(6, 3, 32, 32)
        shares[:, 0] = 1 - slices.image[:, 0]
        shares[:, 1] = slices.image[:, 0]
        assert slices.stored(shares).shape == scan.shape == (20, 24, 6)
    train = data.source("train")
    batch = train.fetch([1], seed=0, epoch=0)
    assert batch["spacing"][0].tolist() == pytest.approx([5.0, 20 * 2 / 32, 24 * 2 / 32])
    assert batch["target"].unique().tolist() in ([0], [0, 1], [0, 1, 2])


def test_figures_are_of_volumes_not_of_slices() -> None:
    metric = OrganMetric(("liver", "spleen", "kidney"), surfaces=True)
    truth, found = torch.zeros(4, 8, 8, dtype=torch.int64), torch.zeros(4, 8, 8, dtype=torch.uint8)
    truth[1:3, 2:6, 2:6], found[1:3, 2:6, 3:7] = 1, 1
    found[3, 0, 0] = 2
    for z in (2, 0, 3, 1):
        batch = {
            "target": truth[z : z + 1],
            "subject": ["a"],
            "slice": torch.tensor([z]),
            "spacing": torch.tensor([[5.0, 1.0, 1.0]]),
        }
        metric.update(found[z : z + 1], batch)
    figures = metric.compute()
    assert figures["dice_liver"] == pytest.approx(0.75)
    assert figures["dice_spleen"] == 0.0
    assert "dice_kidney" not in figures
    assert figures["dice"] == pytest.approx(0.375)
    assert figures["volume_similarity"] == pytest.approx(0.5)
    assert 0 < figures["surface_mm"] < 1


def test_what_does_not_fit_is_refused(abdomens: Path, save: Any) -> None:
    task = OrganTask.prepare(RemoteData(FEW), OrganTaskSettings(), seed=0)
    with pytest.raises(ConfigError, match=r"model.classes is 3, but the data ask for 4"):
        task.build_model("self-guided", {**TINY, "classes": 3})
    with pytest.raises(ConfigError, match=r"data.size is 40 × 64: with model.stride 4 it must be a multiple of 16"):
        dataclasses.replace(task, size=(40, 64)).build_model("self-guided", {**TINY, "stride": 4})
    with pytest.raises(DataError, match="abdomens has the organs liver, spleen; the model was fitted on liver, discs"):
        task.check(SliceData(abdomens, SLICED))
    with pytest.raises(CheckpointError, match="does not fit this version: organ"):
        OrganTask.restore({**task.state(), "organ": 1})
    with pytest.raises(DataError, match="give --data PATH"):
        open_slices(None, SLICED)
    with pytest.raises(DataError, match="--fold 7: with --folds 5"):
        SliceData(abdomens, SLICED.model_copy(update={"fold": 7}))
    with pytest.raises(DataError, match="has the labels 2: labels are 0, 1"):
        SliceData(abdomens, SLICED.model_copy(update={"organs": ("liver",)})).source("train")
    for number in range(3):
        (abdomens / "labels" / f"case-{number}.nii.gz").unlink()
    with pytest.raises(DataError, match="has 2 volumes with masks, at least 3 are needed"):
        SliceData(abdomens, SLICED).check_trainable()


def test_fit_and_predict_on_volumes(abdomens: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sets = ["model.stages=[4,8]", "model.stride=2", "model.channels=8", "train.steps=2", "data.size=[32,32]"]
    sets += ["data.organs=[liver,spleen]"]
    arguments = [part for setting in sets for part in ("--set", setting)]
    run, out = str(tmp_path / "run"), tmp_path / "out"
    assert main(app, ["fit", "--task", "organs", "--data", str(abdomens), *arguments, "--out", run, "-q"]) == 0
    capsys.readouterr()
    assert main(app, ["predict", "--model", run, "--data", str(abdomens), "--out", str(out), "-q"]) == 0
    said = capsys.readouterr().out
    assert "case-0: liver " in said
    assert "no medical device" in said
    mask: Any = nibabel.load(out / "case-0-seg.nii.gz")
    assert mask.shape == (20, 24, 6)
    np.testing.assert_allclose(mask.affine, np.diag([-2.0, 2.0, 5.0, 1]))
    with (out / "organs.csv").open() as stream:
        row = next(csv.DictReader(stream))
    assert float(row["liver_ml"]) == pytest.approx((np.asarray(mask.dataobj) == 1).sum() * 0.02, abs=1e-4)


def test_the_quick_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "demo")
    assert main(app, ["demo", "--task", "organs", "--quick", "--out", out, "--json", "-q"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [arm["name"] for arm in document["arms"]] == ["guided attention", "attention, no guide", "no attention"]
