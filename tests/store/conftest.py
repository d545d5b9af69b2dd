"""A run directory for the tests, and a record to write into it."""

import pytest

from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.record import Answers, LayerRecord, RunRecord

SIZES = {"n_tokens": 3, "n_channels": 2, "tile_size": 2, "pair_seconds": 1e-6}
RECORD = RunRecord(
    fingerprint={"a": [1, "ü"], "c": 0.1},
    layers={"z": LayerRecord(**SIZES, facts={"z.sha256": "0"}), "a": LayerRecord(**SIZES)},
    requested=("a",),
    chunk_size=4,
    counts={"images": 5, "queries": 3},
    cached=Answers(listings={"images": None}),
    config={"run": "r"},
)


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "run")
    run.create()
    return run
