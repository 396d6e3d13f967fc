"""Check that a token mixer is what ``polyhead.nn.Stack`` and its users may rely on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from polyhead.nn import Context, Mixed, states
from polyhead.nn.mixers import make_mixer
from polyhead.protocols import Ratio
from polyhead.testing.report import Report, RuleError
from polyhead.testing.values import difference, leaves, map_tensors

__all__ = ["check_mixer", "report_mixer"]

_PROTOCOL = "polyhead.nn.TokenMixer"
_STATES = "polyhead.nn.states"
_ROWS, _TOKENS = 3, 9


def check_mixer(
    mixer: str | Callable[..., Any],
    *,
    dim: int = 24,
    heads: int = 4,
    settings: Mapping[str, Any] | None = None,
    causal: bool = True,
    compiled: bool = True,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> list[str]:
    """Check a token mixer: what it returns, causality, padding, rows apart, streams, states, torch.compile.

    Args:
        mixer: a name, or what makes a mixer from dim, heads and settings.
        dim: width of a token.
        heads: number of heads.
        settings: of the mixer.
        causal: check it as a causal mixer, which can be streamed. False checks one that sees every token.
        compiled: trace it with ``torch.compile(fullgraph=True)`` too.
        rtol: relative tolerance, in float32.
        atol: absolute tolerance, in float32.

    Returns:
        list[str]: what was checked, a sentence each.

    Raises:
        CheckError: a rule is broken; names all that are.
        UnknownNameError: no such mixer.
    """
    return report_mixer(
        mixer, dim=dim, heads=heads, settings=settings, causal=causal, compiled=compiled, rtol=rtol, atol=atol
    ).finish()


def report_mixer(
    mixer: str | Callable[..., Any],
    *,
    dim: int = 24,
    heads: int = 4,
    settings: Mapping[str, Any] | None = None,
    causal: bool = True,
    compiled: bool = True,
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> Report:
    """Do what ``check_mixer`` does, and return the report."""
    name = mixer if isinstance(mixer, str) else getattr(mixer, "__name__", type(mixer).__name__)
    report = Report(f'token mixer "{name}"')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made: Any = make_mixer(mixer, dim, heads, settings)
        with report.check("it is an nn.Module", _PROTOCOL):
            if not isinstance(made, nn.Module):
                raise RuleError(f"{type(made).__name__} is not, so that a stack cannot hold its parameters.")
        if report.broken:
            return report
        kit = _Kit(made, dim, causal, rtol, atol)
        with report.check("it returns Mixed with tokens like its input", _PROTOCOL):
            kit.returns()
        if report.broken:  # whatever follows would say the same again
            return report
        for rule, check in kit.rules(compiled):
            with report.check(rule, _STATES if "state" in rule else _PROTOCOL):
                check()
    return report


class _Kit:
    """The checks of one mixer."""

    def __init__(self, mixer: Any, dim: int, causal: bool, rtol: float, atol: float) -> None:
        self.mixer, self.causal, self.tolerances = mixer, causal, {"rtol": rtol, "atol": atol}
        # All parameters are drawn, since initial zeros would hide what depends on them.
        with torch.no_grad():
            for parameter in mixer.parameters():
                if parameter.is_floating_point() and not parameter.any():
                    parameter.normal_(std=0.1)
        self.x = torch.randn(_ROWS, _TOKENS, dim)
        self.dropping = False

    def rules(self, compiled: bool) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield each rule with what checks it."""
        yield "the same input gives the same output, and stays as it was", self.repeats
        yield "rows do not depend on one another", self.rows
        yield "every parameter gets a gradient", self.gradients
        yield "after_step() runs where there is one", self.after_step
        if not self.dropping:
            yield "a masked token changes no real one, on either side", self.padding
            yield "no gradient flows into a masked token", self.padding_gradient
        if self.causal:
            yield "no token sees a later one", self.future
            yield "a stream in pieces equals the whole", self.pieces
            yield "steps equal the whole", self.steps
            yield "a padded prompt and its continuation equal the row alone", self.prompt
            yield "a masked step leaves its row as it was", self.masked_step
            yield "without a state none is returned, and a state given stays as it was", self.purity
            yield "every tensor of a state has the batch first", self.batch_first
            yield "states can be sliced, stacked and reordered along the batch", self.reorder
            yield "rows of a state can begin anew", self.reset
        if compiled:
            yield "torch.compile(fullgraph=True) traces it", self.traced

    def run(self, x: Tensor, *, state: Any = None, grad: bool = False, **context: Any) -> Mixed:
        """Run forward, in evaluation mode as far as dropout goes."""
        ctx = Context(layer=1, depth=3, causal=self.causal, **context)
        with _evaluating(self.mixer), torch.set_grad_enabled(grad):
            mixed: Mixed = self.mixer(x, ctx=ctx, state=state)
            return mixed

    def step(self, x: Tensor, state: Any, key_mask: Tensor | None = None) -> Mixed:
        with _evaluating(self.mixer), torch.no_grad():
            ctx = Context(key_mask, layer=1, depth=3, causal=True)
            mixed: Mixed = self.mixer.step(x, ctx=ctx, state=state)
            return mixed

    def same(self, a: Any, b: Any, what: str) -> None:
        """Break the rule if a and b differ beyond the tolerances."""
        if text := difference(a, b, **self.tolerances):
            raise RuleError(f"{what}: {text}")

    def returns(self) -> None:
        mixed = self.run(self.x)
        if not isinstance(mixed, Mixed):
            raise RuleError(f"it returns {type(mixed).__name__}. Return polyhead.nn.Mixed(x, state, aux, kept).")
        self.dropping = mixed.kept is not None
        tokens = self.x.shape[1] if mixed.kept is None else mixed.kept.shape[-1]
        expected = (_ROWS, tokens, self.x.shape[2])
        if tuple(mixed.x.shape) != expected or mixed.x.dtype != self.x.dtype:
            raise RuleError(f"x is {tuple(mixed.x.shape)} of {mixed.x.dtype}, expected {expected} of {self.x.dtype}.")
        if not mixed.x.isfinite().all():
            raise RuleError("x has NaN or Inf for normal input.")
        if mixed.kept is not None:
            kept = mixed.kept
            if kept.dtype != torch.int64 or kept.shape != (_ROWS, tokens) or (kept.diff(dim=1) <= 0).any():
                raise RuleError(f"kept is {kept.tolist()}, expected int64 positions, rising in every row.")
        wrong = [name for name, ratio in mixed.aux.items() if not isinstance(ratio, Ratio)]
        if wrong:
            raise RuleError(f"aux has {', '.join(wrong)}, not polyhead.protocols.Ratio(total, count).")

    def repeats(self) -> None:
        before = self.x.clone()
        first, second = self.run(self.x), self.run(self.x)
        if not torch.equal(self.x, before):
            self.x = before
            raise RuleError("it writes into its input. Copy first.")
        if text := difference(first, second):
            raise RuleError(f"two calls differ: {text}")

    def rows(self) -> None:
        whole = self.run(self.x)
        for row in range(_ROWS):
            alone = self.run(self.x[row : row + 1])
            self.same(alone.x, whole.x[row : row + 1], f"row {row} alone and in the batch")

    def gradients(self) -> None:
        x = self.x.clone().requires_grad_()
        self.mixer.zero_grad()
        mixed = self.run(x, grad=True)
        total = mixed.x.square().sum() + sum(ratio.total for ratio in mixed.aux.values())
        total.backward()
        named = self.mixer.named_parameters()
        missing = [name for name, each in named if each.requires_grad and each.grad is None]
        if missing:
            raise RuleError(f"not these: {', '.join(missing)}. Use them, or freeze them with requires_grad_(False).")
        if x.grad is None or not x.grad.any():
            raise RuleError("nor does the input.")

    def after_step(self) -> None:
        if not hasattr(self.mixer, "after_step"):
            return
        self.gradients()
        self.mixer.after_step()
        self.returns()

    def masks(self) -> Iterator[tuple[str, Tensor]]:
        places = torch.arange(_TOKENS)
        lengths = torch.tensor([[_TOKENS], [_TOKENS - 4], [1]])
        yield "right", places < lengths
        yield "left", places >= _TOKENS - lengths

    def padding(self) -> None:
        for side, key_mask in self.masks():
            lengths = key_mask.sum(1) if side == "right" else None
            outputs = []
            for filling in (0.0, 1e3):
                x = self.x.masked_fill(~key_mask[..., None], filling)
                outputs.append(self.run(x, key_mask=key_mask, lengths=lengths).x)
            self.same(outputs[0][key_mask], outputs[1][key_mask], f"padding on the {side} holds 0 and then 1000")
            for row in range(_ROWS):
                alone = self.run(self.x[row : row + 1, key_mask[row]]).x[0]
                self.same(outputs[0][row, key_mask[row]], alone, f"row {row} padded on the {side} and alone")

    def padding_gradient(self) -> None:
        for side, key_mask in self.masks():
            x = self.x.clone().requires_grad_()
            output = self.run(x, grad=True, key_mask=key_mask).x
            (gradient,) = torch.autograd.grad(output[key_mask].sum(), x)
            if gradient[~key_mask].any():
                raise RuleError(f"the outputs of real tokens depend on padding on the {side}. Mask keys and values.")

    def future(self) -> None:
        whole = self.run(self.x).x
        for t in range(1, _TOKENS):
            changed = self.x.clone()
            changed[:, t:] = 10 * torch.randn_like(changed[:, t:])
            self.same(self.run(changed).x[:, :t], whole[:, :t], f"tokens before {t} change with those from {t} on")

    def stream(self, edges: tuple[int, ...], x: Tensor) -> tuple[Tensor, Any]:
        state, parts = self.mixer.init_state(x.shape[0]), []
        for start, stop in itertools.pairwise(edges):
            mixed = self.run(x[:, start:stop], state=state)
            parts.append(mixed.x)
            state = mixed.state
        return torch.cat(parts, 1), state

    def pieces(self) -> None:
        whole = self.run(self.x).x
        for edges in ((0, 9), (0, 1, 9), (0, 4, 5, 9), (0, 8, 9)):
            self.same(self.stream(edges, self.x)[0], whole, f"cut at {edges[1:-1]} and whole")

    def steps(self) -> None:
        whole, state = self.run(self.x).x, self.mixer.init_state(_ROWS)
        for t in range(_TOKENS):
            mixed = self.step(self.x[:, t], state)
            if mixed.x.shape != self.x[:, t].shape:
                raise RuleError(f"step returns x {tuple(mixed.x.shape)}, expected {tuple(self.x[:, t].shape)}.")
            self.same(mixed.x, whole[:, t], f"step {t} and token {t} of the whole")
            state = mixed.state
        _, prefilled = self.stream((0, 5), self.x)
        self.same(self.step(self.x[:, 5], prefilled).x, whole[:, 5], "a step after five tokens at once and the whole")

    def masked_step(self) -> None:
        _, state = self.stream((0, 5), self.x)
        expected = self.step(self.x[:, 5], state).x
        key_mask = torch.tensor([[True], [False], [True]])
        after = self.step(self.x[:, 5], state, key_mask)
        self.same(after.x[[0, 2]], expected[[0, 2]], "rows of a masked step that are real")
        again = self.step(self.x[:, 5], after.state).x
        self.same(again[1], expected[1], "a row after a masked step")

    def prompt(self) -> None:
        for side, key_mask in self.masks():
            state = self.run(self.x, key_mask=key_mask, state=self.mixer.init_state(_ROWS)).state
            more = self.x.flip(1)[:, :2]
            continued = self.run(more, state=state).x
            for row in range(_ROWS):
                alone = torch.cat([self.x[row, key_mask[row]], more[row]]).unsqueeze(0)
                expected = self.run(alone).x[0, -2:]
                self.same(continued[row], expected, f"row {row} after a prompt padded on the {side}, and alone")

    def purity(self) -> None:
        if self.run(self.x).state is not None:
            raise RuleError("it returns a state that nobody gave. Return None, which costs no memory in training.")
        _, state = self.stream((0, 4), self.x)
        for what, call in (("forward", lambda: self.run(self.x[:, 4:6], state=state)),
                           ("step", lambda: self.step(self.x[:, 4], state))):  # fmt: skip
            before = map_tensors(torch.clone, state)
            if call().state is None:
                raise RuleError(f"{what} returns no state though one was given.")
            if text := difference(before, state):
                raise RuleError(f"{what} writes into the state that it was given: {text}")

    def batch_first(self) -> None:
        for what, state in (("init_state", self.mixer.init_state(_ROWS)), ("forward", self.stream((0, 4), self.x)[1])):
            for name, leaf in leaves(state):
                if isinstance(leaf, Tensor) and (leaf.ndim == 0 or leaf.shape[0] != _ROWS):
                    raise RuleError(f"{name} of {what} is {tuple(leaf.shape)} for a batch of {_ROWS}.")

    def reorder(self) -> None:
        _, state = self.stream((0, 5), self.x)
        expected = self.step(self.x[:, 5], state).x
        index = torch.tensor([2, 0, 2, 1])
        self.same(self.step(self.x[index, 5], states.reorder(state, index)).x, expected[index], "reordered beams")
        rows = [states.slice_state(state, row, row + 1) for row in range(_ROWS)]
        self.same(self.step(self.x[:, 5], states.stack(rows)).x, expected, "sliced and stacked rows")
        _, shorter = self.stream((0, 2), self.x[:1])
        mixed = states.stack([states.slice_state(state, 1, 2), shorter])
        after = self.step(self.x[[1, 0], 5], mixed).x
        self.same(after[:1], expected[1:2], "a row stacked with a younger one")
        self.same(after[1:], self.step(self.x[:1, 5], shorter).x, "a row stacked with an older one")

    def reset(self) -> None:
        _, state = self.stream((0, 5), self.x)
        done = torch.tensor([False, True, False])
        state = states.where(done, self.mixer.init_state(_ROWS), state)
        whole, anew = self.run(self.x).x, self.run(self.x[:, 5:]).x
        for t in range(5, _TOKENS):
            mixed = self.step(self.x[:, t], state)
            state = mixed.state
            self.same(mixed.x[~done], whole[~done, t], f"rows that go on, at token {t}")
            self.same(mixed.x[done], anew[done, t - 5], f"a row that began anew at token 5, at token {t}")

    def traced(self) -> None:
        def forward(x: Tensor) -> Tensor:
            return self.mixer(x, ctx=Context(layer=1, depth=3, causal=self.causal)).x

        def step(x: Tensor, state: Any) -> Mixed:
            return self.mixer.step(x, ctx=Context(layer=1, depth=3, causal=True), state=state)

        torch.compiler.reset()  # mixers checked before would count as recompilations of these functions
        with _evaluating(self.mixer), torch.no_grad():
            compiled = torch.compile(forward, fullgraph=True, backend="eager")
            self.same(compiled(self.x), self.run(self.x).x, "compiled and eager")
            if self.causal:
                compiled_step = torch.compile(step, fullgraph=True, backend="eager")
                state, mixed = self.mixer.init_state(_ROWS), None
                for t in range(3):
                    mixed = compiled_step(self.x[:, t], state)
                    state = mixed.state
                assert mixed is not None
                self.same(mixed.x, self.run(self.x[:, :3]).x[:, -1], "compiled steps and eager")


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
