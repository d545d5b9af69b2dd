"""What only Ray can suffer: lost processes, lost nodes, clusters that are too small or not there."""

import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
import uuid
from collections import Counter

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from semrsm_dist.cli.interrupts import stopping_in_order
from semrsm_dist.engine import Receipt, Resources, Task, make_engine, run_tasks, schedule
from semrsm_dist.engine.engines import ray as ray_engine
from semrsm_dist.engine.engines.ray import calls, watch
from semrsm_dist.errors import ConfigError, StorageError, UnusableGpuError, WorkError

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file

QUICK_HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,
    "health_check_failure_threshold": 2,
}
"""A node that is gone refuses the check and is missed within seconds; one that is only slow is waited for."""


LEAN = {"include_log_monitor": False}
"""What a node can do without: each of its processes takes a second to start."""

LEAN_HEAD = {**LEAN, "no_monitor": True, "include_dashboard": False}


@pytest.fixture(scope="module")
def joined():
    """The engine that has joined the cluster, in a list, if one has."""
    return []


@pytest.fixture(scope="module")
def cluster(joined):
    """A head without work and one node of two CPUs; tests add what they lose."""
    head = {"num_cpus": 0, "_system_config": QUICK_HEALTH_CHECKS, **LEAN_HEAD}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=2, **LEAN)
    yield cluster
    leave(joined)
    cluster.shutdown()


def leave(joined):
    while joined:
        joined.pop().close()


@pytest.fixture
def engine(cluster, joined):
    if not joined:
        joined.append(make_engine("ray", address=cluster.address))
    return joined[0]


@pytest.fixture
def apart(joined):
    """Without a cluster that is joined."""
    leave(joined)


@pytest.fixture(params=["tasks", "actors"])
def start(request, engine):
    pools = []

    def start(worker, resources=Resources(), count=2):  # noqa: B008 - frozen
        if request.param == "tasks":
            pools.append(engine.start_tasks(worker, resources))
        else:
            pools.append(engine.start_actors(lambda: worker, count, resources))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close(cancel=True)


class Fatal:
    """A worker that ends its own process at some units, each at most `times` times; leaves a file per try.

    Before that it waits for `note` to say that its receipt of the unit before has arrived.
    """

    def __init__(self, folder, units, times=1, seconds=0.0):
        self.folder = folder / "begun"
        self.noted = folder / "noted"
        self.units = units
        self.times = times
        self.seconds = seconds
        self.folder.mkdir(exist_ok=True)
        self.noted.mkdir(exist_ok=True)

    def __call__(self, units):
        before = None
        for unit in units:
            (self.folder / f"{unit}-{os.getpid()}-{uuid.uuid4().hex}").touch()
            if unit in self.units and self.begun()[unit] <= self.times:
                if before is not None:
                    wait_for(self.noted / str(before))
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self.seconds)
            yield Receipt(unit)
            before = unit

    def note(self, receipt):
        for unit in receipt.units:
            (self.noted / str(unit)).touch()

    def receipted(self):
        return sorted(int(path.name) for path in self.noted.iterdir())

    def begun(self):
        return Counter(int(path.name.split("-")[0]) for path in self.folder.iterdir())


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def batches(n_units, size):
    return [Task(tuple(range(i, min(i + size, n_units)))) for i in range(0, n_units, size)]


def test_a_process_lost_once_costs_only_what_was_not_receipted(start, tmp_path, caplog):
    worker = Fatal(tmp_path, {5})
    assert run_tasks(start(worker), batches(12, 4), on_receipt=worker.note) == []
    assert worker.receipted() == list(range(12))
    assert worker.begun() == {unit: 2 if unit == 5 else 1 for unit in range(12)}
    assert "a worker was lost, and another takes its place" in caplog.text


