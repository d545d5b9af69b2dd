"""Gathers what a page shows of a run: maps, queries, matched tokens and pictures, within the budgets of each."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from semrsm_dist.data.manifest import Manifest
from semrsm_dist.errors import IncompleteError
from semrsm_dist.evaluation.retrieval import SEMANTIC
from semrsm_dist.progress import Reporter
from semrsm_dist.report.bundle import colour_scale
from semrsm_dist.report.maps import Seen as SeenPairs
from semrsm_dist.report.maps import make_maps, read_pairs
from semrsm_dist.report.matches import MATCH_BYTES, Pair, PairChoice, count_pairs, match_pairs
from semrsm_dist.report.page_data import Array, Data, Images, Layer, Queries, Seen
from semrsm_dist.report.pictures import read_seen, read_thumbnails
from semrsm_dist.report.retrieval import RetrievalSet, find_queries
from semrsm_dist.results.images import ImageReader
from semrsm_dist.results.neighbours import Similarities
from semrsm_dist.results.run import Run

log = logging.getLogger(__name__)

MOST_LISTED = 8192
"""Images of a side that are all listed; of more, those that the page refers to, of which as many have thumbnails."""

THUMBNAIL_BYTES = 3 * 2**20
"""Of the thumbnails of a side, before base64: the more there are, the smaller they are."""

LARGE = 192
"""Pixels along an edge of an image whose matched tokens are shown."""


@dataclass
class Gathered:
    """What was gathered of a run."""

    data: Data
    """For the page's script."""
    gaps: dict[str, NDArray[np.int64]]
    """Number of pairs by the size of their gap, by layer."""
    notes: list[str]
    """What is missing and why, for people."""


@dataclass
class _Parts:
    """The layers as they are gathered, and the images that they refer to, by side."""

    layers: list[Layer] = field(default_factory=list)
    wanted: dict[str, dict[int, None]] = field(default_factory=dict)
    gaps: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def want(self, side: str, images: Iterable[int]) -> None:
        self.wanted.setdefault(side, {}).update(dict.fromkeys(images))


