"""Matrices are derived from tiles: any part of any kernel, also lazily through xarray, from those tiles alone."""

from __future__ import annotations

import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from sklearn.preprocessing import LabelEncoder

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError
from semrsm_dist.matching.kernels import derive, squared_distances
from semrsm_dist.plan.tiling import Layout
from semrsm_dist.results import rbf_width
from semrsm_dist.results.matrices import LayerMatrices
from semrsm_dist.results.rbf_width import median_width
from semrsm_dist.results.xarray_engine import SemrsmBackend
from semrsm_dist.store.tiles import TileStore

KEYS = [
    (slice(None), slice(None)),
    (slice(1, 12, 3), slice(4, 9)),
    (3, slice(None)),
    (-1, 2),
    ([11, 0, 5, 5], slice(2, None)),
    (slice(5, 2, -1), [12, 3, 4]),
    ([], slice(None)),
]


@pytest.fixture(scope="module", params=["symmetric", "queries"])
def run(request, tmp_path_factory):
    path, rng = tmp_path_factory.mktemp("derived"), np.random.default_rng(0)
    document = {"run": str(path / "run"), "matching": {"tile": 4}, "kernels": ["cosine", "rbf", "linear"]}
    for name, count in {"images": 13, "queries": 12 if request.param == "queries" else 0}.items():
        if count:
            np.save(path / f"{name}.npy", rng.normal(size=(count, 5, 3)))
            ids = "".join(f"größe {name} {index},{'ab|'[index % 3]}\n" for index in range(count))
            (path / f"{name}.csv").write_text(f"image_id,labels\n{ids}")
            side = {"layers": {"a": str(path / f"{name}.npy")}, "table": str(path / f"{name}.csv")}
            document["data" if name == "images" else name] = {"source": "features", **side}
    return srs.run(document)


def by_hand(run, quantity):
    """Return a whole matrix, tile by tile, with its mirror image."""
    layout, store = run.layout("a"), TileStore(run.directory.tiles, "a")
    whole = np.empty((layout.n_rows, layout.n_columns))
    for row, column in layout.tiles():
        tile = store.read((row, column))[quantity]
        whole[layout.rows(row), layout.columns(column)] = tile
        if layout.symmetric:
            whole[layout.columns(column), layout.rows(row)] = tile.T
    if layout.symmetric:
        np.fill_diagonal(whole, 0 if quantity == 2 else store.coordinate("squared_norm_i"))
    return whole


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_any_part_is_that_of_the_whole(run, key):
    data = run.dataset("a")
    norms = data["squared_norm_i"].values, data["squared_norm_j"].values
    for position, name in enumerate(("matched", "identity", "gap")):
        np.testing.assert_array_equal(data[name][key].values, by_hand(run, position)[key])
    for kernel in ("cosine", "rbf", "linear"):
        matrix = run.similarity("a", kernel)
        expected = derive(kernel, by_hand(run, 0), *norms, sigma=matrix.attrs.get("sigma"))
        np.testing.assert_array_equal(matrix[key].values, expected[key])
        np.testing.assert_array_equal(data[f"semantic_{kernel}"][key].values, expected[key])


def test_only_the_tiles_that_a_part_needs_are_read(run, monkeypatch):
    touched, read = [], TileStore.read
    monkeypatch.setattr(TileStore, "read", lambda store, tile: touched.append(tile) or read(store, tile))
    data = xr.open_dataset(run.directory.path, engine=SemrsmBackend, layer="a")
    assert touched == []
    assert data["semantic_cosine"][9:11, :3].shape == (2, 3)
    data["semantic_cosine"][9:11, :3].load()
    assert touched == [(0, 2) if run.is_symmetric else (2, 0)]


def test_the_engine_opens_what_the_run_holds(run):
    path = run.directory.path
    data = xr.open_dataset(path, engine=SemrsmBackend, drop_variables="gap")
    xr.testing.assert_identical(data.load(), run.dataset("a").drop_vars("gap").load())
    assert SemrsmBackend().guess_can_open(str(path))
    assert not SemrsmBackend().guess_can_open(path.parent)
    assert not SemrsmBackend().guess_can_open(None)
    with pytest.raises(ConfigError, match="layer"):
        xr.open_dataset(path, engine=SemrsmBackend, layer="b")
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert declared["entry-points"]["xarray.backends"] == {
        "semrsm": f"{SemrsmBackend.__module__}:{SemrsmBackend.__name__}"
    }


