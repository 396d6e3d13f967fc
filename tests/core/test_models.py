"""Models are built by name, saved whole or not at all, and come back equal; damage and misuse are named."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polyhead
from polyhead import ModelSpec, Plugin, Pretrained, artifacts, hookimpl, models, plugins
from polyhead.errors import CheckpointError, ConfigError, StorageError, UnknownNameError


@dataclasses.dataclass(frozen=True)
class NetConfig:
    dim: int = 4
    widths: tuple[int, ...] = (3, 5)


class Net(Pretrained, nn.Module):
    Config = NetConfig

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Linear(config.dim, config.dim)
        self.tied = nn.Linear(config.dim, config.dim)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(config.dim)
        self.frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
        self.mean: torch.Tensor
        self.cache: torch.Tensor
        self.register_buffer("mean", torch.ones(config.widths))
        self.register_buffer("cache", torch.ones(2), persistent=False)


class Other(Net):
    pass


class Catalogue:
    @hookimpl
    def polyhead_plugin(self) -> Plugin:
        presets: dict[str, dict[str, Any]] = {"tiny": {"dim": 2}, "broken": {"dim": "two"}}
        return Plugin(
            name="catalogue",
            summary="models of this test",
            models=(
                ModelSpec(name="net", target=f"{__name__}:Net", summary="a net", presets=presets),
                ModelSpec(name="alias", target=f"{__name__}:reexported", summary="named elsewhere"),
            ),
        )


reexported = Other


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # importmode=importlib registers test modules under a dotted name that references can use.
    assert sys.modules[__name__].Net is Net
    monkeypatch.setenv("POLYHEAD_PLUGINS", "")
    plugins.reload()
    plugins.register(Catalogue(), "catalogue")
    yield
    monkeypatch.undo()
    plugins.reload()


@pytest.fixture
def net() -> Net:
    net = Net(NetConfig(dim=3))
    with torch.no_grad():
        net.mean.normal_()
        for buffer in net.norm.buffers():
            buffer += 7
    return net


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_load_builds_by_name_preset_and_values() -> None:
    assert polyhead.load("net").config == NetConfig()
    assert polyhead.load("net", preset="tiny", widths=[1]).config == NetConfig(dim=2, widths=(1,))
    assert polyhead.load("net").training
    assert models.model_name(Net) == models.model_name(Net(NetConfig())) == "net"
    assert models.model_name(Other) == "alias"
    assert models.model_name(nn.Linear) == "Linear"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dims": 3}, 'Model "net": no setting "dims". Did you mean "dim"?'),
        ({"dim": "3"}, 'Model "net": "dim" is \'3\' (str); expected int.'),
        ({"preset": "tine"}, 'Model "net" has no preset "tine". Did you mean "tiny"?'),
        ({"preset": "xyz"}, 'Model "net" has no preset "xyz". All: broken, tiny'),
        ({"preset": "broken"}, "\"dim\" is 'two' (str); expected int."),
    ],
)
def test_load_names_what_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        polyhead.load("net", **arguments)


def test_load_suggests_the_nearest_model() -> None:
    with pytest.raises(UnknownNameError, match=r'No model "nett"\. Did you mean "net"\?  All: alias, net'):
        polyhead.load("nett")


def test_saved_models_come_back_equal(tmp_path: Path, net: Net) -> None:
    folder = net.save_pretrained(tmp_path / "runs" / "net", extra={"task.json": {"scale": 2.5}})
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "manifest.json",
        "model.safetensors",
        "task.json",
    ]
    saved = json.loads((folder / "config.json").read_text())
    assert saved == {
        "model": "net",
        "format": 1,
        "config": {"dim": 3, "widths": [3, 5]},
        "polyhead": polyhead.__version__,
    }
    for again in (Net.from_pretrained(folder), polyhead.from_pretrained(folder), polyhead.load(str(folder))):
        assert type(again) is Net
        assert same(again, net)
        assert again.config == net.config
        assert not again.training
        assert again.tied.weight is again.first.weight
        assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in net.parameters()]
    assert models.read_extra(folder, "task.json") == {"scale": 2.5}
    assert models.read_config(folder).model == "net"


def test_saving_again_replaces_and_saving_twice_gives_the_same_bytes(tmp_path: Path, net: Net) -> None:
    folder = net.save_pretrained(tmp_path / "net", extra={"task.json": 1})
    net.save_pretrained(folder)
    assert not (folder / "task.json").exists()
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    polyhead.save_pretrained(net, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_comes_back_for_all_buffers(tmp_path: Path, net: Net, dtype: torch.dtype) -> None:
    net.to(dtype).save_pretrained(tmp_path / "net")
    again = Net.from_pretrained(tmp_path / "net")
    assert again.first.weight.dtype == again.mean.dtype == again.cache.dtype == dtype
    assert same(again, net)
    assert again.tied.weight is again.first.weight


def test_mixed_dtypes_come_back_one_by_one(tmp_path: Path, net: Net) -> None:
    net.first.to(torch.bfloat16)
    net.mean = net.mean.double()
    net.save_pretrained(tmp_path / "net")
    again = Net.from_pretrained(tmp_path / "net")
    assert again.first.weight.dtype == torch.bfloat16
    assert again.mean.dtype == torch.float64
    assert again.norm.weight.dtype == again.cache.dtype == torch.float32
    assert same(again, net)


def test_loading_moves_no_random_state(tmp_path: Path, net: Net) -> None:
    net.save_pretrained(tmp_path / "net")
    before = torch.get_rng_state()
    Net.from_pretrained(tmp_path / "net")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_folder_of_another_model_names_both(tmp_path: Path, net: Net) -> None:
    net.save_pretrained(tmp_path / "net")
    with pytest.raises(
        CheckpointError, match=r'net holds the model "net", not "alias"\. Load it with polyhead\.from_pr'
    ):
        Other.from_pretrained(tmp_path / "net")


def test_a_model_that_no_plugin_has_is_named(tmp_path: Path, net: Net) -> None:
    net.save_pretrained(tmp_path / "net")
    plugins.reload()
    with pytest.raises(CheckpointError, match=r'holds the model "net", which no installed plugin has\. No model "net"'):
        polyhead.from_pretrained(tmp_path / "net")


def test_registered_names_come_before_folders(tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    net.save_pretrained("net")
    assert polyhead.load("net").config.dim == 4
    assert polyhead.load("./net").config.dim == 3
    with pytest.raises(ConfigError, match=r"\./net is a saved model and has its config; dim cannot be changed"):
        polyhead.load("./net", dim=5)
    with pytest.raises(ConfigError, match=r"preset=tiny cannot be changed\. Leave it out\."):
        polyhead.load("./net", preset="tiny")


def test_damage_is_named(tmp_path: Path, net: Net) -> None:
    folder = net.save_pretrained(tmp_path / "net")
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"net is damaged: model\.safetensors does not match its digest"):
        Net.from_pretrained(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"net is damaged: model\.safetensors is missing"):
        Net.from_pretrained(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing\. Use another copy"):
        Net.from_pretrained(folder)
    (folder / "task.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"task\.json is not JSON"):
        models.read_extra(folder, "task.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "config.json is no JSON object"),
        ({"model_type": "bert"}, 'config.json is not of Polyhead: it needs "model", "format" and "config"'),
        ({"model": "net", "format": True, "config": {}}, "config.json is not of Polyhead"),
        (
            {"model": "net", "format": 2, "config": {}, "polyhead": "9.0"},
            "has format 2, made by Polyhead 9.0; this one reads up to 1. pip install --upgrade polyhead",
        ),
        ({"model": "net", "format": 1, "config": {"dim": 3}, "pad": "x" * 2**20}, "is larger than 1048576 bytes"),
    ],
)
def test_foreign_configs_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        polyhead.from_pretrained(tmp_path)


def test_unknown_settings_in_a_saved_config_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model": "net", "format": 1, "config": {"dimm": 3}}))
    with pytest.raises(ConfigError, match=r'config\.json: no setting "dimm". Did you mean "dim"\?'):
        polyhead.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_the_config_are_all_named(tmp_path: Path, net: Net) -> None:
    folder = net.save_pretrained(tmp_path / "net")
    (folder / "manifest.json").unlink()
    state = net.state_dict()
    del state["mean"]
    state["more"] = torch.ones(1)
    state["frozen"] = torch.ones(9)
    state["norm.num_batches_tracked"] = torch.tensor(7.0)
    artifacts.save_tensors(folder / "model.safetensors", state)
    with pytest.raises(CheckpointError) as caught:
        Net.from_pretrained(folder)
    assert (
        'does not fit config.json: "mean" is missing; "more" is unknown; "frozen" has shape (9,) where the config asks '
        'for (2,); "norm.num_batches_tracked" has dtype torch.float32 where the model has torch.int64. Use another copy'
    ) in str(caught.value)


def test_many_problems_are_counted(tmp_path: Path, net: Net) -> None:
    folder = net.save_pretrained(tmp_path / "net")
    (folder / "manifest.json").unlink()
    artifacts.save_tensors(folder / "model.safetensors", {f"w{i:02}": torch.ones(1) for i in range(20)})
    with pytest.raises(CheckpointError, match=r'"first\.bias" is missing; .*; and \d+ more\. Use another copy'):
        Net.from_pretrained(folder)


def test_what_cannot_be_saved_is_named_before_anything_is_written(tmp_path: Path, net: Net) -> None:
    tensor: Any = torch.ones(1)
    with pytest.raises(ConfigError, match=r"Linear cannot be saved: its attribute config is no dataclass \(None\)"):
        polyhead.save_pretrained(nn.Linear(2, 2), tmp_path / "x")
    for name in ("config.json", "manifest.json", "../task.json", "a/b.json", "task.txt", ".json"):
        with pytest.raises(ConfigError, match=re.escape(f'Extra file "{name}" cannot be saved with a model')):
            net.save_pretrained(tmp_path / "x", extra={name: 1})
    with pytest.raises(ConfigError, match=r'Extra file "task\.json" cannot be saved with a model: .*JSON'):
        net.save_pretrained(tmp_path / "x", extra={"task.json": {"a": float("nan")}})
    with pytest.raises(ConfigError, match=r'"task\.json" cannot be saved with a model: Object of type Tensor'):
        net.save_pretrained(tmp_path / "x", extra={"task.json": tensor})
    assert list(tmp_path.iterdir()) == []


def test_a_persons_folder_is_not_replaced(tmp_path: Path, net: Net) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match=r"it holds files of others \(thesis\.tex\)"):
        net.save_pretrained(tmp_path)


def test_a_run_is_not_mistaken_for_its_model(tmp_path: Path, net: Net) -> None:
    net.save_pretrained(tmp_path / "run" / "model")
    with pytest.raises(
        CheckpointError, match=r"run is not a saved model: it has no config\.json\. Did you mean .*run/mo"
    ):
        polyhead.from_pretrained(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"it has no config\.json\. Save one there first\."):
        polyhead.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", "../x/y", "/etc/nothing", "a/..", "a b/c"])
def test_what_is_neither_a_folder_nor_an_id_is_refused(name: str) -> None:
    with pytest.raises(
        CheckpointError, match=re.escape(f'There is no folder "{name}", and it is not an id "owner/name"')
    ):
        polyhead.from_pretrained(name)


def test_the_hub_needs_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r'no folder "ann/net"\. If it is an id .*: pip install huggingface_hub'):
        polyhead.from_pretrained("ann/net")


def test_the_hub_is_asked_for_safe_files_only(tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = net.save_pretrained(tmp_path / "net")
    asked: list[Any] = []

    class Hub:
        @staticmethod
        def snapshot_download(name: str, **options: Any) -> str:
            asked.append((name, options))
            if name == "ann/gone":
                raise OSError("404")
            return str(folder)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    assert same(polyhead.load("ann/net"), net)
    assert same(Net.from_pretrained("ann/net", revision="v1"), net)
    assert asked[-1] == ("ann/net", {"revision": "v1", "allow_patterns": ["*.json", "model.safetensors"]})
    with pytest.raises(
        CheckpointError, match='There is no folder "ann/gone", and the Hugging Face Hub did not give it: OS'
    ):
        polyhead.from_pretrained("ann/gone")
