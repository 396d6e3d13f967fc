"""Two gloo processes under torchrun train as one does with the same global batch, and fail as one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parts.in_processes import SETUPS, curves

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes found."""
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*command, str(ROOT / "tests" / "parts" / "in_processes.py"), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, "\n".join(line for line in result.stderr.splitlines() if "rank0]" in line)
    found: dict[str, Any] = json.loads((out / "found.json").read_text())
    return found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds."""
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(json.dumps(curves(tmp_path_factory.mktemp("one"))))
    return found


@pytest.mark.parametrize("name", SETUPS)
def test_the_loss_curve_is_that_of_one_process(name: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    expected, got = ([line["loss"] for line in found[name]["history"] if "loss" in line] for found in (one, two))
    assert len(got) == len(expected) == SETUPS[name].steps
    assert max(abs(a - b) / max(1, abs(a)) for a, b in zip(expected, got, strict=True)) <= 1e-5


@pytest.mark.parametrize("name", SETUPS)
def test_validation_weights_and_evaluation_are_those_of_one_process(
    name: str, one: dict[str, Any], two: dict[str, Any]
) -> None:
    validations = [
        {line["step"]: line["validation"] for line in found[name]["history"] if "validation" in line}
        for found in (one, two)
    ]
    assert validations[0].keys() == validations[1].keys()
    for step, figures in validations[0].items():
        assert validations[1][step] == pytest.approx(figures, rel=1e-4), step
    assert two[name]["best"] == pytest.approx(one[name]["best"], rel=1e-4)
    assert two[name]["figures"] == pytest.approx(one[name]["figures"], rel=1e-4)
    for key, weights in one[name]["weights"].items():
        assert two[name]["weights"][key] == pytest.approx(weights, rel=1e-3, abs=1e-4), key


def test_a_run_in_two_processes_resumes_exactly(two: dict[str, Any]) -> None:
    assert [own["resumed"] for own in two["seen"]] == [True, True]


def test_both_processes_raise_the_error_of_one(two: dict[str, Any]) -> None:
    nan, other = (own["nan"] for own in two["seen"])
    assert nan == other
    assert 'is nan. First non-finite tensor: batch "x" (3 of ' in nan
    damaged, other = (own["damaged"] for own in two["seen"])
    assert damaged == other
    assert damaged.startswith("CheckpointError: Checkpoint step-12 is damaged: model.safetensors has ")


def test_buffers_of_a_layer_that_reduces_nothing_are_shared(two: dict[str, Any]) -> None:
    main, other = (own["buffers"] for own in two["seen"])
    assert main == other


def test_sharded_training_is_that_of_ddp_and_resumes(two: dict[str, Any]) -> None:
    for own in two["seen"]:
        assert own["sharded"]["away"] < 1e-7
        assert own["sharded"]["plain"], "the model that is returned is whole"
