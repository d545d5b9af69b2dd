"""Runs that keep neighbours: those of the matrix to the last bit, resumed, damaged and exported."""

from __future__ import annotations

import csv
import json
import shutil
import signal

import numpy as np
import pyarrow.parquet
import pytest
import zarr
from scipy import sparse

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, ResumeError
from semrsm_dist.pipeline.summary import format_summary
from semrsm_dist.results.verification.report import format_report

K = 4


def clusters(shop, name="z.npy", n=70, seed=0):
    """Write features of a few kinds, with exact and shuffled duplicates, and an image of zeros."""
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(5, 9, 12)) + 2.0 * rng.normal(size=(5, 1, 12))
    z = kinds[np.arange(n) % 5] + 0.3 * rng.normal(size=(n, 9, 12))
    z[n - 1], z[n - 2], z[n // 2] = z[0], z[1][::-1], 0.0
    return shop.save(name, z.astype(np.float32))


def neighbours_of_matrix(run, layer, k, groups=None, threshold=None):
    """Return indices, similarities and gaps (N, k) by a stable sort of a run's matrix."""
    similarity = run.similarity(layer).values.copy()
    gap = run.gap(layer, "cosine").values
    if run.is_symmetric:
        np.fill_diagonal(similarity, np.nan)
    if groups is not None:
        similarity[np.equal.outer(groups, groups)] = np.nan
    if threshold is not None:
        similarity[similarity < threshold] = np.nan
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(similarity, order, axis=1)
    there = ~np.isnan(found)
    gaps = np.where(there, np.take_along_axis(gap, order, axis=1), np.nan)
    missing = ((0, 0), (0, k - order.shape[1]))
    return (
        np.pad(np.where(there, order, -1), missing, constant_values=-1),
        np.pad(found, missing, constant_values=np.nan),
        np.pad(gaps, missing, constant_values=np.nan),
    )


def assert_neighbours_of_the_matrix(shop, document, *, k=K, groups=None, threshold=None):
    """Run a document once for neighbours and once for the matrix, and compare them bit by bit."""
    wanted = {"k": k} | ({} if threshold is None else {"threshold": threshold})
    shop.run({**document, "run": f"{document['run']}-n", "output": {"neighbours": wanted}})
    shop.run(document)
    run, matrix = srs.open_run(f"{document['run']}-n"), srs.open_run(document["run"])
    for layer in run.requested_layers:
        found = run.neighbours(layer)
        expected = neighbours_of_matrix(matrix, layer, k, groups, threshold)
        for name, values in zip(("index", "similarity", "gap"), expected, strict=True):
            np.testing.assert_array_equal(found[name].values, values, err_msg=f"{layer}: {name}")
    return run


def test_neighbours_are_those_of_the_matrix(shop):
    layers = {"a": clusters(shop), "b": shop.features("b.npy", (70, 6, 4))}
    run = assert_neighbours_of_the_matrix(shop, shop.of_features("run", layers, matching={"tile": 16}))
    found = run.neighbours("a")
    assert found["neighbour"].values[0, 0] == "69"  # its exact copy
    assert found["similarity"].values[0, 0] == 1.0
    assert set(found["neighbour"].values[35]) == {""}  # zeros have none
    assert found.sizes == {"image": 70, "rank": K}


def test_queries_have_neighbours_among_the_images(shop):
    document = shop.of_features("run", clusters(shop), matching={"tile": 16})
    queries = clusters(shop, "queries.npy", 23, seed=1)
    document["queries"] = {"source": "features", "layers": {"last": str(queries)}}
    run = assert_neighbours_of_the_matrix(shop, document)
    assert run.neighbours("last").sizes == {"image": 23, "rank": K}


def test_images_of_unequal_numbers_of_tokens_have_neighbours(shop):
    document = shop.of_features("run", clusters(shop), matching={"tile": 16})
    counts = np.random.default_rng(2).integers(2, 10, 70)
    document["data"]["token_counts"] = {"last": str(shop.save("counts.npy", counts))}
    found = assert_neighbours_of_the_matrix(shop, document).neighbours("last")
    rows, ranks = np.nonzero(found["index"].values >= 0)
    differ = counts[rows] != counts[found["index"].values[rows, ranks]]
    assert differ.any()
    np.testing.assert_array_equal(np.isnan(found["identity"].values[rows, ranks]), differ)


@pytest.mark.parametrize("threshold", (0.9, 1.0))
def test_neighbours_below_a_threshold_are_left_out(shop, threshold):
    document = shop.of_features("run", clusters(shop), matching={"tile": 16})
    run = assert_neighbours_of_the_matrix(shop, document, k=30, threshold=threshold)
    counts = (run.neighbours("last")["index"].values >= 0).sum(axis=1)
    assert 0 < counts.max() < 30
    for sample in (0, 7, 10**6):
        report = run.verify(sample=sample, seed=0)
        assert report.exit_code == 0
        assert report.checked["pairs solved again"] == min(sample, counts.sum())


def test_a_verification_of_a_run_without_neighbours_says_so(shop):
    document = shop.of_features("run", shop.features())
    shop.run({**document, "output": {"neighbours": {"k": K, "threshold": 0.999}}})
    said = format_report(srs.open_run(document["run"]).verify())
    assert ", 0 pairs solved again" in said
    assert "layer last: no pairs were solved again: no image has a neighbour" in said
    assert said.endswith("  sound")


def test_more_neighbours_than_images(shop):
    document = shop.of_features("run", clusters(shop, n=9), matching={"tile": 4})
    run = assert_neighbours_of_the_matrix(shop, document, k=12)
    assert (run.neighbours("last")["index"].values[:, 8:] == -1).all()


def test_norms_that_float32_does_not_hold_are_ranked_in_float64(shop):
    z = np.load(clusters(shop)) * np.float32(1e-17)
    document = shop.of_features("run", shop.save("small.npy", z), matching={"tile": 16})
    assert_neighbours_of_the_matrix(shop, document)
    stored = zarr.open_group(f"{document['run']}-n/neighbours.zarr/last", mode="r")
    assert stored["matched"].dtype == np.float64


def test_tiles_that_do_not_fit_into_memory_are_searched_in_parts(shop):
    rng = np.random.default_rng(0)
    z = shop.save(
        "wide.npy", (rng.normal(size=(48, 36, 512)) + rng.normal(size=(48, 1, 512))).astype("float32")
    )
    matching = {"tile": 48, "worker_memory": "16MiB"}
    assert_neighbours_of_the_matrix(shop, shop.of_features("run", z, matching=matching))


def test_images_of_the_same_group_are_no_neighbours(shop):
    folder = shop.images(n=12)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    groups = [f"group{index // 3}" for index in range(12)]
    table = shop.path / "table.csv"
    with table.open("w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["image_id", "uri", "labels", "group"])
        for name, group in zip(names, groups, strict=True):
            writer.writerow([name, f"images/{name}", name.split("/")[0], group])
    document = shop.of_images("run", folder, matching={"tile": 5})
    document["data"] = {"source": "table", "path": str(table)}
    run = assert_neighbours_of_the_matrix(shop, document, groups=np.array(groups))
    scores = run.summary()["retrieval"]
    assert [score["method"] for score in scores] == ["semantic"] * 2
    matrix = srs.open_run(document["run"]).summary()["retrieval"]
    assert scores == [score for score in matrix if score["method"] == "semantic"]


def wanted(shop, run, **output):
    document = shop.of_features(run, clusters(shop), matching={"tile": 8})
    return {**document, "output": {"neighbours": {"k": K, **output}}}


KERNELS = {"kernels": ["linear", "cosine", {"name": "rbf", "sigma": 7.0}]}


@pytest.fixture(scope="module")
def finished(module_shop):
    """A finished run, to be read."""
    module_shop.run(wanted(module_shop, "whole"))
    return module_shop.path / "whole"


@pytest.fixture(scope="module")
def matrix(module_shop):
    """A finished run that keeps the matrix of the same features."""
    module_shop.run({**wanted(module_shop, "matrix"), **KERNELS, "output": {}})
    return srs.open_run(module_shop.path / "matrix")


@pytest.fixture(scope="module")
def whole(module_shop, finished):
    """What an uninterrupted run has on disk."""
    return module_shop.tree(finished / "neighbours.zarr")


def neighbours(shop):
    return shop.tree(shop.path / "run" / "neighbours.zarr")


@pytest.mark.parametrize(("stage", "after"), [("matching", 200), ("matching", 1500), ("assembly", 2)])
def test_a_run_that_is_stopped_goes_on_to_the_same_bytes(shop, whole, stage, after):
    document = wanted(shop, "run")
    assert shop.interrupt(document, stage, after)
    before = shop.chunks(shop.path / "run", "candidates.zarr")
    summary = shop.run(document)
    assert neighbours(shop) == whole
    assert summary["work"]["matching"]["found"] > 0
    tiles = {name: stamp for name, stamp in before.items() if "candidates.zarr/last/candidates" in name}
    assert tiles.items() <= shop.chunks(shop.path / "run", "candidates.zarr").items()
    again = shop.run(document)
    assert all(stage["computed"] == 0 for stage in again["work"].values())
    assert neighbours(shop) == whole


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(shop, until, whole):
    config = shop.write(wanted(shop, "run"))
    with shop.process("run", config) as process:
        if until(
            lambda: len(list((shop.path / "run").glob("candidates.zarr/last/candidates/c/0/*/*"))) >= 5,
            process,
        ):
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert shop.command("run", config).returncode == 0
    assert neighbours(shop) == whole


def test_lost_and_damaged_chunks_are_made_again(shop, whole):
    document = wanted(shop, "run")
    assert shop.interrupt(document, "assembly", 1)
    candidates = shop.path / "run" / "candidates.zarr" / "last"
    (candidates / "candidates" / "c" / "0" / "1" / "3").write_bytes(b"damaged")
    (candidates / "candidates" / "c" / "0" / "0" / "5").unlink()
    (candidates / "known" / "c" / "0" / "1" / "0").write_bytes(b"damaged")
    shutil.rmtree(candidates / "known" / "c" / "0" / "2")
    summary = shop.run(document)
    assert summary["work"]["matching"] == {"found": 43, "computed": 2}
    assert neighbours(shop) == whole
    (shop.path / "run" / "neighbours.zarr" / "last" / "indices" / "c" / "3" / "0").unlink()
    shop.run(document)
    assert neighbours(shop) == whole


def test_a_finished_run_needs_no_candidates(shop, whole):
    document = wanted(shop, "run")
    shop.run(document)
    shutil.rmtree(shop.path / "run" / "candidates.zarr")
    summary = shop.run(document)
    assert all(stage["computed"] == 0 for stage in summary["work"].values())
    assert neighbours(shop) == whole


@pytest.mark.parametrize(
    "output", [{"neighbours": 5}, {"neighbours": {"k": K, "threshold": 0.5}}, {"matrices": "derived"}]
)
def test_a_run_keeps_what_it_began_to_keep(shop, output):
    document = wanted(shop, "run")
    shop.run(document)
    with pytest.raises(ResumeError, match=r"output\.neighbours"):
        shop.run({**document, "output": output})


def test_a_run_that_leaves_no_neighbour_out_says_so(shop):
    document = {**shop.of_features("run", shop.features()), "output": {"neighbours": 100}}
    run = shop.run(document)
    others = run["images"]["images"] - 1
    assert any(f"k: 100, but there are only {others} images" in warning for warning in run["warnings"])
    assert "up to 100 neighbours of each image, complete" in format_summary(run)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"matching": {"matcher": "hungarian"}}, "neighbours are found by bounds .* auction"),
        ({"output": {"neighbours": 3, "matrices": "stored"}}, "no matrices to store"),
        ({"output": {"neighbours": 0}}, "k"),
        ({"output": {"neighbours": {"threshold": 1.5}}}, "threshold"),
        ({"output": "neighbors"}, "output"),
    ],
)
def test_what_cannot_be_kept_is_refused(shop, sections, message):
    with pytest.raises(ConfigError, match=message):
        shop.run(wanted(shop, "run") | sections)


