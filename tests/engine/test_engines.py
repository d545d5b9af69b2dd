"""One suite over all engines, each as stateless tasks and as stateful actors: same faults, same outcome.

It runs over the engines that ship, those that are installed beside them, and a toy of another distribution.
"""

import os
import re
import signal
import sys
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import ray
from threadpoolctl import threadpool_info, threadpool_limits

from semrsm_dist.engine import (
    ENGINES,
    Engine,
    Finished,
    Receipt,
    Resources,
    Task,
    make_engine,
    require_engine,
    run_tasks,
    scheduler,
)
from semrsm_dist.engine.engines import local
from semrsm_dist.errors import ConfigError, StorageError, WorkerLostError, WorkError
from semrsm_dist.machine import own_gpu
from semrsm_dist.plugins import Plugins

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


@pytest.fixture(scope="module", params=[*ENGINES.names(), "serial"])
def engine(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent / "toy")
        engine = Plugins("engine", "semrsm_dist.engine.engines", Engine).load(request.param)(workers=2)
    yield engine
    engine.close()


@pytest.fixture(params=["tasks", "actors"])
def start(request, engine):
    """Start a pool for a worker on the engine, and close it in the end."""
    pools = []

    def start(worker):
        if request.param == "tasks":
            pools.append(engine.start_tasks(worker, Resources()))
        else:
            pools.append(engine.start_actors(lambda: worker, 2, Resources()))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close(cancel=True)


class Recorder:
    """A worker that leaves one file per unit it begins, and does what `behave` says for some of them."""

    def __init__(self, folder, behave=lambda unit, times: None):
        self.folder = folder
        self.behave = behave

    def __call__(self, units):
        for unit in units:
            (self.folder / f"{unit}-{uuid.uuid4().hex}").touch()
            begin = time.time()
            receipt = self.behave(unit, self.begun()[unit])
            yield receipt or Receipt(unit, value=(begin, time.time()))

    def begun(self):
        return Counter(int(path.name.split("-")[0]) for path in self.folder.iterdir())


def batches(n_units, size):
    return [Task(tuple(range(i, min(i + size, n_units)))) for i in range(0, n_units, size)]


def ok_units(receipts):
    return [unit for receipt in receipts if receipt.error is None for unit in receipt.units]


def test_runs_every_unit_once(start, tmp_path):
    worker = Recorder(tmp_path)
    receipts = []
    assert run_tasks(start(worker), batches(23, 4), on_receipt=receipts.append) == []
    assert sorted(ok_units(receipts)) == list(range(23))
    assert worker.begun() == dict.fromkeys(range(23), 1)


def test_no_tasks_is_no_work(start, tmp_path):
    assert run_tasks(start(Recorder(tmp_path)), [], on_receipt=pytest.fail) == []


def test_a_raising_unit_is_set_aside_and_the_rest_finishes(start, tmp_path):
    def behave(unit, times):
        if unit == 5:
            raise RuntimeError("five is broken")

    worker = Recorder(tmp_path, behave)
    receipts = []
    failures = run_tasks(start(worker), batches(12, 4), on_receipt=receipts.append)
    assert [(f.unit, f.attempts) for f in failures] == [(5, 3)]
    assert "five is broken" in failures[0].error
    assert "behave" in failures[0].error  # the traceback says where
    assert sorted(ok_units(receipts)) == [u for u in range(12) if u != 5]
    assert worker.begun() == {u: 3 if u == 5 else 1 for u in range(12)}


def test_a_unit_that_fails_once_is_done_at_the_second_try(start, tmp_path):
    def behave(unit, times):
        return Receipt(unit, error="not yet") if unit == 2 and times == 1 else None

    worker = Recorder(tmp_path, behave)
    receipts = []
    assert run_tasks(start(worker), batches(6, 3), on_receipt=receipts.append) == []
    assert sorted(ok_units(receipts)) == list(range(6))
    assert [r.unit for r in receipts if r.error] == [2]
    assert worker.begun()[2] == 2


def test_a_worker_that_skips_a_unit_is_found_out(start):
    def skips_three(units):
        yield from (Receipt(unit) for unit in units if unit != 3)

    failures = run_tasks(start(skips_three), batches(5, 5), attempts=2, on_receipt=lambda receipt: None)
    assert [(f.unit, f.attempts) for f in failures] == [(3, 2)]
    assert "without a receipt" in failures[0].error


