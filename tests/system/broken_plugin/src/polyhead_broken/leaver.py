"""A plugin that ends the process, as a module meant to be a script does."""

from __future__ import annotations

import sys

sys.exit("usage: leaver FILE")
