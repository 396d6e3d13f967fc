"""Learn by acting, and the command `agent-train online`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from polyhead.artifacts import write_atomic
from polyhead.errors import ConfigError, MissingExtraError, StorageError, nearest

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm
    from stable_baselines3.common.vec_env import VecEnv

__all__ = ["POLICIES", "Result", "learn", "online"]

POLICIES = ("aaren", "mlp", "frames", "lstm")
FRAMES = 4
TEST_SEED = 1_000_000
"""Test environment i begins with this seed plus i: far from those of training."""
LINES = 10
"""Lines of progress that a run prints."""


class Result(NamedTuple):
    """A policy that has learned, and what came of it."""

    model: BaseAlgorithm
    returns: list[float]
    """Of the test episodes, played greedily."""
    seconds: float
    """Wall time of learning."""
    cpu_seconds: float
    """Processor time of learning."""
    state_bytes: int
    """What the policy carries from step to step, for one environment."""


def learn(
    env: str,
    policy: str,
    *,
    steps: int,
    seed: int,
    envs: int = 16,
    rollout: int = 128,
    batch: int = 512,
    epochs: int = 10,
    lr: float = 1e-3,
    gamma: float = 0.99,
    entropy: float = 0.0,
    episodes: int = 100,
    report: Any = None,
) -> Result:
    """Let a policy learn by PPO, then play greedily.

    Args:
        env: name of the environment.
        policy: "aaren", `polyhead_agents.sb3.AarenPolicy`; "mlp", SB3's MlpPolicy; "frames", the same on the last
            four observations; "lstm", RecurrentPPO of sb3-contrib.
        steps: to learn from, over all environments.
        seed: of weights, actions and environments.
        envs: environments side by side.
        rollout: steps of each between updates.
        batch: steps of a minibatch.
        epochs: passes over each rollout.
        lr: learning rate, falling to 0.
        gamma: discount.
        entropy: weight of the entropy in the loss.
        episodes: to play for the test.
        report: called with (steps so far, mean return of the last episodes) some ten times.

    Raises:
        ConfigError: no such policy or environment, or minibatches that do not divide a rollout.
        MissingExtraError: "lstm" without sb3-contrib.
    """
    if policy not in POLICIES:
        mend = nearest(policy, POLICIES)
        raise ConfigError(
            f'There is no policy "{policy}". All: {", ".join(POLICIES)}' + (f'. "{mend}"?' if mend else "")
        )
    if envs * rollout % batch:
        raise ConfigError(
            f"batch is {batch}, and a rollout has {envs} · {rollout} steps: a multiple of batch is needed."
        )
    from stable_baselines3.common.evaluation import evaluate_policy

    maker = _maker(policy)
    vectorised = _vectorised(env, envs, policy)
    model = maker(
        env=vectorised,
        n_steps=rollout,
        batch_size=batch,
        n_epochs=epochs,
        learning_rate=lambda left: lr * left,
        gamma=gamma,
        ent_coef=entropy,
        seed=seed,
        device="cpu",
    )
    began, worked = time.perf_counter(), time.process_time()
    model.learn(steps, callback=_callback(steps, report))
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - worked
    tested = _vectorised(env, envs, policy)
    tested.seed(TEST_SEED)
    returns: Any = evaluate_policy(model, tested, n_eval_episodes=episodes, return_episode_rewards=True)[0]
    vectorised.close()
    tested.close()
    return Result(model, [float(value) for value in returns], seconds, cpu_seconds, _state_bytes(model, policy))


def _maker(policy: str) -> Any:
    from functools import partial

    if policy == "lstm":
        try:
            from sb3_contrib import RecurrentPPO
        except ImportError as error:
            raise MissingExtraError(
                f"--policy lstm needs sb3-contrib ({error}).  pip install 'polyhead-agents[contrib]'"
            ) from error
        return partial(RecurrentPPO, "MlpLstmPolicy", policy_kwargs={"lstm_hidden_size": 64})
    from polyhead_agents.sb3 import PPO

    return partial(PPO, "AarenPolicy" if policy == "aaren" else "MlpPolicy")


def _vectorised(env: str, envs: int, policy: str) -> VecEnv:
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

    from polyhead_agents import environments

    made: VecEnv = DummyVecEnv([lambda: Monitor(environments.make(env))] * envs)
    return VecFrameStack(made, FRAMES) if policy == "frames" else made


def _callback(steps: int, report: Any) -> Any:
    from stable_baselines3.common.callbacks import BaseCallback

    class Report(BaseCallback):
        said = 0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            part = LINES * self.num_timesteps // steps
            if report is not None and part > self.said and self.model.ep_info_buffer:
                self.said = part
                last = [episode["r"] for episode in self.model.ep_info_buffer]
                report(self.num_timesteps, sum(last) / len(last))

    return Report()


def _state_bytes(model: Any, policy: str) -> int:
    from polyhead.nn import states

    if policy == "aaren":
        return states.nbytes(model.policy.init_state(1))
    if policy == "lstm":  # h and c of actor and critic
        return sum(part[:, :1].nbytes for part in model._last_lstm_states.pi + model._last_lstm_states.vf)
    return int(model.observation_space.shape[0] * 4) if policy == "frames" else 0


def online(
    env: Annotated[str, typer.Option(help="Environment, e.g. CartPole-v1; your own: package:Id.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.", show_default=False)],
    policy: Annotated[
        Literal["aaren", "mlp", "frames", "lstm"],
        typer.Option(help="aaren remembers; mlp does not; frames: mlp on the last 4; lstm: RecurrentPPO."),
    ] = "aaren",
    steps: Annotated[int, typer.Option(min=1, help="Steps to learn from, over all environments.")] = 100_000,
    envs: Annotated[int, typer.Option(min=1, help="Environments side by side.")] = 16,
    rollout: Annotated[int, typer.Option(min=2, help="Steps of each between updates; how far back is learned.")] = 128,
    batch: Annotated[int, typer.Option(min=2, help="Steps of a minibatch.")] = 512,
    lr: Annotated[float, typer.Option(min=0.0, help="Learning rate, falling to 0.")] = 1e-3,
    gamma: Annotated[float, typer.Option(min=0.0, max=1.0, help="Discount.")] = 0.99,
    entropy: Annotated[float, typer.Option(min=0.0, help="Weight of the entropy in the loss.")] = 0.0,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of the test.")] = 100,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights, actions and environments.")] = 0,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads (default: all).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what is in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Learn by acting, with PPO and a policy that remembers; writes metrics.json and model.zip, an archive of SB3."""
    from polyhead_agents.metrics import half_width
    from polyhead_apps.console import Console

    console = Console(quiet=quiet)
    if (out / "metrics.json").exists() and not force:
        raise StorageError(f"--out {out} holds a run: name another folder, or replace it with --force.")
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    settings: dict[str, Any] = {
        "steps": steps,
        "envs": envs,
        "rollout": rollout,
        "batch": batch,
        "lr": lr,
        "gamma": gamma,
        "entropy": entropy,
        "episodes": episodes,
        "seed": seed,
    }
    learned = learn(
        env,
        policy,
        **settings,
        report=lambda sofar, mean: console.line(f"{sofar:,} steps: mean return of the last episodes {mean:.3g}"),
    )
    figures = {
        "return": sum(learned.returns) / len(learned.returns),
        "return_ci95": half_width(learned.returns),
        "seconds": round(learned.seconds, 1),
        "cpu_seconds": round(learned.cpu_seconds, 1),
        "state_bytes": learned.state_bytes,
        "peak_memory_mb": _peak_memory_mb(),
        "parameters": sum(one.numel() for one in learned.model.policy.parameters()),
    }
    document = {"env": env, "policy": policy, "settings": settings, "metrics": figures, "returns": learned.returns}
    out.mkdir(parents=True, exist_ok=True)
    learned.model.save(out / "model.zip")
    write_atomic(out / "metrics.json", json.dumps(document, indent=2).encode())
    if as_json:
        console.result(json.dumps(document, indent=2))
    else:
        console.table(["figure", "value"], [[name, value] for name, value in figures.items()])
    console.line(f"made {out}: metrics.json, and model.zip for PPO.load of polyhead_agents.sb3.")


def _peak_memory_mb() -> float:
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
