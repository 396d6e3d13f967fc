"""Checkpoints: everything comes back, damage is named, other runs are refused, no more are kept than asked for."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.parts.training import Net, make_net

from polyhead.artifacts import atomic_folder, save_tensors, write_manifest
from polyhead.errors import CheckpointError, StorageError
from polyhead_apps.checkpoints import Best, Checkpoints, Training, random_state, restore_random
from polyhead_apps.config import TrainSettings
from polyhead_apps.console import Console
from polyhead_apps.locks import run_lock
from polyhead_apps.optim import AveragedWeights, make_optimizer

IDENTITY = {"train": {"lr": 0.1, "betas": [0.9, 0.99]}, "data": {"fingerprint": "abc"}}
CPU = torch.device("cpu")
SAID = Console(quiet=True)


def make_training(seed: int = 0, *, optimizer: str = "adamw", averaged: bool = True, steps: int = 0) -> Training:
    model = make_net(seed, batch_norm=True)
    made = make_optimizer(model, TrainSettings.model_validate({"optimizer": optimizer}))
    training = Training(model, made, AveragedWeights(model, 0.9) if averaged else None, None, CPU)
    for step in range(steps):
        made.zero_grad()
        model(torch.randn(4, 3, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        made.step()
        training.step += 1
        if training.averaged:
            training.averaged.update(training.step)
    return training


def make_checkpoints(folder: Path, identity: Any = IDENTITY, keep: int = 2) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", identity=identity, keep=keep)


def write_steps(checkpoints: Checkpoints, *steps: int, best: dict[int, int] | None = None) -> None:
    training = make_training(steps=1)
    for step in steps:
        training.step = step
        training.best = Best(best[step], 0.5) if best and step in best else training.best
        checkpoints.write(training, log_position=0)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("averaged", [True, False])
def test_everything_comes_back(tmp_path: Path, optimizer: str, averaged: bool) -> None:
    checkpoints = make_checkpoints(tmp_path)
    training = make_training(0, optimizer=optimizer, averaged=averaged, steps=3)
    training.best, training.waited = Best(2, 0.1 + 0.2), 1
    checkpoints.write(training, log_position=17)
    expected = [random.random(), np.random.normal(), torch.rand(3).tolist()]

    fresh = make_training(5, optimizer=optimizer, averaged=averaged)
    assert checkpoints.read("step-3", fresh, SAID) == 17
    assert [random.random(), np.random.normal(), torch.rand(3).tolist()] == expected
    assert (fresh.step, fresh.best, fresh.waited) == (3, (2, 0.1 + 0.2), 1)
    torch.testing.assert_close(fresh.model.state_dict(), training.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        fresh.optimizer.state_dict()["state"], training.optimizer.state_dict()["state"], rtol=0, atol=0
    )
    if averaged:
        assert fresh.averaged is not None
        assert training.averaged is not None
        torch.testing.assert_close(fresh.averaged.tensors, training.averaged.tensors, rtol=0, atol=0)
        checkpoints.read_weights("step-3", fresh)
        torch.testing.assert_close(
            fresh.model.state_dict()["inner.weight"], training.averaged.tensors["inner.weight"], rtol=0, atol=0
        )


def test_files_are_safetensors_and_json(tmp_path: Path) -> None:
    write_steps(make_checkpoints(tmp_path), 4)
    folder = tmp_path / "checkpoints" / "step-4"
    names = {path.name for path in folder.iterdir()}
    tensors = {f"{name}.safetensors" for name in ("model", "optimizer", "averaged", "random")}
    assert names == tensors | {"state.json", "manifest.json"}
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == names - {"manifest.json"}


def test_python_and_numpy_normal_deviates_in_waiting_come_back() -> None:
    random.gauss(0, 1), np.random.normal()  # each makes two and keeps the second
    state = random_state(CPU)
    expected = [random.gauss(0, 1), np.random.normal(), random.gauss(0, 1), np.random.normal()]
    random.seed(1), np.random.seed(1)
    restore_random(state, CPU)
    assert [random.gauss(0, 1), np.random.normal(), random.gauss(0, 1), np.random.normal()] == expected


def test_last_and_named_checkpoints_are_chosen_by_step(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path, keep=9)
    assert checkpoints.choose("last") is None
    write_steps(checkpoints, 8, 9, 10)
    (tmp_path / "checkpoints" / "step-best").mkdir()
    assert checkpoints.names() == ["step-8", "step-9", "step-10"]
    assert checkpoints.choose("last") == "step-10"
    assert checkpoints.choose("step-8") == "step-8"
    with pytest.raises(CheckpointError, match=r'No checkpoint "step-7" in .*: there is step-8, step-9, step-10\. Or: '):
        checkpoints.choose("step-7")
    with pytest.raises(CheckpointError, match=r"there is none\."):
        make_checkpoints(tmp_path / "other").choose("step-7")


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "flipped": ("model.safetensors", flip_byte, "model.safetensors does not match its digest"),
    "short": (
        "optimizer.safetensors",
        lambda path: os.truncate(path, path.stat().st_size - 1),
        r"optimizer.safetensors has \d+ bytes where \d+ were written",
    ),
    "gone": ("random.safetensors", Path.unlink, "random.safetensors is missing"),
    "state": ("state.json", flip_byte, "state.json does not match its digest"),
    "manifest": (
        "manifest.json",
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        "manifest.json is missing or not readable",
    ),
    "no manifest": ("manifest.json", Path.unlink, "manifest.json is missing or not readable"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_the_last_good_one(tmp_path: Path, damage: str) -> None:
    checkpoints = make_checkpoints(tmp_path, keep=9)
    write_steps(checkpoints, 400, 800, 1200)
    name, hurt, problem = DAMAGE[damage]
    hurt(checkpoints.folder / "step-1200" / name)
    mend = r"\. Last good: step-800 \(--resume step-800\)\."
    for asked in ("last", "step-1200"):
        with pytest.raises(CheckpointError, match=rf"^Checkpoint step-1200 is damaged: ({problem}){mend}$"):
            checkpoints.choose(asked)
    assert checkpoints.choose("step-800") == "step-800"
    flip_byte(checkpoints.folder / "step-800" / "averaged.safetensors")
    with pytest.raises(CheckpointError, match=r"Last good: step-400 \(--resume step-400\)\."):
        checkpoints.choose("last")
    flip_byte(checkpoints.folder / "step-400" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"No good one is left: fit again\."):
        checkpoints.choose("last")


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path)
    write_steps(checkpoints, 5)
    generator = random.Random(0)
    for path in sorted((checkpoints.folder / "step-5").iterdir()):
        data = path.read_bytes()
        for position in generator.sample(range(len(data)), 8):
            path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
            with pytest.raises(CheckpointError, match="Checkpoint step-5 is damaged"):
                checkpoints.choose("last")
        path.write_bytes(data)
    assert checkpoints.choose("last") == "step-5"


def test_resuming_an_older_one_removes_the_later_ones(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path, keep=9)
    write_steps(checkpoints, 1, 2, 3)
    flip_byte(checkpoints.folder / "step-3" / "model.safetensors")
    said = io.StringIO()
    checkpoints.read("step-1", make_training(), Console(stderr=said))
    assert said.getvalue() == "Removed step-2, step-3: later than step-1, from which the run goes on.\n"
    assert checkpoints.names() == ["step-1"]


def test_the_newest_and_their_best_are_kept(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path, keep=2)
    write_steps(checkpoints, 1, 2, 3, 4, best={1: 1})
    assert checkpoints.names() == ["step-1", "step-3", "step-4"]
    write_steps(checkpoints, 5, best={5: 5})
    # step-4 still knows step-1 as its best: resumed from there, the run would need it.
    assert checkpoints.names() == ["step-1", "step-4", "step-5"]
    write_steps(checkpoints, 6, best={6: 5})
    assert checkpoints.names() == ["step-5", "step-6"]


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path)
    write_steps(checkpoints, 3)
    checkpoints.write(make_training(1, steps=3), log_position=5)
    assert checkpoints.read("step-3", make_training(), SAID) == 5


def test_other_settings_and_data_are_refused(tmp_path: Path) -> None:
    write_steps(make_checkpoints(tmp_path), 3)

    def read(train: dict[str, Any], fingerprint: str) -> None:
        other = make_checkpoints(tmp_path, {"train": train, "data": {"fingerprint": fingerprint}})
        other.read("step-3", make_training(), SAID)

    read({"lr": 0.1, "betas": [0.9, 0.99]}, "abc")
    with pytest.raises(CheckpointError, match=r"step-3 was made with other settings: train\.lr = 0\.1, now 0\.2\. Set"):
        read({"lr": 0.2, "betas": [0.9, 0.99]}, "abc")
    with pytest.raises(CheckpointError, match=r"other data \(fingerprint abc, now def\)\. Bring those data back"):
        read({"lr": 0.1, "betas": [0.9, 0.99]}, "def")


def test_another_model_is_refused(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path)
    write_steps(checkpoints, 3)
    training = make_training()
    training.model = Net(Net.Config(hidden=6))
    with pytest.raises(CheckpointError, match=r"Checkpoint step-3 holds another model: ") as refusal:
        checkpoints.read("step-3", training, SAID)
    assert '"inner.weight" is (8, 3) there and (6, 3) here' in str(refusal.value)
    assert '"norm.weight" is not in this model' in str(refusal.value)
    training.model = torch.nn.Sequential(training.model)
    with pytest.raises(CheckpointError, match=r'"0\.inner\.bias" is missing there'):
        checkpoints.read("step-3", training, SAID)


def test_another_format_is_refused(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path)
    with atomic_folder(checkpoints.folder / "step-1") as folder:
        save_tensors(folder / "model.safetensors", {})
        (folder / "state.json").write_text('{"format": 2}')
        write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"Checkpoint step-1 has format 2, this version reads 1\. Fit again\."):
        checkpoints.read("step-1", make_training(), SAID)


def test_other_numbers_of_processes_are_told(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path)
    write_steps(checkpoints, 3)
    path = checkpoints.folder / "step-3" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processes": 2}))
    write_manifest(path.parent)
    said = io.StringIO()
    checkpoints.read("step-3", make_training(), Console(stderr=said))
    assert "step-3 was made by 2 processes and goes on in 1: its random states are not used." in said.getvalue()


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = make_checkpoints(tmp_path)
    write_steps(checkpoints, 3)

    def full(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("polyhead_apps.checkpoints.write_manifest", full)
    with pytest.raises(StorageError, match=r"(?i)step-4.*no space left"):
        write_steps(checkpoints, 4)
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-3"]
    assert checkpoints.choose("last") == "step-3"


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    checkpoints = make_checkpoints(tmp_path)
    checkpoints.clean()
    write_steps(checkpoints, 3)
    for name in (".step-4.tmp-abc", ".step-2.tmp-removed"):
        (checkpoints.folder / name).mkdir()
        (checkpoints.folder / name / "model.safetensors").write_text("half")
    assert checkpoints.choose("last") == "step-3"
    checkpoints.clean()
    assert [path.name for path in checkpoints.folder.iterdir()] == ["step-3"]


HOLD = """
import sys, time
from pathlib import Path
from polyhead_apps.locks import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_run_is_written_by_one_process(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(CheckpointError, match="is being written by this very process"):
        run_lock(tmp_path).__enter__()
    assert not (tmp_path / "lock").exists()

    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    with other:
        other.stdout.readline()
        with pytest.raises(CheckpointError, match=rf"being written by process {other.pid} on .*lock\)\. Wait for it"):
            run_lock(tmp_path).__enter__()
        other.send_signal(signal.SIGKILL)
    # A killed owner leaves the file and not the lock.
    assert (tmp_path / "lock").exists()
    with run_lock(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / "lock").read_text()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match=r"Cannot write .*lock: (File exists|Not a directory)\. Choose a folder"):
        run_lock(tmp_path / "run").__enter__()