def test_receipts_arrive_while_the_task_still_runs(start, tmp_path):
    seen = tmp_path / "seen"

    def waits_for_the_driver(units):
        yield Receipt(units[0])
        deadline = time.monotonic() + 120
        while not seen.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield Receipt(units[1], error=None if seen.exists() else "the first receipt did not get through")

    failures = run_tasks(
        start(waits_for_the_driver), [Task((0, 1))], attempts=1, on_receipt=lambda receipt: seen.touch()
    )
    assert failures == []


def test_counts_add_up_however_receipts_are_packed(start):
    def counts(units):
        yield from (Receipt(unit, counts={"units": 1, "sum": unit}) for unit in units)

    receipts = []
    run_tasks(start(counts), batches(400, 200), on_receipt=receipts.append)
    assert sorted(ok_units(receipts)) == list(range(400))
    assert sum(receipt.counts["units"] for receipt in receipts) == 400
    assert sum(receipt.counts["sum"] for receipt in receipts) == sum(range(400))


def test_tasks_in_flight_are_bounded_and_in_order(start, engine, tmp_path):
    pool = start(Recorder(tmp_path, lambda unit, times: time.sleep(0.02)))
    submitted, finished, most = [], [], 0
    submit, collect = pool.submit, pool.collect

    def watched_submit(task):
        nonlocal most
        submitted.append(task)
        most = max(most, len(submitted) - len(finished))
        assert most <= pool.capacity()
        submit(task)

    def watched_collect(timeout):
        events = collect(timeout)
        finished.extend(event for event in events if isinstance(event, Finished))
        return events

    pool.submit, pool.collect = watched_submit, watched_collect
    tasks = batches(24, 2)
    receipts = []
    assert run_tasks(pool, iter(tasks), on_receipt=receipts.append) == []
    assert submitted == tasks
    assert engine.slots <= most <= 2 * engine.slots
    spans = [receipt.value for receipt in receipts]
    assert max(sum(b <= begin < e for b, e in spans) for begin, _ in spans) <= engine.slots


def test_a_full_disk_stops_the_run_at_once(start, tmp_path):
    def behave(unit, times):
        time.sleep(0.01)
        return Receipt(unit, error="[Errno 28] No space left on device", fatal=True)

    worker = Recorder(tmp_path, behave)
    with pytest.raises(StorageError, match=r"No space left on device"):
        run_tasks(start(worker), batches(400, 2), on_receipt=lambda receipt: None)
    assert worker.begun().total() < 40


@pytest.fixture
def wake(tmp_path_factory):
    """A file that threads which hang wait for; it comes in the end."""
    file = tmp_path_factory.mktemp("wake") / "now"
    yield file
    file.touch()


def test_a_unit_that_hangs_is_tried_elsewhere_and_set_aside(
    engine, start, tmp_path, monkeypatch, caplog, wake
):
    if engine.name == "serial":
        pytest.skip("works in the thread that would have to notice")
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.2)

    def hang_at_five(unit, times):
        while unit == 5 and not wake.exists():
            time.sleep(0.05)

    worker, done = Recorder(tmp_path, hang_at_five), []
    failures = run_tasks(
        start(worker),
        batches(12, 4),
        stall_seconds=2.0,
        on_receipt=lambda receipt: done.extend(receipt.units),
    )
    assert [(failure.unit, failure.attempts) for failure in failures] == [(5, 3)]
    assert sorted(done) == [unit for unit in range(12) if unit != 5]
    for text in (
        failures[0].error,
        next(said for said in caplog.messages if "its worker is replaced" in said),
    ):
        assert re.search(r"5 .*on .*: no result for \d+ s, where the task should take \d+ s", text)
    if engine.name == "local":
        assert "hang_at_five (test_engines.py:" in failures[0].error


