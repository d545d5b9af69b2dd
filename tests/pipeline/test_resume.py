"""Stopping a run anywhere and going on: the same bytes, nothing computed twice, nothing mixed."""

from __future__ import annotations

import fcntl
import math
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import zarr
from zarr.core.attributes import Attributes

import semrsm_dist as srs
from semrsm_dist.errors import ConfigError, IncompleteError, ResumeError, StorageError, WorkError
from semrsm_dist.store.directory import RunDirectory
from tests.pipeline.conftest import GROUPS, StopAfter, quick, trees


def slow(shop, run, **sections):
    """A run of some seconds in many tiles: every pair takes the exact solver a millisecond."""
    z = shop.path / "slow.npy"
    if not z.exists():
        shop.features("slow.npy", (50, 144, 8))
    matching = {"matcher": "hungarian", "tile": 4}
    stored = {"kernels": ["cosine", "rbf"], "output": {"matrices": "stored"}}
    return shop.of_features(run, z, matching=matching, **stored, **sections)


@pytest.fixture(scope="module")
def slow_whole(module_shop):
    """What an uninterrupted slow run has on disk."""
    module_shop.run(slow(module_shop, "slow"))
    return trees(module_shop, "slow")


def moments(shop, run):
    """Places in a run at which to kill it, in the order in which it comes to them."""
    path = shop.path / run
    return [
        (path / "images.parquet").exists,
        lambda: shop.chunks(path, "features.zarr"),
        lambda: len(shop.tiles(path)) >= 3,
        lambda: len(shop.tiles(path)) >= 60,
        (path / "rsm.zarr" / "last" / "gap" / "c").exists,
    ]


def kill_at_many_moments(shop, until, run):
    """Return how often the run was killed before it came to its end."""
    chance = random.Random(20241)
    config = shop.write(slow(shop, run))
    killed = 0
    for moment in moments(shop, run):
        before = shop.chunks(shop.path / run)
        with shop.process("run", config) as process:
            if until(moment, process):
                time.sleep(chance.uniform(0, 0.1))
                process.kill()
        killed += process.returncode == -signal.SIGKILL
        after = shop.chunks(shop.path / run)
        assert before.items() <= after.items()  # finished chunks are neither lost nor written again
    return killed


@pytest.mark.timeout(280)
def test_killed_at_many_moments_and_continued_it_gives_the_same_bytes(shop, until, slow_whole):
    runs = (
        "killed",
        "killed again",
        "killed once more",
    )  # where this process is kept waiting, kills come too late
    run = next(run for run in runs if kill_at_many_moments(shop, until, run) >= 3)
    after = shop.chunks(shop.path / run)
    found = len(shop.tiles(shop.path / run))
    summary = shop.run(slow(shop, run))
    assert after.items() <= shop.chunks(shop.path / run).items()
    assert summary["work"]["matching"] == {"found": found, "computed": 91 - found}
    assert trees(shop, run) == slow_whole


@pytest.mark.timeout(280)
def test_killed_while_it_extracts_it_gives_the_same_bytes(shop, until):
    folder = shop.images(n=40)
    for index in range(40, 170):
        shutil.copy(
            folder / f"class{index % 3}" / f"{index % 39:03d}.png",
            folder / f"class{index % 3}" / f"{index}.png",
        )
    model = {"name": "test_resnet", "weights": "random", "layers": ["layer3", "layer4"], "input_size": 128}
    matching = {"matcher": "identity"}
    shop.run(shop.of_images("whole", folder, model=model, matching=matching))
    config = shop.write(shop.of_images("killed", folder, model=model, matching=matching))
    run = shop.path / "killed"

    def finished():
        names = [name.split("/features/c/") for name in shop.chunks(run, "features.zarr")]
        layers = [{chunk for group, chunk in names if group.endswith(layer)} for layer in model["layers"]]
        return set.intersection(*layers)

    for _ in range(5):
        with shop.process("run", config) as process:
            assert until(finished, process), process.stderr.read()
            process.kill()
        if len(finished()) < 6:
            break
        shutil.rmtree(run)  # killed too late to prove anything: this process was kept waiting
    kept = shop.chunks(run, "features.zarr")
    found = len(finished())
    summary = shop.run(shop.of_images("killed", folder, model=model, matching=matching))
    assert 0 < found < 6
    assert summary["work"]["extraction"] == {"found": found, "computed": 6 - found}
    assert kept.items() <= shop.chunks(run).items()
    assert trees(shop, "killed") == trees(shop, "whole")


