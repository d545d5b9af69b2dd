"""Progressive search on a run's features finds what its matrix says."""

from __future__ import annotations

import numpy as np
import pytest

from semrsm_dist.config.schema import parse_config
from semrsm_dist.errors import ConfigError
from semrsm_dist.experiments.retrieval.search import progressive_hits
from semrsm_dist.pipeline import driver
from semrsm_dist.results.run import open_run


def compute(small, folder, matcher="auction", **options):
    document = small.make_config(folder, **options).model_dump(mode="json", exclude_none=True)
    config = parse_config(document | {"matching": {"matcher": matcher, "tile": 8}})
    driver.run(config)
    return open_run(config.run)


@pytest.mark.parametrize("n_queries", (0, 5))
def test_the_hits_are_those_of_the_matrix(small, tmp_path, n_queries):
    run = compute(small, tmp_path, n_queries=n_queries, groups=not n_queries)
    for layer in run.layers:
        for near_duplicates in (True, False):
            hits = progressive_hits(run, layer, 4, near_duplicates=near_duplicates)
            assert hits.identical is True
            assert sum(hits.shares().values()) == pytest.approx(1.0)
            if n_queries == 0:
                partners = [index ^ 1 for index in range(12)]  # of the same group
                found = [partner in row for partner, row in zip(partners, hits.found.indices, strict=False)]
                assert any(found) == near_duplicates


def test_a_matrix_that_differs_is_noticed(small, tmp_path, monkeypatch):
    run = compute(small, tmp_path)
    read = run.similarity_rows("early", "cosine")
    for changed in (lambda rows: read(rows) + 1e-6, lambda rows: -read(rows)):
        monkeypatch.setattr(type(run), "similarity_rows", lambda *_, changed=changed: changed)
        assert progressive_hits(run, "early", 2).identical is False


def test_features_alone_are_enough(small, tmp_path):
    run = compute(small, tmp_path)
    expected = progressive_hits(run, "late", 3)
    for path in sorted((run.directory.path / "tiles.zarr").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    hits = progressive_hits(open_run(run.directory.path), "late", 3)
    assert hits.identical is None
    np.testing.assert_array_equal(hits.found.indices, expected.found.indices)


def test_numbers_of_another_matcher_are_refused(small, tmp_path):
    with pytest.raises(ConfigError, match="hungarian"):
        progressive_hits(compute(small, tmp_path, matcher="hungarian"), "late", 1)
