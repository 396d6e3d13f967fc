"""The recipe against plain loops, and its promises: stopping, resuming, guarding, accumulating, picking the best."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.parts.training import CountingRegression, Net, Numbers, Regression, make_net
from torch import Tensor, nn

from polyhead.errors import CheckpointError, ConfigError, DataError, NonFiniteError, PluginError
from polyhead.protocols import Batch, Monitor, Ratio
from polyhead_apps import distributed
from polyhead_apps.config import TrainSettings
from polyhead_apps.console import Console
from polyhead_apps.guard import non_finite
from polyhead_apps.interrupts import StopWish
from polyhead_apps.locks import run_lock
from polyhead_apps.recipe import FitResult, Progress, evaluate, fit, predictor
from polyhead_apps.sampling import draw_order

QUIET = Console(quiet=True)
TASK: Any = Regression()
ARGUMENTS = {"train", "validation", "seed", "resume", "fingerprint", "time_limit", "console", "device"}
VARIED: Mapping[str, Any] = {"dropout": 0.3, "batch_norm": True}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def run(folder: Path, *, model: nn.Module | None = None, task: Any = None, **given: Any) -> FitResult:
    """Fit something small: 22 samples, batches of 4, so 6 steps an epoch."""
    arguments: dict[str, Any] = {"train": Numbers(), "validation": Numbers(10), "seed": 3, "console": QUIET}
    settings: dict[str, Any] = {"batch_size": 4, "lr": 0.05, "log_steps": 1}
    for name, value in given.items():
        (arguments if name in ARGUMENTS else settings)[name] = value
    return fit(
        model or make_net(),
        task or TASK,
        folder=folder,
        settings=TrainSettings.model_validate(settings),
        **arguments,
    )


def losses(result: FitResult, name: str = "loss") -> list[float]:
    return [line[name] for line in result.history if "loss" in line]


def validations(result: FitResult) -> dict[int, float]:
    return {line["step"]: line["validation"]["mae"] for line in result.history if "validation" in line}


def assert_same(a: FitResult, b: FitResult) -> None:
    torch.testing.assert_close(a.model.state_dict(), b.model.state_dict(), rtol=0, atol=0)
    assert a.history == b.history
    assert (a.steps, a.best_metric, a.stopped) == (b.steps, b.best_metric, b.stopped)


def test_equals_a_plain_loop(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=2, validation=None, weight_decay=0.1, clip_norm=0.7, schedule="linear")

    model, source = make_net(), Numbers()
    decayed = [model.inner.weight, model.outer.weight]
    kept = [model.inner.bias, model.outer.bias]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}])
    found = []
    for step in range(12):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / 12)
        order = draw_order(22, seed=3, epoch=step // 6)
        batch = source.fetch(order[step % 6 * 4 : step % 6 * 4 + 4].tolist(), seed=3, epoch=step // 6)
        loss = (model(batch["x"]) - batch["y"]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.7)
        optimizer.step()
        found.append(loss.item())
    assert losses(result) == pytest.approx(found, rel=1e-6)
    torch.testing.assert_close(result.model.state_dict(), model.state_dict())
    assert (result.steps, result.stopped, result.best_metric) == (12, "done", None)
    assert not result.model.training


def test_the_log_has_step_epoch_terms_rate_and_norm(tmp_path: Path) -> None:
    result = run(tmp_path, task=Regression(terms=2), epochs=1, log_steps=4, warmup_steps=8)
    line, validation = result.history
    assert list(line) == ["step", "epoch", "loss", "loss/square", "loss/absolute", "grad_norm", "lr"]
    assert (line["step"], line["epoch"], line["lr"]) == (4, pytest.approx(4 / 6), pytest.approx(0.025))
    assert line["loss"] == pytest.approx(line["loss/square"] + line["loss/absolute"])
    assert validation == {"step": 6, "epoch": 1.0, "validation": {"mae": result.best_metric, "count": 10.0}}
    assert [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()] == list(result.history)


def test_the_best_weights_are_returned(tmp_path: Path) -> None:
    # A learning rate that grows beyond use: the last weights are not the best.
    result = run(tmp_path, epochs=6, lr=0.8, optimizer="sgd", betas=(0.0, 0.9), clip_norm=1.0, warmup_steps=36)
    best = min(validations(result).values())
    assert result.best_metric == best < validations(result)[36]
    figures = evaluate(predictor(result.model, TASK), TASK, Numbers(10), batch_size=3, seed=3, console=QUIET)
    assert figures["mae"] == pytest.approx(best)
    step = next(step for step, value in validations(result).items() if value == best)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == sorted(
        {f"step-{step}", "step-30", "step-36"}
    )


def test_a_metric_to_maximise(tmp_path: Path) -> None:
    class Upwards(Regression):
        monitor = Monitor("mae", "max")

    result = run(tmp_path, task=Upwards(), epochs=3)
    assert result.best_metric == max(validations(result).values())


def test_patience_stops_and_a_stopped_run_stays_stopped(tmp_path: Path) -> None:
    given: dict[str, Any] = {"epochs": 50, "lr": 0.9, "optimizer": "sgd", "clip_norm": 1.0, "patience": 2}
    given["checkpoint_steps"] = 100
    result = run(tmp_path, **given)
    assert result.stopped == "patience"
    figures = list(validations(result).values())
    assert figures.index(min(figures)) == len(figures) - 3
    assert_same(run(tmp_path, resume="last", **given), result)


def test_validations_and_checkpoints_at_fractions_of_an_epoch(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=1.5, validate_epochs=0.5, keep=9)
    assert list(validations(result)) == [3, 6, 9]
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-3", "step-6", "step-9"}


def test_averaged_weights_are_validated_and_returned(tmp_path: Path) -> None:
    result = run(tmp_path, epochs=2, ema_decay=0.9, validate_epochs=5)
    plain = run(tmp_path / "plain", epochs=2, validate_epochs=5, validation=None)
    model, averages = make_net(), dict[str, Tensor]()
    assert losses(plain) == losses(result), "averaging changes no step"
    for length in range(1, 13):
        weights = run(tmp_path / f"{length}", steps=length, validation=None, checkpoint_steps=100).model.state_dict()
        decay = min(0.9, (1 + length) / (10 + length))
        for name, start in model.state_dict().items():
            averages[name] = averages.get(name, start) * decay + weights[name] * (1 - decay)
    torch.testing.assert_close(result.model.state_dict(), averages)
    unvalidated = run(tmp_path / "unvalidated", epochs=2, ema_decay=0.9, validation=None)
    torch.testing.assert_close(unvalidated.model.state_dict(), averages)


@pytest.mark.parametrize("stop", [1, 5, 6, 9])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_by_a_signal_ends_like_one_that_was_not(tmp_path: Path, stop: int, workers: int) -> None:
    given: dict[str, Any] = {"epochs": 2, "ema_decay": 0.8, "clip_norm": 1.0, "accumulate": 2, "validate_epochs": 0.7}
    undisturbed = run(tmp_path / "whole", model=make_net(**VARIED), **given)

    class Interrupting(Regression):
        def before_step(self, model: nn.Module, progress: Progress) -> None:
            if progress.step == stop - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    first = run(tmp_path / "run", model=make_net(**VARIED), task=Interrupting(), workers=workers, **given)
    assert (first.stopped, first.steps) == ("interrupted", stop)
    second = run(tmp_path / "run", model=make_net(1, **VARIED), resume="last", workers=workers, **given)
    assert_same(second, undisturbed)
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_workers_alone(tmp_path: Path, number: signal.Signals) -> None:
    class Stopping(Regression):
        def before_step(self, model: nn.Module, progress: Progress) -> None:
            if progress.step == 2:
                os.killpg(0, number)  # what Ctrl-C in a terminal and the command `timeout` do

    def child() -> None:
        os.setsid()
        result = run(tmp_path, task=Stopping(), epochs=2, workers=2)
        os._exit(result.steps if result.stopped == "interrupted" else 100)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 3


def test_the_time_limit_stops_with_a_checkpoint(tmp_path: Path) -> None:
    first = run(tmp_path, epochs=2, time_limit=0.0)
    assert (first.stopped, first.steps) == ("time", 1)
    second = run(tmp_path, epochs=2, resume="step-1")
    assert_same(second, run(tmp_path / "whole", epochs=2))


def test_a_run_goes_on_for_longer(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    longer = run(tmp_path, epochs=2, resume="last", keep=3, log_steps=1)
    assert_same(longer, run(tmp_path / "whole", epochs=2))
    shorter = run(tmp_path, epochs=1, resume="last")
    assert (shorter.steps, shorter.stopped) == (12, "done")


def test_resuming_before_the_first_checkpoint_starts_anew(tmp_path: Path) -> None:
    said = io.StringIO()
    (tmp_path / "log.jsonl").write_text("left by a killed run\n")
    result = run(tmp_path, epochs=1, resume="last", console=Console(stderr=said))
    assert "checkpoints yet: the run starts at step 0." in said.getvalue()
    assert_same(result, run(tmp_path / "whole", epochs=1))


def test_a_folder_with_checkpoints_is_not_overwritten(tmp_path: Path) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=r"checkpoints holds checkpoints up to step-6: go on with"):
        run(tmp_path, epochs=1)
    with run_lock(tmp_path), pytest.raises(CheckpointError, match="is being written by"):
        run(tmp_path, epochs=1, resume="last")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lr": 0.1}, r"train\.lr = 0\.05, now 0\.1"),
        ({"schedule": "cosine"}, r"train\.schedule = constant, now cosine; train\.steps_total = None, now 6"),
        ({"seed": 4}, r"seed = 3, now 4"),
        ({"model": make_net(hidden=9)}, r"model\.hidden = 8, now 9"),
        ({"model": nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))}, r"model\.class = Net, now Sequential"),
        ({"train": Numbers(21)}, r"data\.samples = 22, now 21"),
        ({"fingerprint": "new"}, r"made on other data \(fingerprint , now new\)"),
    ],
)
def test_another_run_s_checkpoint_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run(tmp_path, epochs=1)
    with pytest.raises(CheckpointError, match=words):
        run(tmp_path, epochs=1, resume="last", **change)


def test_accumulation_is_exact_with_one_term(tmp_path: Path) -> None:
    class Masked(Regression):
        """Counts differ between micro-batches, and are zero in some."""

        def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
            counted = batch["y"] > 1
            return {"masked": Ratio(((model(batch["x"]) - batch["y"]).square() * counted).sum(), counted.sum())}

    whole = run(tmp_path / "1", task=Masked(), epochs=2, optimizer="sgd", lr=0.01)
    cut = run(tmp_path / "3", task=Masked(), epochs=2, optimizer="sgd", lr=0.01, accumulate=3)
    torch.testing.assert_close(cut.model.state_dict(), whole.model.state_dict())
    for name in ("loss", "grad_norm"):
        assert losses(cut, name) == pytest.approx(losses(whole, name), rel=1e-4)


@pytest.mark.parametrize("terms", [1, 2])
def test_accumulation_is_exact_with_counts_known_in_advance(tmp_path: Path, terms: int) -> None:
    whole = run(tmp_path / "1", task=Regression(terms), epochs=2, optimizer="sgd", lr=0.01)
    cut = run(tmp_path / "3", task=CountingRegression(terms), epochs=2, optimizer="sgd", lr=0.01, accumulate=3)
    torch.testing.assert_close(cut.model.state_dict(), whole.model.state_dict())
    assert losses(cut, "grad_norm") == pytest.approx(losses(whole, "grad_norm"), rel=1e-4)


def test_accumulation_needs_counts_with_several_terms(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.accumulate is 3 and the loss has 2 terms \(square, absolute\)"):
        run(tmp_path, task=Regression(terms=2), epochs=1, accumulate=3)

    class Other(CountingRegression):
        def counts(self, batch: Batch) -> Mapping[str, Tensor]:
            return {"cube": torch.tensor(1)}

    with pytest.raises(PluginError, match=r"counts\(batch\) names cube and its loss square: they have"):
        run(tmp_path, task=Other(), epochs=1, accumulate=3)


def test_a_count_of_zero_is_a_loss_of_zero(tmp_path: Path) -> None:
    class Nothing(Regression):
        def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
            return {"none": Ratio((model(batch["x"]) * 0).sum(), torch.tensor(0))}

    for accumulate in (1, 2):
        result = run(tmp_path / str(accumulate), task=Nothing(), epochs=1, accumulate=accumulate)
        assert losses(result) == [0.0] * 6
        torch.testing.assert_close(result.model.state_dict(), make_net().state_dict(), rtol=0, atol=0)


def test_before_step_gets_the_plain_model_and_the_progress(tmp_path: Path) -> None:
    seen = []

    class Watching(Regression):
        def before_step(self, model: nn.Module, progress: Progress) -> None:
            assert type(model) is Net
            seen.append(progress)

    run(tmp_path, task=Watching(), steps=8)
    assert seen[7] == Progress(step=7, epoch=7 / 6, steps_total=8, steps_per_epoch=6)
    assert len(seen) == 8


def test_after_step_is_called_after_every_step_of_the_optimizer(tmp_path: Path) -> None:
    class Following(Net):
        steps = 0
        seen: Tensor

        def after_step(self) -> None:
            self.steps += 1
            self.seen = self.outer.weight.detach().clone()

    model = Following(Net.Config())
    result = run(tmp_path, model=model, steps=5, validation=None)
    assert model.steps == 5
    torch.testing.assert_close(model.seen, result.model.state_dict()["outer.weight"], rtol=0, atol=0)


def test_endless_sources_count_steps(tmp_path: Path) -> None:
    endless = Numbers(endless=True)
    whole = run(tmp_path / "whole", train=endless, steps=10, validate_epochs=0.3)
    assert list(validations(whole)) == [3, 6, 9, 10]
    run(tmp_path / "run", train=endless, steps=10, validate_epochs=0.3, time_limit=0.0)
    assert_same(run(tmp_path / "run", train=endless, steps=10, validate_epochs=0.3, resume="last"), whole)


def test_workers_change_nothing(tmp_path: Path) -> None:
    assert_same(run(tmp_path / "0", epochs=2, workers=0), run(tmp_path / "2", epochs=2, workers=2))


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    half = run(tmp_path / "half", epochs=3, precision="bf16")
    full = run(tmp_path / "full", epochs=3)
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}
    assert losses(half) == pytest.approx(losses(full), rel=0.2)
    assert losses(half) != losses(full)


def test_precision_and_strategy_that_need_a_gpu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"train\.precision is fp16, which needs a GPU: set it to bf16 or float32\."):
        run(tmp_path, epochs=1, precision="fp16", device="cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"Strategy fsdp needs GPUs: use --strategy ddp on the CPU\."):
        run(tmp_path, epochs=1, device="cpu")


def test_compiled_equals_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[nn.Module] = []
    real = torch.compile

    def quick(model: nn.Module) -> Any:
        compiled.append(model)
        return real(model, backend="aot_eager")

    monkeypatch.setattr("polyhead_apps.recipe.torch.compile", quick)
    fast = run(tmp_path / "fast", epochs=1, compile=True)
    assert len(compiled) == 1
    assert type(fast.model) is Net
    torch.testing.assert_close(fast.model.state_dict(), run(tmp_path / "slow", epochs=1).model.state_dict())


class Spoilt(Numbers):
    def fetch(self, indices: Any, *, seed: int, epoch: int) -> dict[str, Any]:
        batch = super().fetch(indices, seed=seed, epoch=epoch)
        batch["x"][batch["index"] == 7, 1] = float("nan")
        return {"inputs": {"x": batch.pop("x")}, **batch}


class Nested(Regression):
    def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
        return super().loss(model, {"x": batch["inputs"]["x"], "y": batch["y"]})


def test_nan_in_the_data_is_named(tmp_path: Path) -> None:
    step = next(step for step in range(6) if 7 in draw_order(22, seed=3, epoch=0)[step * 4 : step * 4 + 4]) + 1
    message = (
        rf'^Step {step}: "loss" is nan\. First non-finite tensor: batch "inputs\.x" \(1 of \d+ values, the first at '
    )
    with pytest.raises(NonFiniteError, match=message + r"\(\d, 1\)\)\. Mend the data"):
        run(tmp_path, train=Spoilt(), task=Nested(), validation=None, epochs=1)


def test_nan_in_a_term_a_weight_an_output_and_a_gradient_is_named(tmp_path: Path) -> None:
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            return grads[0] * float("inf")

    class Terms(Regression):
        def __init__(self, wrong: str) -> None:
            super().__init__(terms=2)
            self.wrong = wrong

        def loss(self, model: nn.Module, batch: Batch) -> Mapping[str, Ratio]:
            terms = dict(super().loss(model, batch))
            if self.wrong == "term":
                terms["absolute"] = Ratio(terms["absolute"].total / 0, terms["absolute"].count)
            if self.wrong == "gradient":
                terms["square"] = Ratio(Root.apply(terms["square"].total), terms["square"].count)
            return terms

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, -float("inf"))

    with pytest.raises(NonFiniteError, match=r'Step 1: "loss/absolute" is (inf|nan)\. All of the batch, the param'):
        run(tmp_path / "term", task=Terms("term"), epochs=1)
    with pytest.raises(NonFiniteError, match=r'"grad_norm" is (inf|nan)\. First non-finite tensor: gradient of "inner'):
        run(tmp_path / "gradient", task=Terms("gradient"), epochs=1)
    model = make_net()
    with torch.no_grad():
        model.outer.weight[0, 2] = float("inf")
    with pytest.raises(NonFiniteError, match=r'parameter "outer\.weight" \(1 of 8 values, the first at \(0, 2\)\)'):
        run(tmp_path / "weight", model=model, epochs=1)
    model = make_net()
    model.dropout = Broken()
    with pytest.raises(NonFiniteError, match=r'First non-finite tensor: output of "dropout" \(\d+ of 32 values'):
        run(tmp_path / "output", model=model, epochs=1)
    assert not list((tmp_path / "output" / "checkpoints").glob("*"))


def test_nan_in_a_buffer_is_named() -> None:
    model = make_net(batch_norm=True)
    model.get_buffer("norm.running_var")[1] = float("nan")
    error = non_finite(4, {"loss": float("nan")}, model, [], lambda batch: None)
    assert 'Step 4: "loss" is nan. First non-finite tensor: buffer "norm.running_var"' in str(error)


def test_a_validation_that_is_nan_is_never_the_best(tmp_path: Path) -> None:
    class Bad(Regression):
        monitor = Monitor("bad", "min")

        def metric(self) -> Any:
            metric: Any = super().metric()
            compute = metric.compute
            metric.compute = lambda: {**compute(), "bad": float("nan")}
            return metric

    result = run(tmp_path, task=Bad(), epochs=2)
    assert result.best_metric is None
    assert result.history[-1]["validation"]["bad"] is None


def test_a_monitor_that_is_not_computed_is_named(tmp_path: Path) -> None:
    class Lost(Regression):
        monitor = Monitor("rmse", "min")

    with pytest.raises(PluginError, match=r'The task monitors "rmse", and its metric computes mae, count\.'):
        run(tmp_path, task=Lost(), epochs=1)


def test_validation_keeps_what_is_frozen_in_evaluation_mode(tmp_path: Path) -> None:
    class Freezing(Regression):
        def before_step(self, model: Any, progress: Progress) -> None:
            if progress.step == 0:
                model.norm.eval()
            assert model.training
            assert not model.norm.training

    model = make_net(batch_norm=True)
    run(tmp_path, model=model, task=Freezing(), epochs=2)
    assert model.get_buffer("norm.running_mean").tolist() == [0.0] * 8


def test_evaluate_counts_every_sample_once() -> None:
    def perfect(batch: Batch) -> Tensor:
        assert not torch.is_grad_enabled()
        return batch["y"] + 0.5

    for batch_size, workers in ((3, 0), (100, 0), (3, 2)):
        figures = evaluate(perfect, TASK, Numbers(10), batch_size=batch_size, seed=0, workers=workers, console=QUIET)
        assert figures == {"mae": pytest.approx(0.5), "count": 10.0}


def test_a_predictor_is_in_evaluation_mode() -> None:
    model = make_net(dropout=0.5)
    batch = Numbers().fetch([0, 1], seed=0, epoch=0)
    predict = predictor(model, TASK)
    assert not model.training
    assert predict(batch).tolist() == predict(batch).tolist()
    assert not predict(batch).requires_grad


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"The training split has no samples\."):
        run(tmp_path, train=Numbers(0), epochs=1)


def test_progress_is_shown(tmp_path: Path) -> None:
    said = io.StringIO()
    run(tmp_path, epochs=1, console=Console(stderr=said, verbose=True))
    assert "Traceback" not in said.getvalue()


def test_a_second_interrupt_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.5, 103.0])
    monkeypatch.setattr("polyhead_apps.interrupts.time.monotonic", lambda: next(clock))
    before = signal.getsignal(signal.SIGINT)
    with StopWish() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.wanted
        signal.raise_signal(signal.SIGINT)  # torchrun passes on what the terminal has sent already
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_signals_are_left_alone_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[FitResult] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, epochs=1)))
    thread.start()
    thread.join()
    assert results[0].stopped == "done"


def test_one_process_is_its_own_group() -> None:
    assert (distributed.rank(), distributed.world()) == (0, 1)
    assert distributed.gather_objects("own") == ["own"]
    distributed.join_group()
    distributed.share_buffers(make_net(batch_norm=True))


def test_blocks_of_lists_are_sharded_each_for_itself() -> None:
    model = nn.Sequential(
        nn.ModuleList([make_net(), nn.Sequential(nn.Linear(1, 1))]), nn.ModuleList([nn.ModuleList([nn.ReLU()])])
    )
    assert distributed.sharding(model).transformer_cls_names_to_wrap == ["Net", "ReLU", "Sequential"]
