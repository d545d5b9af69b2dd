"""Matched tokens of chosen pairs: those that a reader of the page will ask for first, within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import StorageError, counted, first_line
from semrsm_dist.progress import Reporter
from semrsm_dist.report.page_data import Array, Matches
from semrsm_dist.results.neighbours import Similarities
from semrsm_dist.results.run import Run

if TYPE_CHECKING:
    from semrsm_dist.results.pair import TokenMatch

MATCH_BYTES = 5 * 2**19
"""Of the matches of all layers, before base64."""

MOST_PAIRS = 1000
"""Pairs of a layer."""

MOST_IMAGES = 400
"""Images of all pairs, of which there are larger pictures."""

MOST_SECONDS = 30.0
"""That matching the pairs of a layer again may take, by the matcher's own estimate."""

Pair = tuple[int, int]


class PairChoice:
    """Chooses pairs in the order given, as long as their images are few."""

    def __init__(self) -> None:
        self.rows: set[int] = set()
        self.columns: set[int] = set()

    def choose(self, candidates: Iterable[Pair], most: int, *, symmetric: bool) -> list[Pair]:
        """Return up to `most` different pairs; in a symmetric run, of different images, the earlier one first."""
        columns = self.rows if symmetric else self.columns
        chosen: dict[Pair, None] = {}
        for row, column in candidates:
            pair = (min(row, column), max(row, column)) if symmetric else (row, column)
            if len(chosen) == most:
                break
            if pair in chosen or (symmetric and row == column):
                continue
            rows_after, columns_after = self.rows | {pair[0]}, columns | {pair[1]}
            total = len(rows_after | columns_after) if symmetric else len(rows_after) + len(columns_after)
            if total <= MOST_IMAGES:
                chosen[pair] = None
                self.rows.add(pair[0])
                columns.add(pair[1])
        return list(chosen)


def count_pairs(run: Run, layer: str, n_bytes: int) -> int:
    """Return how many pairs of a layer fit into this many bytes."""
    sizes = run.record.layers[layer]
    return int(min(MOST_PAIRS, n_bytes // pair_bytes(sizes.n_tokens), MOST_SECONDS / sizes.pair_seconds))


def pair_bytes(n_tokens: int) -> int:
    """Return what the matches of a pair take, before base64."""
    return 18 + n_tokens * (5 if n_tokens < 2**8 - 1 else 6 if n_tokens < 2**16 - 1 else 8)


def match_pairs(
    run: Run, layer: str, pairs: Mapping[Pair, Similarities], reporter: Reporter
) -> tuple[Matches | None, str]:
    """Match pairs of a finished layer again, given what the run has of each.

    Returns
    -------
    matches
        None if there are none.
    note
        What is left out and why, for people.
    """
    from semrsm_dist.results.pair import PairMatcher, find_grid  # noqa: PLC0415 - with matchers, slow to load

    matcher, record = PairMatcher(run, layer), run.record
    kept: list[tuple[Pair, Similarities, TokenMatch]] = []
    with reporter.stage(f"matches of {layer}", len(pairs), "pairs") as stage:
        for pair in sorted(pairs, key=lambda pair: [index // record.chunk_size for index in pair]):
            try:
                found = matcher.match(*pair)
            except (StorageError, FileNotFoundError) as error:
                return None, f"{layer}: matched patches need the run's features: {first_line(error)}"
            stage.advance(1)
            if found.agrees_with(pairs[pair].semantic):
                kept.append((pair, pairs[pair], found))
    left_out = len(pairs) - len(kept)
    note = (
        f"{layer}: matched patches of {counted(left_out, 'pair')} are left out, because matching them again gave "
        "another value than the run has: its features or the matcher have changed, or their similarity is undefined."
        if left_out
        else ""
    )
    if not kept:
        return None, note
    n_tokens = record.layers[layer].n_tokens
    padded = [_pad(found, n_tokens) for _, _, found in kept]
    partners, matched, identity = (np.stack(parts) for parts in zip(*padded, strict=True))
    semantic, spatial, gap = np.array([stored for _, stored, _ in kept]).T
    return Matches(
        pairs=Array.indices(np.array([pair for pair, _, _ in kept]), max(record.counts.values())),
        grid=find_grid(run, n_tokens),
        semantic=Array.floats(semantic),
        spatial=Array.floats(spatial),
        gap=Array.coarse(gap, upward=True),
        partners=Array.indices(partners, n_tokens),
        matched=Array.coarse(matched),
        identity=Array.coarse(identity),
    ), note


def _pad(
    found: TokenMatch, n_tokens: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Return partners and contributions to the cosine similarity, of as many tokens as there is room for."""
    partners, matched, identity = np.full(n_tokens, -1, np.intp), *np.full((2, n_tokens), np.nan)
    here = slice(0, found.permutation.size)
    partners[here] = found.permutation
    matched[here], identity[here] = found.matched / found.norms, found.identity / found.norms
    return partners, matched, identity
