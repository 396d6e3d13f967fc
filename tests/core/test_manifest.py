"""References are imported when used, and malformed ones are named."""

from __future__ import annotations

import dataclasses

import pytest

from polyhead import ModelSpec, Plugin
from polyhead.errors import PluginError
from polyhead.manifest import resolve


def test_resolve_imports_the_attribute() -> None:
    assert resolve("polyhead.manifest:Plugin") is Plugin


@pytest.mark.parametrize("reference", ["polyhead.manifest", ":Plugin", "polyhead.manifest:", ""])
def test_malformed_reference_is_refused(reference: str) -> None:
    with pytest.raises(PluginError, match=r'Reference ".*" is not of the form "module:attribute"\.'):
        resolve(reference)


def test_missing_attribute_is_named() -> None:
    with pytest.raises(PluginError, match=r'Module "polyhead.manifest" has no "Plugins" \(reference "polyhead'):
        resolve("polyhead.manifest:Plugins")


def test_a_broken_module_is_not_mistaken_for_a_missing_attribute() -> None:
    with pytest.raises(ModuleNotFoundError, match="polyhead_nowhere"):
        resolve("polyhead_nowhere:Model")


def test_manifests_are_frozen() -> None:
    spec = ModelSpec(name="a", target="b:C", summary="d")
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.name = "other"  # type: ignore[misc]
    assert Plugin(name="p", summary="s", models=(spec,)).models[0].presets == {}
