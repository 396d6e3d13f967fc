"""Public datasets that are recognised, by a file's digest or by name and number of sensors."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from polyhead_traffic.settings import SensorSettings

__all__ = ["Known", "recognise", "with_known_times"]


class Known(NamedTuple):
    """What is known of a public dataset beyond its files."""

    name: str
    unit: str
    origin: str
    licence: str
    nodes: int
    start: str = ""
    """Time of the first row, where the files have no times."""
    step: str = ""


_DCRNN = "none stated for the readings (github.com/liyaguang/DCRNN, code MIT)"
_PEMS = "none stated; Caltrans PeMS (pems.dot.ca.gov)"


def _pems(number: str, nodes: int, start: str) -> Known:
    origin = f"Flows of {nodes} detectors of Caltrans PeMS (PEMS{number}, as released with ASTGCN and STSGCN)."
    return Known(f"PEMS{number}", "veh/5min", origin, _PEMS, nodes, start, "5min")


BY_DIGEST = {
    "7b732d86ae32b2930595becba28aff39dacbfb2197e250fc0332e1744ce2cbf4": Known(
        "METR-LA week",
        "mph",
        "Speeds of 207 loop detectors on Los Angeles highways, 2012-03-01 to 2012-03-07 (METR-LA, Jagadish et al. "
        "2014), missing readings imputed by the authors of T-GCN.",
        "none stated (github.com/lehaifeng/T-GCN); MIT in T-GCN-PyTorch",
        207,
        "2012-03-01",
        "5min",
    ),
    "55891c7e102a8352f3c8022f79bc588ae77a68625a565d79ed8aaadbf8e9202d": Known(
        "Hangzhou metro",
        "passengers/10min",
        "Passengers who entered 80 stations of the Hangzhou metro, 2019-01-01 to 2019-01-25, 6 to 24 h (Zenodo "
        "3145404, as released with transdim).",
        "MIT (github.com/xinychen/transdim); that of the original was not verified",
        80,
        "2019-01-01T06:00",
        "10min",
    ),
}
BY_NAME = {
    "metrla": Known(
        "METR-LA",
        "mph",
        "Speeds of 207 loop detectors on Los Angeles highways, 2012 (METR-LA, Jagadish et al. 2014; released with "
        "DCRNN).",
        _DCRNN,
        207,
        "2012-03-01",
        "5min",
    ),
    "pemsbay": Known(
        "PEMS-BAY",
        "mph",
        "Speeds of 325 detectors of Caltrans PeMS in the Bay Area, 2017 (PEMS-BAY, released with DCRNN).",
        _DCRNN,
        325,
        "2017-01-01",
        "5min",
    ),
    "pems03": _pems("03", 358, "2018-09-01"),
    "pems04": _pems("04", 307, "2018-01-01"),
    "pems07": _pems("07", 883, "2017-05-01"),
    "pems08": _pems("08", 170, "2016-07-01"),
}


def recognise(path: Path, nodes: int) -> Known | None:
    """Return what is known of a file of readings: by its digest, else by its name or its folder's and its sensors."""
    with path.open("rb") as file:
        known = BY_DIGEST.get(hashlib.file_digest(file, "sha256").hexdigest())
    if known is not None:
        return known
    names = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (path.stem, path.parent.name))
    return next((BY_NAME[name] for name in names if name in BY_NAME and BY_NAME[name].nodes == nodes), None)


def with_known_times(path: Path, nodes: int, settings: SensorSettings) -> tuple[SensorSettings, tuple[str, ...]]:
    """Return settings that say when a file without times begins, if that is published, and a sentence about it."""
    known = recognise(path, nodes)
    if known is None or not known.start or settings.start:
        return settings, ()
    step = settings.step or known.step
    note = f"The file has no times: {known.start} and {step}, as published for {known.name}."
    return settings.model_copy(update={"start": known.start, "step": step}), (note,)
