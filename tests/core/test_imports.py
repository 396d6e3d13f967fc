"""``import polyhead`` and everything a command line needs import no torch; every lazy name resolves."""

from __future__ import annotations

import subprocess
import sys

import pytest

import polyhead

HEAVY = ("torch", "pandas", "matplotlib", "accelerate", "triton", "safetensors")
LIGHT = (
    "",
    ".errors",
    ".manifest",
    ".protocols",
    ".plugins",
    ".hookspecs",
    ".models",
    ".artifacts",
    ".configs",
    ".testing",
)


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_light_modules_import_nothing_heavy() -> None:
    names = [f"polyhead{suffix}" for suffix in LIGHT]
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    assert fresh(code + f"print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_loading_every_plugin_imports_nothing_heavy() -> None:
    code = "import sys\nfrom polyhead import plugins\nplugins.plugins()\n"
    assert fresh(code + f"print([name for name in {HEAVY} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("name", polyhead.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(polyhead, name) is not None
    assert name in dir(polyhead)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'polyhead' has no attribute 'nothing'"):
        _ = polyhead.nothing
