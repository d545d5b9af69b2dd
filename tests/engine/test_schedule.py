"""The scheduler with a simulated clock: a cluster on which all goes wrong that can, and overdue tasks."""

import heapq
import random
import time
from collections import Counter, deque
from itertools import count

import numpy as np
import psutil
import pytest

from semrsm_dist.engine import Receipt, Task
from semrsm_dist.engine.schedule import MOST_RETRIES, OVERDUE_SECONDS, QUIET_SECONDS, Schedule
from semrsm_dist.plan.blocks import BlockPlanner, LayerWork
from semrsm_dist.plan.tiling import Layout, Tile, smallest_tile

STALL_SECONDS = 300.0


class Cluster:
    """Workers in simulated time, driven by the schedule as an engine drives it.

    A worker takes a tile's estimated time, multiplied by its own slowness, and reports after each task. It is lost in
    some tasks, after a part of the tiles, of which it has reported another part; a new worker comes later. At some
    tiles it hangs, after it has reported those before; a new worker comes once that is noticed.
    """

    def __init__(self, planner, layout, seconds_of, *, slowness, seed=0):
        self.random = random.Random(seed)
        self.planner, self.layout, self.seconds_of = planner, layout, seconds_of
        tasks = (Task(tuple(tiles), cost) for tiles, cost in planner)
        self.schedule = Schedule(tasks, stall_seconds=STALL_SECONDS)
        self.slowness = slowness  # of each worker; infinite for one that stops
        self.solved = np.zeros((layout.row_panels, layout.column_panels), dtype=np.int16)
        self.receipted = np.zeros_like(self.solved)
        self.loss = self.late_seconds = self.offered = 0.0
        self.poison, self.broken, self.once, self.hanging = set(), set(), set(), set()
        self.given_up = []
        self.n_receipted = self.offered_for_most = 0
        self.now, self.events, self.numbers = 0.0, [], count()
        self.idle, self.waiting, self.present = [], deque(), 0
        self.most_in_flight = self.panels = self.tiles = self.lost = self.unreported = 0

    def at(self, moment, what, *arguments):
        heapq.heappush(self.events, (moment, next(self.numbers), what, arguments))

    def join(self, worker):
        self.present += 1
        self.idle.append(worker)

    def run(self, late):
        """Run to the end; workers from number `late` on join one after the other."""
        for worker in range(len(self.slowness)):
            self.at(max(0, worker - late), self.join, worker)
        self.at(2.0, self.look)
        while self.schedule.has_work:
            moment = self.events[0][0]
            self.offered += (moment - self.now) * self.present
            self.now = moment
            while self.events and self.events[0][0] == moment:
                _, _, what, arguments = heapq.heappop(self.events)
                what(*arguments)
            self.fill()

    def look(self):
        self.schedule.find_overdue(self.now, idle=2 * self.schedule.in_flight <= 2 * self.present)
        for flight, expected in self.schedule.find_hung(self.now):
            assert self.now - flight.heard > max(STALL_SECONDS, 10 * expected)
            self.schedule.give_up(flight.task, "it hangs", self.now)
            self.given_up.append(flight.task)
            self.present -= 1
            self.slowness.append(1.0)
            self.at(self.now + 30, self.join, len(self.slowness) - 1)
        self.at(self.now + 2.0, self.look)

    def fill(self):
        while self.schedule.in_flight < 2 * self.present and (task := self.schedule.next_task(self.now)):
            self.waiting.append(task)
            self.panels += len({tile.row for tile in task.units}) + len({tile.column for tile in task.units})
            self.tiles += len(task.units)
        self.most_in_flight = max(self.most_in_flight, self.schedule.in_flight)
        while self.idle and self.waiting:
            self.work(self.idle.pop(), self.waiting.popleft())

    def work(self, worker, task):
        self.schedule.begin(task, f"worker {worker}", self.now)
        tiles = list(task.units)
        stop = next((k for k, tile in enumerate(tiles) if tile in self.poison | self.hanging), None)
        if stop is not None and tiles[stop] in self.hanging:
            passed = self.slowness[worker] * sum(map(self.seconds_of, tiles[:stop]))
            if stop and passed < float("inf"):
                self.at(self.now + passed, self.report, worker, task, tiles[:stop])
            return
        if stop is None and self.random.random() < self.loss:
            stop = self.random.randrange(len(tiles))
        done = tiles if stop is None else tiles[:stop]
        passed = self.slowness[worker] * sum(map(self.seconds_of, done))
        if passed < float("inf"):
            self.at(self.now + passed, self.end, worker, task, done, stop is not None)

    def end(self, worker, task, done, is_lost):
        if any(task is given_up for given_up in self.given_up):
            return  # its worker was replaced
        good = [tile for tile in done if tile not in self.broken]
        failing_once = [tile for tile in good if tile in self.once]
        self.once -= set(failing_once)
        good = [tile for tile in good if tile not in failing_once]
        for tile in good:
            self.solved[tile.row, tile.column] += 1
        reported = good[: self.random.randint(0, len(good))] if is_lost else good
        self.unreported += len(good) - len(reported)
        if reported:
            self.receive(worker, task, reported)
        for tile in () if is_lost else [*failing_once, *(set(done) & self.broken)]:
            self.schedule.receive(task, Receipt(tile, error="broken"), self.now)
        self.schedule.finish(task, "lost" if is_lost else None, self.now)
        if is_lost:
            self.lost += 1
            self.present -= 1
            self.at(self.now + 30, self.join, worker)
        else:
            self.idle.append(worker)

    def report(self, worker, task, done):
        """Report what a worker has done before it hangs."""
        for tile in done:
            self.solved[tile.row, tile.column] += 1
        self.receive(worker, task, done)

    def receive(self, worker, task, reported):
        pairs = sum(self.layout.n_pairs(tile.row, tile.column) for tile in reported)
        seconds = sum(map(self.seconds_of, reported)) * self.slowness[worker]
        receipt = Receipt(reported[0], counts={"pairs": pairs}, also=tuple(reported[1:]))
        new = self.schedule.receive(task, receipt, self.now)
        for tile in () if new is None else new.units:
            self.receipted[tile.row, tile.column] += 1
            self.n_receipted += 1
        if self.n_receipted < 0.999 * self.layout.n_tiles:
            self.offered_for_most = self.offered
        self.planner.observe("a", pairs, seconds)


