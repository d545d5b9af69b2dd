"""A run as a notebook shows it."""

import shutil
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import semrsm_dist as srs
from semrsm_dist.store.record import NeighbourSettings


def texts(run):
    """Return the cells and sentences of a run's HTML, which is well-formed."""
    return [text.strip() for text in ElementTree.fromstring(run._repr_html_()).itertext()]


def test_it_says_what_the_run_has(symmetric, rectangular, neighbours):
    found = texts(symmetric)
    assert f"Run {symmetric.directory.path}" in found
    assert found[found.index("kernels") + 1] == "cosine, rbf"
    assert found[found.index("matcher") + 1] == "auction"
    assert found[found.index("late") + 1] == "S = 9, C = 4"
    assert "6 queries x 14 images" in texts(rectangular)
    assert "5 neighbours of each image" in texts(neighbours)
    assert not any("complete" in text for text in found)
    assert len(symmetric._repr_html_()) < 2000


def test_it_says_what_is_missing_of_an_unfinished_run_and_what_is_damaged(symmetric, neighbours, tmp_path):
    for run, store in ((symmetric, "tiles"), (neighbours, "neighbours")):
        shutil.copytree(run.directory.path, tmp_path / store)
        shutil.rmtree(tmp_path / store / f"{store}.zarr" / "late")
        found = texts(srs.open_run(tmp_path / store))
        there = 0 if store == "tiles" else 10
        assert f"S = 9, C = 4, not complete: {there} of 10 tiles are there" in found
        assert found[-1].startswith("1 of 2 layers are not complete: start the run's command again")


@pytest.mark.parametrize(
    ("k", "threshold", "counts", "text"),
    [
        (5, None, {"images": 6}, "5 neighbours of each image"),
        (6, None, {"images": 6}, "up to 6 neighbours of each image"),
        (5, 0.5, {"images": 6}, "up to 5 neighbours of each image"),
        (6, None, {"images": 6, "queries": 3}, "6 neighbours of each query"),
    ],
)
def test_it_says_how_many_neighbours_there_are_at_most(k, threshold, counts, text):
    assert NeighbourSettings(k, threshold).describe(counts) == text


def test_names_with_markup_are_text(tmp_path):
    name = "<script>alert(1)</script>".replace("/", "\N{DIVISION SLASH}")
    np.save(tmp_path / "z.npy", np.random.default_rng(0).normal(size=(3, 2, 2)))
    pd.DataFrame({"image_id": ["<b>", "&", '"']}).to_parquet(tmp_path / "t.parquet")
    data = {
        "source": "features",
        "layers": {"a<b": str(tmp_path / "z.npy")},
        "table": str(tmp_path / "t.parquet"),
    }
    run = srs.run({"run": str(tmp_path / name), "data": data})
    assert f"Run {tmp_path / name}" in texts(run)
    assert "a<b" in texts(run)
    assert "<script" not in run._repr_html_()
