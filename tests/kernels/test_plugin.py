"""The plugin of the kernels distribution."""

from __future__ import annotations

import subprocess
import sys

import pytest

from polyhead import plugins
from polyhead_kernels import plugin


class Registry:
    """Takes what is registered."""

    def __init__(self) -> None:
        self.specs: list[object] = []

    def register(self, spec: object) -> None:
        self.specs.append(spec)


def test_manifest_is_listed() -> None:
    assert plugins.find_plugin("kernels").summary.startswith("Triton kernels for Polyhead's operators")


def test_references_are_registered_when_the_registry_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "KERNELS", ("string:digits", "string:hexdigits"))
    registry = Registry()
    plugin.polyhead_register_kernels(registry)
    assert registry.specs == ["0123456789", "0123456789abcdefABCDEF"]


def test_plugin_imports_neither_triton_nor_torch() -> None:
    code = "import sys, polyhead_kernels.plugin; print(*{'torch', 'triton'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
