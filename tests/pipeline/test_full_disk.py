"""A disk that is full, read-only or too small: a clear error, nothing lost, and the run goes on with more room."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import semrsm_dist as srs
from semrsm_dist.errors import StorageError
from semrsm_dist.pipeline import driver

GROUPS = ("features.zarr", "tiles.zarr", "rsm.zarr")


def mount(*arguments: object) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 64 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() != 0 or not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", path):
        pytest.skip("mounting a small file system takes root's rights")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def resize(disk: Path, size: str) -> None:
    assert mount("-o", f"remount,rw,size={size}", disk)


def document(shop, run, **sections):
    z = shop.path / "z.npy"
    if not z.exists():
        shop.features("z.npy", (128, 8, 32))
    return shop.of_features(
        run, z, matching={"matcher": "identity", "tile": 16}, output={"matrices": "stored"}, **sections
    )


def trees(shop, run):
    return {group: shop.tree(shop.path / run / group) for group in GROUPS}


@pytest.fixture(scope="module")
def whole(module_shop):
    """What a run on a disk with room has written."""
    module_shop.run(document(module_shop, "whole"))
    return trees(module_shop, "whole")


def test_a_disk_that_cannot_hold_the_run_is_noticed_before_anything_is_computed(shop, disk):
    resize(disk, "500k")
    with pytest.raises(StorageError, match="nothing was computed") as caught:
        shop.run(document(shop, "disk/run"))
    assert caught.value.exit_code == 1
    assert not (disk / "run" / "run.json").exists()
    resize(disk, "64m")
    assert shop.run(document(shop, "disk/run"))["work"]["matching"]["found"] == 0


# Sizes in KiB at which the disk fills: before the record, among the features, the tiles, the matrices, at the end.
@pytest.mark.parametrize("size", [8, 60, 120, 200, 320, 480, 700])
def test_a_disk_that_fills_on_the_way_loses_nothing(shop, whole, disk, monkeypatch, size):
    monkeypatch.setattr(driver, "require_disk", lambda *arguments: None)
    resize(disk, f"{size}k")
    with pytest.raises(StorageError) as caught:
        shop.run(document(shop, "disk/run"))
    assert caught.value.exit_code == 1
    assert "space" in str(caught.value)
    assert "room" in str(caught.value) or "free space" in str(caught.value)
    kept = shop.chunks(disk / "run")
    resize(disk, "64m")
    shop.run(document(shop, "disk/run"))
    assert kept.items() <= shop.chunks(disk / "run").items()
    assert trees(shop, "disk/run") == whole


def test_a_disk_that_has_no_room_for_the_picture_loses_only_that(shop, disk):
    config = shop.write(document(shop, "disk/run"))
    shop.run(document(shop, "disk/run"))
    used = sum(path.stat().st_blocks * 512 for path in disk.rglob("*"))
    resize(disk, f"{used // 1024 + 24}k")
    done = shop.command("run", config)
    assert done.returncode == 1
    assert "overview.png" in done.stderr
    assert "space" in done.stderr
    assert "Traceback" not in done.stderr
    resize(disk, "64m")
    assert shop.command("run", config).returncode == 0


def test_a_run_on_a_read_only_disk_can_be_read_but_not_continued(shop, disk):
    config = shop.write(document(shop, "disk/run"))
    shop.run(document(shop, "disk/run"))
    assert mount("-o", "remount,ro", disk)
    before = shop.tree(disk)
    for run in ("disk/run", "disk/new"):
        done = shop.command("run", config, "--set", f"run={shop.path / run}")
        assert done.returncode == 1
        assert "Read-only" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert shop.command("status", disk / "run").returncode == 0
    run = srs.open_run(disk / "run")
    assert run.similarity("last", "rbf").shape == run.similarity("last").shape == (128, 128)
    exported = shop.command("export", disk / "run", "--out", shop.path / "out")
    assert exported.returncode == 0, exported.stderr
    refused = shop.command("export", disk / "run")
    assert refused.returncode == 1
    assert "Read-only" in refused.stderr
    assert shop.tree(disk) == before


def test_an_export_to_a_full_disk_leaves_no_part_of_a_matrix(shop, disk):
    shop.run(document(shop, "run"))
    resize(disk, "40k")
    with shop.process("export", shop.path / "run", "--out", disk / "out") as process:
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1  # not a bus error, which a memory map would end in
    assert "space" in stderr
    assert not list((disk / "out").glob("*.npy*"))
    resize(disk, "64m")
    assert shop.command("export", shop.path / "run", "--out", disk / "out").returncode == 0
    matrix = np.load(disk / "out" / "last.semantic.cosine.npy")
    assert np.array_equal(matrix, srs.open_run(shop.path / "run").similarity("last").values)


def test_an_experiment_on_a_full_disk_says_so_and_goes_on_with_more_room(shop, disk):
    table = shop.path / "table.csv"
    table.write_text("image_id,labels\n" + "".join(f"{index},{index % 3}\n" for index in range(128)))
    run = document(shop, "run")
    config = shop.write(run | {"data": run["data"] | {"table": str(table)}})
    shop.run(run | {"data": run["data"] | {"table": str(table)}})
    (shop.path / "run" / "evaluation").symlink_to(disk)
    resize(disk, "64k")
    command = ["evaluate", "retrieval", config, "--with", "resamples=5"]
    failed = shop.command(*command)
    assert failed.returncode == 1, failed.stderr
    assert "No space left on device" in failed.stderr
    assert "Traceback" not in failed.stderr
    resize(disk, "64m")
    done = shop.command(*command)
    assert done.returncode == 0, done.stderr
    assert not [path for path in disk.rglob("*") if path.name.startswith(".vlad-")]
