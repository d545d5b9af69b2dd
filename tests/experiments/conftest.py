"""Small runs on ready-made features, and what they must give, written from the definitions."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

from semrsm_dist.config.schema import RunConfig, parse_config
from semrsm_dist.progress import SilentReporter

LABELS = "abcd"


class Stages(SilentReporter):
    """Keeps the names of the stages, and the notes."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    @contextlib.contextmanager
    def stage(self, name, *arguments, **options):
        self.names.append(name)
        with super().stage(name, *arguments, **options) as shown:
            yield shown


@pytest.fixture
def stages() -> Stages:
    """A reporter that keeps the names of the stages, and the notes."""
    return Stages()


@pytest.fixture(scope="session")
def small() -> ModuleType:
    """The functions of this file."""
    return sys.modules[__name__]


SHAPES = {"early": (6, 4), "late": (4, 5)}


def write_side(
    folder: Path, side: str, n: int, seed: int, groups: bool = False, wanted=SHAPES, **labels
) -> dict:
    """Write random features of some layers and a table of labels; return the configuration's section."""
    rng = np.random.default_rng(seed)
    layers = {}
    for layer in wanted:
        layers[layer] = str(folder / f"{side}-{layer}.npy")
        np.save(layers[layer], (rng.normal(size=(n, *SHAPES[layer])) + 0.7).astype(np.float32))
    drawn = [tuple(rng.permutation(list(LABELS))[: rng.integers(1, 4)]) for _ in range(n)]
    table = {
        "image_id": [f"{side}{index}" for index in range(n)],
        "labels": labels.get("labels", [list(item) for item in drawn]),
        "group": [f"g{index // 2}" if groups and index < n - 2 else None for index in range(n)],
    }
    pd.DataFrame(table).to_parquet(folder / f"{side}.parquet")
    return {"source": "features", "layers": layers, "table": str(folder / f"{side}.parquet")}


def make_config(folder: Path, n: int = 14, n_queries: int = 0, wanted=SHAPES, **options) -> RunConfig:
    """Return the configuration of a run that matches exactly."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "run": str(folder / "run"),
        "data": write_side(folder, "images", n, seed=1, wanted=wanted, **options),
        "matching": {"matcher": "hungarian", "tile": 8},
        "kernels": ["cosine"],
    }
    if n_queries:
        document["queries"] = write_side(folder, "queries", n_queries, seed=2, wanted=wanted)
    return parse_config(document)


def with_unequal_tokens(config: RunConfig, folder: Path) -> tuple[RunConfig, np.ndarray]:
    """Return a configuration whose images have fewer tokens than there is room for, and how many each has."""
    n_tokens = SHAPES["early"][0]
    counts = 2 + np.arange(len(load(config, "early")[0])) % (n_tokens - 1)
    np.save(folder / "counts.npy", counts)
    data = config.data.model_copy(update={"token_counts": {"early": folder / "counts.npy"}})
    return config.model_copy(update={"data": data}), counts


def load(config: RunConfig, layer: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the rows and of the columns in float64."""
    database = np.load(config.data.layers[layer]).astype(np.float64)
    queries = np.load(config.queries.layers[layer]).astype(np.float64) if config.queries else database
    return queries, database


def draw(evidence):
    """Return the figure of an experiment; its legends hide no data."""
    figure = Figure(layout="constrained")
    evidence.draw(figure)
    FigureCanvasAgg(figure).draw()
    parts = [figure, *figure.subfigs]
    for legend in (legend for part in parts for legend in part.legends):
        inside = legend.get_window_extent()
        assert not [axes.get_title() for axes in figure.axes if axes.get_window_extent().overlaps(inside)]
    assert not any(axes.get_legend() for axes in figure.axes)
    return figure


def load_labels(section) -> list[set[str]]:
    return [set(labels) for labels in pd.read_parquet(section.table)["labels"]]


def inner_products(queries: np.ndarray, database: np.ndarray, kind: str) -> np.ndarray:
    """Return inner products before or after matching."""
    result = np.empty((len(queries), len(database)))
    for i, left in enumerate(queries):
        for j, right in enumerate(database):
            affinities = left @ right.T
            rows, columns = linear_sum_assignment(affinities, maximize=True)
            result[i, j] = affinities[rows, columns].sum() if kind == "semantic" else np.trace(affinities)
    return result


def similarities(
    queries: np.ndarray, database: np.ndarray, kind: str, kernel: str, multiple=1.0
) -> np.ndarray:
    """Return a kernel's similarities, written from its formula."""
    inner = inner_products(queries, database, kind)
    n_i, n_j = (np.array([np.sum(image**2) for image in z]) for z in (queries, database))
    if kernel == "linear":
        return inner
    if kernel == "cosine":
        return inner / np.sqrt(np.outer(n_i, n_j))
    squared = n_i[:, None] + n_j - 2 * inner
    pairs = squared[np.triu_indices(len(queries), k=1)] if queries is database else squared.ravel()
    return np.exp(-squared / (2 * multiple**2 * np.median(pairs)))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def overlap(one: set[str], other: set[str]) -> float:
    return 2 * len(one & other) / (len(one) + len(other))


def retrieval(matrix, labels, others, k, groups=None, same=True):
    """Return F1@k of each query, by a loop over the images."""
    scores = []
    for query, row in enumerate(matrix):
        hits = [
            candidate
            for candidate in np.argsort(-row, kind="stable")
            if others[candidate]
            and not (same and candidate == query)
            and not (groups and groups[query] and groups[query] == groups[candidate])
        ][:k]
        is_judged = labels[query] and hits
        overlaps = [overlap(labels[query], others[hit]) for hit in hits] if is_judged else [np.nan]
        scores.append(np.mean(overlaps))
    return np.array(scores)
