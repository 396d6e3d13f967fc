"""How much a tumour has grown between two scans."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["SMALLEST_ML", "Growth", "growth"]

SMALLEST_ML = 0.05
"""Volume below which a ratio of volumes says nothing, ml."""
_YEAR_DAYS = 365.25


class Growth(NamedTuple):
    """The change from an earlier to a later volume."""

    earlier_ml: float
    later_ml: float
    change_percent: float | None
    """None where the earlier volume is too small."""
    ml_per_year: float | None
    """None without the days between."""
    percent_per_year: float | None
    doubling_days: float | None
    """Days until the volume doubles, negative days until it halves; None where it does not change."""
    stable: bool | None
    """Whether the change is within what is called stable; None where it cannot be told."""

    def sentence(self) -> str:
        """Return it in words."""
        text = f"growth: {self.earlier_ml:.2f} ml before, {self.later_ml:.2f} ml now"
        if self.change_percent is None:
            return f"{text}. Below {SMALLEST_ML} ml before, no rate is given."
        text += f", {self.change_percent:+.1f} %" + (" (stable)" if self.stable else "")
        if self.ml_per_year is not None and self.percent_per_year is not None:
            text += f"; {self.ml_per_year:+.2f} ml and {self.percent_per_year:+.1f} % a year"
        if self.doubling_days is not None and not self.stable:
            what = "doubling" if self.doubling_days > 0 else "halving"
            text += f"; {what} in {abs(self.doubling_days):,.0f} days"
        return f"{text}."


def growth(earlier_ml: float, later_ml: float, *, days: float | None = None, stable_percent: float = 20.0) -> Growth:
    """Return the change between two volumes.

    Args:
        earlier_ml: volume in the earlier scan, ml.
        later_ml: volume in the later scan, ml.
        days: between the scans; rates are None without.
        stable_percent: change up to which the volume is called stable.

    >>> growth(4.0, 8.0, days=365.25).sentence()
    'growth: 4.00 ml before, 8.00 ml now, +100.0 %; +4.00 ml and +100.0 % a year; doubling in 365 days.'
    """
    if earlier_ml < SMALLEST_ML:
        return Growth(earlier_ml, later_ml, None, None, None, None, None)
    change = 100 * (later_ml / earlier_ml - 1)
    stable = abs(change) <= stable_percent
    if days is None:
        return Growth(earlier_ml, later_ml, change, None, None, None, stable)
    years = days / _YEAR_DAYS
    turned = later_ml > 0 and later_ml != earlier_ml
    doubling = days * math.log(2) / math.log(later_ml / earlier_ml) if turned else None
    return Growth(earlier_ml, later_ml, change, (later_ml - earlier_ml) / years, change / years, doubling, stable)
