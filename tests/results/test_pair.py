"""A pair of a run, matched again: its values are the run's, its tokens those of an exact matching."""

import shutil

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

import semrsm_dist as srs
from semrsm_dist.store.tiles import TileStore


def best(z_i, z_j):
    """Return the largest matched inner product, by scipy."""
    affinity = z_i.astype(float) @ z_j.astype(float).T
    return affinity[linear_sum_assignment(affinity, maximize=True)].sum()


@pytest.mark.parametrize("kernel", ["cosine", "rbf", "linear"])
def test_its_values_are_those_of_the_run(symmetric, rectangular, kernel):
    for run in (symmetric, rectangular):
        for i, j in ((1, 4), (5, 2)):
            pair = run.pair(i, j, layer="late", kernel=kernel)
            assert pair.similarity == run.similarity("late", kernel).values[i, j]
            assert pair.identity == run.similarity("late", kernel, "spatio-semantic").values[i, j]
            gap = run.gap("late", kernel).values[i, j]
            assert pair.upper_bound == pytest.approx(pair.similarity + gap, abs=1e-12)
            assert pair.upper_bound >= pair.similarity


def test_its_permutation_has_the_value_and_tokens_contribute_to_it(symmetric, features):
    for i, j in ((1, 4), (4, 1)):
        pair = symmetric.pair(i, j, layer="late")
        z_i, z_j = features[i].astype(float), features[j].astype(float)
        norms = np.linalg.norm(z_i) * np.linalg.norm(z_j)
        assert sorted(pair.permutation) == list(range(9))
        by_token = (z_i * z_j[pair.permutation]).sum(axis=1) / norms
        np.testing.assert_allclose(pair.contributions, by_token, atol=1e-12)
        np.testing.assert_allclose(pair.identity_contributions, (z_i * z_j).sum(axis=1) / norms, atol=1e-12)
        assert pair.contributions.sum() == pytest.approx(pair.similarity, abs=1e-6)
        assert pair.similarity <= best(z_i, z_j) / norms + 1e-6 <= pair.upper_bound + 2e-6


def test_seen_from_the_other_image_it_is_the_same_match(symmetric):
    pair, other = (symmetric.pair(*images, layer="late") for images in ((1, 4), ("größe data 4", 1)))
    assert other.ids == pair.ids[::-1]
    assert other.labels == pair.labels[::-1] == (("class 1", "=1+1"), ("class 1", "=1+1"))
    np.testing.assert_array_equal(other.permutation[pair.permutation], np.arange(9))
    np.testing.assert_array_equal(other.contributions[pair.permutation], pair.contributions)
    assert (other.similarity, other.upper_bound) == (pair.similarity, pair.upper_bound)


def test_an_image_is_matched_with_itself_token_by_token(symmetric):
    pair = symmetric.pair(3, 3, layer="late")
    assert pair.similarity == pair.upper_bound == pair.identity == 1.0
    np.testing.assert_array_equal(pair.permutation, np.arange(9))


def test_a_run_of_neighbours_has_what_it_keeps_and_computes_the_rest(symmetric, neighbours):
    kept = neighbours.neighbours("late", "rbf", sigma=2.0)
    index = kept["index"].values
    near, far = int(index[0, 0]), int(np.setdiff1d(np.arange(1, 14), index[0])[-1])
    pair = neighbours.pair(0, near, layer="late", kernel="rbf", sigma=2.0)
    assert pair.similarity == kept["similarity"].values[0, 0]
    assert pair.identity == kept["identity"].values[0, 0]
    for j in (near, far):
        found, wanted = (
            run.pair(0, j, layer="late", kernel="rbf", sigma=2.0) for run in (neighbours, symmetric)
        )
        assert found.similarity == pytest.approx(wanted.similarity, abs=2e-4)
        assert found.identity == pytest.approx(wanted.identity, abs=1e-6)
        assert found.similarity <= wanted.upper_bound + 1e-6


def test_without_pictures_it_says_why_and_lays_tokens_on_a_grid(symmetric):
    pair = symmetric.pair(0, 1, layer="late")
    assert pair.images == (None, None)
    assert all("without pictures of the images" in problem for problem in pair.problems)
    assert pair.grids == ((3, 3), (3, 3))


def test_images_of_different_numbers_of_tokens_leave_some_without_partner(tmp_path):
    rng = np.random.default_rng(1)
    np.save(tmp_path / "z.npy", rng.normal(size=(3, 4, 5)).astype(np.float32))
    np.save(tmp_path / "counts.npy", np.array([4, 2, 3]))
    data = {"source": "features", "layers": {"a": str(tmp_path / "z.npy")}}
    data["token_counts"] = {"a": str(tmp_path / "counts.npy")}
    run = srs.run({"run": str(tmp_path / "run"), "data": data})
    pair, other = run.pair(0, 1), run.pair(1, 0)
    assert (pair.permutation >= 0).sum() == 2
    assert np.count_nonzero(pair.contributions) == 2
    assert pair.contributions.sum() == pytest.approx(pair.similarity, abs=1e-6)
    assert np.isnan(pair.identity)
    assert np.isnan(pair.identity_contributions).all()
    assert other.permutation.shape == other.identity_contributions.shape == (2,)
    np.testing.assert_array_equal(pair.permutation[other.permutation], [0, 1])
    assert pair.grids == ((2, 2), (1, 2))


@pytest.fixture
def copy(symmetric, tmp_path):
    shutil.copytree(symmetric.directory.path, tmp_path / "run")
    return srs.open_run(tmp_path / "run")


def test_without_features_there_is_no_match(copy):
    shutil.rmtree(copy.directory.features / "images" / "late")
    with pytest.raises(srs.StorageError, match="late"):
        copy.pair(0, 1, layer="late")


def test_a_match_with_another_value_than_the_run_has_is_refused(copy):
    store = TileStore(copy.directory.tiles, "late")
    matched, identity, gap = store.read((0, 0)).astype(float)
    store.write((0, 0), matched + 0.01, identity, matched + 0.01 + gap)
    with pytest.raises(
        srs.StorageError, match=r"matching images 0 and 1 again gave .*semrsm verify says which"
    ):
        copy.pair(0, 1, layer="late")
