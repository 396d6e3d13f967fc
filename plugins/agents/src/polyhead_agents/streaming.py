"""What a step of an agent costs late in a stream, and the command `agent-train streaming`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from polyhead_agents.decision import DecisionModel, DecisionState

__all__ = ["Row", "measure", "streaming", "table"]

LENGTHS = (100, 1_000, 10_000, 100_000)
SIZES = {"state_dim": 4, "act_dim": 2, "discrete": True, "dim": 64, "depth": 2, "heads": 2, "positions": "sinusoid"}


class Row(NamedTuple):
    """A measurement."""

    model: str
    steps: int
    """Time steps of the episode so far, three tokens each."""
    state_bytes: int
    """Of one agent."""
    step_ms: float
    """Median time of a time step: acting, and taking the action in."""


def measure(model: DecisionModel, name: str, steps: int, *, repeats: int) -> Row:
    """Measure a model that has seen so many time steps.

    A cache is filled with noise instead of by as many steps: what is in it changes neither its size nor the time.
    """
    import torch

    from polyhead.nn import states

    state = _after(model, steps)
    taken = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            began = time.perf_counter()
            logits, acted = model.act(torch.ones(1), torch.zeros(1, model.config.state_dim), state)
            model.observe(logits.argmax(-1), acted)
            taken.append(time.perf_counter() - began)
    taken = sorted(taken[1:])  # the first one warms up
    return Row(name, steps, states.nbytes(state.stack), 1000 * taken[len(taken) // 2])


def _after(model: DecisionModel, steps: int) -> DecisionState:
    import torch

    from polyhead.nn.kv_state import KVCache
    from polyhead.ops.prefix_attention import PrefixState

    generator = torch.Generator().manual_seed(0)
    tokens = 3 * steps

    def filled(state: Any) -> Any:
        if isinstance(state, KVCache):
            shape = (1, state.k.shape[1], tokens, state.k.shape[3])
            k, v = (torch.randn(shape, generator=generator) for _ in range(2))
            return KVCache(k, v, None, torch.tensor([tokens]))
        if isinstance(state, PrefixState):
            return PrefixState(*(torch.ones_like(part) for part in state))
        raise TypeError(type(state).__name__)

    fresh = model.init_state(1)
    stack = tuple(block._replace(mixer=filled(block.mixer)) for block in fresh.stack)
    return fresh._replace(stack=stack, timestep=torch.tensor([steps]))


def table(*, repeats: int = 20) -> Iterator[Row]:
    """Measure Decision Aaren and Decision Transformer of equal size after 10² to 10⁵ time steps."""
    import torch

    from polyhead_agents.decision import DecisionAaren, DecisionConfig, DecisionTransformer

    config = DecisionConfig(**SIZES)  # type: ignore[arg-type]  # of several types, as its fields are
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {"decision-aaren": DecisionAaren(config), "decision-transformer": DecisionTransformer(config)}
    for name, model in models.items():
        for steps in LENGTHS:
            yield measure(model.eval(), name, steps, repeats=repeats)


def streaming(
    repeats: Annotated[int, typer.Option(min=1, help="Steps that are timed for each figure.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON document.")] = False,
) -> None:
    """Measure state and time of a step after 10² to 10⁵ steps: Decision Aaren beside Decision Transformer."""
    import json

    from polyhead_apps.console import Console

    console = Console()
    rows = list(table(repeats=repeats))
    if as_json:
        console.result(json.dumps([row._asdict() for row in rows], indent=2))
        return
    console.table(["model", "steps so far", "state, bytes", "ms a step"], [list(row) for row in rows])
