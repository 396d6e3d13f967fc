"""``python -m polyhead_apps APP …`` runs a registered app: what the processes of a distributed run are started with."""

from __future__ import annotations

import sys

from polyhead import plugins
from polyhead.errors import PolyheadError
from polyhead.manifest import resolve
from polyhead_apps.app import run

if __name__ == "__main__":
    try:
        app = resolve(plugins.find_app(sys.argv[1] if sys.argv[1:] else "")[1].target)
    except PolyheadError as error:
        raise SystemExit(f"polyhead_apps: {error}") from error
    run(app, sys.argv[2:])
