"""The manifest of the agents plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyhead.manifest import AppSpec, DatasetSpec, MixerSpec, ModelSpec, Plugin, TaskSpec
from polyhead.plugins import hookimpl

__all__ = ["polyhead_plugin"]

PRESETS = {
    "tiny": {"dim": 32, "depth": 1, "heads": 1, "positions": "sinusoid"},
    "small": {"dim": 64, "depth": 2, "heads": 2, "positions": "sinusoid"},
    "paper": {"dim": 128, "depth": 3, "heads": 1, "positions": "table"},
}

AAREN = ModelSpec(
    name="decision-aaren",
    target="polyhead_agents.decision:DecisionAaren",
    summary="acts on returns, observations and actions by attention as a recurrence, with a state of constant size",
    paper="Feng et al. 2024, arXiv:2405.13956",
    presets=PRESETS,
)
TRANSFORMER = ModelSpec(
    name="decision-transformer",
    target="polyhead_agents.decision:DecisionTransformer",
    summary="the same model with causal self-attention, whose cache grows",
    paper="Chen et al. 2021, arXiv:2106.01345",
    presets=PRESETS,
)

AS_AAREN = "Feng et al. 2024, arXiv:2405.13956"
TINY: Mapping[str, Any] = {"dim": 16, "depth": 1, "heads": 2, "ff_dim": 32}
SMALL: Mapping[str, Any] = {"dim": 64, "depth": 2, "heads": 4, "ff_dim": 128}

CLASSIFIER = ModelSpec(
    name="series-classifier",
    target="polyhead_agents.classifier:SeriesClassifier",
    summary="class of a series, by causal codes that can be streamed; mixer aaren, or softmax for a Transformer",
    paper=AS_AAREN,
    presets={"tiny": TINY, "small": SMALL, "paper": {"dim": 128, "depth": 3, "heads": 8, "ff_dim": 256}},
)
FORECASTER = ModelSpec(
    name="series-forecaster",
    target="polyhead_agents.forecaster:SeriesForecaster",
    summary="next steps of a table of readings; mixer aaren, or softmax for a Transformer",
    paper=AS_AAREN,
    presets={"tiny": TINY, "small": SMALL, "paper": {"dim": 512, "depth": 3, "heads": 8, "ff_dim": 2048}},
)
EVENTS = ModelSpec(
    name="event-model",
    target="polyhead_agents.event_model:EventModel",
    summary="time and kind of the next event, by a log-normal mixture; mixer aaren, or softmax for a Transformer",
    paper=AS_AAREN,
    presets={
        "tiny": {"dim": 16, "depth": 1, "ff_dim": 16, "components": 2},
        "small": {"dim": 32, "depth": 2, "ff_dim": 32},
        "paper": {"dim": 64, "depth": 2, "ff_dim": 64},
    },
)

RECENT = MixerSpec(
    name="recent-aaren",
    target="polyhead_agents.recent_aaren:RecentAaren",
    summary="Aaren whose heads forget at rates of their own, state of constant size",
    paper="Feng et al. 2024, arXiv:2405.13956; slopes: Press et al. 2022, arXiv:2108.12409",
)

CARTPOLE = DatasetSpec(
    name="cartpole-ppo",
    target="polyhead_agents.formats:open_cartpole",
    summary="episodes of CartPole-v1, played by a half-trained PPO",
    embedded=True,
    source="recorded by `python -m polyhead_agents.embedded`",
    licence="Apache-2.0",
)
EPISODES = DatasetSpec(
    name="episodes",
    target="polyhead_agents.formats:open_episodes",
    summary="your own recorded episodes, or a public set",
    formats=(
        "minari: HDF5 with groups episode_N of observations, actions, rewards, as Minari and `record` write it",
        "d4rl: HDF5 with observations, actions, rewards, terminals, timeouts",
    ),
    source="https://minari.farama.org, https://github.com/Farama-Foundation/D4RL",
    licence="that of the files",
)

TONES = DatasetSpec(
    name="made-up-tones",
    target="polyhead_agents.series_data:open_made_up_tones",
    summary="generated: swelling tones with noise in three channels, six classes",
    embedded=True,
    source="generated",
    licence="Apache-2.0",
)
UEA = DatasetSpec(
    name="uea",
    target="polyhead_agents.series_data:open_uea",
    summary="your own labelled series, or a set of the UEA archive",
    formats=("ts: NAME_TRAIN.ts and NAME_TEST.ts, in a folder, a zip or a wheel",),
    source="https://www.timeseriesclassification.com; the wheel of aeon has JapaneseVowels and others",
    licence="that of the files",
)
LOAD = DatasetSpec(
    name="made-up-load",
    target="polyhead_agents.table_data:open_made_up_load",
    summary="generated: two channels by the hour, with days, weeks and noise",
    embedded=True,
    source="generated",
    licence="Apache-2.0",
)
TABLE = DatasetSpec(
    name="table-files",
    target="polyhead_agents.table_data:open_table",
    summary="your own readings at regular times, or a public set",
    formats=(
        "csv: date or ds, then a column a channel, as ETT, Weather, ECL and Exchange have; also in a zip or a wheel",
    ),
    source="https://github.com/thuml/Time-Series-Library; the wheel of statsmodels has mstl_elec_vic.csv",
    licence="that of the file",
)
HAWKES = DatasetSpec(
    name="hawkes",
    target="polyhead_agents.event_data:open_hawkes",
    summary="generated: 500 sequences of a Hawkes process of two kinds",
    embedded=True,
    source="generated",
    licence="Apache-2.0",
)
SEQUENCES = DatasetSpec(
    name="event-files",
    target="polyhead_agents.event_data:open_events",
    summary="your own sequences of events, or a public set",
    formats=(
        "npz: times (intervals), marks (from 1, 0 is padding) and masks, each (sequences, events)",
        "cdnow: CDNOW_master.txt, purchases by customer and day, in a folder, a zip or a wheel",
    ),
    source="https://github.com/BorealisAI/meta-tpp; the wheel of lifetimes has CDNOW",
    licence="that of the files",
)

OFFLINE = TaskSpec(
    name="offline-rl",
    target="polyhead_agents.task:OfflineTask",
    settings="polyhead_agents.settings:OfflineSettings",
    summary="learn to act from recorded episodes; measured by playing",
    models=("decision-aaren", "decision-transformer"),
    datasets=("cartpole-ppo", "episodes"),
)

CLASSIFY = TaskSpec(
    name="classify",
    target="polyhead_agents.classify_task:ClassifyTask",
    settings="polyhead_agents.settings:ClassifySettings",
    summary="tell the class of a series",
    models=("series-classifier",),
    datasets=("made-up-tones", "uea"),
)
FORECAST = TaskSpec(
    name="forecast",
    target="polyhead_agents.forecast_task:ForecastTask",
    settings="polyhead_agents.settings:ForecastSettings",
    summary="forecast the next steps of a table of readings",
    models=("series-forecaster",),
    datasets=("made-up-load", "table-files"),
)
NEXT = TaskSpec(
    name="events",
    target="polyhead_agents.event_task:EventTask",
    settings="polyhead_agents.settings:EventTaskSettings",
    summary="forecast when the next event comes, and of which kind",
    models=("event-model",),
    datasets=("hawkes", "event-files"),
)

APP = AppSpec(
    name="agent-train", target="polyhead_agents.app:app", summary="train agents on recorded episodes, and let them play"
)


@hookimpl
def polyhead_plugin() -> Plugin:
    """Return the manifest."""
    return Plugin(
        name="agents",
        summary="agents that learn from recorded episodes, with a state of constant size",
        models=(AAREN, TRANSFORMER, CLASSIFIER, FORECASTER, EVENTS),
        datasets=(
            CARTPOLE,
            EPISODES,
            TONES,
            UEA,
            LOAD,
            TABLE,
            HAWKES,
            SEQUENCES,
        ),
        tasks=(OFFLINE, NEXT, CLASSIFY, FORECAST),
        apps=(APP,),
        mixers=(RECENT,),
    )
