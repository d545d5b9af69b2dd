"""What cannot be read, or written, for lack of permission: it is named with the remedy, and never taken for damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.data.entries import UnreadableImageError
from semrsm_dist.data.sources.folder import FolderImages
from semrsm_dist.engine.engines.local import LocalEngine
from semrsm_dist.errors import SemrsmError, StorageError, UnreadableFileError
from semrsm_dist.pipeline.repair import verify_and_repair
from tests.pipeline.conftest import Workshop

NOBODY = 65534
N = 9
PERMISSION = "Permission denied"


@pytest.fixture(scope="module")
def engine():
    engine = LocalEngine(workers=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def public():
    """A shop in a folder that everybody can enter, with a finished run."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Workshop(Path(folder))


@pytest.fixture(scope="module")
def finished(public, engine):
    public.run(document(public, "finished"), engine=engine)
    return public.path / "finished"


def document(shop, run):
    features = shop.path / "a.npy"
    if not features.exists():
        shop.features("a.npy", (N, 5, 3))
    return shop.of_features(run, {"a": features}, matching={"tile": 4}, kernels=["cosine"])


@contextlib.contextmanager
def without_rights():
    """Do without the rights of root in the block, if they are there."""
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def closed_copy(public, finished, *names):
    """Return a copy of the run in which everybody can do everything but read some files or folders."""
    run = public.path / "copy"
    for path in (run, *run.rglob("*")) if run.exists() else ():
        path.chmod(0o777)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(finished, run)
    for path in (run, *run.rglob("*")):
        path.chmod(0o777)
    for name in names:
        (run / name).chmod(0)
    return run


PARTS = [
    "tiles.zarr/a/tiles/c/0/1/1",
    "tiles.zarr/a/tiles/c/0/1",
    "tiles.zarr/a/tiles/zarr.json",
    "tiles.zarr/a/zarr.json",
    "tiles.zarr/zarr.json",
    "tiles.zarr/a/image_i/c/0",
    "tiles.zarr/a",
    "features.zarr/images/a/features/c/0/0/0",
    "features.zarr/images/a/squared_norm/zarr.json",
    "features.zarr/images/zarr.json",
]
"""Files and folders that a session reads where it has no inventory."""

KEPT_BESIDE = ["run.json", "run.copy.json", "images.parquet", "summary.json"]
"""Files that a session does without, and writes anew in any case."""


@pytest.mark.parametrize(
    ("name", "listed"),
    [*((name, False) for name in PARTS), *((name, True) for name in PARTS if name.endswith(("0", "1/1")))],
)
def test_what_cannot_be_read_stops_a_run_and_is_left_alone(public, finished, engine, name, listed):
    run = closed_copy(public, finished, name)
    if not listed:
        (run / "inventory.parquet").unlink()
    before = public.tree(run)
    with without_rights(), pytest.raises(StorageError, match=rf"(?s){PERMISSION}.*permissions"):
        public.run(document(public, "copy"), engine=engine)
    after = public.tree(run)
    small = ("progress.json", "run.json", "run.copy.json")
    assert {n: h for n, h in before.items() if n not in small} == {
        n: h for n, h in after.items() if n not in small
    }


@pytest.mark.parametrize("name", [*PARTS, *KEPT_BESIDE])
def test_verification_reports_it_as_not_checked_and_a_repair_leaves_it_alone(public, finished, engine, name):
    run = closed_copy(public, finished, name)
    before = public.tree(run)
    with without_rights():
        report = srs.open_run(run).verify(fast=True)
        repaired = verify_and_repair(run, fast=True, engine=engine)
    for each, more in ((report, []), (repaired, ["not repaired either: what could not be checked"])):
        assert each.faults == ()
        assert each.exit_code == 2
        reason, *others = dict.fromkeys(each.unchecked)
        assert PERMISSION in reason
        assert name in reason
        assert others == more
    assert public.tree(run) == before


@pytest.mark.parametrize("name", KEPT_BESIDE)
def test_a_run_does_without_what_it_writes_anew_in_any_case(public, finished, engine, name):
    run = closed_copy(public, finished, name)
    with without_rights():
        summary = public.run(document(public, "copy"), engine=engine)
    assert summary["work"]["matching"]["computed"] == 0
    assert srs.open_run(run).verify().exit_code == 0


def test_a_run_whose_records_cannot_be_read_is_neither_lost_nor_begun_again(public, finished, engine):
    run = closed_copy(public, finished, "run.json", "run.copy.json")
    before = public.tree(run)
    with without_rights():
        for use in (srs.open_run, lambda _: public.run(document(public, "copy"), engine=engine)):
            with pytest.raises(
                UnreadableFileError, match=rf"{PERMISSION}.*check the disk and the permissions"
            ):
                use(run)
    assert public.tree(run) == before


@pytest.mark.parametrize("place", ["", "tiles.zarr/a/tiles/c/0/0"])
def test_a_run_directory_that_cannot_be_written_to_is_read_and_refused(public, finished, engine, place):
    run = closed_copy(public, finished)
    (run / "tiles.zarr/a/tiles/c/0/0/1").unlink()
    (run / place).chmod(0o555)
    before = public.tree(run)
    with without_rights():
        assert srs.open_run(run).verify(fast=True).exit_code == 1
        with pytest.raises(StorageError, match=rf"(?s){PERMISSION}.*writable"):
            public.run(document(public, "copy"), engine=engine)
    left = public.tree(run)
    assert {name for name in before if left.get(name) != before[name]} <= {
        "run.json",
        "run.copy.json",
        "progress.json",
    }


def test_inputs_that_cannot_be_read_are_refused_with_the_remedy(public, engine):
    features = public.save("closed.npy", np.ones((4, 3, 2), np.float32))
    table = public.path / "closed.csv"
    table.write_text("image_id,labels\n" + "\n".join(f"i{k},x" for k in range(N)))
    for path in (features, table):
        path.chmod(0)
    of_features = public.of_features("new-1", features)
    of_table = document(public, "new-2")
    of_table["data"]["table"] = str(table)
    with without_rights():
        for wrong, place in ((of_features, features), (of_table, table)):
            with pytest.raises(SemrsmError, match=rf"{place.name}.*{PERMISSION}.*grant access"):
                public.run(wrong, engine=engine)


def test_images_that_cannot_be_read_are_unreadable_images(public):
    images = FolderImages(path=public.images(n=3))
    for entry in images.entries():
        Path(entry.uri).chmod(0)
        with without_rights(), pytest.raises(UnreadableImageError, match="reading it is not permitted"):
            images.load(entry)


def test_the_command_ends_with_a_message_and_no_traceback(public, finished):
    run = closed_copy(public, finished, "run.json", "run.copy.json")
    config = public.write(document(public, "copy"))
    for arguments in (("verify", run), ("run", config), ("status", run)):
        with without_rights():
            done = public.command(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("semrsm: ")
        assert PERMISSION in done.stderr