def test_ray_is_looked_at_before_the_units_of_a_lost_worker_are_handed_out(
    start, engine, tmp_path, monkeypatch
):
    worker, fitting = Fatal(tmp_path, {1}), engine.fitting

    def finds_ray_dead_too(resources):
        if worker.begun():
            raise WorkError("Ray's process raylet died")
        return fitting(resources)

    monkeypatch.setattr(watch, "FIT_SECONDS", 3600.0)  # only a loss makes it look again
    monkeypatch.setattr(engine, "fitting", finds_ray_dead_too)
    with pytest.raises(WorkError, match="raylet died"):
        run_tasks(start(worker, count=1), batches(2, 2), on_receipt=worker.note)
    assert worker.begun() == {0: 1, 1: 1}


def test_a_pool_that_is_closed_names_the_tasks_that_do_not_end_and_kills_them(
    start, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(calls, "CLOSE_SECONDS", 0.5)
    begun = tmp_path / "begun"

    def hangs(units):
        begun.write_text(str(os.getpid()))
        threading.Event().wait()
        yield Receipt(units[0])

    pool = start(hangs, count=1)
    while not pool.capacity():
        pool.collect(0.1)
    pool.submit(Task((7,)))
    wait_for(begun)
    pool.close()
    assert "whose processes are killed: 1 (first units: 7)" in caplog.text
    await_end_of(int(begun.read_text()))


def await_end_of(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(process).wait(60)


def test_a_unit_that_always_kills_its_process_is_set_aside(start, tmp_path):
    worker = Fatal(tmp_path, {5, 6, 11}, times=99)
    failures = run_tasks(start(worker), batches(12, 4), on_receipt=worker.note)
    assert sorted((failure.unit, failure.attempts) for failure in failures) == [(5, 3), (6, 3), (11, 3)]
    assert all("died" in failure.error for failure in failures)
    assert worker.receipted() == [u for u in range(12) if u not in (5, 6, 11)]
    begun = worker.begun()
    assert {begun[unit] for unit in worker.receipted()} == {1}
    # A call that seems to have waited in the queue of an actor that died is no attempt: the next one gets it.
    assert 3 <= begun[5] <= 6


def test_a_killed_actor_is_replaced_and_its_queued_call_loses_nothing(engine, tmp_path):
    made = tmp_path / "made"
    done = tmp_path / "done"
    made.mkdir()
    done.mkdir()

    def factory():
        (made / str(os.getpid())).touch()
        worker = Fatal(done, set())

        def stays_at_the_third(units):
            for unit, receipt in zip(units, worker(units), strict=True):
                if unit == 3 and len(list(made.iterdir())) == 1:
                    wait_for(tmp_path / "no such file")
                yield receipt

        return stays_at_the_third

    receipts = []

    def on_receipt(receipt):
        receipts.append(receipt)
        if 2 in receipt.units:
            os.kill(int(next(made.iterdir()).name), signal.SIGKILL)

    pool = engine.start_actors(factory, 1, Resources())
    try:
        failures = run_tasks(pool, batches(10, 2), attempts=1, on_receipt=on_receipt)
    finally:
        pool.close()
    assert [failure.unit for failure in failures] == [3]  # of the running task alone
    assert sorted(unit for r in receipts for unit in r.units) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert len(list(made.iterdir())) == 2
    assert max(Fatal(done, set()).begun().values()) == 1


def test_what_a_stopped_process_has_is_named_and_done_elsewhere(start, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(schedule, "OVERDUE_SECONDS", 1.0)
    stopped = tmp_path / "stopped"

    def worker(units):
        for unit in units:
            time.sleep(0.05)
            if unit == 9 and not stopped.exists():
                stopped.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGSTOP)
            yield Receipt(unit)

    done = []
    try:
        failures = run_tasks(
            start(worker), batches(40, 4), on_receipt=lambda receipt: done.extend(receipt.units)
        )
    finally:
        os.kill(int(stopped.read_text()), signal.SIGKILL)
    assert failures == []
    assert sorted(done) == list(range(40))
    pattern = r"[89] \(and [23] more units of its task\) on .*: no result for \d+ s"
    assert any(re.match(pattern, said) for said in caplog.messages)


def test_actors_that_die_before_they_are_ready_end_the_run(engine):
    def factory():
        os.kill(os.getpid(), signal.SIGKILL)

    pool = engine.start_actors(factory, 1, Resources())
    with pytest.raises(Exception, match="die before they are ready"):
        run_tasks(pool, batches(2, 1), on_receipt=lambda receipt: None)


def test_a_lost_node_loses_no_unit(cluster, engine, start, tmp_path):
    node = cluster.add_node(num_cpus=2, **LEAN)
    cluster.wait_for_nodes()
    worker = Fatal(tmp_path, set(), seconds=0.05)
    done = []

    def on_receipt(receipt):
        before = len(done)
        done.extend(receipt.units)
        if before < 20 <= len(done):
            # Not in this thread: the driver goes on while the node disappears.
            threading.Thread(target=cluster.remove_node, args=(node, False)).start()

    pool = start(worker, count=4)
    assert run_tasks(pool, batches(120, 6), on_receipt=on_receipt) == []
    assert sorted(done) == list(range(120))
    begun = worker.begun()
    assert {begun[unit] for unit in done[:20]} == {1}  # what was receipted is not done again
    assert begun.total() <= 120 + 2 * 2 * 6  # at most what two lost workers had been given
    assert engine.slots == 2


def test_capacity_follows_the_cluster(cluster, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "FIT_SECONDS", 0.0)
    pool = engine.start_tasks(Fatal(tmp_path, set()), Resources())
    assert (engine.slots, pool.capacity()) == (2, 4)
    node = cluster.add_node(num_cpus=3, **LEAN)
    cluster.wait_for_nodes()
    assert (engine.slots, pool.capacity()) == (5, 10)
    assert engine.start_tasks(Fatal(tmp_path, set()), Resources(cpus=2)).capacity() == 4  # one on each node
    cluster.remove_node(node)
    pool.close()


def test_room_to_grow_counts_before_it_is_there(cluster, engine, tmp_path):
    assert engine.gpus == 0
    node = cluster.add_node(num_cpus=0, resources={"semrsm_max_cpus": 64, "semrsm_max_gpus": 3}, **LEAN)
    cluster.wait_for_nodes()
    assert (engine.slots, engine.gpus) == (64, 3)
    assert engine.fitting(Resources(gpus=1)) == 0
    assert [engine.growing(needs) for needs in (Resources(), Resources(cpus=4), Resources(gpus=1))] == [
        64,
        16,
        3,
    ]
    pool = engine.start_tasks(Fatal(tmp_path, set()), Resources())
    assert pool.capacity() == 64  # the autoscaler sees all of them at once, not two more with each node
    pool.close()
    cluster.remove_node(node)
    assert [engine.growing(needs) for needs in (Resources(), Resources(gpus=1))] == [0, 0]


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (Resources(cpus=64), "64 CPU"),
        (Resources(gpus=1), "1 GPU"),
        (Resources(memory=2**50), "1048576.0 GiB memory"),
    ],
)
def test_what_no_node_has_nor_will_have_is_refused_before_it_starts(start, tmp_path, needs, said):
    with pytest.raises(ConfigError, match=rf"{said}.*there are: .*2 CPU.*matching\.worker_memory"):
        start(Fatal(tmp_path, set()), needs)
    assert not Fatal(tmp_path, set()).begun()