@pytest.mark.slow
def test_a_million_images_on_a_thousand_workers_with_all_that_can_go_wrong():
    size = smallest_tile(10**6, 10**6, symmetric=True)
    layout = Layout(10**6, 10**6, 1 << (size - 1).bit_length(), symmetric=True)
    assert layout.n_tiles < 10**6
    work = LayerWork("a", layout, layout.wanted(), 2e-6, 10**6)
    begun, memory = time.process_time(), psutil.Process().memory_info().rss
    planner = BlockPlanner([work], workers=1000, task_seconds=15, budget=10**9)
    draw = random.Random(1)
    slowness = [draw.uniform(0.9, 1.3) for _ in range(1000)]
    slowness[::100] = [8.0] * 10
    slowness[1::200] = [40.0] * 5  # as good as hung
    slowness[5::200] = [float("inf")] * 5
    capacity = sum(1 / slow for slow in slowness)
    cluster = Cluster(planner, layout, work.seconds, slowness=slowness)
    tiles = [Tile("a", *tile) for tile in draw.sample(list(layout.tiles()), 160)]
    cluster.poison, cluster.broken, cluster.once = set(tiles[:30]), set(tiles[30:50]), set(tiles[60:])
    cluster.hanging = set(tiles[50:60])
    cluster.loss = 0.005
    cluster.run(late=600)
    schedule = cluster.schedule

    assert {failure.unit for failure in schedule.failures} == set(tiles[:60])
    assert all(failure.attempts == 3 for failure in schedule.failures)
    wanted = layout.wanted()
    for tile in tiles[:60]:
        wanted[tile.row, tile.column] = False
    np.testing.assert_array_equal(cluster.receipted, wanted)
    np.testing.assert_array_equal(cluster.solved > 0, wanted)
    again = int(cluster.solved.sum() - wanted.sum())
    assert 0 < schedule.duplicates <= again <= schedule.duplicates + cluster.unreported
    assert schedule.duplicates < 0.001 * layout.n_tiles  # of the workers that are slow or have stopped alone
    assert cluster.lost > 200
    assert 20 <= len(cluster.given_up) < 130  # at ten tiles, and of workers that have as good as stopped
    assert {failure.unit for failure in schedule.failures if failure.error == "it hangs"} == cluster.hanging

    # What hangs at the end keeps the run, but few workers, waiting.
    assert cluster.offered_for_most * capacity / 1000 < 1.15 * work.missing_seconds
    assert cluster.most_in_flight <= 2000
    assert cluster.panels < 1.1 * cluster.tiles  # where each tile needs two
    assert psutil.Process().memory_info().rss - memory < 200 * 2**20
    assert time.process_time() - begun < 60


def handed_out(schedule, now=0.0):
    """Take all tasks that there are."""
    return list(iter(lambda: schedule.next_task(now), None))


def begun(units=(0, 1, 2, 3)):
    """Return a schedule that knows how long tasks take (a second for each unit), and a task that began at 10 s."""
    schedule = Schedule([Task((9,)), Task(units, len(units))])
    first, second = handed_out(schedule)
    schedule.begin(first, "worker a", 0.0)
    schedule.receive(first, Receipt(9), 1.0)
    schedule.finish(first, None, 1.0)
    schedule.begin(second, "worker b", 10.0)
    return schedule, second


