"""The shell every Polyhead app runs in: `App`, `Arm`, `Demo` and `run`; imports no torch."""

from polyhead_apps.app import App, Arm, Demo, run

__all__ = ["App", "Arm", "Demo", "run"]
