"""The kit that checks an operator, a kernel, a token mixer, a model, a dataset, a task, an app or a whole plugin.

Polyhead's own tests and those of an outside author use the same functions. Each tries the real thing and raises
``CheckError`` with a sentence per broken rule: what is wrong, where the rule is written, how to mend it. If all is
well it returns the list of what was checked.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyhead.testing.apps import check_app
    from polyhead.testing.datasets import check_dataset
    from polyhead.testing.mixers import check_mixer
    from polyhead.testing.models import check_model
    from polyhead.testing.operators import check_kernel, check_operator
    from polyhead.testing.plugins import check_plugin
    from polyhead.testing.report import CheckError
    from polyhead.testing.tasks import check_task

__all__ = [
    "CheckError",
    "check_app",
    "check_dataset",
    "check_kernel",
    "check_mixer",
    "check_model",
    "check_operator",
    "check_plugin",
    "check_task",
]

_HOMES = {
    "CheckError": "report",
    "check_app": "apps",
    "check_dataset": "datasets",
    "check_kernel": "operators",
    "check_mixer": "mixers",
    "check_model": "models",
    "check_operator": "operators",
    "check_plugin": "plugins",
    "check_task": "tasks",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for (PEP 562)."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"polyhead.testing.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'polyhead.testing' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the lazy names too."""
    return sorted({*globals(), *__all__})