def gather(run: Run, reporter: Reporter) -> Gathered:
    """Gather what a page shows of a run, as far as it has been computed.

    Raises StorageError if what has been computed is damaged.
    """
    manifests = {side: run.manifest(side) for side in run.record.sides}
    parts, images = _Parts(), RetrievalSet(run, manifests)
    finished, parts.notes = find_finished(run)
    candidates: dict[str, list[Pair]] = {}
    shown: dict[str, Layer] = {}
    for layer in finished:
        seen, maps = SeenPairs(), None
        if run.record.neighbours is None:
            labels = {side: manifest.labels() for side, manifest in manifests.items()}
            maps, seen = make_maps(run, layer, labels, len(finished), reporter)
            parts.gaps[layer] = seen.gaps
        queries, pairs = find_queries(run, layer, images, len(finished), reporter)
        largest = [(int(row), int(column)) for row, column in seen.largest]
        candidates[layer] = [*largest[: len(largest) // 2], *pairs, *largest[len(largest) // 2 :]]
        shown[layer] = Layer(name=layer, maps=maps, queries=queries, matches=None)
    choice = _match(run, shown, candidates, parts, reporter)
    parts.layers = [shown[layer] for layer in finished]
    _want_images(run, parts)
    vocabulary = list_labels(manifests.values())
    shown_images: dict[str, Images] = {}
    large: dict[str, Seen] = {}
    for side, manifest in manifests.items():
        reader = ImageReader(run, side, manifest)
        if reader.problem:
            parts.notes.append(reader.problem)
        chosen = choice.rows if side == run.record.row_side else choice.columns
        shown_images[side] = _images(side, manifest, reader, parts, vocabulary, reporter)
        with reporter.stage(f"large pictures of {side}", len(chosen), "images") as stage:
            gallery = read_seen(reader, sorted(chosen), LARGE, stage)
        if gallery.pictures:
            indices = Array.indices(np.array(sorted(chosen)), len(manifest))
            large[side] = Seen(indices=indices, pictures=gallery.pictures)
    data = Data(
        symmetric=run.is_symmetric,
        certified=is_certified(run),
        labels=vocabulary,
        images=shown_images,
        seen=large,
        layers=parts.layers,
        first=choose_first(run, finished),
        colours=colour_scale(),
    )
    return Gathered(data, parts.gaps, parts.notes)


def find_finished(run: Run) -> tuple[list[str], list[str]]:
    """Return the layers that are complete, and notes on the others."""
    finished = [layer for layer in run.requested_layers if _is_finished(run, layer)]
    notes = [
        f"{layer} is not complete yet: start the run's command again to finish it."
        for layer in run.requested_layers
        if layer not in finished
    ]
    return finished, notes


def list_labels(manifests: Iterable[Manifest]) -> list[str]:
    """Return all labels, sorted."""
    return sorted({label for manifest in manifests for labels in manifest.labels() for label in labels})


def _is_finished(run: Run, layer: str) -> bool:
    try:
        if run.record.neighbours is None:
            run.matrices(layer)
        else:
            run.layer_neighbours(layer)
    except IncompleteError:
        return False
    return True


def is_certified(run: Run) -> bool:
    """Return whether the gaps of a run are small by a guarantee of its matcher."""
    known = (run.directory.read_summary() or {}).get("certified")
    if known is not None:
        return bool(known)
    from semrsm_dist.matching.matchers import MATCHERS  # noqa: PLC0415 - slow to load

    name = run.record.fingerprint["matching.matcher"]
    return name in MATCHERS.names() and MATCHERS.load(name).certified


def choose_first(run: Run, finished: list[str]) -> str:
    """Return the finished layer with the best retrieval after matching, or the last; empty if there is none."""
    scores = (run.directory.read_summary() or {}).get("retrieval", [])
    f1 = {score["layer"]: score["f1"] for score in scores if score["method"] == SEMANTIC}
    return max(reversed(finished), key=lambda layer: f1.get(layer) or 0.0, default="")


def _match(
    run: Run,
    shown: dict[str, Layer],
    candidates: dict[str, list[Pair]],
    parts: _Parts,
    reporter: Reporter,
) -> PairChoice:
    """Add matched tokens to the layers, those with few tokens first: what they leave of the budget goes to others."""
    choice, left = PairChoice(), MATCH_BYTES
    by_size = sorted(shown, key=lambda layer: run.record.layers[layer].n_tokens)
    for done, layer in enumerate(by_size):
        most = count_pairs(run, layer, left // (len(by_size) - done))
        pairs = choice.choose(candidates[layer], most, symmetric=run.is_symmetric)
        known = _similarities(run, layer, pairs, shown[layer].queries)
        matches, note = match_pairs(run, layer, known, reporter)
        if note:
            parts.notes.append(note)
            log.warning("%s", note)
        if matches:
            left -= sum(array.n_bytes for array in (matches.partners, matches.matched, matches.identity))
            shown[layer] = shown[layer].model_copy(update={"matches": matches})
        else:
            shown[layer] = shown[layer].model_copy(update={"problem": note})
    return choice


def _similarities(
    run: Run, layer: str, pairs: list[Pair], queries: Queries | None
) -> dict[Pair, Similarities]:
    """Return what the run has of pairs."""
    if run.record.neighbours is None:
        rows, columns = np.array(pairs, np.intp).reshape(-1, 2).T
        values = read_pairs(run.matrices(layer), rows, columns)
        read = (values.semantic.tolist(), values.spatial.tolist(), values.gap.tolist())
        return dict(zip(pairs, map(Similarities, *read), strict=True))
    known: dict[Pair, Similarities] = {}
    if queries is not None:
        ranking = queries.rankings[0]
        found = [array.read() for array in (ranking.indices, ranking.semantic, ranking.spatial, ranking.gap)]
        for at, row in enumerate(queries.rows.read().tolist()):
            for hit, *numbers in zip(*(column[at].tolist() for column in found), strict=True):
                known[row, hit] = known[hit, row] = Similarities(*numbers)
    return {pair: known[pair] for pair in pairs}


def _want_images(run: Run, parts: _Parts) -> None:
    """Note the images that the page refers to, the most important first: matched ones, queries, hits, those of maps."""
    row_side = run.record.row_side

    def want(side: str, array: Array) -> None:
        values = array.read().astype(np.int64).ravel()
        parts.want(side, values[values != array.missing].tolist())

    for layer in parts.layers:
        if layer.matches:
            pairs = layer.matches.pairs.read()
            parts.want(row_side, pairs[:, 0].tolist())
            parts.want("images", pairs[:, 1].tolist())
    for layer in parts.layers:
        if layer.queries:
            want(row_side, layer.queries.rows)
            for ranking in layer.queries.rankings:
                want("images", ranking.indices)
    for layer in parts.layers:
        if layer.maps:
            want(row_side, layer.maps.orders["given"].rows)
            want("images", layer.maps.orders["given"].columns)


def _images(
    side: str,
    manifest: Manifest,
    reader: ImageReader,
    parts: _Parts,
    vocabulary: list[str],
    reporter: Reporter,
) -> Images:
    ids, labels = manifest.image_ids(), manifest.labels()
    wanted = list(parts.wanted.get(side, {}))
    is_whole = len(ids) <= MOST_LISTED
    listed = list(range(len(ids))) if is_whole else sorted(wanted)
    pictured = listed if len(listed) <= MOST_LISTED else sorted(wanted[:MOST_LISTED])
    if len(pictured) < len(listed):
        parts.notes.append(f"Thumbnails are of {len(pictured):,} of {len(listed):,} {side}.")
    with reporter.stage(f"thumbnails of {side}", len(pictured), "images") as stage:
        gallery = read_thumbnails(reader, pictured, THUMBNAIL_BYTES, stage)
    for problem in dict.fromkeys(gallery.problems.values()):
        count = sum(one == problem for one in gallery.problems.values())
        parts.notes.append(f"{count:,} of {len(pictured):,} {side}: {problem}.")
        log.warning("the page lacks pictures of %d of %d %s: %s", count, len(pictured), side, problem)
    return Images(
        count=len(ids),
        rows=None if is_whole else Array.indices(np.array(listed), len(ids)),
        ids=[ids[index] for index in listed],
        labels=number_labels([labels[index] for index in listed], vocabulary),
        pictured=None if len(pictured) == len(listed) else Array.indices(np.array(pictured), len(ids)),
        problems={pictured[at]: problem for at, problem in gallery.problems.items()},
        thumbnails=gallery.pictures,
    )


def number_labels(labels: Iterable[tuple[str, ...]], vocabulary: list[str]) -> list[list[int]]:
    """Return the labels of images as their places among all."""
    place = {label: at for at, label in enumerate(vocabulary)}
    return [[place[label] for label in of_image] for of_image in labels]


def as_json(data: Data) -> str:
    """Return the data as JSON that may stand inside a script element: it holds no `<`, so nothing ends the element."""
    text = data.model_dump_json()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
