"""One driver at a time on a run in an object store: by a lease that is renewed, expires, and can be lost."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from semrsm_dist.errors import ConfigError, ResumeError, StorageError
from semrsm_dist.store import lease as module
from semrsm_dist.store import objects
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.objects import ObjectPath
from semrsm_dist.store.paths import list_files, list_names, look_up_files, remove_folder

SECONDS = {"LEASE_SECONDS": 600.0, "RENEWAL_SECONDS": 0.5, "CLOCK_SECONDS": 1.0}
"""A lease that no load of the machine lets expire, renewed so often that the holder is seen to be at work."""

SHORT = SECONDS | {"LEASE_SECONDS": 15.0}
HOLD = (
    "import sys, time; from semrsm_dist.store import lease; from semrsm_dist.store.directory import RunDirectory\n"
    f"vars(lease).update({SHORT})\n"
    "with RunDirectory(sys.argv[1]).locked():\n"
    "    print('locked', flush=True); time.sleep(600)\n"
)


@pytest.fixture(autouse=True)
def often_renewed(monkeypatch):
    for name, seconds in SECONDS.items():
        monkeypatch.setattr(module, name, seconds)


def test_a_second_driver_is_refused_and_learns_by_whom(bucket):
    uri = f"{bucket}/run"
    with RunDirectory(uri).locked():
        assert RunDirectory(uri).is_locked()
        with (
            pytest.raises(
                ResumeError, match=rf"{uri}: another driver is working on this run \(process \d+ on "
            ),
            RunDirectory(uri).locked(),
        ):
            pytest.fail("two drivers")
    assert not RunDirectory(uri).is_locked()
    with RunDirectory(uri).locked():  # released, or this would take ten minutes
        pass
    assert list_names(ObjectPath(uri)) == ["lock"]


def test_of_many_that_begin_together_one_gets_it(bucket):
    inside, refused = [], []
    everyone_tried = threading.Barrier(8)

    def drive(number):
        try:
            with RunDirectory(f"{bucket}/run").locked():
                inside.append(number)
                everyone_tried.wait(120)
        except ResumeError:
            refused.append(number)
            everyone_tried.wait(120)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(drive, range(8)))
    assert len(inside) == 1
    assert len(refused) == 7


def test_a_lease_that_nobody_renews_expires_by_the_clock_of_the_store(bucket, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)
    lock = ObjectPath(f"{bucket}/run/lock")
    lock.write(b'{"holder": "somebody who was killed"}')
    written = lock.read_version().written.timestamp()
    with RunDirectory(f"{bucket}/run").locked():
        assert lock.read_version().written.timestamp() - written >= 2.0


@pytest.mark.parametrize("server", ["s3"], indirect=True)
def test_a_killed_driver_is_followed_once_its_lease_has_expired(bucket, monkeypatch):
    monkeypatch.setattr(module, "LEASE_SECONDS", SHORT["LEASE_SECONDS"])
    uri = f"{bucket}/run"
    with subprocess.Popen([sys.executable, "-c", HOLD, uri], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ResumeError, match=f"process {process.pid} on"), RunDirectory(uri).locked():
            pytest.fail("two drivers")
        process.kill()
        process.wait()
        written = ObjectPath(uri).joinpath("lock").read_version().written.timestamp()
        with RunDirectory(uri).locked():
            assert time.time() - written > SHORT["LEASE_SECONDS"]


def test_a_driver_whose_lease_was_taken_writes_no_more(bucket):
    run = RunDirectory(f"{bucket}/run")
    with run.locked():
        run.require_held()
        ObjectPath(f"{bucket}/run/lock").write(b'{"holder": "somebody else"}')
        with pytest.raises(StorageError, match=r"another driver has taken over the lease|removed or emptied"):
            until_it_raises(run)
        with pytest.raises(StorageError):
            run.write_summary({})
    assert list_names(run.path) == ["lock"]
    assert b"somebody else" in (run.path / "lock").read_bytes()  # not released by the one that lost it


def test_a_driver_notices_that_its_lock_was_removed(bucket):
    run = RunDirectory(f"{bucket}/run")
    with run.locked():
        ObjectPath(f"{bucket}/run/lock").remove()
        with pytest.raises(StorageError, match="removed or emptied while this driver was at work"):
            until_it_raises(run)


def until_it_raises(run):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        run.require_held()
        time.sleep(0.05)


def test_a_lease_that_could_not_be_renewed_is_renewed_before_anything_is_written(proxy, bucket, monkeypatch):
    monkeypatch.setattr(
        module, "RENEWAL_SECONDS", 599.9
    )  # overdue at once, and not renewed in the background
    run = RunDirectory(f"{bucket}/run")
    with run.locked():
        before = (run.path / "lock").read_bytes()
        time.sleep(0.2)
        run.require_held()
        assert (run.path / "lock").read_bytes() != before
        time.sleep(0.2)
        proxy.choose = lambda method, path: 403 if path.endswith("/lock") else None
        with pytest.raises(StorageError, match=r"lease could not be renewed|removed or emptied"):
            run.require_held()
        proxy.choose = lambda method, path: None
        run.require_held()


@pytest.mark.parametrize("fault", ["lose", "drop", 500, 503])
def test_an_answer_that_is_lost_costs_no_lease(proxy, bucket, fault):
    often = {"PUT": 0}

    def every_second_write(method, path):
        often[method] = often.get(method, 0) + 1
        return fault if method == "PUT" and often["PUT"] % 2 else None

    proxy.choose = every_second_write
    run = RunDirectory(f"{bucket}/run")
    with run.locked():
        deadline = time.monotonic() + 60
        while proxy.failed[fault] < 4 and time.monotonic() < deadline:
            run.require_held()
            time.sleep(0.1)
    assert proxy.failed[fault] >= 4


def test_a_store_without_conditions_is_refused(careless_bucket):
    run = RunDirectory(f"{careless_bucket}/run")
    with (
        pytest.raises(StorageError, match="ignores conditions of writes"),
        run.locked(),
    ):
        pytest.fail("not safe")
    assert list_names(run.path) == []


def test_a_wrong_key_is_reported_without_it(careless_bucket, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-wrong-user")
    monkeypatch.setattr(objects, "_open_bucket", objects._open_bucket.__wrapped__)
    with pytest.raises((StorageError, ConfigError)) as caught:
        RunDirectory(f"{careless_bucket}/run").create()
    assert "access refused (403 Forbidden" in str(caught.value)
    assert "credentials in the environment" in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("server", ["az"], indirect=True)
def test_so_is_a_wrong_key_of_azure(bucket, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3JvbmcgaW5kZWVk")
    with pytest.raises(
        StorageError, match=r"access refused \(403 .*credentials in the environment"
    ) as caught:
        RunDirectory(f"{bucket}/run").create()
    assert "d3JvbmcgaW5kZWVk" not in str(caught.value)


@pytest.mark.parametrize("server", ["s3", "az"], indirect=True)  # fake-gcs-server fails instead
def test_a_bucket_that_is_missing_is_named(bucket):
    missing = f"{bucket}x"
    with pytest.raises(StorageError, match=f"there is no bucket '{missing}': create it"):
        RunDirectory(f"{missing}/run").create()


def test_all_pages_of_a_listing_are_read(bucket):
    folder = ObjectPath(f"{bucket}/run/tiles")
    count = 2100 if bucket.startswith("s3:") else 70  # the other servers list thousands or all at once
    names = {f"{number % 7}/{number}" for number in range(count)}
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: (folder / name).write(b"x"), names))
    ObjectPath(f"{bucket}/run/tiles-of-another/1").write(b"")
    assert set(list_files(folder)) == names
    assert {file.name: file.n_bytes for file in look_up_files(folder)} == dict.fromkeys(list_files(folder), 1)
    assert set(list_files(folder / "3")) == {name[2:] for name in names if name.startswith("3/")}
    remove_folder(folder)
    assert list(list_files(ObjectPath(bucket))) == ["run/tiles-of-another/1"]


def test_without_obstore_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(ConfigError, match=r"not installed here.*pip install 'semrsm-dist\[objects\]'"):
        RunDirectory("s3://bucket/run").create()


@pytest.mark.parametrize(
    "uri", ["s3://user:hunter2@bucket/run", "s3://hunter2@bucket/run", "s3://b/run?key=hunter2"]
)
def test_secrets_in_a_uri_are_refused_and_not_repeated(uri):
    with pytest.raises(ConfigError, match="without user, password and options") as caught:
        RunDirectory(uri)
    assert "hunter2" not in str(caught.value)
