"""Sampling, boundary matching, gates, targets, losses, suppression: exact statements about each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.errors import ConfigError, ShapeError
from polyhead_actions.boundary_matching import BoundaryMatching
from polyhead_actions.gates import ClassSemanticsAttention, SqueezeExcitation, masked_mean
from polyhead_actions.nms import hard_nms, segment_iou, soft_nms, vote
from polyhead_actions.proposals import boundaries, candidates, class_means
from polyhead_actions.sampling import Span, cells, taps
from polyhead_actions.targets import boundary_targets, iou_targets


def _brute(feature: np.ndarray, start: int, duration: int, samples: int, span: str) -> np.ndarray:
    """Sample one channel by numpy's own interpolation, zeros outside."""
    last = start + duration + (span == "boundaries")
    size = 0.5 * (last - start + 1)
    points = np.linspace(start - size, last + size, 3 * samples)
    padded = np.concatenate([[0.0], feature, [0.0]])
    values = np.interp(points, np.arange(-1, len(feature) + 1), padded, left=0.0, right=0.0)
    return values.reshape(samples, 3).mean(1)


@pytest.mark.parametrize("span", ["snippets", "boundaries"])
@pytest.mark.parametrize(("length", "durations"), [(1, 1), (7, 7), (12, 5)])
def test_sparse_equals_dense_equals_interpolation(span: Span, length: int, durations: int) -> None:
    samples = 4
    generator = torch.Generator().manual_seed(0)
    layer = BoundaryMatching(3, 5, length, durations, samples=samples, span=span).double()
    x = torch.randn(2, 3, length, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        layer.bias.copy_(torch.randn(5, generator=generator))
    duration, start = cells(length, durations)
    sampled = np.array(
        [
            [[_brute(c, i, d, samples, span) for c in row] for d, i in zip(duration, start, strict=True)]
            for row in x.numpy()
        ]
    )
    want = torch.einsum("bvcn,ocn->bvo", torch.from_numpy(sampled), layer.weight.detach()) + layer.bias.detach()
    got = layer(x)
    assert got.shape == (2, len(start) + 1, 5)
    assert torch.allclose(got[:, :-1], want, atol=1e-6)  # weights of taps are kept in float32
    assert torch.equal(got[:, -1], layer.bias.expand(2, -1))


def test_gradients_of_boundary_matching() -> None:
    layer = BoundaryMatching(2, 3, 5, 4, samples=3).double()
    x = torch.randn(2, 2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w, b: torch.func.functional_call(layer, {"weight": w, "bias": b}, (x,)),
                                    (x, layer.weight, layer.bias))  # fmt: skip


def test_weights_of_a_cell_add_up() -> None:
    length = 20
    made = taps(length, length, samples=5)
    duration, start = cells(length, length)
    sums = np.add.reduceat(made.weights, made.offsets[:-1])
    assert (sums <= 5 + 1e-9).all()
    inside = (start - 0.5 * (duration + 1) >= 0) & (start + duration + 0.5 * (duration + 1) <= length - 1)
    assert inside.any()
    assert sums[inside] == pytest.approx(5)
    assert (made.weights > 0).all()


def test_an_empty_batch() -> None:
    layer = BoundaryMatching(2, 3, 5, 4, samples=3)
    out = layer(torch.zeros(0, 2, 5))
    out.sum().backward()
    assert out.shape == (0, 15, 3)
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"channels": 0}, "channels is 0, at least 1 is needed"),
        ({"samples": 1, "per_sample": 1}, "samples * per_sample is 1, at least 2 points are needed"),
    ],
)
def test_refused_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BoundaryMatching(sizes.pop("channels", 2), 2, 4, 4, **sizes)  # type: ignore[arg-type]  # all are sizes
    assert message in str(caught.value)


def test_refused_sequences() -> None:
    with pytest.raises(ShapeError, match=r"takes \(B, 2, 4\), channels and steps, not \(1, 3, 4\)"):
        BoundaryMatching(2, 2, 4, 4)(torch.zeros(1, 3, 4))


def _csa(**options: object) -> ClassSemanticsAttention:
    torch.manual_seed(0)
    return ClassSemanticsAttention(8, 6, **options)  # type: ignore[arg-type]


