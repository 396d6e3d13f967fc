"""Every plugin of the workspace passes the kit that outside authors use."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts.workspace import distributions

from polyhead.plugins import manager
from polyhead.testing import check_plugin

OURS = {distribution.name for distribution in distributions()}
PLUGINS = [plugin.name for plugin in manager().plugins if manager().origin(plugin.name).distribution in OURS]


@pytest.mark.parametrize("name", PLUGINS)
def test_our_plugins_pass_the_kit(name: str) -> None:
    assert check_plugin(name)


def test_a_real_week_of_traffic_passes_as_it_is(shared: Path) -> None:
    from polyhead.testing import check_dataset

    week = shared / "data" / "traffic" / "metr-la-week"
    assert check_dataset("sensors", week, settings={"start": "2012-03-01", "step": "5min"})
