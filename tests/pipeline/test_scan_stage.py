"""Looking at the images: workers are asked for only where there is something new, and hold nothing else."""

from __future__ import annotations

import io
import os
import pickle
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semrsm_dist.config.schema import parse_config
from semrsm_dist.data.entries import ImageEntry
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.engine import make_engine
from semrsm_dist.engine.engines.local import LocalEngine
from semrsm_dist.errors import InputError, StorageError
from semrsm_dist.pipeline.session import Session
from semrsm_dist.pipeline.stages.scan import ScanBatch, ScanWorker, list_images, scan_images
from semrsm_dist.progress import ConsoleReporter, SilentReporter
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.record import ModelAnswer

PADDING = {"input_size": [3, 32, 32], "crop_mode": "border", "crop_pct": 1.0}
MODEL = ModelAnswer(question={}, precision="float32", facts={"data_config": PADDING}, layers={})


class Watched(LocalEngine):
    """An engine that notes what it is handed."""

    def __init__(self):
        super().__init__(workers=2)
        self.workers = []
        self.units = []
        self.memory = []

    def start_tasks(self, worker, resources):
        self.workers.append(worker)
        self.memory.append(resources.memory)
        pool = super().start_tasks(worker, resources)
        submit = pool.submit
        pool.submit = lambda task: (self.units.extend(task.units), submit(task))
        return pool

    def start_actors(self, factory, count, resources):
        self.workers.append(factory)
        return super().start_actors(factory, count, resources)


@pytest.fixture
def engine():
    return Watched()


def scan_again(shop, folder: Path, engine, *, reporter=None, **sections):
    """Scan as a session does, and keep the manifest."""
    config = parse_config(shop.of_images("run", folder, **sections))
    directory = RunDirectory(config.run)
    directory.create()
    session = Session(config, directory, engine, reporter or SilentReporter())
    manifest = scan_images(session, "images", config.data, list_images(session, config.data), MODEL)
    directory.write_manifest("images", manifest)
    return manifest


def handed_out(engine) -> list[str]:
    names = [record.image_id for unit in engine.units for record in unit.entries]
    engine.units.clear()
    engine.workers.clear()
    return sorted(names)


def test_only_new_and_changed_images_are_handed_to_workers(shop, engine):
    folder = shop.images(n=6)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    first = scan_again(shop, folder, engine)
    assert handed_out(engine) == names == first.image_ids()
    assert scan_again(shop, folder, engine) == first
    assert engine.workers == []
    os.utime(folder / names[2], ns=(0, 0))
    shop.image("images/class9/new.png")
    second = scan_again(shop, folder, engine)
    assert handed_out(engine) == [names[2], "class9/new.png"]
    assert second.image_ids() == [*names, "class9/new.png"]
    assert [row.sha256 for row in second.rows[:6]] == [row.sha256 for row in first.rows]


def test_a_scan_says_once_what_it_has_done(shop, engine):
    folder = shop.images(n=4)
    for n_changed in (4, 1, 0):
        for path in sorted(folder.rglob("*.png"))[:n_changed]:
            os.utime(path, ns=(n_changed, n_changed))
        said = io.StringIO()
        scan_again(shop, folder, engine, reporter=ConsoleReporter(said))
        [line] = said.getvalue().splitlines()
        assert re.fullmatch(r"scan: 4/4 images \(100 %\), .* images/s, took .* s", line)


def test_an_unreadable_image_gets_another_chance_without_workers(shop, engine):
    folder = shop.images(n=3)
    (folder / "broken.png").write_text("no image")
    first = scan_again(shop, folder, engine, unreadable="skip")
    handed_out(engine)
    assert scan_again(shop, folder, engine, unreadable="skip") == first
    assert engine.workers == []


def test_images_too_thin_to_be_resized_are_refused_or_skipped_by_the_scan(shop, engine):
    folder = shop.images(n=3)
    Image.new("RGB", (2000, 1)).save(folder / "thin.png")
    Image.new("RGB", (1, 60)).save(folder / "narrow.png")  # still a pixel wide, once it is resized
    with pytest.raises(InputError, match=r"thin\.png: it has 2000 x 1 pixels, .* 32 x 0: .*squash.*\n.*skip"):
        scan_again(shop, folder, engine)
    found = scan_again(shop, folder, engine, unreadable="skip")
    assert [row.image_id for row in found.unreadable] == ["thin.png"]
    assert found.n_readable == 4
    assert scan_again(shop, folder, engine, unreadable="skip") == found


