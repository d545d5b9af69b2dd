"""The images nearest to one: those of its row, or of its neighbours, with ties in the order of the run."""

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.store.tiles import TileStore


def expected(run, image, k, **of):
    """Return the nearest images by the whole matrix, and their similarities."""
    matrix = run.similarity("late", **of)
    group = matrix["group_i"].values[image]
    row = [
        (-value, index)
        for index, value in enumerate(matrix.values[image])
        if not (run.is_symmetric and index == image)
        and not (group and group == matrix["group_j"].values[index])
    ]
    return [(index, -value) for value, index in sorted(row)[:k]]


@pytest.mark.parametrize("kernel", ["cosine", "rbf", "linear"])
@pytest.mark.parametrize("kind", ["semantic", "spatio-semantic"])
def test_they_are_those_of_the_row(symmetric, rectangular, kernel, kind):
    for run in (symmetric, rectangular):
        for image in (0, 3, 5):
            found = run.nearest(image, 6, layer="late", kernel=kernel, kind=kind)
            wanted = expected(run, image, 6, kernel=kernel, kind=kind)
            assert list(zip(found["index"], found["similarity"], strict=True)) == wanted
            assert found.index.tolist() == [1, 2, 3, 4, 5, 6]
            assert ("gap" in found) == (kind == "semantic")


def test_an_image_is_known_by_its_id_too_and_so_are_those_found(symmetric, rectangular):
    for run, name in ((symmetric, "größe data 5"), (rectangular, "größe queries 5")):
        found = run.nearest(name, 3, layer="late")
        assert found.equals(run.nearest(np.int64(5), 3, layer="late"))
        assert found["image"].tolist() == [f"größe data {index}" for index in found["index"]]
        assert found["labels"].tolist() == [f"class {index % 3}|=1+1" for index in found["index"]]


def test_the_gap_is_that_of_the_similarity(symmetric):
    found = symmetric.nearest(2, layer="late", kernel="rbf")
    gap = symmetric.gap("late", "rbf").values
    np.testing.assert_array_equal(found["gap"], gap[2, found["index"]])


def test_neither_the_image_nor_its_group_counts_and_copies_tie_in_the_order_of_the_run(symmetric):
    assert set(symmetric.nearest(8, 100, layer="late")["index"]) == set(range(14)) - {8, 9}
    found = symmetric.nearest(0, 100, layer="late")
    assert len(found) == 13
    ranks = {index: rank for rank, index in found["index"].items()}
    assert ranks[7] == ranks[3] + 1  # a copy of image 3
    assert symmetric.nearest(7, 1, layer="late")["index"].item() == 3


def test_neighbours_are_the_nearest_and_more_than_are_kept_are_refused(symmetric, neighbours):
    for image in range(14):
        kept = neighbours.nearest(image, 5, layer="late")
        np.testing.assert_allclose(
            kept["similarity"], symmetric.nearest(image, 5, layer="late")["similarity"], atol=2e-4
        )
        assert kept["index"].tolist() == neighbours.neighbours("late")["index"].values[image].tolist()
    with pytest.raises(srs.ConfigError, match=r"keeps 5 neighbours of each image, not 6; .*neighbours\.k=6"):
        neighbours.nearest(0, 6, layer="late")
    for other in ({"kernel": "linear"}, {"kind": "spatio-semantic"}, {"kernel": "rbf", "sigma": 2.0}):
        with pytest.raises(srs.ConfigError, match="nearest by another kernel or kind are not known"):
            neighbours.nearest(0, 3, layer="late", **other)


@pytest.mark.parametrize(
    ("image", "options", "words"),
    [
        (14, {}, "an index from 0 to 13 among the images"),
        (-1, {}, "an index from 0 to 13"),
        (True, {}, "an index from 0 to 13"),
        (1.5, {}, "an index from 0 to 13"),
        ("elsewhere", {}, r"have no such id; they are such as '.+'"),
        ("größe data", {}, "have no such id; did you mean 'größe data"),
        (0, {"k": 0}, "k: 0: expected a whole number from 1 on"),
        (0, {"layer": "lat"}, "did you mean 'late'"),
        (0, {"layer": None}, "which layer.*early, late"),
        (0, {"kernel": "cosin"}, "did you mean 'cosine'"),
    ],
)
def test_what_does_not_exist_is_refused(symmetric, image, options, words):
    with pytest.raises(srs.ConfigError, match=words):
        symmetric.nearest(image, **{"layer": "late", **options})


def test_only_the_tiles_of_the_row_are_read(symmetric, monkeypatch):
    touched, read = set(), TileStore.read
    monkeypatch.setattr(TileStore, "read", lambda store, tile: touched.add(tile) or read(store, tile))
    symmetric.nearest(5, 3, layer="late")
    assert touched == {(0, 1), (1, 1), (1, 2), (1, 3)}
