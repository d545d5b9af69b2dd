"""What the maps show is what the store has: pair by pair, or as means of blocks."""

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.progress import SilentReporter
from semrsm_dist.report import maps
from semrsm_dist.report.maps import make_maps, read_pairs
from semrsm_dist.report.view.tiles import describe_tiles


def matrices(run, layer):
    """Return the similarities of all pairs and their certified gaps, by the public interface."""
    return {
        "spatial": run.similarity(layer, kind="spatio-semantic").to_numpy(),
        "semantic": run.similarity(layer, kind="semantic").to_numpy(),
        "gap": run.gap(layer, kernel="cosine").to_numpy(),
    }


def build(run, layer="late"):
    labels = {side: run.manifest(side).labels() for side in run.record.sides}
    return make_maps(run, layer, labels, 1, SilentReporter())


def unpack(cells, name, symmetric):
    shape = cells.row_edges.shape[0] - 1, cells.column_edges.shape[0] - 1
    values = getattr(cells, name).read()
    if not symmetric:
        return values.reshape(shape)
    matrix = np.empty(shape)
    matrix[np.triu_indices(shape[0])] = values
    return np.where(np.tri(*shape, -1, dtype=bool), matrix.T, matrix)


@pytest.mark.parametrize("shape", ["run", "rectangular"])
def test_every_pair_of_few_images_is_shown_as_it_is(shape, request):
    run = request.getfixturevalue(shape)
    found, _ = build(run)
    cells, expected = found.cells["cosine"]["given"], matrices(run, "late")
    for name in ("spatial", "semantic"):
        np.testing.assert_array_equal(
            unpack(cells, name, run.is_symmetric), expected[name].astype(np.float32)
        )
    gap = unpack(cells, "gap", run.is_symmetric)
    assert np.all(gap >= expected["gap"])
    np.testing.assert_allclose(gap, expected["gap"], rtol=2**-6, atol=1e-30)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_inner_products_beyond_single_precision_are_left_out_with_a_note(tmp_path, scale):
    z = np.random.default_rng(0).normal(size=(6, 4, 5))
    np.save(tmp_path / "z.npy", scale * z)
    data = {"source": "features", "layers": {"late": str(tmp_path / "z.npy")}}
    run = srs.run({"run": str(tmp_path / "run"), "data": data, "kernels": ["linear", "rbf"]})
    found, _ = build(run)
    tiles = describe_tiles(run, "late", [])
    is_held = scale == 1e-3
    assert tiles.kernels == ["cosine", *["linear"] * is_held, "rbf"]
    assert list(found.derived.widths) == tiles.kernels[1:]
    assert found.note == tiles.note
    assert ("beyond single precision" in found.note) == (not is_held)
    # The page computes the other kernels from these norms.
    norms = found.derived.unit * found.derived.row_norms.read().astype(float)
    semantic = unpack(found.cells["cosine"]["given"], "semantic", symmetric=True)
    distances = norms[:, None] + norms - 2 * semantic * np.sqrt(np.outer(norms, norms))
    rbf = np.exp(-np.maximum(distances, 0) / (2 * found.derived.widths["rbf"].semantic ** 2))
    np.testing.assert_allclose(rbf, run.similarity("late", "rbf").to_numpy(), rtol=1e-5)


@pytest.mark.parametrize("shape", ["run", "rectangular"])
def test_cells_of_many_images_are_means_of_blocks_in_each_order(shape, request, monkeypatch):
    monkeypatch.setattr(maps, "MAP_BYTES", 100)
    monkeypatch.setattr(maps, "FEWEST_CELLS", 5)
    monkeypatch.setattr(maps, "BLOCK_BYTES", 48 * 24 * 4)
    run = request.getfixturevalue(shape)
    found, _ = build(run)
    expected = matrices(run, "late")
    expected["difference"] = expected["semantic"] - expected["spatial"]
    assert set(found.cells["cosine"]) == set(found.orders) == {"given", "label", "cluster"}
    for order, cells in found.cells["cosine"].items():
        places = np.ix_(found.orders[order].rows.read(), found.orders[order].columns.read())
        edges = [edge.read().astype(int) for edge in (cells.row_edges, cells.column_edges)]
        for name in expected:
            reduce = np.nanmax if name == "gap" else np.nanmean
            blocks = [
                [reduce(block) for block in np.split(band, edges[1][1:-1], axis=1)]
                for band in np.split(expected[name][places], edges[0][1:-1])
            ]
            np.testing.assert_allclose(unpack(cells, name, run.is_symmetric), blocks, rtol=2**-6)


def test_what_is_undefined_has_no_part_in_a_mean(run, monkeypatch):
    monkeypatch.setattr(maps, "MAP_BYTES", 100)
    monkeypatch.setattr(maps, "FEWEST_CELLS", 2)
    real = maps.read_values

    def with_holes(*arguments):
        values = real(*arguments)
        values.spatial[::2] = np.nan
        return values

    whole = matrices(run, "late")
    monkeypatch.setattr(maps, "read_values", with_holes)
    cells = build(run)[0].cells["cosine"]["given"]
    whole["spatial"][::2] = np.nan
    expected = [
        np.nanmean(whole["spatial"][:12, :12]),
        np.nanmean((whole["semantic"] - whole["spatial"])[:12, 12:]),
    ]
    np.testing.assert_allclose([cells.spatial.read()[0], cells.difference.read()[1]], expected, rtol=1e-6)


def test_the_histogram_counts_every_pair_once_and_the_largest_differences_are_found(run, rectangular):
    for one in (run, rectangular):
        _, seen = build(one)
        assert seen.gaps.sum() == one.layout("late").total_pairs
        values = matrices(one, "late")
        difference = values["semantic"] - values["spatial"]
        if one.is_symmetric:
            difference[np.tri(len(difference), dtype=bool)] = -1
        best = np.unravel_index(difference.argmax(), difference.shape)
        assert tuple(seen.largest[0]) == best


def test_single_pairs_are_read_as_they_are(run, rectangular):
    for one in (run, rectangular):
        shape = one.similarity("late").shape
        rng = np.random.default_rng(0)
        rows, columns = (rng.integers(0, length, 30) for length in shape)
        found, expected = read_pairs(one.matrices("late"), rows, columns), matrices(one, "late")
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(found, name), values[rows, columns], atol=1e-15)


def test_of_a_large_run_whole_tiles_from_evenly_spaced_places_are_shown(run, monkeypatch):
    monkeypatch.setattr(maps, "MOST_IMAGES", 16)
    found, _ = build(run)
    tile = run.layout("late").tile_size
    assert "16 images" in found.note or tile > 16
    assert len(found.orders["given"].rows.read()) <= max(16, tile)