def test_what_a_run_does_not_keep_is_refused_with_what_it_keeps(finished, matrix):
    run = srs.open_run(finished)
    for read in (run.similarity, run.gap, run.dataset, run.matrices):
        with pytest.raises(ConfigError, match=r"keeps 4 neighbours .* Run\.neighbours"):
            read("last")
    with pytest.raises(ConfigError, match=r"median .* sigma"):
        run.neighbours("last", "rbf")
    with pytest.raises(ConfigError, match="layer"):
        run.neighbours("first")
    with pytest.raises(ConfigError, match="keeps matrices"):
        matrix.neighbours("last")


def test_every_kernel_is_that_of_the_matrix(shop, matrix):
    shop.run(wanted(shop, "run") | KERNELS)
    run = srs.open_run(shop.path / "run")
    index = run.neighbours("last")["index"].values
    there = index >= 0
    for kernel in ("linear", "cosine", "rbf"):
        found = run.neighbours("last", kernel)
        for name, values in (
            ("similarity", matrix.similarity("last", kernel)),
            ("identity", matrix.similarity("last", kernel, "spatio-semantic")),
            ("gap", matrix.gap("last", kernel)),
        ):
            expected = np.take_along_axis(values.values, np.maximum(index, 0), axis=1)
            np.testing.assert_array_equal(
                found[name].values[there], expected[there], err_msg=f"{kernel} {name}"
            )
    assert run.neighbours("last", "rbf").attrs["sigma"] == 7.0