@pytest.mark.parametrize("source", ["folder", "digits"])
def test_a_finished_run_starts_no_worker(shop, engine, source):
    document = shop.of_images("run", shop.images(n=4))
    if source == "digits":
        document["data"] = {"source": "digits", "n_images": 4}
    shop.run(document, engine=engine)
    assert engine.workers
    engine.workers.clear()
    shop.run(document, engine=engine)
    assert engine.workers == []


def test_what_a_worker_is_sent_does_not_grow_with_the_number_of_images(shop, engine):
    few, many = shop.images("few", n=2), shop.images("many", n=9)
    for folder in (few, many):
        scan_again(shop, folder, engine)
    sizes = [len(pickle.dumps(worker)) for worker in engine.workers]
    assert abs(sizes[1] - sizes[0]) < 10  # the lengths of two paths
    entries = FolderImages(path=many).entries()
    assert repr(ScanBatch(64, tuple(entries))) == "ScanBatch(first=64)"  # in messages about a failed unit


def test_a_scan_takes_the_memory_of_a_worker_as_other_stages_do(shop, engine):
    scan_again(shop, shop.images(n=2), engine, matching={"worker_memory": "48MiB"})
    assert engine.memory == [48 * 2**20]


def test_the_order_is_kept_over_many_batches(shop, monkeypatch):
    monkeypatch.setattr("semrsm_dist.pipeline.stages.scan.SCAN_BATCH", 2)
    folder = shop.images(n=9)
    engine = make_engine("local", workers=3)
    manifest = scan_again(shop, folder, engine)
    assert manifest.image_ids() == sorted(manifest.image_ids())
    assert len(manifest) == 9


@pytest.mark.parametrize("error", [StorageError, InputError])
def test_a_storage_that_fails_says_so_and_not_that_the_image_is_bad(tmp_path, monkeypatch, error):
    def fails(self, record):
        raise error("the network is away")

    monkeypatch.setattr(FolderImages, "stamp", fails)
    batch = ScanBatch(0, (ImageEntry("a", "/a"),))
    (tmp_path / "lock").touch()  # a run is at work
    (receipt,) = ScanWorker(tmp_path, FolderImages(path="/"))((batch,))
    assert receipt.unit is batch
    assert receipt.error.endswith("the network is away")
    assert "Traceback" not in receipt.error


@pytest.mark.parametrize("source", ["features", "folder"])
def test_workers_that_do_not_see_the_run_stop_it_at_once(shop, source):
    class Elsewhere(LocalEngine):
        """Its workers look for the run where it is not, as on a node with a disk of its own."""

        def start_tasks(self, worker, resources):
            moved = replace(worker, run=shop.path / "elsewhere") if hasattr(worker, "run") else worker
            return super().start_tasks(moved, resources)

        def start_actors(self, factory, count, resources):
            return super().start_actors(replace(factory, run=shop.path / "elsewhere"), count, resources)

    document = shop.of_features("run", shop.features())
    if source == "folder":
        document = shop.of_images("run", shop.images(n=4))
    with pytest.raises(StorageError, match=r"does not see the run directory .*elsewhere.*all nodes share"):
        shop.run(document, engine=Elsewhere(workers=2))


def test_copies_and_dark_images_are_reported_and_the_copies_are_no_hits(shop):
    folder, other = shop.images(n=4), shop.images("others", n=3)
    for target in (folder / "copy.png", folder / "again.png", other / "known.png"):
        shutil.copy(next(iter(sorted(folder.rglob("*.png")))), target)
    dark = np.linspace(0, 4095, 1600).astype(np.uint16).reshape(40, 40)
    Image.fromarray(dark).save(folder / "dark.png")
    queries = {"source": "folder", "path": str(other)}
    summary = shop.run(shop.of_images("run", folder, queries=queries))
    told = "\n".join(summary["warnings"])
    assert "images: 2 of 7 images (class0/000.png, copy.png) are exact copies of others" in told
    assert "queries: 1 of 4 (known.png) are also in data, with the same content" in told
    assert (
        "images: 1 of 7 images (dark.png): its 16-bit values all lie below 4096, as those of 12-bit" in told
    )