def test_gates_of_one_half_give_the_features_back() -> None:
    layer = _csa()
    assert layer.channel_out is not None
    assert layer.temporal_out is not None
    for last in (layer.channel_out, layer.temporal_out):
        torch.nn.init.zeros_(last.weight)
    features = torch.randn(2, 6, 9)
    assert torch.equal(layer(torch.randn(2, 8, 9), features), features)


@pytest.mark.parametrize("fuse", ["sum", "max", "concat"])
@pytest.mark.parametrize(("channel", "temporal"), [(True, True), (True, False), (False, True)])
def test_padding_changes_nothing(fuse: str, channel: bool, temporal: bool) -> None:
    layer = _csa(fuse=fuse, channel=channel, temporal=temporal).double()
    source, features = torch.randn(2, 8, 9).double(), torch.randn(2, 6, 9).double()
    mask = torch.arange(13).expand(2, -1) < 9
    pad = torch.randn(2, 8, 4).double()
    longer = layer(torch.cat([source, pad], -1), torch.cat([features, pad[:, :6]], -1), mask)
    assert torch.allclose(longer[..., :9], layer(source, features), atol=1e-12)


def test_pooled_first_without_time_it_is_squeeze_and_excitation() -> None:
    layer = ClassSemanticsAttention(6, 6, reduction=2, kernel=1, temporal=False, pool_first=True).double()
    peer = SqueezeExcitation(6, reduction=2).double()
    assert layer.channel_in is not None
    assert layer.channel_in.bias is not None
    assert layer.channel_out is not None
    with torch.no_grad():
        peer.inner.weight.copy_(layer.channel_in.weight[..., 0])
        peer.inner.bias.copy_(layer.channel_in.bias)
        peer.outer.weight.copy_(layer.channel_out.weight)
        peer.outer.bias.copy_(layer.channel_out.bias)
    features = torch.randn(2, 6, 9).double()
    assert torch.allclose(layer(features, features), peer(features), atol=1e-12)


def test_squeeze_and_excitation_equals_timms() -> None:
    timm = pytest.importorskip("timm.layers", reason="timm is not installed")
    theirs = timm.SEModule(8, rd_channels=2).double()
    ours = SqueezeExcitation(8, reduction=4).double()
    with torch.no_grad():
        for own, other in ((ours.inner, theirs.fc1), (ours.outer, theirs.fc2)):
            own.weight.copy_(other.weight[..., 0, 0])
            own.bias.copy_(other.bias)
    x = torch.randn(2, 8, 9).double()
    assert torch.allclose(ours(x), theirs(x.unsqueeze(2)).squeeze(2), atol=1e-12)


