"""Final matrices that were lost or damaged after a run, and layers that a later session no longer asks for."""

from __future__ import annotations

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.errors import IncompleteError, StorageError
from semrsm_dist.export import export_npy
from semrsm_dist.status import read_status

CHUNK = "rsm.zarr/last/semantic_cosine/c/0/0"


def test_a_lost_chunk_is_assembled_again(shop):
    document = shop.of_features("run", shop.features())
    shop.run(document)
    path = shop.path / "run"
    before = srs.open_run(path).similarity("last").values
    (path / CHUNK).unlink()
    assert not read_status(path)["complete"]
    with pytest.raises(IncompleteError, match="this is missing"):
        export_npy(srs.open_run(path), shop.path / "out")
    work = shop.run(document)["work"]
    assert work["assembly"]["computed"] > 0
    assert work["matching"]["computed"] == 0
    np.testing.assert_array_equal(srs.open_run(path).similarity("last").values, before)
    assert read_status(path)["complete"]


def test_a_damaged_chunk_heals_as_its_error_says(shop):
    document = shop.of_features("run", shop.features())
    shop.run(document)
    path = shop.path / "run"
    run = srs.open_run(path)
    before = run.similarity("last").values
    file = path / CHUNK
    file.write_bytes(b"?" + file.read_bytes()[1:])
    for read in (
        lambda: srs.open_run(path).similarity("last").values,
        lambda: srs.open_run(path).similarity_rows("last")(slice(0, 3)),
        lambda: export_npy(srs.open_run(path), shop.path / "out"),
    ):
        with pytest.raises(
            StorageError, match=r"semantic_cosine/c/0/0: .*delete this file and start the run's"
        ):
            read()
    file.unlink()
    shop.run(document)
    np.testing.assert_array_equal(srs.open_run(path).similarity("last").values, before)
