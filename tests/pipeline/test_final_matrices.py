"""What was lost or damaged after a run, stored matrices, and layers that a later session no longer asks for."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
import xarray as xr

import semrsm_dist as srs
from semrsm_dist.errors import StorageError
from semrsm_dist.evaluation.retrieval import find_hits, score_hits
from semrsm_dist.pipeline.stages import evaluation
from semrsm_dist.pipeline.summary import WORKER_PARTS, format_summary
from semrsm_dist.results import matrices
from semrsm_dist.results.status import read_status
from semrsm_dist.results.status_text import format_status
from semrsm_dist.store.tiles import TileStore

TILE = "tiles.zarr/last/tiles/c/0/0/0"


def test_a_lost_tile_of_a_finished_run_is_named_and_computed_again(shop):
    document = shop.of_features("run", shop.features())
    shop.run(document)
    path = shop.path / "run"
    before = srs.open_run(path).similarity("last").values
    (path / TILE).unlink()
    assert not read_status(path)["complete"]
    with pytest.raises(StorageError, match=rf"{TILE}: this chunk is missing; .*start the run's command"):
        srs.open_run(path).export("npy", shop.path / "out")
    assert shop.run(document)["work"]["matching"]["computed"] == 1
    np.testing.assert_array_equal(srs.open_run(path).similarity("last").values, before)
    assert read_status(path)["complete"]


def test_a_damaged_tile_of_a_finished_run_heals_as_its_error_says(shop):
    document = shop.of_features("run", shop.features())
    shop.run(document)
    path = shop.path / "run"
    before = srs.open_run(path).similarity("last").values
    file = path / TILE
    file.write_bytes(b"?" + file.read_bytes()[1:])
    for read in (
        lambda: srs.open_run(path).similarity("last").values,
        lambda: srs.open_run(path).similarity_rows("last")(slice(0, 3)),
        lambda: srs.open_run(path).export("npy", shop.path / "out"),
        lambda: srs.open_run(path).export("zarr", shop.path / "out"),
    ):
        with pytest.raises(
            StorageError, match=rf"{TILE}: this chunk holds damaged .*start the run's command"
        ):
            read()
    assert shop.run(document | {"kernels": ["rbf"]})["work"]["matching"]["computed"] == 1
    np.testing.assert_array_equal(srs.open_run(path).similarity("last").values, before)


@pytest.mark.parametrize("name", ["squared_norm_i", "labels_j", "image_i", "quantity"])
def test_a_flipped_bit_in_a_coordinate_is_noticed_and_heals(shop, name):
    document = labelled(shop, n=6)
    shop.run(document)
    path = shop.path / "run"
    before = srs.open_run(path).dataset("last").load()
    file = path / "tiles.zarr" / "last" / name / "c" / "0"
    content = bytearray(file.read_bytes())
    for place in range(8 * len(content)):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        file.write_bytes(changed)
        with pytest.raises(StorageError, match=name):
            TileStore(path / "tiles.zarr", "last").coordinate(name)
    file.unlink()
    assert not read_status(path)["complete"]
    shop.run(document)
    xr.testing.assert_identical(srs.open_run(path).dataset("last").load(), before)


def test_stored_matrices_are_those_that_are_derived_and_written_again_when_a_chunk_is_lost(shop):
    document = shop.of_features(
        "run", shop.features(), output={"matrices": "stored"}, kernels=["cosine", "rbf"]
    )
    assert shop.run(document)["work"]["assembly"] == {"found": 0, "computed": 1}
    path = shop.path / "run"
    whole = shop.tree(path / "rsm.zarr")
    stored = xr.open_zarr(path / "rsm.zarr" / "last", chunks=None).load()
    derived = srs.open_run(path).dataset("last").load()
    assert set(stored) == set(derived) >= {"matched", "semantic_cosine", "spatio-semantic_rbf"}
    for name, matrix in derived.items():
        np.testing.assert_array_equal(stored[name].values, matrix.values.astype(np.float32))
        assert stored[name].attrs.pop("origin").endswith(f"/rsm.zarr/last/{name}")
        assert stored[name].attrs == matrix.attrs
    (path / "rsm.zarr" / "last" / "gap" / "c" / "0" / "0").unlink()
    assert shop.run(document)["work"]["assembly"] == {"found": 0, "computed": 1}
    assert shop.run(document)["work"]["assembly"] == {"found": 1, "computed": 0}
    assert shop.tree(path / "rsm.zarr") == whole


class Listener:
    """A reporter that keeps the names of the stages, how far each came, and what was said."""

    def __init__(self):
        self.stages, self.notes = {}, []

    @contextlib.contextmanager
    def stage(self, name, total, unit, done=0, **_):
        self.name = name
        self.stages[name] = [done, total]
        yield self

    def advance(self, amount, effort=None):
        self.stages[self.name][0] += amount

    def tick(self):
        pass

    def note(self, message):
        self.notes.append(message)


def labelled(shop, n=20, **sections):
    table = shop.path / "table.csv"
    table.write_text("image_id,labels\n" + "".join(f"{index},{'abc'[index % 3]}\n" for index in range(n)))
    document = shop.of_features("run", shop.features(shape=(n, 6, 4)))
    document["data"]["table"] = str(table)
    return document | sections


def test_evaluation_is_shown_once_and_then_remembered(shop):
    document = labelled(shop)
    first, again, other = Listener(), Listener(), Listener()
    summary = shop.run(document, reporter=first)
    assert summary["retrieval"]
    assert first.stages["evaluation"] == [20, 20]  # rows, each read once
    repeated = shop.run(document, reporter=again)
    assert "evaluation" not in again.stages
    assert (repeated["retrieval"], repeated["layers"]) == (summary["retrieval"], summary["layers"])
    scores = shop.run(labelled(shop, retrieval={"k": [2]}), reporter=other)["retrieval"]
    assert {score["k"] for score in scores} == {2}
    assert "evaluation" in other.stages


@pytest.mark.parametrize("share", [4, 2**40], ids=["pooled vectors held", "read with each block"])
def test_evaluation_block_by_block_is_that_of_whole_matrices(shop, monkeypatch, share):
    monkeypatch.setattr(evaluation, "POOLED_SHARE", share)
    monkeypatch.setattr(matrices, "CHUNK", 7)  # three rows of blocks; labels repeat every three images
    sections = {"matching": {"tile": 7}, "retrieval": {"k": [1, 3]}, "kernels": ["cosine"]}
    summary = shop.run(labelled(shop, **sections))
    run = srs.open_run(shop.path / "run")
    task = evaluation.retrieval_task({"images": run.manifest()})
    pooled = np.load(shop.path / "z.npy").astype(np.float64).mean(axis=1)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    similarities = {
        "average pooling": pooled @ pooled.T,
        **{kind: run.similarity("last", "cosine", kind).values for kind in ("semantic", "spatio-semantic")},
    }
    for score in summary["retrieval"]:
        hits = find_hits(lambda rows: similarities[score["method"]][rows], task, score["k"])  # noqa: B023
        expected = np.nanmean(score_hits(hits.indices, task, [score["k"]]))
        assert score["f1"] == pytest.approx(expected), score
    assert len(summary["retrieval"]) == 6
    norms = np.sqrt(run.dataset("last")["squared_norm_i"].values)
    gaps = run.gap("last").values[np.triu_indices(20, 1)] / np.outer(norms, norms)[np.triu_indices(20, 1)]
    assert summary["layers"]["last"]["mean_gap"] == pytest.approx(gaps.mean())
    assert summary["layers"]["last"]["max_gap"] == pytest.approx(gaps.max())


def test_evaluation_can_be_interrupted(shop):
    document = labelled(shop)
    assert shop.interrupt(document, "evaluation", 1)
    assert shop.run(document)["retrieval"]


def test_zero_representations_are_named(shop):
    z = np.random.default_rng(0).normal(size=(20, 6, 4)).astype(np.float32)
    z[[3, 5]] = 0
    summary = shop.run(shop.of_features("run", shop.save("z.npy", z)))
    (warning,) = summary["warnings"]
    names = srs.open_run(shop.path / "run").manifest().image_ids()
    for part in ("layer last", "2 of 20 images is zero", names[3], names[5], "undefined (NaN)", "retrieval"):
        assert part in warning


def test_work_is_what_the_workers_said(shop):
    document = shop.of_features("run", shop.features())
    summary = shop.run(document)
    assert summary["work"]["matching"] == {"found": 0, "computed": 3}
    assert {"solve", "load", "write"} <= set(summary["worker_seconds"]) <= set(WORKER_PARTS)
    assert min(summary["worker_seconds"].values()) > 0
    text = format_summary(summary)
    assert re.search(r"tiles: \d+ % affinity products, \d+ % matching, \d+ % other, ", text)
    assert "time: 15 s (matching 3.0 s, other 12 s)" in format_summary(
        summary | {"seconds": {"matching": 3.0, "total": 15.0}}
    )
    again = shop.run(document)
    assert again["work"]["matching"] == {"found": 3, "computed": 0}
    assert "time on tiles" not in format_summary(again)
    assert again["computed_by"] == summary["computed_by"]
    assert summary["computed_by"]["seconds"] == summary["seconds"]


def test_a_gap_that_is_shown_above_the_tolerance_is_explained(shop):
    summary = shop.run(shop.of_features("run", shop.features()))
    (facts,), tolerance = summary["layers"].values(), summary["matcher"]["matching.tolerance"]
    facts["max_gap"] = tolerance
    assert "rounded up" not in format_summary(summary)
    facts["max_gap"] = tolerance * 17 / 16
    assert "gaps are stored rounded up, by up to 6 %" in format_summary(summary)


def test_a_layer_that_is_not_asked_for_any_more_does_not_keep_a_run_incomplete(shop):
    files = {name: shop.features(f"{name}.npy", seed=seed) for seed, name in enumerate("ab")}
    both, one = shop.of_features("run", files), shop.of_features("run", {"a": files["a"]})
    assert shop.interrupt(both, "matching", 1)
    path = shop.path / "run"
    assert not read_status(path)["complete"]
    shop.run(one)
    status = read_status(path)
    assert status["complete"]
    assert {name: facts["requested"] for name, facts in status["layers"].items()} == {"a": True, "b": False}
    assert "no longer requested" in format_status(status)
    written = srs.open_run(path).export("npy", shop.path / "out")
    names = [file.name for file in written if file.suffix == ".npy"]
    assert names == ["a.semantic.cosine.npy", "a.spatio-semantic.cosine.npy"]
    shop.run(both)
    assert all(facts["complete"] and facts["requested"] for facts in read_status(path)["layers"].values())


def test_the_search_for_a_width_is_shown(shop):
    listener = Listener()
    document = shop.of_features("run", shop.features(), kernels=[{"name": "rbf"}])
    assert shop.run(document, reporter=listener)["layers"]
    done, total = listener.stages["rbf width of last, semantic"]
    assert done == total > 0


def test_a_query_that_is_in_the_database_is_not_its_own_hit(shop):
    folder = shop.images(n=9)
    document = shop.of_images("run", folder)
    document["model"]["layers"] = ["layer4"]
    document["queries"] = {"source": "folder", "path": str(shop.path / "copies")}
    for index, file in enumerate(sorted(folder.rglob("*.png"))):
        copy = shop.path / "copies" / file.parent.name / f"query{index}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    crossed = shop.run(document)["retrieval"]
    alone = shop.run(
        {key: value for key, value in document.items() if key != "queries"}
        | {"run": str(shop.path / "alone")}
    )
    assert [score["f1"] for score in crossed] == pytest.approx([score["f1"] for score in alone["retrieval"]])
