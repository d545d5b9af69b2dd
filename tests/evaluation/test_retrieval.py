"""Retrieval scores against a plain loop over images, with all that can be missing."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.errors import ConfigError
from semrsm_dist.evaluation.retrieval import (
    NO_HIT,
    HitSearch,
    RetrievalImages,
    RetrievalTask,
    chance_scores,
    find_hits,
    mean_scores,
    score_hits,
)

similarities = st.sampled_from([math.nan, -math.inf, -1.0, -0.0, 0.0, 0.5, 1.0, math.inf])
label_sets = st.lists(st.sampled_from("abc"), unique=True, max_size=3).map(tuple)
group_names = st.sampled_from([None, "", "g", "h"])


def expected_score(matrix, labels, candidates, groups, candidate_groups, k, same):
    """Return (mean F1@k, queries judged) of a loop over images, written from the definition."""
    scores = []
    for query, row in enumerate(matrix):
        hits = []
        for candidate, similarity in enumerate(row):
            grouped = (
                groups and candidate_groups and groups[query] and groups[query] == candidate_groups[candidate]
            )
            if (
                math.isnan(similarity)
                or not candidates[candidate]
                or grouped
                or (same and query == candidate)
            ):
                continue
            hits.append((-similarity, candidate))
        best = [candidate for _, candidate in sorted(hits)[:k]]
        if labels[query] and best:
            wanted = set(labels[query])
            overlaps = [
                2 * len(wanted & set(candidates[hit])) / (len(wanted) + len(candidates[hit])) for hit in best
            ]
            scores.append(sum(overlaps) / len(overlaps))
    return (sum(scores) / len(scores) if scores else math.nan), len(scores)


@st.composite
def matrices(draw, n_rows, n_columns):
    rows = st.lists(similarities, min_size=n_columns, max_size=n_columns)
    return np.array(draw(st.lists(rows, min_size=n_rows, max_size=n_rows))).reshape(n_rows, n_columns)


def lists(draw, items, length):
    return draw(st.lists(items, min_size=length, max_size=length))


def reader(matrix):
    return lambda rows: matrix[rows].copy()


def retrieval_scores(read_rows, task, *, ks, **options):
    hits = find_hits(read_rows, task, max(ks), **options).indices
    return mean_scores(score_hits(hits, task, ks), ks)


def retrieval_f1(read_rows, queries, database=None, *, k=1, **options):
    (score,) = retrieval_scores(read_rows, RetrievalTask(queries, database), ks=(k,), **options)
    return score


@given(st.data(), st.integers(1, 6), st.integers(1, 4))
def test_it_is_the_loop_over_the_images_themselves(data, n, k):
    matrix = data.draw(matrices(n, n))
    labels = lists(data.draw, label_sets, n)
    groups = data.draw(st.none() | st.lists(group_names, min_size=n, max_size=n))
    score = retrieval_f1(reader(matrix), RetrievalImages(labels, groups), k=k)
    f1, judged = expected_score(matrix, labels, labels, groups, groups, k, same=True)
    assert score.f1 == pytest.approx(f1, nan_ok=True)
    assert (score.k, score.n_queries, score.n_left_out) == (k, judged, n - judged)


@given(st.data(), st.integers(1, 6), st.integers(1, 6), st.integers(1, 4))
def test_it_is_the_loop_of_queries_over_a_database(data, n, m, k):
    matrix = data.draw(matrices(n, m))
    labels, candidates = lists(data.draw, label_sets, n), lists(data.draw, label_sets, m)
    groups, candidate_groups = (
        data.draw(st.none() | st.lists(group_names, min_size=length, max_size=length)) for length in (n, m)
    )
    score = retrieval_f1(
        reader(matrix), RetrievalImages(labels, groups), RetrievalImages(candidates, candidate_groups), k=k
    )
    f1, judged = expected_score(matrix, labels, candidates, groups, candidate_groups, k, same=False)
    assert score.f1 == pytest.approx(f1, nan_ok=True)
    assert (score.n_queries, score.n_left_out) == (judged, n - judged)


def test_rows_are_read_a_few_at_a_time_and_left_as_they_are():
    matrix = np.random.default_rng(0).normal(size=(11, 11))
    matrix.setflags(write=False)
    labels = [tuple(str(index % 3)) for index in range(11)]
    asked = []

    def read(rows):
        asked.append((rows.start, rows.stop))
        return matrix[rows]

    score = retrieval_f1(read, RetrievalImages(labels), k=2, rows_at_once=4)
    assert asked == [(0, 4), (4, 8), (8, 11)]
    assert score.f1 == pytest.approx(expected_score(matrix, labels, labels, None, None, 2, same=True)[0])


def test_ties_go_to_the_first_and_an_image_is_not_its_own_hit():
    labels = [("a",), ("b",), ("a",)]
    assert retrieval_f1(reader(np.ones((3, 3))), RetrievalImages(labels)).f1 == pytest.approx((0 + 0 + 1) / 3)
    assert retrieval_f1(
        reader(np.ones((3, 3))), RetrievalImages(labels), RetrievalImages(labels)
    ).f1 == pytest.approx(2 / 3)


def test_many_ties_keep_the_order_of_the_images():
    rng = np.random.default_rng(0)
    matrix = rng.integers(0, 3, size=(20, 500)).astype(float)
    labels = [("a",)] * 20
    candidates = [("a", *(str(item) for item in range(size))) for size in rng.integers(0, 9, size=500)]
    score = retrieval_f1(reader(matrix), RetrievalImages(labels), RetrievalImages(candidates), k=9)
    assert score.f1 == pytest.approx(expected_score(matrix, labels, candidates, None, None, 9, same=False)[0])


def test_near_duplicates_are_no_hits_but_hits_of_others():
    matrix = np.array([[1, 0.9, 0.1], [0.9, 1, 0.1], [0.3, 0.2, 1]])
    labels = [("a",), ("a",), ("b",)]
    assert retrieval_f1(reader(matrix), RetrievalImages(labels)).f1 == pytest.approx(2 / 3)
    grouped = retrieval_f1(reader(matrix), RetrievalImages(labels, groups=["g", "g", None]))
    assert (grouped.f1, grouped.n_queries) == (0.0, 3)


def test_who_cannot_be_judged_is_counted():
    matrix = np.array([[1, math.nan, math.nan], [0.5, 1, 0.5], [0.5, 0.6, 1]])
    score = retrieval_f1(reader(matrix), RetrievalImages([("a",), ("a",), ()]))
    assert (score.f1, score.n_queries, score.n_left_out) == (1.0, 1, 2)
    nothing = retrieval_f1(reader(matrix), RetrievalImages([(), (), ()]))
    assert math.isnan(nothing.f1)
    assert (nothing.n_queries, nothing.n_left_out) == (0, 3)


def test_fewer_candidates_than_hits_are_enough():
    labels = [("a",), ("a", "b")]
    assert retrieval_f1(reader(np.ones((2, 2))), RetrievalImages(labels), k=10).f1 == pytest.approx(2 / 3)


@pytest.mark.parametrize("k", [0, -1])
def test_no_hits_cannot_be_scored(k):
    with pytest.raises(ConfigError, match=f"F1@k is {k}, but at least one hit"):
        retrieval_f1(reader(np.ones((2, 2))), RetrievalImages([("a",), ("b",)]), k=k)


def test_hits_are_weighed_by_what_their_labels_weigh():
    labels = [("a", "b"), ("a",), ("b", "b"), ("a", "b")]
    matrix = np.array([[0, 3, 2, 1], [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=float)
    images = RetrievalImages(labels, weights=[(3, 1), (2,), (0.5, 0.5), (0, 0)])
    task = RetrievalTask(images)
    assert task.judge(0, [1, 2]) == pytest.approx([2 * 2 / 6, 2 * 1 / 5])
    found = find_hits(reader(matrix), task, 3)
    assert found.indices[0].tolist() == [
        1,
        2,
        -1,
    ]  # labels of weight 0 do not count, nor does an image without others
    assert np.isnan(score_hits(found.indices, task, [1])[3, 0])
    expected = np.mean([2 * 2 / 6, 2 * 1 / 5])
    assert chance_scores(task)[0] == pytest.approx(expected)
    whole = RetrievalTask(
        RetrievalImages(labels, weights=[(1,) * len(item) for item in labels[:2]] + [(1, 0), (1, 1)])
    )
    np.testing.assert_array_equal(chance_scores(whole), chance_scores(RetrievalTask(RetrievalImages(labels))))


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_blocks_of_columns_give_the_hits_of_whole_rows(data, n, k):
    matrix = data.draw(matrices(n, n))
    images = RetrievalImages(*(lists(data.draw, each, n) for each in (label_sets, group_names, group_names)))
    expected = find_hits(reader(matrix), RetrievalTask(images), k)
    first, cut = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, n))
    search = HitSearch(RetrievalTask(images), k, slice(first, n))
    search.add(matrix[first:, :cut])
    search.add(matrix[first:, cut:])
    for name in ("indices", "tied", "n_candidates", "n_undefined"):
        np.testing.assert_array_equal(getattr(search.hits(), name), getattr(expected, name)[first:])
    np.testing.assert_array_equal(
        score_hits(search.hits().indices, RetrievalTask(images), [k], first=first),
        score_hits(expected.indices, RetrievalTask(images), [k])[first:],
    )


@given(st.data(), st.integers(1, 6), st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_several_k_from_one_read_are_those_of_one_k_each(data, n, ks):
    matrix = data.draw(matrices(n, n))
    labels = lists(data.draw, label_sets, n)
    read = []
    scores = retrieval_scores(
        lambda rows: read.append(rows) or matrix[rows], RetrievalTask(RetrievalImages(labels)), ks=ks
    )
    assert len(read) == 1
    for score, k in zip(scores, ks, strict=True):
        f1, judged = expected_score(matrix, labels, labels, None, None, k, same=True)
        assert score.f1 == pytest.approx(f1, nan_ok=True)
        assert (score.k, score.n_queries) == (k, judged)


def test_a_query_in_its_own_database_is_known_by_its_content():
    labels = [("a",), ("b",)]
    matrix = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.2]])
    database = [*labels, ("a",)]
    assert (
        retrieval_f1(reader(matrix), RetrievalImages(labels), RetrievalImages(database)).f1 == 1.0
    )  # itself: says nothing
    known, others = (
        RetrievalImages(labels, contents=["x", None]),
        RetrievalImages(database, contents=["x", None, "z"]),
    )
    assert retrieval_f1(reader(matrix), known, others).f1 == pytest.approx((0 + 1) / 2)


def test_exact_copies_are_no_hits_of_each_other():
    labels = [("a",), ("a",), ("b",), ("a",)]
    matrix = np.array([[9, 8, 2, 1], [8, 9, 1, 2], [2, 1, 9, 3], [1, 2, 3, 9]], float)
    images = RetrievalImages(labels, contents=["x", "x", "z", None])
    assert retrieval_f1(reader(matrix), RetrievalImages(labels)).f1 == pytest.approx(2 / 4)
    assert retrieval_f1(reader(matrix), images).f1 == pytest.approx(1 / 4)
    np.testing.assert_array_equal(
        find_hits(reader(matrix), RetrievalTask(images), 1).n_candidates, [2, 2, 3, 3]
    )
    assert not RetrievalTask(images).depends_on_groups_alone()
    different = RetrievalImages(labels, contents=["x", "y", None, None])
    assert RetrievalTask(different).depends_on_groups_alone()


def test_hits_and_scores_are_per_query():
    labels = [("a",), ("a", "b"), (), ("b",)]
    # Without labels, image 2 is nobody's candidate: that its similarity to image 0 is undefined does not count.
    matrix = np.array([[9, 2, math.nan, 1], [2, 9, 3, 2.5], [1, 1, 9, 1], [math.nan, math.nan, 1, 9]])
    task = RetrievalTask(RetrievalImages(labels))
    hits = find_hits(reader(matrix), task, 2)
    np.testing.assert_array_equal(hits.indices, [[1, 3], [3, 0], [NO_HIT, NO_HIT], [NO_HIT, NO_HIT]])
    np.testing.assert_array_equal(hits.n_candidates, [2, 2, 0, 2])
    np.testing.assert_array_equal(hits.n_undefined, [0, 0, 0, 2])
    assert not hits.tied.any()
    nothing = [math.nan, math.nan]
    np.testing.assert_allclose(
        score_hits(hits.indices, task, (1, 2)), [[2 / 3, 1 / 3], [2 / 3, 2 / 3], nothing, nothing]
    )
    with pytest.raises(ConfigError, match="F1@3: k must be 1 to 2"):
        score_hits(hits.indices, task, (3,))


@pytest.mark.parametrize("k", [4, 5, 2**62])
def test_more_hits_than_there_are_images_are_all_of_them(k):
    labels = [("a",), ("a", "b"), ("b",), ("c",)]
    task = RetrievalTask(RetrievalImages(labels))
    hits = find_hits(reader(np.ones((4, 4))), task, task.most_hits(k))
    np.testing.assert_array_equal(hits.indices[0], [1, 2, 3, NO_HIT])
    assert not hits.tied[:, -1].any()
    np.testing.assert_allclose(score_hits(hits.indices, task, (1, k))[0], [2 / 3, 2 / 9])


def test_hits_that_leave_out_their_equals_are_reported():
    labels = [("a",)] * 5
    matrix = np.array(
        [[9, 3, 3, 1, math.nan], [1, 9, 4, 4, 4], [4, 3, 9, 2, 2], [0, 0, 0, 9, 0], [5, 4, 3, 2, 9]]
    )
    hits = find_hits(reader(matrix), RetrievalTask(RetrievalImages(labels)), 3, rows_at_once=2)
    np.testing.assert_array_equal(
        hits.tied, [[True, False, False], [True, True, False], [False, False, True], [True] * 3, [False] * 3]
    )
    np.testing.assert_array_equal(hits.n_undefined, [1, 0, 0, 0, 0])
    np.testing.assert_array_equal(hits.n_candidates, [4] * 5)


@given(st.data(), st.integers(1, 6), st.integers(1, 6))
def test_who_cannot_win_is_counted_beforehand(data, n, m):
    labels, candidates = lists(data.draw, label_sets, n), lists(data.draw, label_sets, m)
    for task, others in (
        (RetrievalTask(RetrievalImages(labels)), [labels[:i] + labels[i + 1 :] for i in range(n)]),
        (RetrievalTask(RetrievalImages(labels), RetrievalImages(candidates)), [candidates] * n),
    ):
        hopeless = [
            bool(own) and not any(set(own) & set(other) for other in rest)
            for own, rest in zip(labels, others, strict=True)
        ]
        assert task.count_hopeless() == sum(hopeless)


@given(st.data(), st.integers(1, 6), st.integers(1, 3))
def test_chance_is_the_mean_over_all_possible_hits(data, n, rows_at_once):
    labels = lists(data.draw, label_sets, n)
    task = RetrievalTask(RetrievalImages(labels, lists(data.draw, group_names, n)))
    everything = find_hits(lambda rows: np.zeros((rows.stop - rows.start, n)), task, n)
    expected = score_hits(everything.indices, task, (n,))[:, 0]
    np.testing.assert_allclose(chance_scores(task, rows_at_once=rows_at_once), expected)


def test_one_set_of_labels_makes_every_hit_right():
    assert RetrievalTask(RetrievalImages([("a",), (), ("a",)])).has_one_label_set()
    assert not RetrievalTask(RetrievalImages([("a",), ("a", "b")])).has_one_label_set()
    assert not RetrievalTask(RetrievalImages([("a",)]), RetrievalImages([("b",)])).has_one_label_set()


def test_groups_alone_decide_unless_labels_are_missing_or_queries_have_copies():
    labelled = RetrievalImages([("a",), ("b",)], contents=["x", None])
    assert RetrievalTask(labelled).depends_on_groups_alone()
    assert RetrievalTask(labelled, RetrievalImages([("a",)], contents=["y"])).depends_on_groups_alone()
    assert not RetrievalTask(labelled, RetrievalImages([("a",)], contents=["x"])).depends_on_groups_alone()
    assert not RetrievalTask(RetrievalImages([("a",), ()])).depends_on_groups_alone()
    assert RetrievalTask(
        RetrievalImages([("a",), ()]), labelled
    ).depends_on_groups_alone()  # a query without labels is left out
