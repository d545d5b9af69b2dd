"""Pearson correlation over the entries of two matrices, with a bootstrap interval over images, in bounded memory.

A resample gives each entry the weight of its two images' counts, so its sums are bilinear in the counts: for all
resamples together they are a few matrix products, which needs no sorting and no subset of the images. Queries may
differ from the database. (`agreement` compares two symmetric matrices by more measures.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.evaluation.bootstrap import CONFIDENCE, RESAMPLES, Interval, draw_counts, percentile_interval
from semrsm_dist.evaluation.pairs import ROUNDING, RowReader, is_constant

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of two (N, M) matrices that are compared: those above the diagonal if both are symmetric.

    Parameters
    ----------
    read_x, read_y
        Return rows of the matrices for a slice; entries that are NaN in either are left out.
    n_rows, n_columns
        N and M.
    symmetric
        Rows and columns are the same images: each pair of different images counts once.
    rows_at_once
        How many rows to ask for at once.
    """

    read_x: RowReader
    read_y: RowReader
    n_rows: int
    n_columns: int
    symmetric: bool
    rows_at_once: int = 256

    @property
    def n_all(self) -> int:
        """Number of entries, undefined ones included."""
        return self.n_rows * (self.n_rows - 1) // 2 if self.symmetric else self.n_rows * self.n_columns

    def blocks(self) -> Iterator[tuple[slice, NDArray[np.bool_], Matrix, Matrix]]:
        """Yield rows, which of their entries are compared, and both matrices there, zero where they are not."""
        columns = np.arange(self.n_columns)
        for start in range(0, self.n_rows, self.rows_at_once):
            rows = slice(start, min(start + self.rows_at_once, self.n_rows))
            x, y = self.read_x(rows), self.read_y(rows)
            kept = ~(np.isnan(x) | np.isnan(y))
            if self.symmetric:
                kept &= columns > columns[rows, None]
            yield rows, kept, np.where(kept, x, 0.0), np.where(kept, y, 0.0)


@dataclass(frozen=True, slots=True)
class PearsonResult:
    """A correlation with its interval; NaN where either matrix is constant.

    Attributes
    ----------
    interval
        Estimate and interval.
    n_pairs, n_left_out
        Entries compared, and those that are undefined.
    """

    interval: Interval
    n_pairs: int
    n_left_out: int


def pearson_interval(
    entries: Entries, *, resamples: int = RESAMPLES, seed: int = 0, confidence: float = CONFIDENCE
) -> PearsonResult:
    """Return the Pearson correlation of the entries and its bootstrap interval over images.

    Images are resampled, on both sides if they differ. A pair of an image with its own copy is no entry.
    """
    n_pairs, means, scales, nothing_varies = _locate(entries)
    left_out = entries.n_all - n_pairs
    if nothing_varies:
        return PearsonResult(Interval(np.nan, np.nan, np.nan, confidence), n_pairs, left_out)
    rows = _counts_and_once(entries.n_rows, resamples, seed)
    columns = rows if entries.symmetric else _counts_and_once(entries.n_columns, resamples, seed + 1)
    sums = np.zeros((6, resamples + 1))
    for part, kept, *both in entries.blocks():
        # Far from zero, squares would cancel.
        x, y = (values - mean * kept for values, mean in zip(both, means, strict=True))
        for position, values in enumerate((kept.astype(np.float64), x, y, x * x, y * y, x * y)):
            sums[position] += np.einsum("ri,ri->r", rows[:, part], columns @ values.T)
    values = _correlate(sums, scales)
    return PearsonResult(percentile_interval(float(values[0]), values[1:], confidence), n_pairs, left_out)


def _locate(entries: Entries) -> tuple[int, NDArray[np.float64], NDArray[np.float64], bool]:
    """Return the number of entries, the mean and the largest size in each matrix, and whether either is constant."""
    count, sums = 0, np.zeros(2)
    low, high = np.full(2, np.inf), np.full(2, -np.inf)
    for _, kept, *both in entries.blocks():
        if kept.any():
            count += int(np.count_nonzero(kept))
            sums += [values.sum() for values in both]
            low = np.minimum(low, [values[kept].min() for values in both])
            high = np.maximum(high, [values[kept].max() for values in both])
    nothing_varies = count < 2 or any(is_constant(*ends) for ends in zip(low, high, strict=True))
    return count, sums / max(count, 1), np.maximum(np.abs(low), np.abs(high)), nothing_varies


def _counts_and_once(n_images: int, resamples: int, seed: int) -> Matrix:
    """Return how often each image counts: once, for the estimate, and then as each resample draws it."""
    counts = draw_counts(n_images, resamples=resamples, seed=seed)
    return np.concatenate([np.ones((1, n_images)), counts])


def _correlate(sums: Matrix, scales: NDArray[np.float64]) -> Matrix:
    """Return the correlations from (6, R) weighted sums of 1, x, y, x^2, y^2 and xy.

    NaN where one of them does not vary: in a resample without the only image that differs, what is left of its
    spread is rounding, of the numbers (up to `scales` in size) and of their squares.
    """
    weight, x, y, xx, yy, xy = sums
    result = np.full(sums.shape[1], np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        spreads = [
            np.where(spread > np.maximum(weight * (ROUNDING * scale) ** 2, ROUNDING * squares), spread, 0.0)
            for spread, squares, scale in (
                (xx - x * x / weight, xx, scales[0]),
                (yy - y * y / weight, yy, scales[1]),
            )
        ]
        defined = (weight > 0) & (spreads[0] > 0) & (spreads[1] > 0)
        np.divide(xy - x * y / weight, np.sqrt(spreads[0]) * np.sqrt(spreads[1]), out=result, where=defined)
    return np.clip(result, -1.0, 1.0, out=result)