def test_the_store_opens_in_plain_xarray(finished):
    import xarray as xr

    with xr.open_zarr(finished / "neighbours.zarr" / "last") as dataset:
        assert dataset["indices"].dims == ("image_i", "rank")
        assert dataset["image_i"].values[3] == "3"
    group = zarr.open_group(finished / "neighbours.zarr" / "last", mode="r")
    assert group["indices"].chunks == (8, K)


def test_the_command_runs_reports_and_exports(shop):
    config = shop.write({**wanted(shop, "run"), "output": "neighbours"})
    done = shop.command("run", config)
    assert done.returncode == 0, done.stderr
    assert "10 neighbours of each image, complete" in done.stdout
    assert "by matching" in done.stdout
    status = shop.command("status", shop.path / "run")
    assert status.returncode == 0
    assert "45/45 tiles" in status.stdout
    run = srs.open_run(shop.path / "run")
    found = run.neighbours("last")
    index, similarity = found["index"].values, found["similarity"].values
    there = index >= 0
    for form in ("edges", "csr", "atlas"):
        exported = shop.command("export", shop.path / "run", "--to", form)
        assert exported.returncode == 0, exported.stderr
    folder = shop.path / "run" / "export"

    edges = pyarrow.parquet.read_table(folder / "last.cosine.edges.parquet").to_pydict()
    assert edges["source"] == [str(row) for row in np.nonzero(there)[0]]
    assert edges["target"] == [str(column) for column in index[there]]
    assert edges["similarity"] == similarity[there].tolist()
    assert edges["gap"] == found["gap"].values[there].tolist()
    assert edges["rank"][:10] == list(range(1, 11))

    matrix = sparse.load_npz(folder / "last.cosine.csr.npz")
    assert matrix.shape == (70, 70)
    assert matrix.nnz == there.sum()
    assert all(matrix[row, index[row, 0]] == similarity[row, 0] for row in np.flatnonzero(there[:, 0]))
    assert (folder / "image_j.txt").read_text().split() == [str(row) for row in range(70)]

    atlas = pyarrow.parquet.read_table(folder / "last.cosine.atlas.parquet").to_pylist()
    assert len(atlas) == 70
    assert atlas[5]["image"] == "5"
    assert atlas[5]["neighbors"]["ids"] == index[5].tolist()
    np.testing.assert_array_equal(atlas[5]["neighbors"]["distances"], 1.0 - similarity[5])
    assert np.isfinite([[row["x"], row["y"]] for row in atlas]).all()

    assert shop.command("export", shop.path / "run", "--to", "npy").returncode == 2
    assert shop.command("export", shop.path / "run", "--to", "edges", "--kind", "semantic").returncode == 2


