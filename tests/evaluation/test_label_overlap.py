"""The overlap of labels, pair by pair and for all pairs at once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.evaluation.retrieval import label_f1, overlap_rows

label_sets = st.lists(st.sampled_from("abcd"), max_size=5).map(tuple)


@given(label_sets, label_sets)
def test_label_overlap(query, hit):
    if not query and not hit:
        return
    f1 = label_f1(frozenset(query), frozenset(hit))
    assert f1 == label_f1(frozenset(hit), frozenset(query))
    assert (f1 == 1) == (set(query) == set(hit))
    assert (f1 == 0) == (not set(query) & set(hit))
    assert 0 <= f1 <= 1


@given(st.lists(label_sets, min_size=1, max_size=5), st.lists(label_sets, min_size=1, max_size=5))
def test_overlaps_of_labels_are_those_of_each_pair(queries, database):
    found = overlap_rows(queries, database)(slice(0, len(queries)))
    for i, query in enumerate(queries):
        for j, image in enumerate(database):
            expected = label_f1(frozenset(query), frozenset(image)) if query and image else np.nan
            assert found[i, j] == pytest.approx(expected, nan_ok=True)
