"""The interface of all matchers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticSerializationError

from semrsm_dist.errors import ConfigError, InputError, WorkError, did_you_mean
from semrsm_dist.fields import Section, explain_problem
from semrsm_dist.matching import consistency
from semrsm_dist.matching.bounds import inner_product
from semrsm_dist.matching.checking import find_problems, is_number, unrecordable
from semrsm_dist.matching.panel import Panel, prepare_panel
from semrsm_dist.matching.representations import (
    as_array,
    checked_squared_norm,
    fill_tokens,
    naming,
    require_floating,
)
from semrsm_dist.matching.result import Match, TileResult
from semrsm_dist.plugins import Plugins

PairMatch = tuple[float, float, NDArray[np.intp]]
"""Value, upper bound and permutation."""

FLOAT32_TOLERANCE = 1e-6
"""Results of matchers with a smaller tolerance on the cosine scale are not to be rounded to float32."""


@dataclass(frozen=True)
class Limits:
    """Marks the parameter that trades quality for time: how many tokens, or channels, a matcher takes together."""

    what: Literal["tokens", "channels"]


class Matcher(Section, ABC):
    """A way to match the tokens of two images so that their inner product is large.

    A matcher is one class in one file. Its fields are its parameters: type, constraints, default and, as the
    string below a field, its meaning. They can be set in the section `matching` of a configuration and in
    `semrsm_dist.match`, and belong to the run's fingerprint.

    The numbers a matcher returns depend on the two images, its version and its parameters, not
    on tiles, panels or threads. Matchers keep no state between calls: one may serve many threads.

    Attributes
    ----------
    name : str
        The name in configurations: that of its module with `-` for `_`, or of its entry point.
    version : int
        Goes up whenever the numbers change.
    certified : bool
        Whether the gap between bound and value is guaranteed to be small: at most the parameter `tolerance`, where
        there is one, times the product of the norms. The bound of any other matcher is at most that product.
    takes_unequal : bool
        Whether two images may differ in their number of tokens: all tokens of the smaller image are matched then.
    cpus, gpus : float
        CPUs and GPUs of one worker.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    certified: ClassVar[bool] = False
    takes_unequal: ClassVar[bool] = False
    cpus: ClassVar[float] = 1
    gpus: ClassVar[float] = 0

    @model_validator(mode="after")
    def _can_be_recorded(self) -> Self:
        """Check that a run's record can hold the parameters, and a later session recognise them."""
        for name, value in self.model_dump().items():
            wrong = unrecordable(value)
            if wrong:
                raise ValueError(
                    f"{name}: the run's record cannot hold {wrong}: correct the matcher or the value"
                )
        try:
            self.model_dump(mode="json")
        except PydanticSerializationError as error:
            raise ValueError(
                f"the run's record cannot hold the parameters ({error}): correct the matcher"
            ) from None
        return self

    @property
    def is_exact(self) -> bool:
        """Whether values are certified more closely than float32 holds them, so that results need float64."""
        return self.certified and getattr(self, "tolerance", 0.0) < FLOAT32_TOLERANCE

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as JSON values."""
        return self.model_dump(mode="json")

    def resolved(self) -> Matcher:
        """Return the matcher that does the work, where parameters choose one by what a machine has: see `auction`."""
        return self

    def prepare(self, z: ArrayLike, token_counts: ArrayLike | None = None) -> Panel:
        """Return representations (T, S, C) in the form that solving needs.

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
            do not fit.
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
            Called once every few rows of the tile.

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
        arrays = []
        for name, given in (("z_i", z_i), ("z_j", z_j)):
            with naming(name):
                array = as_array(given)
            if array.ndim != 2 or 0 in array.shape:
                raise InputError(
                    f"expected {name} of shape (tokens, channels), none of them 0, found {array.shape}"
                )
            with naming(name):
                require_floating(array)
            checked_squared_norm(array.astype(np.float64), name)
            arrays.append(array)
        most = max(map(len, arrays))
        pair = [self.prepare(fill_tokens(array[None], most), [len(array)]) for array in arrays]
        self.check_pair(*pair)
        found = self.match_prepared(pair[0], 0, pair[1], 0)
        try:
            match = Match(float(found[0]), float(found[1]), np.asarray(found[2]), self.name)
        except (IndexError, TypeError, ValueError) as error:
            raise self._wrong(
                f"{found!r} for a pair of images, not (value, upper bound, permutation)"
            ) from error
        fault = consistency.find_match_fault(match, *pair)
        if fault is not None:
            raise self._wrong(fault)
        self.check_tile(consistency.as_tile(match, *pair), *pair)
        return match

    def _wrong(self, returned: str) -> WorkError:
        return WorkError(
            f"matcher {self.name!r} returned {returned}: nothing it computes can be trusted. Correct it, or report "
            "this to its author, and use another matcher"
        )

    def check_tile(self, tile: TileResult, rows: Panel, columns: Panel) -> None:
        """Raise WorkError if the result of `solve_tile` contradicts itself or the norms of the images.

        A value is finite, at most the product of the norms (Cauchy-Schwarz) and at most the upper bound. So is that of
        the identity, which is NaN where numbers of tokens differ. The upper bound is as close as `certified` says.
        """
        shape = (rows.n_images, columns.n_images)
        for name in ("matched", "upper_bound", "identity"):
            array = getattr(tile, name, None)
            if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != np.float64:
                found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else repr(array)
                raise self._wrong(f"{found} as the array {name!r} of a tile, not float64 {shape}")
        for name in ("products", "solving"):
            seconds = getattr(tile, name, None)
            if not is_number(seconds, 0):
                raise self._wrong(f"{seconds!r} as {name!r} of a tile, not a number of seconds")
        tolerance = getattr(self, "tolerance", None) if self.certified else None
        fault = consistency.find_fault(tile, rows, columns, tolerance)
        if fault is not None:
            raise self._wrong(fault)

    def compile(self) -> None:
        """Compile everything that is compiled at first use, so that this can be a stage of its own."""
        consistency.compile_check()
        for n_tokens in (4, 16):  # affinities that fill whole lanes have another memory layout
            z = np.random.default_rng(0).normal(size=(2, n_tokens, 3)).astype(np.float32)
            for dtype in (np.float32, np.float64):
                panel = self.prepare(z.astype(dtype))
                self.solve_tile(panel, panel)

    def start_worker(self) -> None:
        """Make ready what a worker needs where it is, such as its GPU; called in the thread in which it works.

        Raises
        ------
        ConfigError
            If no worker could work there.
        WorkerLostError
            If this one cannot.
        """

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
                f"{counts.max()}: use {matchers_of_unequal()}, or images of one size"
            )
        if rows.n_tokens != columns.n_tokens:
            raise InputError(
                f"panels with room for {rows.n_tokens} and {columns.n_tokens} tokens cannot be matched: prepare both "
                "with room for the larger number, and the token counts"
            )

    @abstractmethod
    def pair_seconds(self, n_tokens: int, n_channels: int) -> float:
        """Estimate the seconds of one pair of images of S tokens and C channels on one worker.

        The estimate only sizes and orders tasks, so an order of magnitude is enough.
        """

    @abstractmethod
    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes in addition to the panels, in bytes."""

    @abstractmethod
    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        """Return value, upper bound and permutation of image r of `rows` with image c of `columns`."""

    def rows_at_once(self, n_tokens: int) -> int:
        """Return how many rows of a tile are solved between two checks for cancellation."""
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
            found = self.match_prepared(rows, r, columns, c)
            try:
                tile.matched[r, c], tile.upper_bound[r, c], _ = found
            except (TypeError, ValueError) as error:
                raise self._wrong(
                    f"{found!r} for a pair of images, not (value, upper bound, permutation)"
                ) from error
            equal = rows.token_counts[r] == columns.token_counts[c]
            tile.identity[r, c] = inner_product(rows.raw[r], columns.raw[c]) if equal else np.nan
        return 0.0, 0.0


MATCHERS: Plugins[type[Matcher]] = Plugins(
    "matcher", "semrsm_dist.matching.matchers", Matcher, check=find_problems
)
"""The matchers by name."""


def make_matcher(name: str, **parameters: Any) -> Matcher:
    """Return a matcher with its parameters.

    Parameters
    ----------
    name : str
        One of ``MATCHERS.names()``.
    **parameters
        Its fields; those left out are at their defaults.

    Raises
    ------
    ConfigError
        Unknown name, a parameter this matcher does not take, or a value it cannot use.
    """
    kind = MATCHERS.load(name)
    known = list(kind.model_fields)
    for parameter in parameters:
        if parameter not in known:
            takes = f"takes {', '.join(known)}" if known else "takes no parameters"
            raise ConfigError(
                f"matcher {name!r} has no parameter {parameter!r}: it {takes}{did_you_mean(parameter, known)}"
            )
    try:
        return kind.model_validate(parameters).resolved()
    except ValidationError as error:
        problems = [
            f"matcher {name!r}: {explain_problem(problem, '.'.join(map(str, problem['loc'])))}"
            for problem in error.errors()
        ]
        raise ConfigError("\n".join(problems)) from None


def matchers_of_unequal() -> str:
    """Return the names of the matchers that take unequal numbers of tokens, for messages."""
    *names, last = (repr(name) for name, kind in MATCHERS.usable() if kind.takes_unequal)
    return f"{', '.join(names)} or {last}"


def product_seconds(n_tokens: int, n_others: int, n_channels: int) -> float:
    """Estimate the seconds of an affinity product, at 60 GFLOP/s, and of the steps around a pair."""
    return 2.0 * n_tokens * n_others * n_channels / 60e9 + 2e-6


def _mirror(tile: TileResult, squared_norms: NDArray[np.float64]) -> None:
    """Fill the lower triangle and the diagonal of a tile whose upper triangle is solved."""
    lower = np.tril_indices(squared_norms.size, -1)
    for values in (tile.matched, tile.upper_bound, tile.identity):
        values[lower] = values.T[lower]
        np.fill_diagonal(values, squared_norms)
