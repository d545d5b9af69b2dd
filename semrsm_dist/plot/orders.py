"""Orders in which the images of a map are shown: by label, and by similarity (seriation)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]
Affinity = Callable[[Indices, Indices], NDArray[np.float64]]
"""Similarity of some images with others, (A, B); NaN where it is undefined."""

MOST_LEAVES = 2000
"""Images whose optimal leaf order is found; it takes a minute then, and eight times as long for twice as many."""

SAMPLE, PER_CLUSTER = 1000, 8
"""Of more images, this many are ordered; the others join clusters of about this many."""

BLOCK = 2048
"""Images that join clusters at once."""


def order_by_label(labels: Sequence[tuple[str, ...]]) -> Indices:
    """Return the images sorted by their number of labels, then by these, then as given."""
    return np.array(
        sorted(range(len(labels)), key=lambda index: (len(labels[index]), labels[index], index)), np.intp
    )


def order_by_similarity(affinity: Affinity, n_images: int) -> Indices:
    """Return the images such that similar ones are near each other.

    Up to `MOST_LEAVES` images, it is the order of the leaves of an average-linkage tree in which neighbours are as
    similar as can be (Bar-Joseph et al. 2001). Of more, an evenly spaced sample is ordered so and its tree cut into
    clusters; every other image goes to the cluster that is most similar on average, and lies within it towards the
    adjacent one that is more similar.
    """
    everything = np.arange(n_images)
    if n_images < 3:
        return everything
    if n_images <= MOST_LEAVES:
        return _leaves(affinity(everything, everything))[0]
    sample = np.linspace(0, n_images - 1, SAMPLE).round().astype(np.intp)
    leaves, clusters = _leaves(affinity(sample, sample))
    # Clusters are numbered as they follow each other among the leaves.
    follow = {old: new for new, old in enumerate(dict.fromkeys(clusters[leaves].tolist()))}
    member = np.zeros((sample.size, len(follow)))
    member[np.arange(sample.size), [follow[cluster] for cluster in clusters.tolist()]] = 1.0
    home, place = np.empty(n_images, np.intp), np.empty(n_images)
    for start in range(0, n_images, BLOCK):
        images = everything[start : start + BLOCK]
        means = np.nan_to_num(affinity(images, sample), nan=-1.0) @ (member / member.sum(axis=0))
        home[images] = means.argmax(axis=1)
        padded = np.pad(means, ((0, 0), (1, 1)), mode="edge")
        at = np.arange(len(images))
        place[images] = padded[at, home[images] + 2] - padded[at, home[images]]
    return np.lexsort((everything, place, home))


def _leaves(similarity: NDArray[np.float64]) -> tuple[Indices, NDArray[np.intp]]:
    """Return the leaves of an average-linkage tree in their optimal order, and the cluster of each image."""
    from scipy.cluster.hierarchy import (  # noqa: PLC0415 - slow to load
        fcluster,
        leaves_list,
        linkage,
        optimal_leaf_ordering,
    )
    from scipy.spatial.distance import squareform  # noqa: PLC0415

    known = similarity[np.isfinite(similarity)]
    if not known.size:
        return np.arange(len(similarity)), np.zeros(len(similarity), np.intp)
    filled = np.where(np.isfinite(similarity), similarity, known.min())  # undefined: as far as any
    distances = filled.max() - (filled + filled.T) / 2
    np.fill_diagonal(distances, 0.0)
    condensed = squareform(distances, checks=False)
    tree = optimal_leaf_ordering(linkage(condensed, "average"), condensed)
    n_clusters = max(1, len(similarity) // PER_CLUSTER)
    return leaves_list(tree).astype(np.intp), fcluster(tree, n_clusters, "maxclust").astype(np.intp)


def profile_affinity(profiles: NDArray[np.float64]) -> Affinity:
    """Return the correlation of images' similarities to others, (N, M): for rows that are not the columns."""
    filled = np.where(np.isfinite(profiles), profiles, 0.0)
    centred = filled - filled.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 0)
    return lambda images, others: unit[images] @ unit[others].T
