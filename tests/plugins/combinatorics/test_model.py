"""Parity with the public replication, and what must hold for any weights: padding, batches, beams, both losses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from polyhead.errors import ConfigError, ShapeError
from polyhead.testing import check_model
from polyhead_combinatorics.decoding import RULES, Rule, allowed_tokens, beam_search, most_steps
from polyhead_combinatorics.fixed_dictionary import FixedDictionaryConfig, LSTMAttention, Seq2Seq
from polyhead_combinatorics.pointer_network import PointerNetwork, PointerNetworkConfig
from polyhead_combinatorics.sequence_models import IGNORED

NAMES = {
    "attention.v": "weight",
    "attention.W1": "key.weight",
    "attention.W2": "query.weight",
    "start_symbol": "first",
    "end_symbol": "end",
    "encoder_c_0": "cell",
}
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}


def _ours(name: str, value: Tensor) -> tuple[str, Tensor]:
    """Return our name and layout of a tensor of the replication, whose matrices multiply from the right."""
    if name in ("attention.W1", "attention.W2"):
        return NAMES[name], value.T
    return NAMES.get(name, name), value[None] if name == "attention.v" else value


class Golden:
    def __init__(self, folder: Path) -> None:
        self.tensors: Mapping[str, Tensor] = load_file(folder / "case.safetensors")
        self.hidden = json.loads((folder / "case.json").read_text())["config"]["hidden"]

    def model(self, dtype: torch.dtype) -> PointerNetwork:
        release = PointerNetworkConfig.release("gchaperon")
        model = PointerNetwork(PointerNetworkConfig(dim=self.hidden, learned_start=release.learned_start))
        weights = dict(
            _ours(n.removeprefix("weights/"), x) for n, x in self.tensors.items() if n.startswith("weights/")
        )
        model.load_state_dict(weights)
        return model.to(dtype).eval()

    def inputs(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        points = self.tensors["inputs/points"].to(dtype).requires_grad_()
        return points, self.tensors["inputs/target"], self.tensors["inputs/lengths"]

    def outputs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        prefix = "outputs_f64/" if dtype == torch.float64 else "outputs/"
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    return Golden(shared / "golden" / "pointer-networks")


def test_the_encoder_equals_the_replication(golden: Golden) -> None:
    points, _, lengths = golden.inputs(torch.float32)
    memory, state = golden.model(torch.float32).start(points, lengths)
    trace = {name: golden.tensors[f"trace/{name}"] for name in ("encoder_states_with_end", "encoder_h", "encoder_c")}
    torch.testing.assert_close(memory.states, trace["encoder_states_with_end"], atol=2e-5, rtol=0)
    torch.testing.assert_close(state.hidden[:, 0], trace["encoder_h"], atol=2e-5, rtol=0)
    torch.testing.assert_close(state.cell[:, 0], trace["encoder_c"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_loss_and_gradients_equal_the_replication(golden: Golden, dtype: torch.dtype) -> None:
    model, tolerance = golden.model(dtype), TOLERANCE[dtype]
    points, target, lengths = golden.inputs(dtype)
    expected = golden.outputs(dtype)
    logits = model(points, target, lengths)
    valid = logits.isfinite()
    padded = torch.arange(logits.shape[2]) > lengths[:, None, None]
    real = (target != -100)[:, :, None]
    assert torch.equal(~valid, (padded & real).expand_as(logits))
    wanted = expected["logits"]
    torch.testing.assert_close(logits.masked_fill(~valid, -1e9), wanted, atol=tolerance, rtol=0)

    cotangent = golden.tensors["inputs/cotangent"].to(dtype)
    taken = torch.where(valid & real, logits, 0)
    (gradient,) = torch.autograd.grad((taken * cotangent).sum(), points)
    torch.testing.assert_close(gradient, expected["grad_points"], atol=tolerance, rtol=tolerance)

    for loss in (_cross_entropy(model, points, target, lengths), _fused(model, points, target, lengths)):
        torch.testing.assert_close(loss.detach(), expected["loss"][0], atol=tolerance, rtol=0)
        parameters = dict(model.named_parameters())
        gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        for name, value in expected.items():
            if name.startswith("grad/"):
                mine, theirs = _ours(name.removeprefix("grad/"), value)
                torch.testing.assert_close(gradients[mine], theirs, atol=tolerance, rtol=tolerance, msg=name)


def _cross_entropy(model: PointerNetwork, points: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model(points, target, lengths).transpose(1, 2), target)


def _fused(model: PointerNetwork, points: Tensor, target: Tensor, lengths: Tensor) -> Tensor:
    return model.nll(points, target, lengths).sum() / (target != -100).sum()


@pytest.mark.parametrize("beam", [1, 3, 5])
@pytest.mark.parametrize(("name", "rule"), [("hull", "closed hull"), ("tsp", "closed tour")])
def test_beams_equal_the_replication(golden: Golden, name: str, rule: Rule, beam: int) -> None:
    points, _, lengths = golden.inputs(torch.float32)
    found = beam_search(golden.model(torch.float32), points.detach(), lengths, rule=rule, beam=beam).tokens[:, 0]
    wanted = golden.tensors[f"outputs/decode_{name}_beam{beam}"]
    width = max(found.shape[1], wanted.shape[1])
    padded = [torch.nn.functional.pad(x, (0, width - x.shape[1])) for x in (found, wanted.clamp(min=0))]
    assert torch.equal(*padded)


def _random(batch: int, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64)
    lengths = torch.randint(3, count + 1, (batch,), generator=generator)
    lengths[0] = count
    return points, lengths


def _pointer(**config: object) -> PointerNetwork:
    model = PointerNetwork(PointerNetworkConfig(dim=16, **config))  # type: ignore[arg-type]
    # Weights of this size make a choice: with the initial ones all logits are nearly equal.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(10)
    return model.double().eval()


MODELS: Mapping[str, Callable[[], Any]] = {
    "pointer": lambda: _pointer(),
    "glimpse and clip": lambda: _pointer(glimpse=True, clip=10.0),
    "learned start": lambda: _pointer(learned_start=True),
    "seq2seq": lambda: Seq2Seq(FixedDictionaryConfig(dim=16)).double().eval(),
    "attention": lambda: LSTMAttention(FixedDictionaryConfig(dim=16)).double().eval(),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rule", RULES)
def test_a_mixed_batch_equals_one_by_one_and_padding_is_never_read(name: str, rule: Rule) -> None:
    model = MODELS[name]()
    points, lengths = _random(5, 7)
    for row, length in enumerate(lengths.tolist()):
        points[row, length:] = torch.nan
    together = beam_search(model, points, lengths, rule=rule, beam=3)
    for row, length in enumerate(lengths.tolist()):
        alone = beam_search(model, points[row : row + 1, :length], rule=rule, beam=3)
        width = alone.tokens.shape[2]
        assert torch.equal(together.tokens[row, 0, :width], alone.tokens[0, 0])
        assert not together.tokens[row, 0, width:].any()
        torch.testing.assert_close(together.log_prob[row, 0], alone.log_prob[0, 0])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_beam_one_is_greedy_and_every_tour_a_permutation(name: str, seed: int) -> None:
    model = MODELS[name]()
    points, lengths = _random(6, 8, seed)
    tokens = beam_search(model, points, lengths, rule="tour").tokens[:, 0]
    memory, state = model.start(points, lengths)
    chosen: Tensor | None = None
    visited = torch.arange(9) > lengths[:, None]
    visited[:, 0] = True
    for step in range(tokens.shape[1]):
        logits, state = model.step(memory, state, chosen)
        best = logits[:, 0].masked_fill(visited, -torch.inf).argmax(1)
        chosen = torch.where(visited.all(1), 0, best)[:, None]
        visited = visited.scatter(1, chosen, True)
        assert torch.equal(tokens[:, step], chosen[:, 0])
    wide = beam_search(model, points, lengths, rule="tour", beam=4).tokens
    for found in (tokens[:, None], wide):
        for row, length in enumerate(lengths.tolist()):
            for beam in found[row]:
                assert sorted(beam[:length].tolist()) == list(range(1, length + 1))
                assert not beam[length:].any()


def test_a_beam_that_keeps_everything_finds_the_most_probable_tour() -> None:
    model = MODELS["pointer"]()
    points, _ = _random(2, 4)
    best = beam_search(model, points, rule="tour", beam=24)
    assert best.tokens.shape[1] == 24
    assert len({tuple(row) for row in best.tokens[0].tolist()}) == 24
    torch.testing.assert_close(best.log_prob.logsumexp(1), torch.zeros(2, dtype=torch.float64))
    greedy = beam_search(model, points, rule="tour")
    assert (best.log_prob[:, 0] >= greedy.log_prob[:, 0] - 1e-12).all()


def test_a_tour_ends_where_it_is_told_to() -> None:
    points, lengths = _random(4, 6)
    last = torch.tensor([2, 1, 3, 0])
    tokens = beam_search(MODELS["pointer"](), points, lengths, rule="tour", beam=3, last=last).tokens
    for row, length in enumerate(lengths.tolist()):
        if last[row]:
            assert (tokens[row, :, length - 1] == last[row]).all()
        assert sorted(tokens[row, 0, :length].tolist()) == list(range(1, length + 1))


def test_hulls_and_triangles_keep_their_rules() -> None:
    points, lengths = _random(6, 7)
    hulls = beam_search(MODELS["pointer"](), points, lengths, rule="hull", beam=2).tokens
    for hull in filter(any, hulls.flatten(0, 1).tolist()):
        length = hull.index(0)
        assert length >= 3
        assert len(set(hull[:length])) == length
    triangles = beam_search(MODELS["pointer"](), points, lengths, rule="triangles", beam=2).tokens
    for row, length in zip(triangles, lengths.tolist(), strict=True):
        for beam in filter(any, row.tolist()):
            tokens = beam[: beam.index(0)]
            assert len(tokens) % 3 == 0
            assert 3 <= len(tokens) < most_steps("triangles", length)
            assert all(0 < a < b < c <= length for a, b, c in zip(*[iter(tokens)] * 3, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_stepping_equals_teacher_forcing(name: str) -> None:
    model = MODELS[name]()
    points, lengths = _random(3, 6)
    target = torch.tensor([[1, 2, 3, 0], [3, 1, 0, -100], [2, 3, 1, 0]])
    logits = model(points, target, lengths)
    memory, state = model.start(points, lengths)
    chosen: Tensor | None = None
    for step in range(target.shape[1]):
        now, state = model.step(memory, state, chosen)
        real = target[:, step] >= 0
        torch.testing.assert_close(now[real, 0], logits[real, step])
        chosen = target[:, step : step + 1].clamp(min=0)
    nll = model.nll(points, target, lengths)
    wanted = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, reduction="none")
    torch.testing.assert_close(nll, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_a_masked_loss_is_that_of_the_search_under_the_same_rule(name: str) -> None:
    model = MODELS[name]()
    points, lengths = _random(3, 6)
    found = beam_search(model, points, lengths, rule="tour", beam=2)
    for beam in range(2):
        target = found.tokens[:, beam].masked_fill(torch.arange(7) > lengths[:, None], IGNORED)
        allowed = allowed_tokens(target, 6, lengths, rule="tour")
        assert torch.equal(allowed.any(-1), target != IGNORED)
        nll = model.nll(points, target, lengths, allowed)
        torch.testing.assert_close(-nll.sum(1), found.log_prob[:, beam])


@pytest.mark.parametrize("rule", RULES)
def test_what_a_search_finds_is_allowed(rule: Rule) -> None:
    points, lengths = _random(4, 7)
    tokens = beam_search(MODELS["pointer"](), points, lengths, rule=rule).tokens[:, 0]
    ends = (tokens == 0).int().argmax(1, keepdim=True)
    target = tokens.masked_fill(torch.arange(tokens.shape[1]) > ends, IGNORED)
    allowed = allowed_tokens(target, 7, lengths, rule=rule)
    chosen = allowed.gather(2, target.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    assert torch.equal(chosen, target != IGNORED)


@pytest.mark.parametrize("glimpse", [False, True])
def test_the_pointer_network_passes_the_kit(glimpse: bool) -> None:
    target = torch.tensor([[1, 3, 2, 4, 0], [1, 2, 3, 0, -100]])
    inputs = {"points": torch.rand(2, 4, 2), "target": target, "lengths": torch.tensor([4, 3])}
    assert check_model(PointerNetwork, inputs, config={"dim": 8, "glimpse": glimpse})


@pytest.mark.parametrize("cls", [Seq2Seq, LSTMAttention])
def test_the_baselines_pass_the_kit(cls: type) -> None:
    target = torch.tensor([[1, 3, 2, 4, 0], [1, 2, 3, 0, -100]])
    inputs = {"points": torch.rand(2, 4, 2), "target": target, "lengths": torch.tensor([4, 3])}
    assert check_model(cls, inputs, config={"dim": 8, "max_points": 4})


@pytest.mark.parametrize(
    "model",
    [
        PointerNetwork(PointerNetworkConfig(dim=16, glimpse=True)),
        Seq2Seq(FixedDictionaryConfig(dim=16)),
        LSTMAttention(FixedDictionaryConfig(dim=16)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_only_weights_of_coordinates_are_drawn_wide(model: torch.nn.Module) -> None:
    for name, parameter in model.named_parameters():
        largest = parameter.detach().abs()
        if name.endswith("weight_ih_l0"):
            assert 1.5 < largest[:, :2].max() <= 2
            largest = largest[:, 2:]
        assert not (largest > 0.08).any()


def test_releases_differ_in_what_they_say() -> None:
    assert PointerNetworkConfig.release("paper") == PointerNetworkConfig(dim=512, input_init=0.08)
    with pytest.raises(ConfigError, match=r'No release "vinyals" of the Pointer Network. All: paper, gchaperon'):
        PointerNetworkConfig.release("vinyals")


def test_what_does_not_fit_is_refused() -> None:
    model = PointerNetwork(PointerNetworkConfig(dim=8))
    with pytest.raises(ShapeError, match=r"points \(2, 4, 3\) are not \(batch, n, 2\)"):
        model.start(torch.zeros(2, 4, 3))
    with pytest.raises(ShapeError, match=r"lengths \(3,\) is not \(batch,\) = \(2,\)"):
        model.start(torch.zeros(2, 4, 2), torch.tensor([1, 2, 3]))
    with pytest.raises(ShapeError, match="lengths are 0 to 4, expected 1 to 4"):
        model.start(torch.zeros(2, 4, 2), torch.tensor([0, 4]))
    with pytest.raises(ShapeError, match="more than the 4 of this dictionary"):
        Seq2Seq(FixedDictionaryConfig(max_points=4)).start(torch.zeros(2, 5, 2))
    with pytest.raises(ConfigError, match=r"features 2 and dim 0 must be 1 or more, clip 0.0 0 or more, input"):
        PointerNetwork(PointerNetworkConfig(dim=0))
    with pytest.raises(ConfigError, match=r"features 2, dim 8 and max_points 0 must be 1 or more, input_init 2.0"):
        Seq2Seq(FixedDictionaryConfig(dim=8, max_points=0))
    with pytest.raises(ConfigError, match=r"beam is 0: at least 1 answer has to be kept"):
        beam_search(model, torch.zeros(1, 3, 2), rule="tour", beam=0)
    with pytest.raises(ConfigError, match=r'No rule "tours" for decoding. All: free, tour'):
        beam_search(model, torch.zeros(1, 3, 2), rule="tours")  # type: ignore[arg-type]
