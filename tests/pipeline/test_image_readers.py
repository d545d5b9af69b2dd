"""Images are read in threads or in processes: with the same result, and with the same errors."""

import dataclasses
import gc
import os
import signal

import numpy as np
import psutil
import pytest
from timm.data.transforms_factory import create_transform

from semrsm_dist.data.manifest import OK, ManifestRow, scan
from semrsm_dist.data.source import list_entries, load_image
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.errors import InputError, WorkError
from semrsm_dist.features.preprocessing import Preprocessing
from semrsm_dist.pipeline.stages import extraction_worker
from semrsm_dist.pipeline.stages.image_readers import ImageReader, ReaderPool


def read(pool, rows):
    groups = pool.start("images", rows)
    return np.stack([image.numpy() for group in groups for image in group.result(60)])


@pytest.mark.slow
def test_processes_read_what_threads_read_and_end_with_the_pool(shop):
    source = FolderImages(source="folder", path=shop.images(n=6))
    rows = tuple(
        ManifestRow(entry.image_id, entry.uri, sha256=load_image(source, entry).sha256, status=OK)
        for entry in list_entries(source)
    )
    reader = ImageReader({"images": source}, Preprocessing(create_transform((3, 32, 32), is_training=False)))
    before, expected = set(psutil.Process().children()), read(ReaderPool(reader, 1), rows)
    pool = ReaderPool(reader, 1, in_processes=True)
    np.testing.assert_array_equal(read(pool, rows), expected)
    with pytest.raises(InputError, match="is no longer the one"):
        read(pool, (dataclasses.replace(rows[0], sha256="0" * 64),))
    (started,) = set(psutil.Process().children()) - before
    os.kill(started.pid, signal.SIGKILL)
    started.wait(60)
    with pytest.raises(WorkError, match="a process that reads images ended"):
        read(pool, rows)
    np.testing.assert_array_equal(read(pool, rows), expected)
    del pool
    gc.collect()
    assert set(psutil.Process().children()) <= before


def test_an_image_that_is_too_thin_is_named(shop):
    source = FolderImages(path=shop.image("images/strip.png", size=(1, 300)).parent)
    transform = create_transform((3, 32, 32), is_training=False, crop_mode="border")
    with pytest.raises(InputError, match=r"image 'strip\.png' has 1 x 300 pixels"):
        ImageReader({"images": source}, Preprocessing(transform))(
            "images", scan(source, list_entries(source))
        )


@pytest.mark.slow
def test_a_run_whose_images_are_read_by_processes_has_the_same_features(shop, monkeypatch):
    folder = shop.images(n=9)
    shop.run(shop.of_images("threads", folder, workers=1))
    monkeypatch.setattr(extraction_worker, "LEAST_READERS", 1)
    monkeypatch.setattr(extraction_worker, "count_readers", lambda *, on_gpu: 2)
    monkeypatch.setattr(extraction_worker, "FEW_IMAGES", 0)
    shop.run(shop.of_images("processes", folder, workers=1))
    trees = [shop.tree(shop.path / name / "features.zarr") for name in ("threads", "processes")]
    assert trees[0] == trees[1]
