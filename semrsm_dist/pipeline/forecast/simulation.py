"""A run of the matching in simulated time: the real planner and the real schedule, on workers that only take time."""

from __future__ import annotations

import heapq
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from semrsm_dist.engine.protocol import Receipt, Task
from semrsm_dist.engine.schedule import Schedule
from semrsm_dist.plan.blocks import BlockPlanner, LayerWork
from semrsm_dist.plan.estimate import TileCost
from semrsm_dist.plan.tiling import Tile


@dataclass(frozen=True)
class LayerModel:
    """What a layer costs."""

    work: LayerWork
    """Its missing tiles."""
    cost: TileCost
    """What a tile takes."""
    image_bytes: float
    """Bytes that are read for one image."""


@dataclass(frozen=True)
class Simulated:
    """What a simulated matching took."""

    workers: int
    seconds: float
    """From the first task to the last receipt."""
    busy: float
    """Share of the workers' time in which they work."""
    tasks: int
    """Tasks handed out."""
    read_bytes: float
    """Bytes of features that all workers read together."""
    reads_per_image: float
    """How often the average image of a layer is read."""
    driver_seconds: float
    """Processor time of the driver: messages, and what scheduling took here."""


_Panels = OrderedDict[tuple[str, str, int], None]
"""A worker: the panels that it holds, by layer, side and number, the last used at the end."""


class Simulation:
    """The driver, and workers each of which has one running and one waiting task.

    Events are ends of tasks, in the order of time. `message_seconds` is the driver's processor time for a task: it is
    handed out, and its receipts come back.
    """

    def __init__(
        self,
        models: Sequence[LayerModel],
        *,
        workers: int,
        task_seconds: float,
        budget: int,
        message_seconds: float,
    ) -> None:
        self.models: Mapping[str, LayerModel] = {model.work.layer: model for model in models}
        works = [model.work for model in models]
        self.planner = BlockPlanner(works, workers=workers, task_seconds=task_seconds, budget=budget)
        self.schedule = Schedule(Task(tuple(tiles), cost) for tiles, cost in self.planner)
        self.n_workers, self.budget, self.message_seconds = workers, budget, message_seconds
        self.now = self.busy = self.driver_free = self.read_bytes = self.images = 0.0
        self.tasks = self.number = 0
        self.idle = [_Panels() for _ in range(workers)]
        self.waiting: deque[Task] = deque()
        self.ends: list[tuple[float, int, _Panels, Task, float, float]] = []

    def run(self) -> Simulated:
        """Run to the end, and return what that took."""
        started = time.process_time()
        self._fill()
        while self.ends:
            self.now, _, worker, task, pairs, seconds = heapq.heappop(self.ends)
            self._finish(worker, task, pairs, seconds)
            self._fill()
        total = sum(
            model.work.layout.n_columns + (0 if model.work.layout.symmetric else model.work.layout.n_rows)
            for model in self.models.values()
        )
        return Simulated(
            workers=self.n_workers,
            seconds=self.now,
            busy=self.busy / max(self.n_workers * self.now, 1e-300),
            tasks=self.tasks,
            read_bytes=self.read_bytes,
            reads_per_image=self.images / max(total, 1),
            driver_seconds=time.process_time() - started + self.tasks * self.message_seconds,
        )

    def _fill(self) -> None:
        """Hand out tasks as the driver does, and let idle workers take those that have arrived."""
        while self.schedule.in_flight < 2 * self.n_workers and (task := self.schedule.next_task(self.now)):
            self.tasks += 1
            self.waiting.append(task)
        while self.idle and self.waiting:
            self._begin(self.idle.pop(), self.waiting.popleft())

    def _begin(self, worker: _Panels, task: Task) -> None:
        self.driver_free = max(self.driver_free, self.now) + self.message_seconds
        tiles = [unit for unit in task.units if isinstance(unit, Tile)]
        model = self.models[tiles[0].layer]
        layout = model.work.layout
        pairs = float(sum(layout.n_pairs(tile.row, tile.column) for tile in tiles))
        images = self._load(worker, tiles, model.work)
        seconds = model.cost.seconds(len(tiles), pairs, images)
        self.images += images
        self.read_bytes += images * model.image_bytes
        self.busy += seconds
        self.number += 1
        self.schedule.begin(task, "", self.now)
        heapq.heappush(self.ends, (self.driver_free + seconds, self.number, worker, task, pairs, seconds))

    def _finish(self, worker: _Panels, task: Task, pairs: float, seconds: float) -> None:
        tile = task.units[0]
        if not isinstance(tile, Tile):
            raise TypeError(f"{tile!r} is not a tile")
        self.planner.observe(tile.layer, pairs, seconds)
        self.schedule.receive(task, Receipt(tile, counts={"pairs": pairs}, also=task.units[1:]), self.now)
        self.schedule.finish(task, None, self.now)
        self.idle.append(worker)

    def _load(self, worker: _Panels, tiles: Sequence[Tile], work: LayerWork) -> int:
        """Return the images that a worker loads for a task, and note what it holds then.

        The planner's bands are no higher than memory allows, so within a task each panel is loaded once.
        """
        layout = work.layout
        row_side = "images" if layout.symmetric else "queries"
        rows = {(work.layer, row_side, row): layout.rows(row) for row in {tile.row for tile in tiles}}
        columns = {
            (work.layer, "images", column): layout.columns(column)
            for column in {tile.column for tile in tiles}
        }
        loaded = 0
        for key, part in {**columns, **rows}.items():
            loaded += 0 if key in worker else part.stop - part.start
            worker[key] = None
            worker.move_to_end(key)
        most = max(2, self.budget // max(work.panel_bytes, 1))
        while len(worker) > most:
            worker.popitem(last=False)
        return loaded