@pytest.mark.timeout(280)
def test_killed_on_ray_it_goes_on_there_or_on_the_local_engine(shop, until, slow_whole):
    config = shop.write(slow(shop, "killed", engine="ray", workers=2))
    with shop.process("run", config) as process:
        assert until(lambda: len(shop.tiles(shop.path / "killed")) >= 5, process), process.stderr.read()
        left_behind = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    # Ray's workers notice a killed driver after some seconds; two of its agents, which do no work, after a minute.
    workers = [process for process in left_behind if not process.name().endswith("Agent")]
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "Ray's workers outlive a killed driver"
    kept = shop.chunks(shop.path / "killed")
    found = len(shop.tiles(shop.path / "killed"))
    summary = shop.run(slow(shop, "killed", engine="local"))
    assert summary["work"]["matching"] == {"found": found, "computed": 91 - found}
    assert kept.items() <= shop.chunks(shop.path / "killed").items()
    assert trees(shop, "killed") == slow_whole


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_and_goes_on(shop, until, number, slow_whole):
    config = shop.write(slow(shop, "stopped"))
    for _ in range(5):
        with shop.process("run", config) as process:
            until(lambda: len(shop.tiles(shop.path / "stopped")) >= 10, process)
            if len(shop.tiles(shop.path / "stopped")) < 60:
                process.send_signal(number)
                _, stderr = process.communicate(timeout=60)
                break
            process.kill()
        shutil.rmtree(shop.path / "stopped")  # too late for an interrupt: this process was kept waiting
    assert process.returncode == 130
    assert len(shop.tiles(shop.path / "stopped")) < 91
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    status = shop.command("status", shop.path / "stopped")
    assert status.returncode == 3
    kept = shop.chunks(shop.path / "stopped")
    found = len(shop.tiles(shop.path / "stopped"))
    assert 10 <= found < 91
    done = shop.command("run", config)
    assert done.returncode == 0, done.stderr
    assert f"matching: {91 - found} tiles computed, {found} already there" in done.stdout
    assert kept.items() <= shop.chunks(shop.path / "stopped").items()
    assert trees(shop, "stopped") == slow_whole


@pytest.mark.parametrize("seed", range(3))
def test_stopped_in_any_stage_it_gives_the_same_bytes(shop, seed, quick_whole):
    chance = random.Random(seed)
    document = quick(shop, "stopped")
    for _ in range(4):
        stage, amount = chance.choice([("import", 28), ("matching", 300), ("assembly", 1)])
        before = shop.chunks(shop.path / "stopped")
        shop.interrupt(document, stage, chance.randint(1, amount))
        assert before.items() <= shop.chunks(shop.path / "stopped").items()
    shop.run(document)
    assert trees(shop, "stopped") == quick_whole


@pytest.mark.parametrize("call", range(1, 10))
def test_killed_between_the_last_writes_it_gives_the_same_bytes(shop, monkeypatch, call, quick_whole):
    """The descriptions of groups are written with `put` and `consolidate_metadata`: before each it may end."""
    countdown = iter(range(call - 1, -1, -1))

    def dying(write):
        def write_or_die(*arguments, **options):
            if next(countdown) == 0:
                raise KeyboardInterrupt
            return write(*arguments, **options)

        return write_or_die

    with monkeypatch.context() as patch:
        patch.setattr(zarr, "consolidate_metadata", dying(zarr.consolidate_metadata))
        patch.setattr(Attributes, "put", dying(Attributes.put))
        with pytest.raises(KeyboardInterrupt):
            shop.run(quick(shop, "run"))
    shop.run(quick(shop, "run"))
    assert trees(shop, "run") == quick_whole


def test_what_is_finished_is_found_and_what_is_missing_computed(shop):
    document = quick(shop, "run")
    assert shop.interrupt(document, "matching", 100)
    found = len(shop.tiles(shop.path / "run"))
    assert 0 < found < 20
    kept = shop.chunks(shop.path / "run")
    summary = shop.run(document)
    assert summary["work"]["matching"] == {"found": found, "computed": 20 - found}
    assert kept.items() <= shop.chunks(shop.path / "run").items()
    assert sum(layer["pairs"] for layer in summary["layers"].values()) == 2 * 28 * 27 // 2


