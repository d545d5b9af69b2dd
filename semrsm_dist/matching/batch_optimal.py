"""The matcher `batch-optimal`: exact inside windows of tokens of similar norm."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semrsm_dist.matching.auction import Auction
from semrsm_dist.matching.bounds import matched_value, norm_bound, squared_token_norms
from semrsm_dist.matching.matcher import Matcher, PairMatch, check_count
from semrsm_dist.matching.panel import PackedPanel, Panel, prepare_packed_panel, read_only


@dataclass(frozen=True, slots=True)
class WindowedPanel(Panel):
    """A panel with its tokens sorted by norm and cut into windows.

    Attributes
    ----------
    order : ndarray of intp, (T, S)
        The tokens by ascending norm, equal norms in their order.
    windows : tuple of PackedPanel
        The tokens of each window, for all images.
    """

    order: NDArray[np.intp]
    windows: tuple[PackedPanel, ...]

    def part(self, images: slice) -> Self:
        """Return the panel of some of the images, without copying."""
        values: list[Any] = [getattr(self, field.name)[images] for field in fields(self)[:-1]]
        values.append(tuple(window.part(images) for window in self.windows))
        return type(self)(*values)


class BatchOptimal(Matcher):
    """Sort the tokens of both images by norm, cut them into windows, match exactly inside each.

    Norms ascend and the last window may be shorter, as in the authors' code; equal norms keep their order. Exact
    is to the accuracy of float32: 1e-6 on the cosine scale. A window of S or more gives the optimum. The bound
    comes from norms alone.

    Parameters
    ----------
    window : int
        Tokens per window (b in the paper, which uses 512).
    """

    name: ClassVar[str] = "batch-optimal"
    version: ClassVar[int] = 3

    def __init__(self, window: int = 512) -> None:
        self.window = check_count(self.name, "window", window)

    @property
    def parameters(self) -> dict[str, int | float]:
        """What alters the numbers, by name."""
        return {"window": self.window}

    def prepare(self, z: ArrayLike) -> Panel:
        """Return representations (T, S, C) sorted and cut into windows; see `Matcher.prepare`."""
        panel = super().prepare(z)
        order = np.array([np.argsort(squared_token_norms(image), kind="stable") for image in panel.raw])
        windows = []
        for start in range(0, panel.n_tokens, self.window):
            places = order[:, start : start + self.window, None]
            windows.append(prepare_packed_panel(np.take_along_axis(panel.raw, places, axis=1)))
        values: list[Any] = [getattr(panel, field.name) for field in fields(Panel)]
        values += [read_only(order), tuple(windows)]
        return WindowedPanel(*values)

    def panel_bytes(self, n_images: int, n_tokens: int, n_channels: int) -> int:
        """Return the memory of a prepared panel of float32 representations, in bytes."""
        total = super().panel_bytes(n_images, n_tokens, n_channels) + 8 * n_images * n_tokens
        for start in range(0, n_tokens, self.window):
            total += _EXACT.panel_bytes(n_images, min(self.window, n_tokens - start), n_channels)
        return total

    def workspace_bytes(self, n_tokens: int, n_channels: int) -> int:
        """Return the memory that matching one pair takes beside the panels, in bytes."""
        return _EXACT.workspace_bytes(min(self.window, n_tokens), n_channels) + 8 * n_tokens

    def match_prepared(self, rows: Panel, r: int, columns: Panel, c: int) -> PairMatch:
        """Match image r of `rows` with image c of `columns`; see `Matcher.match_prepared`."""
        sorted_i, sorted_j = cast(WindowedPanel, rows), cast(WindowedPanel, columns)
        permutation = np.empty(rows.n_tokens, np.intp)
        start = 0
        for window_i, window_j in zip(sorted_i.windows, sorted_j.windows, strict=True):
            stop = start + window_i.n_tokens
            places = _EXACT.match_prepared(window_i, r, window_j, c)[2]
            permutation[sorted_i.order[r, start:stop]] = sorted_j.order[c, start:stop][places]
            start = stop
        value = matched_value(rows.raw[r], columns.raw[c], permutation)
        return value, max(value, norm_bound(rows, r, columns, c)), permutation


_EXACT = Auction(tolerance=0.0)
