"""The overlap of labels, pair by pair and for all pairs at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import braycurtis

from semrsm_dist.evaluation.retrieval import label_f1, overlap_rows

label_sets = st.sets(st.sampled_from("abcd")).map(lambda labels: dict.fromkeys(labels, 1.0))
weights = st.one_of(st.integers(1, 5).map(float), st.floats(0.01, 1.0))
weighted = st.one_of(label_sets, st.dictionaries(st.sampled_from("abcd"), weights))


@given(label_sets, label_sets)
def test_the_overlap_of_labels_is_their_dice_coefficient(query, hit):
    if query or hit:
        expected = 2 * len(set(query) & set(hit)) / (len(query) + len(hit))
        assert label_f1(query, hit) == expected


@given(weighted, weighted, st.floats(0.1, 10))
def test_the_overlap_of_weighted_labels(query, hit, unit):
    if not query and not hit:
        return
    f1 = label_f1(query, hit)
    assert f1 == pytest.approx(label_f1(hit, query))
    assert 0 <= f1 <= 1 + 1e-12
    assert (f1 == 0) == (not set(query) & set(hit))
    assert label_f1(query, query or hit) == pytest.approx(1 if query else 0)
    scaled = [{label: unit * weight for label, weight in item.items()} for item in (query, hit)]
    assert label_f1(*scaled) == pytest.approx(f1)
    each = [np.array([item.get(label, 0.0) for label in "abcd"]) for item in (query, hit)]
    assert f1 == pytest.approx(1 - braycurtis(*each))


def test_a_small_object_that_a_hit_lacks_matters_less_than_a_large_one():
    query = {"horse": 0.6, "bird": 0.01}
    assert label_f1(query, {"horse": 0.5}) > 0.8 > 0.05 > label_f1(query, {"bird": 0.02})


@given(st.lists(weighted, min_size=1, max_size=5), st.lists(weighted, min_size=1, max_size=5))
def test_overlaps_of_labels_are_those_of_each_pair(queries, database):
    found = overlap_rows(queries, database)(slice(0, len(queries)))
    for i, query in enumerate(queries):
        for j, image in enumerate(database):
            expected = label_f1(query, image) if query and image else np.nan
            assert found[i, j] == pytest.approx(expected, nan_ok=True)