@pytest.mark.filterwarnings("error")
def test_plain_xarray_opens_tiles_and_exports_with_their_coordinates(run, tmp_path):
    names = run.manifest("queries" if not run.is_symmetric else "images").image_ids()
    tiles = xr.open_zarr(run.directory.tiles / "a", chunks=None)
    assert tiles["tiles"].dims == ("quantity", "image_i", "image_j")
    assert tiles["quantity"].values.tolist() == ["matched", "identity", "gap"]
    (group,) = run.export("zarr", tmp_path, kernels=["cosine", "rbf"])
    plain = xr.open_zarr(group, chunks=None)
    data = run.dataset("a")
    assert set(plain) == set(data) - {"semantic_linear", "spatio-semantic_linear"}
    for opened in (tiles, plain):
        assert opened["image_i"].values.tolist() == names
        assert {"labels_i", "labels_j", "group_i", "squared_norm_j"} <= set(opened.coords)
        assert opened["labels_j"].values.tolist() == data["labels_j"].values.tolist()
    for name, matrix in plain.items():
        assert matrix.dtype == np.float32
        np.testing.assert_array_equal(matrix.values, data[name].values.astype(np.float32))


def test_texts_are_of_a_type_that_other_libraries_take(run):
    data = run.dataset("a")
    assert [data[f"{name}_{side}"].dtype.kind for name in ("image", "labels", "group") for side in "ij"] == [
        "U"
    ] * 6
    assert LabelEncoder().fit_transform(data["labels_i"].values).shape == data["labels_i"].shape
    data["matched"].plot(ax=Figure().add_subplot())


class InMemory(LayerMatrices):
    """Matrices whose inner products are in memory."""

    def __init__(self, inner, norms_i, norms_j, symmetric):
        super().__init__(
            TileStore(Path(), "last"), Layout(*inner.shape, 64, symmetric), (norms_i, norms_j), {}
        )
        self.inner = inner

    def read_for_distances(self, quantity, key):
        return self.inner[key].copy()


def draw(n_rows, n_columns, n_classes, seed=0):
    """Return inner products of vectors around class centres, in the order of their classes, and squared norms."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, 8))
    x, y = (
        centres[np.arange(n) * n_classes // n] + 0.5 * rng.normal(size=(n, 8)) for n in (n_rows, n_columns)
    )
    return x @ y.T, (x**2).sum(axis=1), (y**2).sum(axis=1)


def exact_width(inner, norms_i, norms_j):
    squared = squared_distances(inner, norms_i, norms_j)
    return math.sqrt(np.median(squared[squared > 0]))


def test_the_width_is_exact_where_all_pairs_are_read():
    inner, norms_i, norms_j = draw(150, 90, 5)
    found = median_width(InMemory(inner, norms_i, norms_j, symmetric=False), "semantic")
    assert found == (exact_width(inner, norms_i, norms_j), None)


@pytest.mark.parametrize("seed", range(5))
def test_the_width_of_a_sample_is_as_exact_as_it_says(monkeypatch, seed):
    monkeypatch.setattr(rbf_width, "PAIRS", 10_000)
    monkeypatch.setattr(rbf_width, "BLOCKS", 300)
    monkeypatch.setattr(rbf_width, "BLOCK", 8)
    monkeypatch.setattr(rbf_width, "SEED", seed)
    inner, norms_i, norms_j = draw(1000, 700, 6)
    sigma, error = median_width(InMemory(inner, norms_i, norms_j, symmetric=False), "semantic")
    assert 0 < error < 0.1 * sigma
    assert abs(sigma - exact_width(inner, norms_i, norms_j)) < 1.5 * error  # 3 standard errors


def test_images_that_all_coincide_have_no_width(tmp_path):
    np.save(tmp_path / "z.npy", np.repeat(np.random.default_rng(1).normal(size=(1, 7, 5)), 9, axis=0))
    data = {"source": "features", "layers": {"a": str(tmp_path / "z.npy")}}
    run = srs.run({"run": str(tmp_path / "run"), "data": data, "kernels": ["rbf", "cosine"]})
    matrix = run.similarity("a", "rbf")
    assert matrix.attrs["sigma"] == 1
    assert (matrix.values == 1).all()
    cosine = run.similarity("a").values
    assert (cosine <= 1).all()
    assert (np.diag(cosine) == 1).all()