# In a process of its own, as only a new one tells what a command loads.
COMMAND_WITHOUT_A_NETWORK = """
import sys
from semrsm_dist.cli.commands import main
status = main(sys.argv[1:])
slow = {"torch", "timm", "torchvision", "ray"} & sys.modules.keys()
sys.exit(f"loaded {slow}" if slow else status)
"""


def test_a_finished_run_computes_nothing_and_says_so(shop):
    document = shop.of_images("run", shop.images())
    document["queries"] = {"source": "folder", "path": str(shop.images("asked", 3))}
    config = shop.write(document)
    shop.run(document)
    before = shop.chunks(shop.path / "run", *GROUPS)
    command = [sys.executable, "-c", COMMAND_WITHOUT_A_NETWORK, "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing was computed" in done.stdout
    assert shop.chunks(shop.path / "run", *GROUPS) == before
    work = srs.open_run(shop.path / "run").summary()["work"]
    assert {stage: count["computed"] for stage, count in work.items()} == {"extraction": 0, "matching": 0}
    assert all(count["found"] > 0 for count in work.values())


@pytest.mark.parametrize("stage", ["matching", "assembly"])
def test_damaged_tiles_of_an_unfinished_run_are_noticed_and_computed_again(shop, stage, quick_whole):
    document = quick(shop, "run")
    assert shop.interrupt(document, stage, 1 if stage == "assembly" else 250)
    flipped, cut, emptied, *intact = shop.tiles(shop.path / "run")
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 4
    flipped.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:-9])
    emptied.write_bytes(b"")
    found = len(intact)
    before = {path: path.stat().st_mtime_ns for path in intact}
    summary = shop.run(document)
    assert summary["work"]["matching"] == {"found": found, "computed": 20 - found}
    assert any("3 damaged" in warning or "damaged tiles" in warning for warning in summary["warnings"])
    assert {path: path.stat().st_mtime_ns for path in intact} == before
    assert trees(shop, "run") == quick_whole


