"""Token mixers are found by name, plugins bring more, and the kit catches what breaks the protocol."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from polyhead import MixerSpec, Plugin, hookimpl, plugins
from polyhead.errors import PluginError, UnknownNameError
from polyhead.nn import Context, LightningAttention, Mixed, Rotary, SoftmaxMixer, Stack, after_step, mixers
from polyhead.protocols import Ratio
from polyhead.testing import CheckError, check_mixer, check_plugin


class MovingAverage(nn.Module):
    """A mixer of somebody else's: the average of all real tokens so far."""

    def __init__(self, dim: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        total, count = self.init_state(x.shape[0]) if state is None else state
        real = torch.ones_like(x[..., 0]) if ctx.key_mask is None else ctx.key_mask.to(x.dtype)
        y = self.map(x).masked_fill(real.unsqueeze(-1) == 0, 0)
        totals, counts = total[:, None] + y.cumsum(1), count[:, None] + real.cumsum(1)
        after = None if state is None else (totals[:, -1], counts[:, -1])
        return Mixed(totals / counts.clamp(min=1).unsqueeze(-1), after)

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.map.weight.new_zeros(batch, self.map.out_features), self.map.weight.new_zeros(batch)

    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        mixed = self.forward(x.unsqueeze(1), ctx=ctx, state=state)
        return mixed._replace(x=mixed.x.squeeze(1))


class Averages:
    """The plugin that brings it."""

    @hookimpl
    def polyhead_plugin(self) -> Plugin:
        spec = MixerSpec("average", target=f"{__name__}:MovingAverage", summary="the average so far")
        return Plugin(name="averages", summary="averages", mixers=(spec,))


@pytest.fixture
def averages() -> Iterator[None]:
    plugins.register(Averages(), "averages")
    yield
    plugins.reload()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("softmax", {}),
        ("softmax", {"rotary": Rotary(6), "kv_heads": 2, "qk_norm": "rms"}),
        ("softmax", {"window": 3}),
        ("lightning", {}),
        ("lightning", {"norm": "rms", "gate": "full", "decay": "paper", "bias": True}),
    ],
)
def test_built_in_mixers_keep_the_protocol(name: str, settings: dict[str, Any]) -> None:
    kept = check_mixer(name, settings=settings)
    assert "a padded prompt and its continuation equal the row alone" in kept
    assert "rows of a state can begin anew" in kept


def test_a_mixer_that_sees_everything() -> None:
    kept = check_mixer("softmax", causal=False)
    assert "a masked token changes no real one, on either side" in kept
    assert "steps equal the whole" not in kept


@pytest.mark.usefixtures("averages")
def test_a_plugin_brings_a_mixer() -> None:
    assert len(check_mixer("average")) == 18
    assert isinstance(Stack(8, 2, 2, mixer="average", causal=True).blocks[0].mixer, MovingAverage)
    assert mixers.find_mixer("average").summary == "the average so far"
    assert plugins.find_mixer("average")[0].name == "averages"
    assert [spec.name for spec in mixers.mixers()][-1] == "average"
    assert {"softmax", "lightning"} <= {spec.name for spec in mixers.mixers()}


@pytest.mark.usefixtures("averages")
def test_check_plugin_checks_mixers() -> None:
    assert 'token mixer "average": steps equal the whole' in check_plugin("averages")


def test_a_class_serves_without_a_name() -> None:
    check_mixer(MovingAverage, settings={"bias": False}, compiled=False)
    stack = Stack(8, 2, 2, mixer=[MovingAverage, functools.partial(SoftmaxMixer, window=2)], causal=True)
    mixer = stack.blocks[1].mixer
    assert isinstance(mixer, SoftmaxMixer)
    assert mixer.attention.window == 2


def test_the_mixer_of_the_docs_is_one(root: Path) -> None:
    page = (root / "docs" / "modules.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(from typing import Any.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    scope: dict[str, Any] = {"__name__": "docs"}
    exec(compile(code, "docs/modules.md", "exec"), scope)
    assert len(check_mixer(scope["MovingAverage"])) == 18


def test_built_in_names_load_no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "manager", None)
    assert isinstance(mixers.make_mixer("lightning", 8, 2), LightningAttention)


def test_unknown_mixer_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r'No token mixer "lightening"\. Did you mean "lightning"\?'):
        Stack(8, 1, 2, mixer="lightening")


def test_what_is_no_mixer_is_refused() -> None:
    with pytest.raises(PluginError, match="Linear is no token mixer: it has no init_state, step"):
        mixers.make_mixer(nn.Linear, 8, 2)


def test_names_of_core_cannot_be_taken() -> None:
    class Clash:
        @hookimpl
        def polyhead_plugin(self) -> Plugin:
            return Plugin(name="clash", summary="s", mixers=(MixerSpec("softmax", target="a:B", summary="s"),))

    with pytest.raises(PluginError, match=r'Mixer "softmax" belongs to both "polyhead" \(polyhead\) and "clash"'):
        plugins.Manager().register(Clash(), "clash")


def test_after_step_reaches_every_mixer() -> None:
    class Counting(MovingAverage):
        steps = 0

        def after_step(self) -> None:
            self.steps += 1

    stack = Stack(8, 2, 2, mixer=Counting)
    after_step(stack)
    assert [module.steps for module in stack.modules() if isinstance(module, Counting)] == [1, 1]
    check_mixer(Counting, compiled=False)


