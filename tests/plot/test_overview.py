"""The picture of a run: what it reads, and what it shows of runs of any shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import semrsm_dist as srs
from semrsm_dist.config.schema import parse_config
from semrsm_dist.plot import heatmap, overview
from semrsm_dist.store.tiles import TileStore


def make_run(path, n_images=24, n_layers=1, n_queries=0, **matching):
    """Compute a small run on random features."""
    rng = np.random.default_rng(0)
    np.save(path / "z.npy", rng.normal(size=(n_images, 3, 4)))
    layers = {f"layer{index}": str(path / "z.npy") for index in range(n_layers)}
    document = {
        "run": str(path / "run"),
        "data": {"source": "features", "layers": layers},
        "matching": {"matcher": "identity", **matching},
    }
    if n_queries:
        np.save(path / "q.npy", rng.normal(size=(n_queries, 3, 4)))
        document["queries"] = {"source": "features", "layers": dict.fromkeys(layers, str(path / "q.npy"))}
    srs.run(parse_config(document))
    return srs.open_run(path / "run")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ({}, (1.3, 2.5)),
        ({"n_layers": 2}, (0.8, 1.3)),
        ({"n_layers": 14}, (0.6, 1.2)),
        ({"n_queries": 5}, (1.5, 4)),
    ],
    ids=["one layer", "two layers", "many layers", "queries"],
)
def test_the_picture_fits_a_page_whatever_the_run(tmp_path, shape, size):
    with Image.open(overview.draw_overview(make_run(tmp_path, **shape))) as picture:
        assert size[0] < picture.width / picture.height < size[1]
        assert picture.width < 2300
        pixels = np.asarray(picture.convert("L"))
    halves = (pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :])
    assert all((half < 250).mean() > 0.1 for half in halves)  # no half of the page is left blank


def test_a_layer_named_in_another_script_is_drawn_without_a_warning(tmp_path, recwarn):
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(4, 3, 4)))
    layers = {"\N{CJK UNIFIED IDEOGRAPH-5C42}": str(tmp_path / "z.npy")}
    data = {"source": "features", "layers": layers}
    overview.draw_overview(
        srs.run({"run": str(tmp_path / "run"), "data": data, "matching": {"matcher": "identity"}})
    )
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_of_a_large_run_only_a_few_tiles_are_read(tmp_path, monkeypatch):
    run = make_run(tmp_path, n_images=110, tile=22)
    monkeypatch.setattr(overview, "LARGEST", 6)
    monkeypatch.setattr(heatmap, "PARTS", 2)
    touched, read = set(), TileStore.read
    monkeypatch.setattr(TileStore, "read", lambda store, tile: touched.add(tile) or read(store, tile))
    overview.draw_overview(run)
    assert len(touched) <= 3 < run.layout("layer0").n_tiles


def test_a_picture_is_drawn_again_only_if_it_would_show_something_else_or_is_damaged(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    path = overview.draw_overview(run)
    first = path.stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(TileStore, "read", pytest.fail)
        assert overview.draw_overview(run) == path
    assert path.stat().st_mtime_ns == first
    whole = path.read_bytes()
    path.write_bytes(whole[:-500])
    overview.draw_overview(run)
    assert path.read_bytes() == whole
    run.directory.write_summary(run.summary() | {"about": "something else"})
    overview.draw_overview(run)
    assert path.read_bytes() != whole