def late(schedule, now, *, idle=False):
    return [
        (flight.task, flight.place, expected) for flight, expected in schedule.find_overdue(now, idle=idle)
    ]


def test_a_task_is_overdue_once_after_a_while_without_news():
    schedule, task = begun()
    schedule.receive(task, Receipt(0), 20.0)
    assert late(schedule, 20 + OVERDUE_SECONDS) == []
    assert late(schedule, 21 + OVERDUE_SECONDS) == [(task, "worker b", 4.0)]
    assert late(schedule, 22 + OVERDUE_SECONDS) == []
    schedule.receive(task, Receipt(1), 100.0)
    assert handed_out(schedule, 100.0) == []  # it goes on
    assert len(late(schedule, 101 + OVERDUE_SECONDS)) == 1


def test_long_tasks_are_given_several_times_as_long_as_they_should_take():
    schedule, task = begun(tuple(range(20)))
    assert late(schedule, 10 + 80.0) == []
    assert late(schedule, 11 + 80.0) == [(task, "worker b", 20.0)]


def test_a_task_that_waits_for_a_worker_is_not_overdue_unless_workers_are_idle():
    schedule = Schedule([Task((0,)), Task((1,))])
    first, second = handed_out(schedule)
    schedule.finish(first, None, 1.0)
    assert late(schedule, 1000.0) == []
    assert late(schedule, 1000.0, idle=True) == [(second, None, 1.0)]


def test_an_overdue_task_is_tried_elsewhere_and_the_first_receipt_counts():
    schedule, task = begun()
    schedule.receive(task, Receipt(0), 11.0)
    late(schedule, 100.0)
    (again,) = handed_out(schedule, 100.0)
    assert again.units == (1, 2, 3)
    assert schedule.receive(again, Receipt(1, counts={"tiles": 1}), 101.0).units == (1,)
    packed = schedule.receive(task, Receipt(1, counts={"tiles": 2}, also=(2,)), 102.0)
    assert (packed.units, packed.counts) == ((2,), {"tiles": 1})
    assert schedule.receive(again, Receipt(2), 103.0) is None
    assert schedule.has_work
    schedule.receive(again, Receipt(3), 104.0)
    schedule.finish(again, None, 104.0)
    assert not schedule.has_work  # nobody waits for the other one,
    assert (schedule.in_flight, schedule.abandoned) == (1, 1)  # which may hold its worker
    schedule.finish(task, "killed", 105.0)
    assert (schedule.in_flight, schedule.abandoned, schedule.duplicates) == (0, 0, 2)
    assert schedule.failures == []


def test_a_second_try_that_fails_counts_no_attempt_while_the_first_goes_on():
    schedule, task = begun()
    late(schedule, 100.0)
    (again,) = handed_out(schedule, 100.0)
    schedule.finish(again, "lost", 101.0)
    assert handed_out(schedule, 101.0) == []
    schedule.finish(task, "lost", 102.0)
    assert [retry.units for retry in handed_out(schedule, 103.0)] == [(0,), (1,), (2,), (3,)]


def test_a_task_is_tried_no_more_often_than_attempts():
    schedule, _ = begun()
    tries = 0
    for now in range(100, 2000, 100):
        late(schedule, float(now), idle=True)
        tries += len(handed_out(schedule, float(now)))
    assert tries == 2
    assert schedule.has_work


def test_overdue_tasks_come_after_all_others():
    schedule = Schedule([Task((unit,)) for unit in range(4)])
    first, second = schedule.next_task(0.0), schedule.next_task(0.0)
    schedule.finish(first, "lost", 1.0)
    third = schedule.next_task(1.0)
    schedule.receive(third, Receipt(2), 2.0)
    schedule.finish(third, None, 2.0)
    schedule.begin(second, "worker", 2.0)
    late(schedule, 100.0)
    assert [task.units for task in handed_out(schedule, 100.0)] == [(3,), (0,), (1,)]


def test_many_units_to_try_again_do_not_pile_up():
    schedule = Schedule(Task((unit,)) for unit in count())
    tried = Counter()
    for now in range(10 * MOST_RETRIES):
        task = schedule.next_task(float(now))
        tried[task.units] += 1
        schedule.finish(task, "lost", float(now))
    assert len(schedule.failures) > 2 * MOST_RETRIES
    assert sum(times < 3 for times in tried.values()) <= MOST_RETRIES


def hung(schedule, now):
    return [flight.task for flight, _ in schedule.find_hung(now)]


