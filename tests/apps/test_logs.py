"""The log: cut back on resume, free of times, and readable by TensorBoard."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from polyhead.errors import CheckpointError, StorageError
from polyhead_apps.logs import RunLog, read_log


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    event_accumulator: Any = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_lines_hold_figures_and_no_times(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.training(1, 0.5, {"loss": 2.0, "grad_norm": float("nan")}, {"steps_per_s": 3.0})
    log.validation(1, 0.5, {"mae": 1.5, "bad": float("inf")})
    log.close()
    assert read_log(tmp_path) == [
        {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": None},
        {"step": 1, "epoch": 0.5, "validation": {"mae": 1.5, "bad": None}},
    ]
    assert "steps_per_s" not in (tmp_path / "log.jsonl").read_text()
    assert scalars(tmp_path)["train/steps_per_s"] == [(1, 3.0)]


def test_resuming_cuts_off_what_the_checkpoint_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # TensorBoard reads files by name: second, process, count of this process. Two of one second, as only a test makes
    # them, are in order unless the count goes from 9 to 10 between them.
    writer: Any = importlib.import_module("tensorboard.summary.writer.event_file_writer")
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))
    log = RunLog(tmp_path)
    for step in (1, 2, 3):
        log.training(step, step / 4, {"loss": float(step)}, {})
        if step == 2:
            position = log.position()
    log.close()
    log = RunLog(tmp_path, position=position, step=2)
    log.training(3, 0.75, {"loss": 30.0}, {})
    log.close()
    assert [line["loss"] for line in read_log(tmp_path)] == [1.0, 2.0, 30.0]
    assert scalars(tmp_path)["train/loss"] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_new_run_starts_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("old\n")
    log = RunLog(tmp_path)
    assert log.position() == 0
    log.close()
    assert read_log(tmp_path) == []


def test_a_log_that_lost_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match=r"log\.jsonl has 3 bytes where the checkpoint of step 4 saw 10: lines"):
        RunLog(tmp_path, position=10, step=4)


def test_a_log_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"Cannot write .*log\.jsonl: Is a directory\."):
        RunLog(tmp_path)


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    whole = json.dumps({"step": 1})
    (tmp_path / "log.jsonl").write_text(f"{whole}\n{whole[:5]}")
    assert read_log(tmp_path) == [{"step": 1}]
    assert read_log(tmp_path / "nowhere") == []
