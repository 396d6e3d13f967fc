"""Scores of scanpaths against recorded values, independent statements and invariants."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyhead_gaze.scores import (
    behaviour,
    behaviour_delta,
    interval,
    levenshtein,
    nss,
    pack,
    scanmatch,
    sequence_score,
)

PATHS = st.lists(st.integers(0, 4), min_size=1, max_size=8)
PAIRS = st.lists(st.tuples(PATHS, PATHS), min_size=1, max_size=5)


def longest_common(a: list[int], b: list[int]) -> int:
    @cache
    def best(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        return best(i + 1, j + 1) + 1 if a[i] == b[j] else max(best(i + 1, j), best(i, j + 1))

    return best(0, 0)


def edits(a: list[int], b: list[int]) -> int:
    @cache
    def fewest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return len(a) - i + len(b) - j
        return min(fewest(i + 1, j) + 1, fewest(i, j + 1) + 1, fewest(i + 1, j + 1) + (a[i] != b[j]))

    return fewest(0, 0)


@given(PAIRS)
def test_sequence_score_is_the_longest_common_subsequence(pairs: list[tuple[list[int], list[int]]]) -> None:
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    expected = [longest_common(x, y) / max(len(x), len(y)) for x, y in pairs]
    np.testing.assert_allclose(sequence_score(pack(a), pack(b)), expected)


@given(PAIRS)
def test_levenshtein(pairs: list[tuple[list[int], list[int]]]) -> None:
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    assert levenshtein(pack(a), pack(b)).tolist() == [edits(x, y) for x, y in pairs]


@given(PAIRS)
def test_scanmatch_is_between_0_and_1_and_1_for_equal_paths(pairs: list[tuple[list[int], list[int]]]) -> None:
    a, b = ([pair[k] for pair in pairs] for k in (0, 1))
    place = np.broadcast_to(np.stack([np.arange(5.0), np.zeros(5)], -1), (len(pairs), 5, 2))
    score = scanmatch(pack(a), pack(b), place)
    assert (score >= 0).all()
    assert (score <= 1).all()
    np.testing.assert_allclose(scanmatch(pack(a), pack(a), place), 1)
    assert (score >= sequence_score(pack(a), pack(b)) - 1e-9).all()  # places that are near count as well


def test_scanmatch_by_hand() -> None:
    place = np.array([[[0.0, 0.0], [0.0, 1.0], [0.0, 9.0]]])
    # 0 with 0 gains 3.5, 2 with 1 lies 8 apart and is skipped: 3.5 of at most 2 × 3.5.
    assert scanmatch(pack([[0, 2]]), pack([[0, 1]]), place)[0] == pytest.approx(0.5)
    assert scanmatch(pack([[0, 1]]), pack([[1, 1]]), place)[0] == pytest.approx((2.5 + 3.5) / 7)


@given(st.lists(PATHS, min_size=1, max_size=6))
def test_the_three_shares_of_behaviour_sum_to_one(paths: list[list[int]]) -> None:
    rates = behaviour(pack(paths), np.zeros(len(paths), np.int64))
    np.testing.assert_allclose(rates[:, 2:].sum(1), 1)
    assert rates[:, 1].tolist() == [len(path) for path in paths]
    assert rates[:, 0].tolist() == [path[-1] == 0 for path in paths]
    mean = rates.mean(0)
    assert behaviour_delta(mean, mean) == 0


def test_recorded_runs_of_the_published_code(shared: Path) -> None:
    recorded = json.loads((shared / "golden" / "oat-gaze" / "metrics.json").read_text())
    names = ("found", "length", "search", "refixation", "revisit")
    cases = recorded["behaviour"]
    rates = behaviour(pack([case["scanpath"] for case in cases]), np.array([case["target"] for case in cases]))
    np.testing.assert_allclose(rates, [[case[name] for name in names] for case in cases], atol=1e-12)
    cases = recorded["sequence_score"]
    score = sequence_score(pack([case["a"] for case in cases]), pack([case["b"] for case in cases]))
    np.testing.assert_allclose(score, [case["score"] for case in cases], atol=1e-7)
    # The histogram intersection with a one-hot truth is the probability of the truth.
    sim = recorded["sim"]
    chances = [probs[truth] for probs, truth in zip(sim["probs"], sim["truth"], strict=True)]
    assert np.mean(chances) == pytest.approx(sim["value"], abs=1e-7)


def test_a_rate_of_nothing_is_left_out_of_delta() -> None:
    assert behaviour_delta(np.array([1.0, 5, 1, 0.2, 0]), np.array([1.0, 4, 1, 0, 0])) == pytest.approx(0.25 / 3)
    assert behaviour_delta(np.ones(5), np.zeros(5)) == 0


def test_nss_by_hand() -> None:
    objects = np.array([[True] * 4, [True, True, False, False]])
    drawn, owners = pack([[0], [1, 0], [0]]), np.array([0, 0, 1])
    # First trial: two of four objects hit, so hit objects have z = 1 and the others -1. Second: one of two.
    score = nss(drawn, owners, pack([[0, 3, 1], [1]]), objects)
    np.testing.assert_allclose(score, [1 / 3, -1])
    assert nss(pack([[0, 1]]), np.array([0]), pack([[0]]), np.array([[True, True]]))[0] == 0


def test_an_interval_draws_whole_displays() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 25)
    shared_ = random.normal(0, 1, 40)[groups]
    low, high = interval(shared_ + random.normal(0, 0.1, 1000), groups)
    assert 0.4 < high - low < 0.9  # of 40 displays, not of 1,000 trials
    assert low < shared_.mean() < high
    assert interval(np.array([np.nan, 2.0, 2.0]), np.array([0, 0, 1])) == (2.0, 2.0)
    assert np.isnan(interval(np.array([np.nan]), np.array([0]))).all()


def test_nothing_to_score() -> None:
    assert pack([]).shape == (0, 0)
    assert behaviour(pack([]), np.zeros(0, np.int64)).shape == (0, 5)
