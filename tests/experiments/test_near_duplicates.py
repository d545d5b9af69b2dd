"""Near-duplicates are found by similarity, joined with the groups of the data, and are no hits."""

import numpy as np
import pandas as pd
import pytest

from semrsm_dist.experiments.evaluating import compute
from semrsm_dist.experiments.near_duplicates import find_groups, make_task
from semrsm_dist.pipeline import driver
from semrsm_dist.results.run import Run


def compute_run(config):
    driver.run(config)
    return Run(config.run)


def alter(config, change):
    z = np.load(config.data.layers["late"])
    change(z)
    np.save(config.data.layers["late"], z)


def codes(names):
    """Return each group as the set of its members' positions."""
    return {
        frozenset(np.flatnonzero([other == name for other in names])) for name in names if name is not None
    }


@pytest.fixture
def alike(small, tmp_path):
    """A run in which image 1 is nearly image 0, and 3 nearly 2; the data say that 3 and 4 are of one group."""
    config = small.make_config(tmp_path, n=8, wanted=["late"])

    def copy(z):
        z[1], z[3] = z[0] * 1.01, z[2]
        z[1, 0, 0] += 1e-3

    alter(config, copy)
    table = pd.read_parquet(config.data.table)
    table["group"] = [None, None, None, "g", "g", None, None, None]
    table.to_parquet(config.data.table)
    return config


def test_groups_of_the_data_and_of_similar_images_are_joined(alike):
    groups = find_groups(compute_run(alike), 0.999)
    assert codes(groups.names["images"]) == {frozenset({0, 1}), frozenset({2, 3, 4})}
    assert groups.rule_out_hits()
    assert "2 pairs" in groups.note and "2 groups of 5 images" in groups.note


def test_without_a_threshold_the_data_alone_count(alike):
    groups = find_groups(compute_run(alike), None)
    assert groups.names["images"] == [None, None, None, "g", "g", None, None, None] and not groups.note


def test_near_duplicates_are_no_hits(alike):
    run = compute_run(alike)
    task = make_task(run, find_groups(run, 0.999))
    block = np.zeros((8, 8))
    task.rule_out(block, 0)
    ruled_out = {tuple(pair) for pair in np.argwhere(np.isnan(block)) if pair[0] < pair[1]}
    assert ruled_out == {(0, 1), (2, 3), (2, 4), (3, 4)}


def test_retrieval_reports_both(alike):
    evidence = compute("retrieval", alike, k=1, centroids=2, resamples=10, near_duplicates=0.999)
    assert set(evidence.table["groups"]) == {"excluded", "included"}
    assert "note: near-duplicates: 2 pairs of images" in evidence.text


def test_a_query_and_its_copy_in_the_database_are_one_group(small, tmp_path):
    config = small.make_config(tmp_path, n=6, n_queries=4, wanted=["late"])
    z, queries = np.load(config.data.layers["late"]), np.load(config.queries.layers["late"])
    queries[2] = 2 * z[5]
    np.save(config.queries.layers["late"], queries)
    groups = find_groups(compute_run(config), 0.999)
    assert groups.names["queries"][2] == groups.names["images"][5] is not None
    assert sum(name is not None for names in groups.names.values() for name in names) == 2
