"""The command `agent-train`."""

from __future__ import annotations

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["app", "main"]

GENERATED = "Generated data: figures say nothing of yours."
MIXERS = (Arm("aaren", {"model.mixer": "aaren"}), Arm("transformer", {"model.mixer": "softmax"}))

app = App(
    name="agent-train",
    plugin="agents",
    summary="Train agents on recorded episodes with Decision Aaren, whose state stays small.",
    tasks=("offline-rl", "events", "classify", "forecast"),
    demo=Demo(
        settings={
            "model.preset": "small",
            "train.steps": 600,
            "train.lr": 1e-3,
            "train.warmup_steps": 100,
            "train.schedule": "cosine",
            "train.validate_epochs": 0.5,
            "data.play_episodes": 50,
        },
        quick={
            "model.preset": "tiny",
            "train.steps": 30,
            "train.warmup_steps": 3,
            "data.play_episodes": 5,
            "predict.episodes": 2,
        },
        note="CartPole is simulated and easy: other environments need longer training.",
        arms=(
            Arm("decision-aaren", {"model.name": "decision-aaren"}),
            Arm("decision-transformer", {"model.name": "decision-transformer"}),
        ),
        seeds=3,
        function="polyhead_agents.demo:demo",
    ),
    demos={
        "events": Demo(
            settings={"train.epochs": 30},
            quick={"model.preset": "tiny", "train.epochs": 1},
            note=GENERATED,
            arms=MIXERS,
            seeds=3,
        ),
        "classify": Demo(
            settings={"train.epochs": 30},
            quick={"model.preset": "tiny", "train.epochs": 2},
            note=GENERATED,
            arms=MIXERS,
            seeds=3,
        ),
        "forecast": Demo(
            settings={"train.epochs": 6, "train.lr": 1e-3, "train.step_epochs": 2, "data.horizon": 24},
            quick={"model.preset": "tiny", "train.steps": 20, "data.history": 24},
            note=GENERATED,
            arms=MIXERS,
            seeds=3,
        ),
    },
    commands={
        "record": "polyhead_agents.recording:record",
        "online": "polyhead_agents.online:online",
        "streaming": "polyhead_agents.streaming:streaming",
    },
    epilog="Own episodes: agent-train record --env ID --out FILE, then agent-train fit --data FILE --env ID.",
)


def main() -> None:
    """Run the command."""
    run(app)
