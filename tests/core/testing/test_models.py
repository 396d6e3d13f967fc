"""``check_model`` passes a sound model and says of each unsound one what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from polyhead import Pretrained
from polyhead.testing import CheckError, check_model


@dataclass(frozen=True)
class NetConfig:
    dim: int = 4
    dropout: float = 0.5


class Net(Pretrained, nn.Module):
    Config: ClassVar[type] = NetConfig

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.inner = nn.Linear(config.dim, config.dim)  # its bias cancels in the norm
        self.norm = nn.BatchNorm1d(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.outer = nn.Linear(config.dim, 2)

    def forward(self, x: Tensor) -> Any:
        return self.outer(self.dropout(self.norm(self.inner(x)).relu()))


def inputs(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": torch.randn(3, 4, generator=generator)}


def test_a_sound_model_passes_and_the_callers_randomness_stays() -> None:
    before = torch.get_rng_state()
    kept = check_model(Net, inputs)
    assert len(kept) == 10
    assert "a batch equals its rows one by one" in kept
    assert torch.equal(torch.get_rng_state(), before)
    assert check_model(Net(NetConfig()), {"x": torch.randn(2, 4)}) == kept
    assert check_model(Net, inputs, config={"dim": 4, "dropout": 0}) == kept


class Thawed(Net):
    @dataclass
    class Config:
        dim: int = 4
        dropout: float = 0.5


class NoConfig(Net):
    Config = dict

    def __init__(self, config: Any = None) -> None:
        super().__init__(NetConfig())


class Forgetful(Net):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.config = None


@dataclass(frozen=True)
class SloppyConfig(NetConfig):
    rates: tuple[float, ...] = (1, 2)
    extra: Any = (1,)


class Sloppy(Net):
    Config = SloppyConfig


class Noisy(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + torch.randn(())


class Drifting(Net):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        self.norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return out


class Writing(Net):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        x.relu_()
        return out


class Sharing(Net):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        object.__setattr__(self, "memo", torch.randn(2))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * self.memo

    def __deepcopy__(self, memo: Any) -> Sharing:
        copied = Sharing(self.config)
        copied.inner = self.inner
        copied.norm, copied.outer = self.norm, self.outer
        return copied


class Hidden(Net):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.register_buffer("offset", torch.randn(2), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + self.offset


class Idle(Net):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.unused = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
        self.gated = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + 0 * self.gated


class Detached(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).detach()


class Exploding(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + (self.outer.bias - self.outer.bias).sqrt()


class Mixing(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x - x.mean(0))


class Narrow(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).float()


class Rough(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + (1 if x.dtype == torch.float64 else 0)


class Silent(Net):
    def forward(self, x: Tensor) -> Any:
        return "nothing"


class Failing(Net):
    def forward(self, x: Tensor) -> Any:
        raise ValueError("x is too small")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Thawed, "Thawed.Config can be changed. Declare it with @dataclass(frozen=True)."),
        (lambda: NoConfig(), "NoConfig.Config is <class 'dict'>. Set it to a dataclass."),
        (lambda: Forgetful(NetConfig()), "model.config is None. Set self.config = config in __init__."),
        (Sloppy, "extra=(1,)) comes back as "),
        (Noisy, "evaluation is deterministic: the same inputs give two results: value differs in 6 of 6 elements"),
        (
            Drifting,
            "evaluation changes no parameter and no buffer: norm.num_batches_tracked differs in 1 of 1 elements",
        ),
        (Writing, "nothing is written into an input: x differs in"),
        (Sharing, "a deep copy gives the same results and shares no memory: value differs in"),
        (Hidden, "saved and loaded it gives the same results: value differs in 6 of 6 elements"),
        (Idle, "not these: gated (all zero), unused.0.weight (none), unused.0.bias (none)"),
        (Idle, "and 3 more. Use them, remove them, or name them in unused=."),
        (Detached, "no output depends on a parameter in training mode. Look for detach and no_grad."),
        (Exploding, "a gradient reaches every parameter: not these: outer.bias (not finite)."),
        (Mixing, "a batch equals its rows one by one: row 0: value differs in 2 of 2 elements, first at (0, 0)"),
        (Narrow, "it works in float64: value has dtype torch.float32. Make new tensors with the dtype of an input."),
        (Rough, "it works in float64: float32 and float64 differ by more than rounding: value differs in 6 of 6"),
        (Silent, "it runs in evaluation mode: it returns no tensor but str. Return tensors."),
        (Failing, "it runs in evaluation mode: raised ValueError: x is too small (rule: polyhead.testing.check_model)"),
    ],
)
def test_what_is_wrong_is_said(model: Callable[[], nn.Module] | type, message: str) -> None:
    subject: Any = model if isinstance(model, type) else model()
    with pytest.raises(CheckError, match=re.escape(message)) as caught:
        check_model(subject, inputs)
    assert isinstance(caught.value, AssertionError)
    assert "(rule: " in str(caught.value)


def test_shared_memory_of_a_copy_is_named() -> None:
    class Tied(Net):
        def __deepcopy__(self, memo: Any) -> Tied:
            copied = Tied(self.config)
            copied.inner, copied.norm, copied.outer = self.inner, self.norm, self.outer
            return copied.eval()

    with pytest.raises(CheckError, match=r"inner\.weight is one tensor in both\. Register it as a parameter"):
        check_model(Tied(NetConfig()), inputs)


def test_exceptions_are_allowed_by_name() -> None:
    assert check_model(Idle, inputs, unused=["unused.*", "gated"])
    assert "a batch equals its rows one by one" not in check_model(Mixing, inputs, independent=False)


def test_inputs_need_two_rows_of_one_length() -> None:
    with pytest.raises(CheckError, match=r"the inputs have no common first axis of at least 2 rows\. Give such inputs"):
        check_model(Net, {"x": torch.ones(1, 4)})


def test_any_call_and_any_nesting_of_outputs() -> None:
    class Pair(Net):
        def forward(self, x: Tensor) -> Any:
            out = super().forward(x)
            return {"logits": out, "more": ((out * 2, None), x.argmax(-1)), "rows": list(out)}

    assert check_model(Pair, lambda _model, _generator: torch.randn(2, 4), forward=lambda model, x: model(x))