def test_tiles_that_fail_are_set_aside_and_all_others_finished(shop):
    layers = {"a": shop.features("a.npy", (70, 6, 4)), "b": shop.features("b.npy", (70, 4, 3), seed=1)}
    document = shop.of_features("run", layers, matching={"tile": 10})
    chunk = shop.path / "run" / "features.zarr" / "images" / "a" / "features" / "c" / "0" / "0" / "0"

    def damage():
        content = bytearray(chunk.read_bytes())
        content[len(content) // 2] ^= 4
        chunk.write_bytes(content)  # the features of images 0 to 31

    with pytest.raises(WorkError, match="failed and were set aside: 22;") as caught:
        shop.run(document, before=("matching", damage))
    assert caught.value.exit_code == 1
    assert "a/0.0" in str(caught.value)
    assert str(chunk.parents[3]) in str(caught.value)
    solved = {
        path.relative_to(shop.path / "run" / "tiles.zarr").as_posix()
        for path in shop.tiles(shop.path / "run")
    }
    assert solved == {
        f"{layer}/tiles/c/0/{row}/{column}"
        for layer in "ab"
        for row in range(7)
        for column in range(row, 7)
        if layer == "b" or row > 3
    }
    run = srs.open_run(shop.path / "run")
    assert run.similarity("b").shape == (70, 70)  # the other layer is whole
    with pytest.raises(IncompleteError):
        run.similarity("a")
    status = shop.command("status", shop.path / "run")
    assert status.returncode == 3
    assert "a: features 3/3 chunks, 6/28 tiles" in status.stdout
    assert status.stdout.count("failed: matching a/") == 22
    kept = shop.chunks(shop.path / "run", "tiles.zarr")
    summary = shop.run(document)
    assert any("damaged features" in warning for warning in summary["warnings"])
    assert summary["work"]["import"] == {"found": 5, "computed": 1}
    assert summary["work"]["matching"] == {"found": 34, "computed": 22}
    assert kept.items() <= shop.chunks(shop.path / "run").items()
    shop.run(shop.of_features("whole", layers, matching={"tile": 10}))
    assert trees(shop, "run") == trees(shop, "whole")


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"fingerprint": {}'])
def test_a_damaged_record_stops_readers_and_is_made_anew(shop, content, quick_whole):
    document = quick(shop, "run")
    shop.run(document)
    for name in ("run.json", "run.copy.json"):
        (shop.path / "run" / name).write_text(content)
    with pytest.raises(StorageError, match=r"run\.json.* start the run's command"):
        srs.open_run(shop.path / "run")
    assert shop.run(document)["work"]["matching"]["computed"] == 0
    assert trees(shop, "run") == quick_whole


@pytest.mark.parametrize("name", ["run.json", "run.copy.json"])
@pytest.mark.parametrize("damage", ["deleted", "cut short"])
def test_an_unfinished_run_goes_on_without_either_record(shop, name, damage, quick_whole):
    document = quick(shop, "run")
    assert shop.interrupt(document, "matching", 100)
    found = len(shop.tiles(shop.path / "run"))
    path = shop.path / "run" / name
    content = path.read_text()
    path.unlink() if damage == "deleted" else path.write_text(content[: len(content) // 2])
    assert shop.run(document)["work"]["matching"] == {"found": found, "computed": 20 - found}
    assert trees(shop, "run") == quick_whole
    assert path.read_text() == (shop.path / "run" / "run.json").read_text()


@pytest.mark.parametrize("leftover", ["run.json.tmp4711", "images.parquet.tmp4711", "events.jsonl", "lock"])
def test_what_a_kill_leaves_before_the_record_does_not_block_the_run(shop, leftover):
    (shop.path / "run").mkdir()
    (shop.path / "run" / leftover).write_text("{")
    assert shop.run(quick(shop, "run"))["work"]["matching"]["found"] == 0


@pytest.mark.timeout(120)
def test_a_second_driver_is_refused_and_the_first_not_disturbed(shop, until, slow_whole):
    config = shop.write(slow(shop, "run"))
    with shop.process("run", config) as first:
        assert until(lambda: shop.tiles(shop.path / "run"), first)
        with pytest.raises(ResumeError, match=f"process {first.pid} "):
            shop.run(slow(shop, "run"))
        assert first.poll() is None, "too quick to prove anything"
        _, stderr = first.communicate(timeout=100)
        assert first.returncode == 0, stderr
    assert trees(shop, "run") == slow_whole
    with RunDirectory(shop.path / "run").locked():
        second = shop.command("run", config)
    assert second.returncode == 2
    assert "another driver" in second.stderr
    assert second.stdout == ""


def test_looking_at_the_status_does_not_keep_a_driver_out(shop):
    document = quick(shop, "run")
    shop.run(document)
    with (shop.path / "run" / "lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_SH)
        threading.Timer(0.2, fcntl.flock, (handle, fcntl.LOCK_UN)).start()
        shop.run(document)


def test_another_tile_is_refused_as_the_tiles_are_cut(shop):
    shop.run(quick(shop, "run"))
    with pytest.raises(ConfigError, match=r"matching\.tile.*tiles of 7"):
        shop.run(quick(shop, "run", matching={"tile": 5}))


def remove_in_the_middle(shop, document, remove):
    """Run, and remove something once 100 pairs are matched."""

    class Remove(StopAfter):
        def advance(self, amount, effort=None):
            super().advance(amount, effort)
            if self._stop.is_set():
                self._stop.clear()
                self._left = math.inf
                remove()

    srs.run(document, reporter=Remove("matching", 100, threading.Event()))


def test_a_run_directory_that_is_removed_stops_the_run_and_blocks_no_other(shop, slow_whole):
    document = slow(shop, "run")
    run = shop.path / "run"
    with pytest.raises(StorageError, match=r"run directory was removed|does not see the run directory"):
        remove_in_the_middle(shop, document, lambda: shutil.rmtree(run, ignore_errors=True))
    assert not (run / "run.json").exists()
    (run / "tiles.zarr" / "last" / "c" / "0" / "0").mkdir(parents=True, exist_ok=True)
    (run / "tiles.zarr" / "last" / "c" / "0" / "0" / "0").write_bytes(b"of a worker that was slow to end")
    assert shop.run(document)["work"]["matching"]["found"] == 0
    assert trees(shop, "run") == slow_whole


def test_a_driver_whose_lock_is_removed_makes_room_for_another(shop, slow_whole):
    document = slow(shop, "run")
    with pytest.raises(StorageError, match=r"the lock was removed .* what is finished is kept"):
        remove_in_the_middle(shop, document, (shop.path / "run" / "lock").unlink)
    found = len(shop.tiles(shop.path / "run"))
    assert 0 < found < 91
    assert shop.run(document)["work"]["matching"] == {"found": found, "computed": 91 - found}
    assert trees(shop, "run") == slow_whole
