"""The shell every Polyhead app runs in: `App`, `Demo` and `run`; imports no torch."""

from polyhead_apps.app import App, Demo, run

__all__ = ["App", "Demo", "run"]