def test_a_worker_with_a_gpu_runs_on_a_node_without_cpu_slots(cluster, engine):
    node = cluster.add_node(num_cpus=0, num_gpus=1, **LEAN)
    cluster.wait_for_nodes()
    needs = Resources(cpus=1, gpus=1)
    assert (engine.fitting(needs), engine.describe()["nodes"]) == (1, 2)
    pool = engine.start_actors(lambda: lambda units: (Receipt(unit) for unit in units), 1, needs)
    receipts = []
    assert run_tasks(pool, batches(2, 1), on_receipt=receipts.append) == []
    pool.close()
    assert len(receipts) == 2
    cluster.remove_node(node)


def test_gpus_of_a_broken_node_are_done_without_while_there_are_others(cluster, engine, tmp_path, caplog):
    nodes = [cluster.add_node(num_cpus=0, num_gpus=1, **LEAN) for _ in range(2)]
    cluster.wait_for_nodes()
    good, bad = (node.node_id for node in nodes)

    def factory_failing_on(broken):
        def factory():
            if ray.get_runtime_context().get_node_id() in broken:
                raise UnusableGpuError("torch sees no GPU here: look at nvidia-smi on that machine")
            return lambda units: (Receipt(unit) for unit in units)

        return factory

    done = []
    pool = engine.start_actors(factory_failing_on({bad}), 2, Resources(gpus=1))
    failures = run_tasks(pool, batches(8, 1), on_receipt=lambda receipt: done.extend(receipt.units))
    for _ in range(600):  # the good one may be through with all before the others have failed for good
        if any("goes on with one worker fewer" in said for said in caplog.messages):
            break
        pool.collect(0.1)
    pool.close()
    assert failures == []
    assert sorted(done) == list(range(8))
    assert "goes on with one worker fewer (left: 1), whose actor failed at 3 starts in a row" in caplog.text
    assert "look at nvidia-smi" in caplog.text

    def fails_where_it_is_first():
        here, first = ray.get_runtime_context().get_node_id(), tmp_path / "first"
        if not first.exists():
            first.write_text(here)
        return factory_failing_on({first.read_text()})()

    pool = engine.start_actors(fails_where_it_is_first, 1, Resources(gpus=1))
    assert run_tasks(pool, batches(2, 1), on_receipt=lambda _: None) == []
    pool.close()

    with pytest.raises(UnusableGpuError, match="look at nvidia-smi"):
        run_tasks(
            engine.start_actors(factory_failing_on({good, bad}), 1, Resources(gpus=1)),
            batches(2, 1),
            on_receipt=pytest.fail,
        )
    for node in nodes:
        cluster.remove_node(node)