def stalling(units, cost=1.0, **options):
    """Return a schedule for which a task hangs after 100 s, and its task, which began at once."""
    schedule = Schedule([Task(units, cost)], stall_seconds=100.0, **options)
    (task,) = handed_out(schedule)
    schedule.begin(task, "worker a", 0.0)
    return schedule, task


def test_a_task_hangs_after_a_set_time_without_news_but_not_before_it_can_be_done():
    schedule, task = stalling((0, 1))
    assert hung(schedule, 100.0) == []
    schedule.receive(task, Receipt(0), 50.0)
    assert hung(schedule, 149.0) == []
    assert hung(schedule, 151.0) == [task]
    schedule, task = stalling((0,), cost=60.0)
    assert hung(schedule, 599.0) == []
    assert hung(schedule, 601.0) == [task]


def test_a_unit_that_hangs_is_tried_elsewhere_and_set_aside_and_the_rest_finishes():
    schedule, task = stalling((0, 1, 2))
    schedule.receive(task, Receipt(0), 1.0)
    schedule.give_up(task, "it hangs", 200.0)
    first, second = handed_out(schedule, 200.0)
    assert (first.units, second.units) == ((1,), (2,))
    schedule.receive(second, Receipt(2), 201.0)
    schedule.finish(second, None, 201.0)
    for now in (400.0, 600.0):
        schedule.give_up(first, "it hangs", now)
        first = next(iter(handed_out(schedule, now)), None)
    assert [(failure.unit, failure.error, failure.attempts) for failure in schedule.failures] == [
        (1, "it hangs", 3)
    ]
    assert not schedule.has_work


def test_tries_that_hang_side_by_side_count_each_for_the_unit_that_they_are_at():
    schedule, task = begun()
    tries = [task]
    for now in (100.0, 200.0):
        late(schedule, now, idle=True)
        (again,) = handed_out(schedule, now)
        schedule.begin(again, "worker c", now)
        tries.append(again)
    for each in tries:
        assert schedule.failures == []
        schedule.give_up(each, "it hangs", 300.0)
    assert [(failure.unit, failure.attempts) for failure in schedule.failures] == [(0, 3)]
    assert [task.units for task in handed_out(schedule, 300.0)] == [(1,), (2,), (3,)]


def test_what_comes_of_a_task_that_was_given_up_is_ignored():
    schedule, task = stalling((0,))
    schedule.give_up(task, "it hangs", 200.0)
    assert schedule.receive(task, Receipt(0), 201.0) is None
    schedule.finish(task, None, 201.0)
    schedule.give_up(task, "it hangs", 201.0)
    (again,) = handed_out(schedule, 201.0)
    assert schedule.receive(again, Receipt(0), 202.0) is not None


def test_a_task_that_waits_for_a_worker_hangs_only_if_a_later_try_of_it_has_begun():
    schedule = Schedule([Task((0,)), Task((1,))], stall_seconds=100.0)
    first, second = handed_out(schedule)
    schedule.receive(first, Receipt(0), 1.0)
    schedule.finish(first, None, 1.0)
    assert hung(schedule, 10_000.0) == []
    late(schedule, 10_000.0, idle=True)
    (again,) = handed_out(schedule, 10_000.0)
    assert hung(schedule, 10_001.0) == []
    schedule.begin(again, "worker", 10_001.0)
    assert hung(schedule, 10_001.0) == [second]


def test_tasks_that_hang_are_counted_until_a_unit_is_done():
    schedule = Schedule([Task((unit,)) for unit in range(3)], stall_seconds=100.0)
    first, second, third = handed_out(schedule)
    schedule.give_up(first, "it hangs", 200.0)
    schedule.give_up(second, "it hangs", 200.0)
    schedule.receive(third, Receipt(2, error="broken"), 200.0)
    assert schedule.hung_in_a_row == 2
    schedule.receive(third, Receipt(2), 201.0)
    assert schedule.hung_in_a_row == 0


def test_workers_are_counted_while_they_have_a_task_or_were_heard_of_lately():
    schedule = Schedule([Task((name,)) for name in "abc"])
    tasks = [schedule.next_task(0.0) for _ in "abc"]
    assert schedule.workers(0.0) == set()
    schedule.begin(tasks[0], "a", 0.0)
    for task in tasks[1:]:
        schedule.receive(task, Receipt(task.units[0], place=task.units[0]), 1.0)
    schedule.finish(tasks[1], None, 1.0)
    assert schedule.workers(QUIET_SECONDS) == {"a", "b", "c"}
    assert schedule.workers(QUIET_SECONDS + 2) == {"a", "c"}
    schedule.give_up(tasks[0], "it hangs", QUIET_SECONDS + 3)
    schedule.finish(tasks[2], "killed", QUIET_SECONDS + 3, is_lost=True)
    assert schedule.workers(QUIET_SECONDS + 3) == set()
