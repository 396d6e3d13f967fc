"""Days that are like Sundays: public holidays of a country, or the dates of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from polyhead.errors import ConfigError, DataError, MissingExtraError
from polyhead_traffic.formats.table import Faults, find_mark, lines, split_line

__all__ = ["read_holidays"]

COUNTRY = re.compile(r"[A-Z]{2}(-[A-Z0-9]{1,4})?")
MOST = 100_000


def read_holidays(setting: str, folder: Path | None, timestamps: NDArray[np.datetime64]) -> tuple[str, ...]:
    """Return the dates, ISO 8601, in order.

    Args:
        setting: a country such as "US", or with a part of it, "US-CA"; else the path of a text file whose lines begin
            with a date. Empty: none.
        folder: where a file is looked for besides the current folder.
        timestamps: the rows; a country's holidays are listed for their years and the year after.

    Raises:
        ConfigError: no such file or country.
        DataError: the file has a line that does not begin with a date.
        MissingExtraError: a country needs the package holidays.
    """
    if not setting:
        return ()
    for path in (Path(setting), *([folder / setting] if folder else [])):
        if path.is_file():
            return _from_file(path)
    if not COUNTRY.fullmatch(setting):
        raise ConfigError(
            f"--holidays {setting}: no such file, and not a country. Give a file with a date a line, or a code such as "
            "US or US-CA."
        )
    years = timestamps[[0, -1]].astype("datetime64[Y]").astype(int) + 1970
    return _of_country(setting, range(years[0], years[1] + 2))


def _from_file(path: Path) -> tuple[str, ...]:
    found: set[str] = set()
    faults = Faults(path.name)
    for number, line in lines(path):
        text = split_line(line, find_mark(line))[0].strip()
        if number == 1 and not any(map(str.isdigit, text)):
            continue  # a header
        try:
            found.add(date.fromisoformat(text).isoformat())
        except ValueError:
            faults.add(f"row {number}", f'"{text[:40]}" is not a date', "Write one date a line, such as 2024-12-25.")
        if len(found) > MOST:
            raise DataError(f"{path.name} has more than {MOST:,} dates. Give a file of holidays.")
    faults.check()
    return tuple(sorted(found))


def _of_country(code: str, years: Sequence[int]) -> tuple[str, ...]:
    try:
        from holidays import country_holidays
    except ImportError as error:
        raise MissingExtraError(
            f"--holidays {code} needs the package holidays ({error}).  pip install 'polyhead-traffic[holidays]'  Or "
            "give a file with a date a line."
        ) from error
    country, _, part = code.partition("-")
    try:
        found = country_holidays(country, subdiv=part or None, years=years)
    except NotImplementedError as error:
        raise ConfigError(f"--holidays {code}: {error} Give another code, or a file with a date a line.") from error
    return tuple(sorted(day.isoformat() for day in found))
