"""Images of a run that are nearly the same, found by their similarity, and retrieval without them.

A query's near-duplicate is an easy hit for every method and says nothing about any. The groups that the data name are
joined with those found here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.errors import counted
from semrsm_dist.evaluation.entries import row_slices
from semrsm_dist.evaluation.retrieval import SEMANTIC, Names, RetrievalImages, RetrievalTask
from semrsm_dist.experiments.labels import require_labels
from semrsm_dist.results.run import Run
from semrsm_dist.store.record import Side


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of near-duplicates: a name for each image of each side, None for those that have no other like them.

    `note` says what was found, for people.
    """

    names: dict[Side, Names]
    note: str = ""

    def rule_out_hits(self) -> bool:
        """Return whether there are groups on each side, so that some hits are ruled out."""
        return all(any(names) for names in self.names.values())


def find_groups(run: Run, threshold: float | None) -> Groups:
    """Return the groups that the data name, joined with those of images that are nearly the same.

    Those have a semantic cosine from `threshold` on in the run's first requested layer, which must be finished,
    wherever in the picture their content lies. None is for the groups of the data alone.
    """
    given = {side: run.manifest(side).groups() for side in run.record.sides}
    if threshold is None:
        return Groups(dict(given))
    from scipy.sparse import coo_array  # noqa: PLC0415 - slow to load
    from scipy.sparse.csgraph import connected_components  # noqa: PLC0415

    layer = run.requested_layers[0]
    found = np.concatenate(list(_similar_pairs(run, layer, threshold)))
    every = [name for names in given.values() for name in names]
    pairs = np.concatenate([found, _connect(every)])
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(every), len(every)))
    codes = connected_components(links, directed=False)[1]
    sizes = np.bincount(codes)
    shared = [f"alike-{code}" if sizes[code] > 1 else None for code in codes]
    names: dict[Side, Names] = {}
    for side, own in given.items():
        names[side], shared = shared[: len(own)], shared[len(own) :]
    return Groups(
        names,
        f"near-duplicates: {counted(len(found), 'pair')} of images with a semantic cosine of at least {threshold:g} in "
        f"{layer}; {counted(int(np.count_nonzero(sizes > 1)), 'group')} of {sizes[sizes > 1].sum()} images, those of "
        "the data included",
    )


LabelWeights = Literal["none", "count", "area"]
"""What the labels of an image are weighed by: not at all, by the number or by the area of their objects."""


def make_task(
    run: Run, groups: Groups | None, min_area: float = 0.0, weights: LabelWeights = "none"
) -> RetrievalTask:
    """Return the retrieval task of a run, in which no image of a query's group is a hit; None for no groups.

    Labels whose objects cover less of an image than `min_area` do not count; see `Manifest.labels`. Raises InputError
    if no image of a side has labels.
    """
    manifests = {side: run.manifest(side) for side in run.record.sides}
    require_labels(manifests["images"], manifests.get("queries"))
    sides = {
        side: RetrievalImages(
            manifest.labels(min_area),
            None if groups is None else groups.names[side],
            manifest.contents(),
            None if weights == "none" else manifest.label_weights(weights, min_area),
        )
        for side, manifest in manifests.items()
    }
    return RetrievalTask(*(sides[side] for side in ("queries", "images") if side in sides))


def _similar_pairs(run: Run, layer: str, threshold: float) -> Iterator[NDArray[np.intp]]:
    """Yield pairs (P, 2) of similar images, each once; queries are numbered after the images."""
    read, first_row = run.similarity_rows(layer, "cosine", SEMANTIC), 0
    if not run.is_symmetric:
        first_row = run.record.counts["images"]
    for rows in row_slices(run.record.counts[run.record.row_side], run.chunk_size(layer)):
        pairs = np.argwhere(read(rows) >= threshold)  # NaN is not
        pairs[:, 0] += rows.start + first_row
        yield pairs if first_row else pairs[pairs[:, 0] < pairs[:, 1]]


def _connect(names: list[str | None]) -> NDArray[np.intp]:
    """Return pairs (P, 2) of positions that connect all images with the same name."""
    last: dict[str, int] = {}
    pairs = []
    for position, name in enumerate(names):
        if name is not None:
            pairs.append((last.get(name, position), position))
            last[name] = position
    return np.array(pairs, dtype=np.intp).reshape(-1, 2)
