"""A plugin whose optional dependency is not installed."""

from __future__ import annotations

import importlib

# What `import no_such_backbones` does, in a form that type checkers do not follow.
backbones = importlib.import_module("no_such_backbones")
