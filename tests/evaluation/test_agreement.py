"""Agreement comes with intervals that cover, also from a subset, and that differences can be taken of."""

import numpy as np
import pytest

from semrsm_dist.evaluation.agreement import MEASURES, agreement
from semrsm_dist.evaluation.entries import Entries


def matrices(n, seed):
    shared, *own = np.random.default_rng(seed).normal(size=(3, n, 3))
    x, y = shared + own[0], shared + own[1]
    return x @ x.T, y @ y.T


def test_all_measures_come_with_their_numbers_and_the_biased_one_without_an_interval():
    found = agreement(Entries.of(*matrices(30, 0)), resamples=50)
    assert tuple(found) == MEASURES
    for name, estimate in found.items():
        interval = estimate.interval()
        assert estimate.n_pairs == 435
        if name == "cka-biased":
            assert np.isnan([interval.low, interval.high]).all() and estimate.n_resampled == 0
        else:
            assert interval.low < estimate.value < interval.high


@pytest.mark.parametrize("bootstrap_images", [60, 30], ids=["all images", "a subset"])
def test_intervals_cover_the_value_of_many_images(bootstrap_images):
    names = ("cka", "pearson", "spearman", "kendall")
    truth = agreement(Entries.of(*matrices(1500, 0)), names)
    covered = dict.fromkeys(names, 0)
    for seed in range(1, 41):
        pairs = Entries.of(*matrices(60, seed))
        found = agreement(pairs, names, resamples=100, seed=seed, bootstrap_images=bootstrap_images)
        for name, estimate in found.items():
            interval = estimate.interval(0.9)
            covered[name] += interval.low <= truth[name].value <= interval.high
    assert all(count >= 30 for count in covered.values()), covered
    assert min(covered.values()) < 40 or bootstrap_images == 30  # intervals that say something


def test_a_subset_says_about_as_much_as_all_images():
    pairs = Entries.of(*matrices(200, 0))
    whole, part = (
        agreement(pairs, ["pearson"], resamples=200, bootstrap_images=n)["pearson"] for n in (200, 100)
    )
    assert (whole.value, whole.n_resampled, part.n_resampled) == (part.value, 200, 100)
    assert np.std(part.replicates) == pytest.approx(np.std(whole.replicates), rel=0.4)


def test_the_difference_of_a_measure_from_itself_is_nothing_for_certain():
    found = agreement(Entries.of(*matrices(20, 0)), ["kendall"], resamples=20, seed=3)["kendall"]
    again = agreement(Entries.of(*matrices(20, 0)), ["kendall"], resamples=20, seed=3)["kendall"]
    difference = found.minus(again)
    assert difference.value == 0 and (difference.replicates == 0).all()


def test_undefined_values_have_no_interval():
    found = agreement(Entries.of(np.ones((9, 9)), matrices(9, 0)[0]), resamples=5)
    assert all(np.isnan(estimate.value) for estimate in found.values())
    assert all(np.isnan(estimate.interval().low) for estimate in found.values())
