"""What every matcher can do."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.errors import ConfigError, InputError
from semrsm_dist.matching.bounds import inner_product
from semrsm_dist.matching.panel import Panel, fill_tokens, prepare_panel
from semrsm_dist.matching.result import Match, TileResult

PairMatch = tuple[float, float, NDArray[np.intp]]
"""Value, upper bound and permutation."""

UNMATCHED = -1
"""The partner of a token that has none, because the other image has fewer tokens."""


class Matcher(ABC):
    """A way to match the tokens of two images so that their inner product is large.

    The numbers a matcher returns depend on the two images, its version and its parameters, not
    on tiles, panels or threads. Matchers keep no state between calls: one may serve many threads.

    Attributes
    ----------
    name : str
        The name in the registry and in configurations.
    version : int
        Goes up whenever the numbers change.
    certified : bool
        Whether the gap between bound and value is guaranteed to be small.
    takes_unequal : bool
        Whether two images may differ in their number of tokens: all tokens of the smaller image are matched then.
    parameters : dict
        What alters the numbers.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    certified: ClassVar[bool] = False
    takes_unequal: ClassVar[bool] = False

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {}

    def prepare(self, z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
        """Return representations (T, S, C) in the form that solving wants.

        Parameters
        ----------
        z
            The representations.
        token_counts
            (T,) tokens of each image where they differ; what `z` holds beyond them is ignored.

        Raises
        ------
        InputError
            Another shape or type, a value that is not finite (the message names the image), or counts that
            do not go with it.
        """
        return prepare_panel(z, token_counts)

    def solve_tile(
        self,
        rows: Panel,
        columns: Panel,
        *,
        triangular: bool = False,
        cancelled: Callable[[], bool] | None = None,
    ) -> TileResult:
        """Match each image of `rows` (R) with each of `columns` (K).

        Parameters
        ----------
        rows, columns : Panel
            From `prepare` of a matcher of the same class.
        triangular : bool
            `rows` is `columns`: only pairs r < k are matched, the result is mirrored, and the
            diagonal holds the squared norms.
        cancelled : callable, optional
            Asked once every few rows of the tile.

        Returns
        -------
        TileResult
            Arrays (R, K).

        Raises
        ------
        InputError
            As `check_pair`.
        concurrent.futures.CancelledError
            `cancelled` returned True.
        """
        self.check_pair(rows, columns)
        if triangular and rows.n_images != columns.n_images:
            raise InputError(
                f"a triangular tile matches a panel with itself, found {rows.n_images} and "
                f"{columns.n_images} images: pass the same panel twice"
            )
        shape = (rows.n_images, columns.n_images)
        tile = TileResult(np.empty(shape), np.empty(shape), np.empty(shape))
        seconds = np.zeros(2)
        step = self.rows_at_once(rows.n_tokens)
        for start in range(0, rows.n_images, step):
            if cancelled is not None and cancelled():
                raise CancelledError
            span = range(start, min(start + step, rows.n_images))
            seconds += self._solve_rows(rows, span, columns, triangular, tile)
        if triangular:
            _mirror(tile, rows.squared_norms)
        return TileResult(tile.matched, tile.upper_bound, tile.identity, float(seconds[0]), float(seconds[1]))

    def match(self, z_i: ArrayLike, z_j: ArrayLike) -> Match:
        """Match two representations, (S_i, C) and (S_j, C).

        Raises
        ------
        InputError
            As `prepare`, or numbers of channels that differ.
        """
        pair = []
        arrays = [np.asarray(z_i), np.asarray(z_j)]
        for name, array in zip(("z_i", "z_j"), arrays, strict=True):
            if array.ndim != 2:
                raise InputError(f"expected {name} of shape (tokens, channels), found {array.shape}")
        most = max(len(array) for array in arrays)
        for array in arrays:
            pair.append(self.prepare(*fill_tokens(array[None], np.array([len(array)]), most)))
        self.check_pair(*pair)
        value, upper_bound, permutation = self.match_prepared(pair[0], 0, pair[1], 0)
        return Match(value, upper_bound, permutation, self.name)

    def compile(self) -> None:
        """Compile what is compiled at first use, so that it can be a stage of its own."""
        for n_tokens in (4, 16):  # affinities that fill whole lanes have another memory layout
            z = np.random.default_rng(0).normal(size=(2, n_tokens, 3)).astype(np.float32)
            for dtype in (np.float32, np.float64):
                panel = self.prepare(z.astype(dtype))
                self.solve_tile(panel, panel)

    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        """Return the memory of a prepared panel of float32 representations, in bytes."""
        return n_images * (4 * n_tokens * n_channels + 8 * (n_channels + n_tokens + 1))

    def check_pair(self, rows: Panel, columns: Panel) -> None:
        """Raise InputError unless images of both panels can be matched with each other."""
        if rows.n_channels != columns.n_channels:
            raise InputError(
                f"representations of {rows.n_channels} channels cannot be matched with those of {columns.n_channels}: "
                "use the same layer of the same model for all images"
            )
        counts = np.concatenate([rows.token_counts, columns.token_counts])
        if not self.takes_unequal and counts.min() < counts.max():
            raise InputError(
                f"matcher {self.name!r} needs images with equal numbers of tokens, found {counts.min()} to "
                f"{counts.max()}: use 'auction', 'hungarian' or 'greedy', or images of one size"
            )
        if rows.n_tokens != columns.n_tokens:
            raise InputError(
                f"panels with room for {rows.n_tokens} and {columns.n_tokens} tokens cannot be matched: prepare both "
                "with room for the larger number, and the token counts"
            )

    @abstractmethod
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes beside the panels, in bytes."""

    @abstractmethod
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        """Return value, upper bound and permutation of image r of `rows` with image c of `columns`."""

    def rows_at_once(self, n_tokens: int) -> int:
        """Return how many rows of a tile are solved between two looks at whether to go on."""
        return 1

    def _solve_rows(
        self, rows: Panel, span: range, columns: Panel, triangular: bool, tile: TileResult
    ) -> NDArray[np.float64]:
        """Fill rows of `tile`, right of the diagonal if triangular; return seconds of products and of matching."""
        seconds = np.zeros(2)
        for r in span:
            seconds += self._solve_row(rows, r, columns, r + 1 if triangular else 0, tile)
        return seconds

    def _solve_row(
        self, rows: Panel, r: int, columns: Panel, first: int, tile: TileResult
    ) -> tuple[float, float]:
        """Fill row r of `tile` from column `first`; return seconds of products and of matching."""
        for c in range(first, columns.n_images):
            value, upper_bound, _ = self.match_prepared(rows, r, columns, c)
            tile.matched[r, c] = value
            tile.upper_bound[r, c] = upper_bound
            equal = rows.token_counts[r] == columns.token_counts[c]
            tile.identity[r, c] = inner_product(rows.raw[r], columns.raw[c]) if equal else np.nan
        return 0.0, 0.0


def check_count(matcher: str, name: str, value: object) -> int:
    """Return a parameter that counts tokens, or raise ConfigError unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} of matcher {matcher!r} must be a positive whole number, found {value!r}")
    return int(value)


def check_tolerance(matcher: str, tolerance: object) -> float:
    """Return a tolerance on the cosine scale, or raise ConfigError unless it is 0 or a positive number."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float | np.number):
        raise ConfigError(f"tolerance of matcher {matcher!r} must be a number, found {tolerance!r}")
    if not 0.0 <= tolerance < math.inf:
        raise ConfigError(
            f"tolerance of matcher {matcher!r} must be 0 or a positive number, found {tolerance!r}; "
            "it is on the cosine scale: 1e-3 is usual, 0 asks for the optimum"
        )
    return float(tolerance)


def check_seed(matcher: str, seed: object) -> int:
    """Return a seed, or raise ConfigError unless it is 0 or a positive integer."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed of matcher {matcher!r} must be 0 or a positive whole number, found {seed!r}")
    return int(seed)


def _mirror(tile: TileResult, squared_norms: NDArray[np.float64]) -> None:
    """Fill the lower triangle and the diagonal of a tile whose upper triangle is solved."""
    lower = np.tril_indices(squared_norms.size, -1)
    for values in (tile.matched, tile.upper_bound, tile.identity):
        values[lower] = values.T[lower]
        np.fill_diagonal(values, squared_norms)
