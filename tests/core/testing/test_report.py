"""A report keeps every broken rule, and names the subject, the rule and where it is written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyhead import testing
from polyhead.testing.report import CheckError, Report, RuleError
from polyhead.testing.values import difference


def test_every_broken_rule_is_told() -> None:
    report = Report('model "a"')
    with report.check("it is small", "docs"):
        pass
    with report.check("it is red", "docs/colours"):
        raise RuleError("it is blue. Paint it.")
    with report.check("it answers", "docs/speech"):
        raise ValueError
    inner = Report("part")
    with inner.check("it fits", "docs"):
        pass
    with inner.check("it holds", "docs"):
        raise SystemExit(3)
    report.include(inner)
    with pytest.raises(CheckError) as caught:
        report.finish()
    assert str(caught.value).splitlines() == [
        'model "a": 3 rules are broken, 2 kept.',
        "- it is red: it is blue. Paint it. (rule: docs/colours)",
        "- it answers: raised ValueError: no message (rule: docs/speech)",
        "- part: it holds: raised SystemExit: 3 (rule: docs)",
    ]


def test_what_was_kept_is_returned() -> None:
    report = Report("a")
    with report.check("it is small", "docs"):
        pass
    assert report.finish() == ["it is small"]


@pytest.mark.parametrize("name", testing.__all__)
def test_every_check_resolves(name: str) -> None:
    assert getattr(testing, name) is not None
    assert name in dir(testing)


def test_an_unknown_check_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'polyhead.testing' has no attribute 'check_all'"):
        _ = testing.check_all


@pytest.mark.parametrize(
    ("a", "b", "text"),
    [
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), ""),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "value differs in 1 of 2 elements, first at (1,): 2 and 3"),
        (
            torch.ones(2),
            torch.ones(3),
            "value has shape (2,) and dtype torch.float32 once, (3,) and torch.float32 then",
        ),
        (torch.ones(()), torch.zeros(()), "value differs in 1 of 1 elements, first at (): 1.0 and 0.0"),
        (np.ones(2), np.zeros(2), "value differs in 2 of 2 elements, first at (0,): 1.0 and 0.0"),
        (np.array(["a"]), np.array(["b"]), "value is array(['a']"),
        ({"a": [1, "x"]}, {"a": [1, "y"]}, "a[1] is 'x' once and 'y' then"),
        ({"a": 1}, {"b": 1}, "one has a and the other b"),
        ((), 1, "one has nothing and the other value"),
        (float("nan"), float("nan"), ""),
        (1, 1.0, "value is 1 once and 1.0 then"),
    ],
)
def test_difference(a: object, b: object, text: str) -> None:
    assert difference(a, b).startswith(text)
    assert bool(difference(a, b)) == bool(text)
