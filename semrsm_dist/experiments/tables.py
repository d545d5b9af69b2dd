"""Numbers as text, written in the same way by every experiment."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd

SIGNIFICANT = 0.05


def write_number(value: float) -> str:
    """Return a number with three decimals, `-` for NaN."""
    return "-" if np.isnan(value) else f"{value:.3f}"


def write_interval(
    row: Mapping[Hashable, Any] | pd.Series, value: str = "value", form: str = "+.3f", ends: str | None = None
) -> str:
    """Return the value of a row with its interval, from the columns `low` and `high`; `-` for what is NaN."""
    forms = {value: form, "low": ends or form, "high": ends or form}
    mean, low, high = ("-" if np.isnan(row[name]) else f"{row[name]:{each}}" for name, each in forms.items())
    return mean if mean == "-" else f"{mean} [{low}, {high}]"


def mark_interval(row: Mapping[Hashable, Any] | pd.Series) -> str:
    """Return the same, with * if the p-value in the column `p_holm` is below `SIGNIFICANT`."""
    return write_interval(row) + ("*" if row["p_holm"] < SIGNIFICANT else "")


def write_range(values: pd.Series, form: str = "") -> str:
    """Return a number that all share, or the smallest and the largest."""
    least, most = (f"{value:{form}}" for value in (values.min(), values.max()))
    return most if least == most else f"{least} to {most}"


def write_grid(table: pd.DataFrame, value: str, rows: str | list[str], columns: str | list[str]) -> str:
    """Return one value of a tidy table for each of `rows` and each of `columns`, in the order of the table."""
    wide = table.pivot_table(value, rows, columns, aggfunc="first", sort=False, dropna=False)
    wide.index.names, wide.columns.names = [None] * wide.index.nlevels, [None] * wide.columns.nlevels
    text: str = wide.to_string(float_format=write_number, na_rep="-")
    return text


def count_verdicts(rows: pd.DataFrame) -> tuple[int, int, int]:
    """Return in how many rows the interval is above zero, in how many below, and in how many neither."""
    above, below = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    return above, below, len(rows) - above - below