def test_a_run_in_which_everything_hangs_is_stopped(engine, start, monkeypatch, wake):
    if engine.name == "serial":
        pytest.skip("works in the thread that would have to notice")
    monkeypatch.setattr(scheduler, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(local, "CANCEL_SECONDS", 0.5)

    def worker(units):
        while not wake.exists():
            time.sleep(0.05)
        yield from map(Receipt, units)

    tasks = [Task((unit,), cost=0.05) for unit in range(60)]  # a tenth of the time in which one hangs
    with pytest.raises(
        WorkError, match=r"tasks in a row hang, the last being .* What is done is kept|threads hang"
    ):
        run_tasks(start(worker), tasks, attempts=1, stall_seconds=0.5, on_receipt=lambda receipt: None)


def test_local_threads_that_do_not_end_are_named_and_left(monkeypatch, caplog, wake):
    monkeypatch.setattr(local, "CANCEL_SECONDS", 0.5)

    def worker(units):
        for unit in units:
            while not wake.exists():
                time.sleep(0.05)
            yield Receipt(unit)

    pool = make_engine("local", workers=2).start_tasks(worker, Resources())
    stop = threading.Event()
    stop.set()
    run_tasks(pool, batches(1, 1), on_receipt=lambda receipt: None, stop=stop)
    assert any(
        re.match(r"semrsm-worker-\d did not end .* it is in .*worker \(test_eng", said)
        for said in caplog.messages
    )
    assert local.has_hung_threads()
    wake.touch()
    deadline = time.monotonic() + 60
    while local.has_hung_threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not local.has_hung_threads()


def test_an_interrupt_stops_the_workers_quickly(start, tmp_path):
    worker = Recorder(tmp_path, lambda unit, times: time.sleep(0.1))
    pool = start(worker)
    first = threading.Event()
    threading.Thread(target=lambda: first.wait(30) and os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_tasks(pool, batches(400, 100), on_receipt=lambda receipt: first.set())
    stopping = worker.begun().total()
    assert stopping < 100
    time.sleep(1.0)
    assert worker.begun().total() <= stopping + 2  # Ray kills its processes a moment later


def test_a_stop_event_ends_the_run_and_keeps_what_is_done(start, tmp_path):
    stop = threading.Event()
    receipts = []

    def on_receipt(receipt):
        receipts.append(receipt)
        if len(receipts) == 5:
            stop.set()

    pool = start(Recorder(tmp_path, lambda unit, times: time.sleep(0.02)))
    assert run_tasks(pool, batches(400, 2), on_receipt=on_receipt, stop=stop) == []
    assert 5 <= len(ok_units(receipts)) < 40


def test_workers_use_one_thread_each(start):
    def counts_threads(units):
        import numpy  # noqa: F401 - in Ray's process too

        most = max(library["num_threads"] for library in threadpool_info())
        yield from (Receipt(unit, value=most) for unit in units)

    receipts = []
    run_tasks(start(counts_threads), batches(8, 1), on_receipt=receipts.append)
    assert {receipt.value for receipt in receipts} == {1}


def test_actors_make_their_worker_once(engine, tmp_path):
    def factory():
        name = uuid.uuid4().hex
        (tmp_path / name).touch()
        served = []

        def worker(units):
            served.extend(units)
            yield from (Receipt(unit, value=(name, len(served))) for unit in units)

        return worker

    pool = engine.start_actors(factory, 2, Resources())
    receipts = []
    assert run_tasks(pool, batches(20, 1), on_receipt=receipts.append) == []
    pool.close()
    made = {path.name for path in tmp_path.iterdir()}
    assert len(made) <= 2
    of_actors = Counter(receipt.value[0] for receipt in receipts)
    assert of_actors.keys() <= made  # one may have done all before the other had started
    assert of_actors.total() == len({receipt.value for receipt in receipts}) == 20
    for name, n_served in of_actors.items():  # state is kept from call to call
        assert (
            max(count for actor, count in (receipt.value for receipt in receipts) if actor == name)
            >= n_served
        )


@pytest.mark.parametrize("error", [ConfigError("no weights for resnet18"), KeyError("not ours")])
def test_a_factory_that_raises_reaches_the_caller_at_once(engine, error):
    def factory():
        raise error

    pool = engine.start_actors(factory, 2, Resources())
    with pytest.raises(type(error), match=str(error.args[0])):
        run_tasks(pool, batches(4, 1), on_receipt=lambda receipt: None)


def test_a_large_worker_arrives_whole(start):
    numbers = np.random.default_rng(0).integers(0, 256, 2**18, dtype=np.uint8)  # not sent with each call

    def worker(units):
        for unit in units:
            yield Receipt(unit, value=int(numbers.sum()))

    sums = []
    run_tasks(start(worker), batches(3, 1), on_receipt=lambda each: sums.append(each.value))
    assert sums == [int(numbers.sum())] * 3


def test_close_waits_for_what_was_submitted(engine, tmp_path):
    worker = Recorder(tmp_path, lambda unit, times: time.sleep(0.1))
    for start in (
        lambda: engine.start_tasks(worker, Resources()),
        lambda: engine.start_actors(lambda: worker, 1, Resources()),
    ):
        pool = start()
        while pool.capacity() == 0:
            pool.collect(0.1)
        pool.submit(Task((0, 1)))
        pool.close()
        pool.close(cancel=True)  # closing again does no harm
    assert worker.begun() == {0: 2, 1: 2}


def test_the_engine_describes_itself(engine):
    about = engine.describe()
    assert (about["engine"], about["nodes"], about["cpus"]) == (engine.name, 1, engine.slots)
    assert 1 <= engine.slots <= 2
    assert about["memory"] > 2**28
    assert about["gpus"] == engine.gpus


@pytest.mark.parametrize("name", ["local", "ray"])
@pytest.mark.parametrize("workers", [0, -1, 1.5, "2", True])
def test_workers_that_are_no_number_of_workers_are_refused(name, workers):
    with pytest.raises(ConfigError, match=rf"workers: {workers!r}: a whole number of at least one"):
        make_engine(name, workers=workers)


@pytest.mark.parametrize("needs", [Resources(cpus=1000), Resources(gpus=1000)])
def test_what_no_worker_can_get_is_refused_by_every_engine(engine, needs):
    calls = [lambda: engine.require_room(needs)]
    if engine.name != "serial":  # which leaves it to the driver to look for room
        calls += [lambda: engine.start_tasks(print, needs), lambda: engine.start_actors(print, 1, needs)]
    for call in calls:
        with pytest.raises(ConfigError, match=r"a worker needs .*1000 (CPU|GPU)"):
            call()


def test_more_workers_than_cpus_are_reported(caplog):
    assert make_engine("local", workers=10_000).slots == 10_000
    assert "workers: 10000: this machine has only" in caplog.text


class Unlike(Engine):
    """An engine whose properties are of wrong types."""

    name, slots, gpus = "unlike", 1.5, None

    def start_tasks(self, worker, resources): ...

    def start_actors(self, factory, count, resources): ...

    def describe(self):
        return {"engine": self.name}


def test_an_engine_whose_properties_cannot_be_used_is_refused_with_all_that_is_wrong():
    with pytest.raises(ConfigError) as refused:
        require_engine(Unlike())
    for words in ("slots is 1.5, not a whole", "gpus is None", "not a mapping with cpus, engine", "Unlike"):
        assert words in str(refused.value)


def test_an_unknown_engine_is_refused_with_the_near_name():
    with pytest.raises(ConfigError, match="did you mean 'local'"):
        make_engine("locl")
    with pytest.raises(ConfigError, match="'local' has nothing to join; remove the address"):
        make_engine("local", address="auto")


def library_threads():
    return [(library["user_api"], library["num_threads"]) for library in threadpool_info()]


def test_local_threads_end_with_their_pool_and_the_limits_are_lifted():
    import sklearn.utils  # noqa: F401 - brings OpenMP, whose limit holds per thread

    def worker(units):
        yield from (Receipt(unit, value=library_threads()) for unit in units)

    with threadpool_limits(3):
        before = library_threads()
        pool = make_engine("local", workers=3).start_tasks(worker, Resources())
        receipts = []
        run_tasks(pool, batches(6, 1), on_receipt=receipts.append)
        pool.close()
        after = library_threads()
    assert {api for api, _ in before} == {"blas", "openmp"}
    assert all(dict(receipt.value) == {"blas": 1, "openmp": 1} for receipt in receipts)
    assert after == before
    assert {threads for _, threads in after} == {3}
    assert not [t for t in threading.enumerate() if t.name.startswith("semrsm-worker")]


def test_local_memory_bounds_the_threads(tmp_path):
    engine = make_engine("local", workers=4)
    pool = engine.start_tasks(Recorder(tmp_path), Resources(memory=int(engine.describe()["memory"] / 2.5)))
    assert pool.capacity() == 4  # two threads, two tasks each
    pool.close()


@pytest.mark.parametrize(("share", "fitting"), [(2.5, 2), (0.5, 1), (20, 8)])
def test_local_memory_bounds_the_actors_too(tmp_path, share, fitting):
    engine = make_engine("local", workers=8)
    needs = Resources(memory=int(engine.describe()["memory"] / share))
    made = []
    pool = engine.start_actors(lambda: made.append(1) or Recorder(tmp_path), 8, needs)
    assert run_tasks(pool, batches(32, 1), on_receipt=lambda receipt: None) == []
    pool.close()
    assert len(made) == fitting


def test_fewer_workers_than_requested_are_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(local, "available_memory", lambda: 2 * 2**30)
    for workers, expected in (
        (None, []),
        (2, []),
        (5, ["workers: 5: 2 run at once, as the memory of 2.0 GiB has"]),
    ):
        caplog.clear()
        engine = local.LocalEngine(workers)
        for _ in range(2):
            engine.start_tasks(lambda units: (), Resources(memory=2**30)).close()
        said = [text for text in caplog.messages if "run at once" in text]
        assert [text[: len(start)] for text, start in zip(said, expected, strict=True)] == expected


def test_more_memory_than_there_is_is_warned_of_once(tmp_path, caplog):
    engine = make_engine("local", workers=4)
    caplog.clear()
    for _ in range(2):
        pool = engine.start_tasks(Recorder(tmp_path), Resources(memory=2**50))
        assert pool.capacity() == 2  # one thread
        pool.close()
    assert len(caplog.messages) == 1
    assert "1048576.0 GiB" in caplog.text
    assert "matching.worker_memory" in caplog.text


@pytest.mark.parametrize(("share", "expected"), [(1, [0, 1, 2]), (0.5, [0, 0, 1, 1, 2, 2]), (1.5, [0, 1])])
def test_local_tasks_take_turns_over_the_gpus(monkeypatch, share, expected):
    monkeypatch.setattr(local, "available_gpus", lambda: 3)
    all_there = threading.Barrier(len(expected))

    def worker(units):
        all_there.wait(10)  # every thread has one task
        yield Receipt(units[0], value=own_gpu())

    pool = make_engine("local", workers=8).start_tasks(worker, Resources(gpus=share))
    receipts = []
    assert run_tasks(pool, batches(len(expected), 1), on_receipt=receipts.append) == []
    pool.close()
    assert sorted(receipt.value for receipt in receipts) == expected
    assert own_gpu() == 0  # anywhere else: the only one that is seen


def on_two_gpus(monkeypatch, worker, factory=None):
    """Run 20 units on four threads of two GPUs, each at most twice; return which were done, and the failures."""
    monkeypatch.setattr(local, "available_gpus", lambda: 2)
    engine = make_engine("local", workers=8)
    resources, done = Resources(gpus=0.5), []
    pool = engine.start_actors(factory, 4, resources) if factory else engine.start_tasks(worker, resources)
    tasks = [Task((number,)) for number in range(20)]
    failures = run_tasks(pool, tasks, attempts=2, on_receipt=lambda receipt: done.append(receipt.unit))
    pool.close()
    return sorted(done), failures


def fail_on(*gpus):
    if own_gpu() in gpus:
        raise WorkerLostError(f"GPU {own_gpu()} has fallen off the bus")


def test_what_a_lost_gpu_was_at_is_done_on_another(monkeypatch, caplog):
    all_there, thread = threading.Barrier(4), threading.local()

    def worker(units):
        if not hasattr(thread, "has_begun"):
            thread.has_begun = True
            all_there.wait(10)  # every thread has a task
        for unit in units:
            fail_on(1)
            yield Receipt(unit)

    assert on_two_gpus(monkeypatch, worker) == (list(range(20)), [])
    assert caplog.text.count("GPU 1 is no longer used, the others go on: GPU 1 has fallen off the bus") == 1


def test_a_gpu_that_is_lost_before_it_begins_is_done_without(monkeypatch):
    def factory():
        fail_on(0)
        return lambda units: (Receipt(unit) for unit in units)

    assert on_two_gpus(monkeypatch, None, factory) == (list(range(20)), [])


def test_a_run_whose_gpus_are_all_lost_ends_and_says_so(monkeypatch):
    def worker(units):
        for unit in units:
            fail_on(0, 1)
            yield Receipt(unit)

    with pytest.raises(WorkError, match=r"no GPU is left, and what is done is kept: GPU . has fallen"):
        on_two_gpus(monkeypatch, worker)


def test_an_actor_that_is_lost_is_replaced(engine, tmp_path):
    if engine.name != "ray":
        pytest.skip("has no process of its own for each actor")

    def worker(units):
        for unit in units:
            if unit == 3 and not (tmp_path / "lost").exists():
                (tmp_path / "lost").touch()
                raise WorkerLostError("its GPU has fallen off the bus")
            yield Receipt(unit, counts={"processes": os.getpid()})

    pool, seen = engine.start_actors(lambda: worker, 1, Resources()), []
    failures = run_tasks(pool, [Task((n,)) for n in range(6)], on_receipt=seen.append)
    pool.close()
    assert (sorted(unit for receipt in seen for unit in receipt.units), failures) == (list(range(6)), [])
    assert len({receipt.counts["processes"] for receipt in seen if len(receipt.units) == 1}) == 2


def test_gpus_that_are_not_there_are_refused(monkeypatch):
    monkeypatch.setattr(local, "available_gpus", lambda: 1)
    engine = make_engine("local", workers=2)
    for start in (engine.start_tasks, lambda worker, needs: engine.start_actors(worker, 1, needs)):
        with pytest.raises(ConfigError, match=r"2 GPUs, but .* 1 GPU;.*CUDA_VISIBLE_DEVICES"):
            start(print, Resources(gpus=2))