def test_a_request_that_fits_nowhere_yet_is_named(cluster, start, tmp_path, monkeypatch, caplog):
    node = cluster.add_node(num_cpus=0, resources={"semrsm_max_cpus": 64}, **LEAN)
    cluster.wait_for_nodes()
    monkeypatch.setattr(watch, "STALL_SECONDS", 0.6)
    stop = threading.Event()
    caplog.set_level(logging.WARNING)

    def on_idle():
        if any("still waiting for room" in message for message in caplog.messages):
            stop.set()

    pool = start(Fatal(tmp_path, set()), Resources(cpus=64), count=1)
    run_tasks(pool, batches(2, 1), on_receipt=pytest.fail, on_idle=on_idle, stop=stop)
    assert "64 CPU" in caplog.text
    assert "the cluster has 2 CPU" in caplog.text
    cluster.remove_node(node)


@pytest.mark.parametrize(("begins", "said"), [(False, "no worker has started"), (True, "no result for")])
def test_silence_is_said_where_there_is_room(engine, tmp_path, monkeypatch, caplog, begins, said):
    monkeypatch.setattr(watch, "STALL_SECONDS", 0.3 if begins else 0.0)
    caplog.set_level(logging.WARNING)
    stop = threading.Event()
    holder = engine.start_actors(lambda: Receipt, 2, Resources())  # which leaves no room for others
    while holder.capacity() < 4:
        holder.collect(0.1)
    caplog.clear()

    def sleeps(units):
        (tmp_path / "begun").touch()
        time.sleep(60)
        yield Receipt(units[0])

    def on_idle():
        if said in caplog.text:
            stop.set()

    if begins:
        holder.close()
    run_tasks(
        engine.start_tasks(sleeps, Resources()),
        batches(1, 1),
        on_receipt=pytest.fail,
        on_idle=on_idle,
        stop=stop,
    )
    holder.close(cancel=True)
    assert (tmp_path / "begun").exists() == begins


def test_errors_of_the_package_keep_their_type_and_message(engine):
    def factory():
        raise StorageError("the feature store is gone")

    with pytest.raises(StorageError, match="the feature store is gone"):
        run_tasks(engine.start_actors(factory, 1, Resources()), batches(1, 1), on_receipt=pytest.fail)


def test_a_worker_that_cannot_be_loaded_is_said_at_once(engine):
    class Unloadable:
        def __reduce__(self):
            return __import__, ("no_such_module_anywhere",)

    with pytest.raises(ImportError, match="no_such_module_anywhere"):
        run_tasks(engine.start_tasks(Unloadable(), Resources()), batches(3, 1), on_receipt=pytest.fail)


