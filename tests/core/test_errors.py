"""Errors are builtin exceptions too, and suggest the nearest name."""

from __future__ import annotations

import pickle

import pytest

from polyhead import errors
from polyhead.errors import PolyheadError, UnknownNameError, nearest


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ShapeError", ValueError),
        ("DtypeError", TypeError),
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("CheckpointError", RuntimeError),
        ("StorageError", OSError),
        ("KernelError", RuntimeError),
        ("PluginError", RuntimeError),
        ("NonFiniteError", ArithmeticError),
        ("MissingExtraError", ImportError),
    ],
)
def test_both_kinds_of_except_work(name: str, builtin: type[Exception]) -> None:
    kind = getattr(errors, name)
    assert name in errors.__all__
    for caught in (PolyheadError, builtin):
        with pytest.raises(caught, match="q is 3 wide"):
            raise kind("q is 3 wide")


def test_unknown_name_suggests_the_nearest_and_names_the_listing() -> None:
    error = UnknownNameError("operator", "lightening", ["softmax", "lightning"], "polyhead kernels list")
    assert str(error) == 'No operator "lightening". Did you mean "lightning"?  All: polyhead kernels list'
    assert isinstance(error, LookupError)
    assert error.known == ["lightning", "softmax"]


def test_unknown_name_lists_the_names_themselves_without_a_command() -> None:
    assert str(UnknownNameError("model", "x", ["b", "a"])) == 'No model "x".  All: a, b'
    assert str(UnknownNameError("model", "x", [])) == 'No model "x".  All: none'


def test_nearest_is_none_when_nothing_is_close() -> None:
    assert nearest("zzz", ["lightning"]) is None


def test_errors_pass_between_processes() -> None:
    error = UnknownNameError("model", "gmann", ["gman"])
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes; workers send errors this way
    assert type(again) is UnknownNameError
    assert str(again) == str(error)
