"""Workers write a tile while they solve the next: each tile has its own receipt, whatever fails."""

import threading

import pytest

from semrsm_dist.engine.protocol import Receipt
from semrsm_dist.errors import WorkerLostError
from semrsm_dist.matching.matchers.auction import Auction
from semrsm_dist.pipeline.stages.matching_worker import MatchingWorker
from semrsm_dist.plan.tiling import Tile
from semrsm_dist.store.directory import RunDirectory
from semrsm_dist.store.paths import as_run_path

TILES = tuple(Tile("z", 0, column) for column in range(5))


class ToyWorker(MatchingWorker):
    """Solves nothing; what it does is noted, and some tiles fail."""

    unsolvable = unwritable = lost = None

    def _solve(self, tiles):
        NOTES.append(("solve", tiles[0].column))
        if tiles[0] == self.lost:
            raise WorkerLostError("the GPU is gone")
        if tiles[0] == self.unsolvable:
            raise ValueError("wrong numbers")
        SOLVED[tiles[0].column].set()
        return lambda: self._write(tiles[0])

    def _write(self, tile):
        if tile.column + 1 < len(TILES) and type(self) is ToyWorker:
            assert SOLVED[tile.column + 1].wait(30)  # the next tile does not wait for this one
        if tile == self.unwritable:
            raise OSError("no")
        NOTES.append(("write", tile.column))
        return Receipt(tile)


NOTES, SOLVED = [], []


def work(kind, folder):
    """Return the receipts of five tiles, and what escapes the worker."""
    NOTES.clear()
    SOLVED[:] = [threading.Event() for _ in TILES]
    RunDirectory(as_run_path(folder)).path.mkdir(exist_ok=True)
    worker = kind(as_run_path(folder), "images", {}, Auction(), {}, 0)
    receipts = []
    try:
        receipts.extend(worker(TILES))
    except WorkerLostError as error:
        return receipts, error
    return receipts, None


def test_a_tile_is_written_while_the_next_is_solved(tmp_path):
    receipts, _ = work(ToyWorker, tmp_path)
    assert [(receipt.unit, receipt.error) for receipt in receipts] == [(tile, None) for tile in TILES]


@pytest.mark.parametrize("fault", ["unsolvable", "unwritable"])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_tile_that_fails_fails_alone(fault, place, tmp_path):
    receipts, _ = work(type("Faulty", (ToyWorker,), {fault: TILES[place]}), tmp_path)
    assert [receipt.unit for receipt in receipts] == list(TILES)
    assert [receipt.unit for receipt in receipts if receipt.error] == [TILES[place]]


@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_lost_worker_solves_nothing_more_and_what_it_had_solved_is_written(place, tmp_path):
    receipts, error = work(type("Lost", (ToyWorker,), {"lost": TILES[place]}), tmp_path)
    assert isinstance(error, WorkerLostError)
    assert [receipt.unit for receipt in receipts] == list(TILES[:place])
    assert [column for what, column in NOTES if what == "solve"] == list(range(place + 1))
    assert sorted(column for what, column in NOTES if what == "write") == list(range(place))


def test_a_session_that_is_cancelled_writes_what_is_solved(tmp_path):
    work(ToyWorker, tmp_path)  # prepares the folder
    NOTES.clear()
    SOLVED[:] = [threading.Event() for _ in TILES]
    receipts = ToyWorker(as_run_path(tmp_path), "images", {}, Auction(), {}, 0)(TILES)
    assert next(receipts).unit == TILES[0]
    for event in SOLVED:
        event.set()
    receipts.close()
    assert sorted(column for what, column in NOTES if what == "write") == [0, 1]