class FailsToLoadOnce:
    """Cannot be loaded by the first process that tries, as on a node that lacks a library."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return load_at_second_try, (self.mark,)

    def __call__(self, units):
        yield from map(Receipt, units)


def load_at_second_try(mark):
    if not mark.exists():
        mark.touch()
        raise ImportError("no library of that name on this node")
    return FailsToLoadOnce(mark)


@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_a_worker_that_cannot_be_loaded_in_one_place_is_loaded_elsewhere(engine, tmp_path, caplog, kind):
    worker, done = FailsToLoadOnce(tmp_path / "tried"), []
    if kind == "tasks":
        pool = engine.start_tasks(worker, Resources())
    else:
        pool = engine.start_actors(lambda: load_at_second_try(worker.mark), 1, Resources())
    failures = run_tasks(
        pool, batches(6, 2), attempts=1, on_receipt=lambda receipt: done.extend(receipt.units)
    )
    pool.close()
    assert failures == []
    assert sorted(done) == list(range(6))
    assert any("tried elsewhere: no library of that name" in said for said in caplog.messages)


def test_the_driver_hands_its_variables_to_the_workers(engine, monkeypatch):
    monkeypatch.setenv("SEMRSM_TEST", "carried")

    def reports(units):
        yield from (Receipt(unit, error=os.environ.get("SEMRSM_TEST", "missing")) for unit in units)

    pool = engine.start_tasks(reports, Resources())
    failures = run_tasks(pool, batches(1, 1), attempts=3, on_receipt=lambda receipt: None)
    assert [failure.error for failure in failures] == ["carried"]


def test_a_ray_that_was_joined_before_is_used_and_left_alone(engine):
    second = make_engine("ray", workers=1)
    assert second.describe()["address"] == engine.describe()["address"]
    assert second.slots == 1
    assert second.start_tasks(Receipt, Resources()).capacity() == 1  # Ray itself would run two
    second.close()
    assert ray.is_initialized()


@pytest.mark.usefixtures("apart")
def test_inside_a_job_the_cluster_of_the_job_is_joined(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    handler = signal.getsignal(signal.SIGTERM)
    job = make_engine("ray")
    try:
        assert job.describe()["address"] == cluster.address
        assert job.slots == 2
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        job.close()
    assert not ray.is_initialized()


@pytest.mark.usefixtures("apart")
def test_a_sigterm_while_ray_starts_is_kept_for_the_program(cluster, monkeypatch):
    connect = ray_engine.ray_worker.connect
    went_on = []

    def be_stopped_and_connect(*arguments, **named):
        os.kill(os.getpid(), signal.SIGTERM)
        connect(*arguments, **named)
        os.kill(os.getpid(), signal.SIGTERM)
        went_on.append(True)

    monkeypatch.setattr(ray_engine.ray_worker, "connect", be_stopped_and_connect)
    with pytest.raises(KeyboardInterrupt), stopping_in_order() as stop:
        make_engine("ray", address=cluster.address)
    assert went_on
    assert stop.is_set()
    assert not ray.is_initialized()


@pytest.mark.usefixtures("apart")
def test_rays_alarm_does_not_abort_a_program_that_was_stopped(monkeypatch):
    seconds, _ = signal.setitimer(signal.ITIMER_REAL, 0)  # the limit of this test's own time

    def be_stopped(address):
        signal.alarm(100)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ray_engine, "_join", be_stopped)
    try:
        with pytest.raises(KeyboardInterrupt), stopping_in_order():
            make_engine("ray", address="127.0.0.1:1")
        assert signal.alarm(0) == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, seconds)


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://somewhere:10001", "Ray Client"),
        ("http://127.0.0.1:8265", "ray job submit"),
        ("127.0.0.1:1", "cannot join.*its token is on this machine"),
    ],
)
def test_a_cluster_that_cannot_be_joined_is_refused_at_once(address, says, monkeypatch):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=says):
        make_engine("ray", address=address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=says):
        make_engine("ray")
    assert time.monotonic() - began < 60  # Ray itself would try for minutes