def test_a_table_of_queries_and_images_numbers_the_images_first(shop):
    document = shop.of_features("run", clusters(shop), matching={"tile": 16}, output={"neighbours": 2})
    queries = clusters(shop, "queries.npy", 7, seed=1)
    document["queries"] = {"source": "features", "layers": {"last": str(queries)}}
    shop.run(document)
    assert shop.command("export", shop.path / "run", "--to", "atlas").returncode == 0
    atlas = pyarrow.parquet.read_table(shop.path / "run" / "export" / "last.cosine.atlas.parquet").to_pylist()
    assert [row["side"] for row in atlas] == ["images"] * 70 + ["queries"] * 7
    assert atlas[0]["neighbors"] is None
    found = srs.open_run(shop.path / "run").neighbours("last")
    assert atlas[70]["neighbors"]["ids"] == found["index"].values[0].tolist()


@pytest.mark.usefixtures("few_trials")
def test_the_plan_counts_neighbours_and_not_matrices(shop):
    z = shop.features("many.npy", (3000, 2, 2))
    document = shop.of_features("planned", z)
    config = shop.write({**document, "output": {"neighbours": 3}}, "plan.yaml")
    plan = json.loads(shop.command("plan", config, "--json").stdout)
    matrix = 3 * 4 * 3000 * 2999 / 2  # three numbers of float32 a pair
    assert plan["disk_bytes_at_most"] < matrix / 10
    assert plan["files"]["neighbours"] > plan["tiles"]  # a file a tile, and some a panel
    assert 0 < plan["disk_bytes_by_kind"]["neighbours"] < matrix / 10
