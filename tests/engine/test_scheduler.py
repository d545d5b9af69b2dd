"""The scheduler's book-keeping against a pool that follows a script."""

import logging
from collections import Counter, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semrsm_dist.engine import Finished, Progress, Receipt, Task, run_tasks
from semrsm_dist.errors import ConfigError

OUTCOMES = ["ok", "error", "silent", "raise", "lost", "twice", "foreign"]


class ScriptedPool:
    """Runs tasks one after another; each time a unit is tried, its next outcome is played."""

    def __init__(self, script, capacity=3):
        self.script = {unit: deque(outcomes) for unit, outcomes in script.items()}
        self.sizes = capacity
        self.queue = deque()
        self.tried = Counter()
        self.most = 0
        self.closed = None

    def capacity(self):
        return self.sizes

    def submit(self, task):
        self.queue.append(task)
        self.most = max(self.most, len(self.queue))

    def collect(self, timeout):
        return list(self.run(self.queue.popleft())) if self.queue else []

    def close(self, *, cancel=False):
        self.closed = cancel

    def run(self, task):
        for unit in task.units:
            self.tried[unit] += 1
            outcome = self.script[unit].popleft() if self.script.get(unit) else "ok"
            if outcome in ("raise", "lost"):
                yield Finished(task, error=outcome, system=outcome == "lost")
                return
            if outcome == "foreign":
                yield Progress(task, Receipt(("not", "of this task")))
            if outcome == "error":
                yield Progress(task, Receipt(unit, error="error"))
            elif outcome != "silent":
                yield from [Progress(task, Receipt(unit))] * (2 if outcome == "twice" else 1)
        yield Finished(task)
        yield Finished(task)  # said twice: must not count twice


@given(
    script=st.lists(st.lists(st.sampled_from(OUTCOMES), max_size=5), max_size=30),
    size=st.integers(1, 7),
    attempts=st.integers(1, 4),
    capacity=st.integers(1, 5),
)
def test_every_unit_ends_exactly_once(script, size, attempts, capacity):
    pool = ScriptedPool(dict(enumerate(script)), capacity)
    units = range(len(script))
    tasks = [Task(tuple(units[i : i + size])) for i in range(0, len(script), size)]
    receipts = []
    failures = run_tasks(pool, iter(tasks), attempts=attempts, on_receipt=receipts.append)

    ok = [receipt.unit for receipt in receipts if receipt.error is None]
    assert sorted(ok + [failure.unit for failure in failures]) == list(units)
    assert all(failure.attempts == attempts for failure in failures)
    assert all(pool.tried[unit] <= attempts for unit in units)
    assert pool.most <= capacity
    assert pool.closed is None


def test_a_unit_that_kills_its_task_takes_no_other_along():
    pool = ScriptedPool({2: ["lost"] * 9})
    failures = run_tasks(pool, [Task((0, 1, 2, 3, 4))], on_receipt=lambda receipt: None)
    assert [failure.unit for failure in failures] == [2]
    assert pool.tried == {0: 1, 1: 1, 2: 3, 3: 1, 4: 1}


def test_units_to_try_again_come_after_the_given_tasks():
    pool = ScriptedPool({0: ["error"]}, capacity=1)
    order = []
    run_tasks(pool, [Task((k,)) for k in range(4)], on_receipt=lambda receipt: order.append(receipt.unit))
    assert order == [0, 1, 2, 3, 0]


def test_an_error_in_the_driver_cancels_the_pool():
    def fails(receipt):
        raise ZeroDivisionError

    pool = ScriptedPool({})
    with pytest.raises(ZeroDivisionError):
        run_tasks(pool, [Task((0,))], on_receipt=fails)
    assert pool.closed is True


def test_a_pool_without_room_is_waited_for():
    pool = ScriptedPool({}, capacity=0)
    looks = []

    def on_idle():
        looks.append(None)
        pool.sizes = 1 if len(looks) > 3 else 0

    done = []
    assert run_tasks(pool, [Task((0,))], on_receipt=done.append, on_idle=on_idle) == []
    assert len(done) == 1


@pytest.mark.parametrize(
    ("method", "returned", "message"),
    [
        ("capacity", None, "capacity returned None, but must return a whole number"),
        ("capacity", -1, "capacity returned -1"),
        ("collect", None, "collect returned None, but must return a list of events"),
        ("collect", [Receipt(0)], r"collect returned Receipt\(.*, but must return events"),
        ("collect", [Finished((0,))], r"collect returned Finished\(task=\(0,\)"),
        ("collect", [Progress(Task((0,)), 0)], "collect .* of progress a receipt"),
    ],
)
def test_a_pool_that_returns_what_it_may_not_is_named_and_cancelled(method, returned, message):
    pool = ScriptedPool({})
    setattr(pool, method, lambda *_: returned)
    with pytest.raises(ConfigError, match=rf"ScriptedPool\.{message}"):
        run_tasks(pool, [Task((0,))], on_receipt=print)
    assert pool.closed is True


def test_zero_attempts_are_refused():
    with pytest.raises(ValueError, match="at least once"):
        run_tasks(ScriptedPool({}), [], attempts=0, on_receipt=print)


def test_what_a_lost_worker_has_done_without_a_word_is_not_done_again():
    pool = ScriptedPool({1: ["lost"], 4: ["raise"]})
    receipts = []
    failures = run_tasks(
        pool,
        [Task((0, 1, 2)), Task((3, 4, 5))],
        on_receipt=receipts.append,
        recover=lambda unit: Receipt(unit, counts={"found": 1}) if unit in (1, 4) else None,
    )
    assert failures == []
    assert pool.tried == {
        0: 1,
        1: 1,
        2: 1,
        3: 1,
        4: 2,
        5: 1,
    }  # a worker that raises says itself what it has done
    assert [receipt.unit for receipt in receipts if receipt.counts] == [1]


def test_units_that_are_set_aside_are_not_named_without_end(caplog):
    pool = ScriptedPool({unit: ["error"] for unit in range(300)})
    failures = run_tasks(
        pool, [Task((unit,)) for unit in range(300)], attempts=1, on_receipt=lambda receipt: None
    )
    assert len(failures) == 300
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 21
    assert warnings[-1] == "100 units have been set aside by now"