class Future(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        mixed = super().forward(x, ctx=ctx, state=state)
        return mixed._replace(x=mixed.x + (0 if x.shape[1] == 1 else x.mean(1, keepdim=True)))


class Leaking(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        return super().forward(x, ctx=Context(causal=True), state=state)


class Forgetful(MovingAverage):
    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        return super().step(x, ctx=ctx, state=(state[0] * 0.5, state[1]))


class Hoarding(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        return super().forward(x, ctx=ctx, state=state or self.init_state(x.shape[0]))


class Writing(MovingAverage):
    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        mixed = super().step(x, ctx=ctx, state=state)
        state[0].copy_(mixed.state[0])
        return mixed


class Losing(MovingAverage):
    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        return super().step(x, ctx=ctx, state=state)._replace(state=None)


class Counted(MovingAverage):
    """Keeps one count for all rows."""

    def init_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return super().init_state(batch)[0], torch.zeros(1)


class Mingling(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        mixed = super().forward(x, ctx=ctx, state=state)
        return mixed._replace(x=mixed.x + mixed.x.mean(0))


class Noisy(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        mixed = super().forward(x, ctx=ctx, state=state)
        return mixed._replace(x=mixed.x + torch.rand(1))


class Scribbling(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        return super().forward(x.detach().mul_(1.5) / 1.5, ctx=ctx, state=state)


class Idle(MovingAverage):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.unused = nn.Parameter(torch.ones(2))


class Breaking(MovingAverage):
    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        return super().forward(x if x.norm() > 0 else -x, ctx=ctx, state=state)


class Flat(MovingAverage):
    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        return super().forward(x.unsqueeze(1), ctx=ctx, state=state)


@pytest.mark.parametrize(
    ("mixer", "messages"),
    [
        (Future, ["no token sees a later one: tokens before 1 change with those from 1 on"]),
        (
            Leaking,
            [
                "a masked token changes no real one, on either side: padding on the left holds 0 and then 1000",
                "no gradient flows into a masked token: the outputs of real tokens depend on padding on the left",
                "a padded prompt and its continuation equal the row alone: row 1 after a prompt padded on the right",
            ],
        ),
        (Forgetful, ["steps equal the whole: step 1 and token 1 of the whole", "rows of a state can begin anew"]),
        (Hoarding, ["it returns a state that nobody gave. Return None, which costs no memory in training."]),
        (Writing, ["step writes into the state that it was given: [0] differs"]),
        (Losing, ["step returns no state though one was given."]),
        (Counted, ["every tensor of a state has the batch first: [1] of init_state is (1,) for a batch of 3."]),
        (Mingling, ["rows do not depend on one another: row 0 alone and in the batch"]),
        (Noisy, ["the same input gives the same output, and stays as it was: two calls differ: x differs"]),
        (Scribbling, ["it writes into its input. Copy first.", "every parameter gets a gradient: nor does the input."]),
        (Idle, ["not these: unused. Use them, or freeze them with requires_grad_(False)."]),
        (Breaking, ["torch.compile(fullgraph=True) traces it: raised"]),
        (Flat, ["step returns x (3, 1, 24), expected (3, 24)."]),
    ],
)
def test_a_broken_mixer_is_caught(mixer: type, messages: list[str]) -> None:
    with pytest.raises(CheckError) as error:
        check_mixer(mixer, compiled=mixer is Breaking)
    for message in messages:
        assert message in str(error.value)


def returning(change: Callable[[Mixed], Any]) -> type:
    class Returning(MovingAverage):
        def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Any:
            return change(super().forward(x, ctx=ctx, state=state))

    return Returning


@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (returning(lambda mixed: mixed.x), "it returns Tensor. Return polyhead.nn.Mixed(x, state, aux, kept)."),
        (
            returning(lambda mixed: mixed._replace(x=mixed.x[..., :2])),
            "x is (3, 9, 2) of torch.float32, expected (3,",
        ),
        (returning(lambda mixed: mixed._replace(x=mixed.x / 0)), "x has NaN or Inf for normal input."),
        (
            returning(lambda mixed: mixed._replace(x=mixed.x[:, :2], kept=torch.tensor([[1, 0]] * 3))),
            "kept is [[1, 0], [1, 0], [1, 0]], expected int64 positions, rising in every row.",
        ),
        (
            returning(lambda mixed: mixed._replace(aux={"balance": cast(Ratio, mixed.x.sum())})),
            "aux has balance, not polyhead.protocols.Ratio(total, count).",
        ),
        (lambda dim, heads: Bare(), "it is an nn.Module: Bare is not, so that a stack cannot hold its parameters."),
    ],
)
def test_what_a_mixer_returns_is_checked(mixer: Any, message: str) -> None:
    with pytest.raises(CheckError) as error:
        check_mixer(mixer, compiled=False)
    assert message in str(error.value)
    assert "1 rule is broken" in str(error.value)


class Bare:
    """Has the methods, and is no module."""

    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        raise NotImplementedError

    def init_state(self, batch: int) -> Any:
        raise NotImplementedError

    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        raise NotImplementedError


class Halving(nn.Module):
    """Keeps the even tokens of what it gets, and balances something."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def forward(self, x: Tensor, *, ctx: Context, state: Any = None) -> Mixed:
        kept = torch.arange(0, x.shape[1], 2, device=x.device).expand(x.shape[0], -1)
        aux = {"balance": Ratio(self.map.weight.sum(), torch.tensor(float(ctx.layer + 1)))}
        return Mixed(self.map(x[:, ::2]), state, aux, kept)

    def init_state(self, batch: int) -> Tensor:
        return torch.zeros(batch)

    def step(self, x: Tensor, *, ctx: Context, state: Any) -> Mixed:
        return Mixed(self.map(x), state)


def test_a_mixer_that_drops_tokens() -> None:
    kept = check_mixer(Halving, causal=False)
    assert "rows do not depend on one another" in kept
    assert "a masked token changes no real one, on either side" not in kept