def test_a_source_of_another_length_is_interpolated() -> None:
    layer = _csa()
    assert layer(torch.randn(2, 8, 5), torch.randn(2, 6, 9)).shape == (2, 6, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel": False, "temporal": False}, "channel and temporal are both off"),
        ({"kernel": 2}, "kernel is 2, an odd number is needed"),
        ({"reduction": 0}, "reduction 0 must be at least 1"),
    ],
)
def test_refused_gates(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _csa(**options)
    assert message in str(caught.value)


def test_refused_tensors_of_gates() -> None:
    with pytest.raises(ShapeError, match=r"The source has shape \(2, 7, 9\): \(B, 8, T\) is needed"):
        _csa()(torch.zeros(2, 7, 9), torch.zeros(2, 6, 9))
    with pytest.raises(ShapeError, match=r"The features have shape \(2, 5, 9\): \(2, 6, T\) is needed"):
        _csa()(torch.zeros(2, 8, 9), torch.zeros(2, 5, 9))
    with pytest.raises(ConfigError, match="channels 0 and reduction 4 must be at least 1"):
        SqueezeExcitation(0)


def test_a_masked_mean_of_nothing_is_zero() -> None:
    assert masked_mean(torch.ones(1, 2, 3), torch.zeros(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0]]


def test_reversed_time_swaps_the_targets() -> None:
    length = 12
    segments = torch.tensor([[[1.3, 4.0], [6.0, 11.2]]])
    present = torch.ones(1, 2, dtype=torch.bool)
    start, end = boundary_targets(segments, present, length)
    turned = (length - segments).flip(-1)
    start_turned, end_turned = boundary_targets(turned, present, length)
    assert torch.allclose(start.flip(-1), end_turned, atol=1e-5)
    assert torch.allclose(end.flip(-1), start_turned, atol=1e-5)
    iou, iou_turned = (iou_targets(s, present, length, length) for s in (segments, turned))
    for duration, first in zip(*cells(length, length), strict=True):
        assert iou[0, duration, first] == pytest.approx(
            float(iou_turned[0, duration, length - 1 - first - duration]), abs=1e-5
        )


def test_targets_of_nothing() -> None:
    none = torch.zeros(2, 3, dtype=torch.bool)
    start, end = boundary_targets(torch.zeros(2, 3, 2), none, 5)
    assert not start.any()
    assert not end.any()
    assert not iou_targets(torch.zeros(2, 0, 2), torch.zeros(2, 0, dtype=torch.bool), 5, 3).any()


def _loop(
    segments: np.ndarray, scores: np.ndarray, keep: int, alpha: float, low: float, high: float
) -> list[tuple[int, float]]:
    left = {i: float(score) for i, score in enumerate(scores)}
    taken: list[tuple[int, float]] = []
    while left and len(taken) < keep:
        best = max(left, key=lambda i: (left[i], -i))
        score = left.pop(best)
        taken.append((best, score))
        width = segments[best, 1] - segments[best, 0]
        for i in left:
            iou = float(segment_iou(segments[best], segments[i]))
            if iou > low + (high - low) * width:
                left[i] *= float(np.exp(-(iou**2) / alpha))
    return taken


def _some(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    start = rng.random(count) * 0.8
    return np.stack([start, start + 0.02 + rng.random(count) * (0.98 - start)], 1), rng.random(count)


@given(count=st.integers(0, 700), seed=st.integers(0, 100), keep=st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_soft_nms_equals_a_double_loop(count: int, seed: int, keep: int) -> None:
    segments, scores = _some(count, seed)
    taken, lowered = soft_nms(segments, scores, keep=keep)
    want = _loop(segments, scores, keep, 0.4, 0.5, 0.9)
    assert taken.tolist() == [i for i, _ in want]
    assert lowered == pytest.approx([score for _, score in want], rel=1e-12)


def test_soft_nms_at_its_limits() -> None:
    segments, scores = _some(300, 1)
    taken, lowered = soft_nms(segments, scores, alpha=1e12, keep=None)
    assert taken.tolist() == np.argsort(-scores).tolist()
    taken, lowered = soft_nms(segments, scores, alpha=0, low=0.5, high=0.5, keep=None)
    hard = hard_nms(segments, scores, threshold=0.5)
    assert taken[lowered > 0].tolist() == hard.tolist()
    taken, lowered = soft_nms(segments, scores, low=0, high=0, keep=None, least=0.2)
    assert (lowered >= 0.2).all()
    assert len(taken) < 300
    assert hard_nms(segments, scores, threshold=0.5, keep=3).tolist() == hard[:3].tolist()


def test_a_segment_without_a_vote_stays() -> None:
    segments = np.array([[0.0, 1.0]])
    assert vote(segments, np.array([[2.0, 3.0]]), np.ones(1), threshold=0.5).tolist() == segments.tolist()


def test_candidates_of_short_sequences() -> None:
    one = np.array([0.2])
    segments, scores = candidates(one, one, np.full((2, 1, 1), 0.5))
    assert segments.tolist() == [[0.0, 1.0]]
    assert scores == pytest.approx([0.2 * 0.2 * 0.25])
    assert len(candidates(one, one, np.zeros((2, 1, 1)), steps=0)[1]) == 0
    assert boundaries(np.zeros(3)).tolist() == [False, False, False]
    start = np.array([0.9, 0.1, 0.8, 0.1])
    segments, scores = candidates(start, start, np.ones((2, 4, 4)), score="boundary")
    assert scores[segments.tolist().index([0.0, 3.0])] == pytest.approx(0.72)


def test_class_means_take_fractions_of_steps() -> None:
    logits = np.array([[1.0, 2.0, 4.0]])
    means = class_means(logits, np.array([[0.0, 3.0], [0.5, 1.5], [2.0, 3.0]]))
    assert means.ravel() == pytest.approx([7 / 3, 1.5, 4.0])
